"""The arguments of transformers' generate(): their names and types, and what becomes of each. Knows no torch.

Source: transformers.GenerationConfig 5.23; a test compares the names with the installed version's.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from difflib import get_close_matches
from typing import Annotated, Any, Literal

import msgspec
from msgspec import Meta

from llmgallery.core.errors import InvalidField, UnsupportedField
from llmgallery.core.sampling import DEFAULTS, Sampling

Token = Annotated[int, Meta(ge=0)]
Tokens = list[Token]
Words = Annotated[list[Annotated[Tokens, Meta(min_length=1)]], Meta(min_length=1)]
Bias = tuple[Annotated[Tokens, Meta(min_length=1)], float]
Count = Annotated[int, Meta(ge=0, le=2**31 - 1)]
Some = Annotated[int, Meta(ge=1, le=2**31 - 1)]
Ngram = Annotated[int, Meta(ge=0, le=1024)]  # transformers makes a list of so many copies of the prompt
Share = Annotated[float, Meta(ge=0, le=1)]
Positive = Annotated[float, Meta(gt=0)]

MOST_BEAMS = 32
"""Every beam has a KV cache of its own, beside those that memory was planned for."""

ARGUMENTS: Mapping[str, Any] = {
    "max_length": Some,
    "max_new_tokens": Some,
    "min_length": Count,
    "min_new_tokens": Count,
    "early_stopping": bool | Literal["never"],
    "max_time": Positive,
    "stop_strings": str | list[str],
    "do_sample": bool,
    "num_beams": Annotated[int, Meta(ge=1, le=MOST_BEAMS)],
    "use_mtp": bool,
    "use_cache": bool,
    "cache_implementation": str,
    "cache_config": dict[str, Any],
    "max_cache_len": Some,
    "temperature": Annotated[float, Meta(ge=0, le=100)],
    "top_k": Count,
    "top_p": Share,
    "min_p": Share,
    "top_h": Annotated[float, Meta(gt=0, le=1)],
    "typical_p": Annotated[float, Meta(gt=0, le=1)],
    "epsilon_cutoff": Annotated[float, Meta(ge=0, lt=1)],
    "eta_cutoff": Annotated[float, Meta(ge=0, lt=1)],
    "repetition_penalty": Positive,
    "encoder_repetition_penalty": Positive,
    "length_penalty": float,
    "no_repeat_ngram_size": Ngram,
    "bad_words_ids": Words,
    "renormalize_logits": bool,
    "forced_bos_token_id": Token,
    "forced_eos_token_id": Token | Tokens,
    "remove_invalid_values": bool,
    "exponential_decay_length_penalty": tuple[Count, Positive],
    "suppress_tokens": Tokens,
    "begin_suppress_tokens": Tokens,
    "sequence_bias": Annotated[list[Bias], Meta(min_length=1)],
    "token_healing": bool,
    "guidance_scale": Positive,
    "watermarking_config": dict[str, Any],
    "num_return_sequences": Some,
    "output_attentions": bool,
    "output_hidden_states": bool,
    "output_scores": bool,
    "output_logits": bool,
    "return_dict_in_generate": bool,
    "pad_token_id": Token,
    "bos_token_id": Token,
    "eos_token_id": Token | Tokens,
    "encoder_no_repeat_ngram_size": Ngram,
    "decoder_start_token_id": Token | Tokens,
    "is_assistant": bool,
    "num_assistant_tokens": Some,
    "num_assistant_tokens_schedule": Literal["constant", "heuristic", "heuristic_transient"],
    "assistant_confidence_threshold": Share,
    "prompt_lookup_num_tokens": Annotated[int, Meta(ge=1, le=1024)],
    "max_matching_ngram_size": Some,
    "assistant_early_exit": Annotated[int, Meta(ge=1, le=256)],  # transformers makes a cache of so many layers
    "assistant_lookbehind": Some,
    "target_lookbehind": Some,
    "assistant_ensemble_weight": float,
    "speculation_type": str,
    "compile_config": dict[str, Any],
    "disable_compile": bool,
    "continuous_batching_config": dict[str, Any],
    "low_memory": bool,
    "penalty_alpha": float,
    "dola_layers": str | list[int],
    "diversity_penalty": float,
    "num_beam_groups": Some,
    "constraints": list[Any],
    "force_words_ids": list[Any],
    "prefill_chunk_size": Some,
}
"""Every argument, with the type of its JSON."""

ALIASES = {"temp": "temperature", "max_tokens": "max_new_tokens"}
"""llm-api's spellings of models that are not transformers' own."""

_GONE = "transformers 5 has it no longer: what it did is code on the Hub, and servers run none from there"
_ASSISTANT = "there is no assistant model"
_TOLD = "answers carry no tensors: logprobs are what is told"

REFUSED: Mapping[str, tuple[Any, str]] = {
    "penalty_alpha": (0, _GONE),
    "dola_layers": (None, _GONE),
    "num_beam_groups": (1, _GONE),
    "diversity_penalty": (0, _GONE),
    "constraints": (None, _GONE),
    "force_words_ids": (None, _GONE),
    "num_return_sequences": (1, "ask for several answers with n"),
    "output_attentions": (False, _TOLD),
    "output_hidden_states": (False, _TOLD),
    "output_scores": (False, _TOLD),
    "output_logits": (False, _TOLD),
    "return_dict_in_generate": (False, _TOLD),
    "is_assistant": (False, _ASSISTANT),
    "assistant_ensemble_weight": (None, _ASSISTANT),
    "speculation_type": (None, _ASSISTANT),
    "token_healing": (False, "it would change the end of the prompt, which has been counted and told already"),
    "compile_config": (None, "an object of transformers' own cannot be sent"),
    "continuous_batching_config": (None, "it is the YAML that decides: options: {continuous_batching: ...}"),
}
"""What no request can have: the value that does no harm, and why others cannot be."""

_CACHES = ("dynamic", "offloaded", "quantized")
_CORE = ("temperature", "top_k", "top_p", "min_p", "typical_p")
_NEUTRAL: Mapping[str, Any] = {
    "min_length": 0,
    "min_new_tokens": 0,
    "num_beams": 1,
    "use_mtp": False,
    "use_cache": True,
    "cache_implementation": "dynamic",
    "top_h": 1.0,
    "epsilon_cutoff": 0.0,
    "eta_cutoff": 0.0,
    "encoder_repetition_penalty": 1.0,
    "no_repeat_ngram_size": 0,
    "encoder_no_repeat_ngram_size": 0,
    "guidance_scale": 1.0,
    "renormalize_logits": False,
    "remove_invalid_values": False,
}
_OF_BEAMS = frozenset({"early_stopping", "length_penalty"})
_OF_GUESSES = frozenset({
    "num_assistant_tokens", "num_assistant_tokens_schedule", "assistant_confidence_threshold", "max_matching_ngram_size",
    "assistant_lookbehind", "target_lookbehind",
})  # fmt: skip
_IDLE = frozenset({"low_memory", "max_cache_len", "disable_compile", "bos_token_id", "pad_token_id"})
"""Nothing depends on them here: caches are not static, prompts come as tokens, and padding is masked."""

THEIRS = frozenset({
    "num_beams", "prompt_lookup_num_tokens", "assistant_early_exit", "use_mtp", "watermarking_config", "top_h", "epsilon_cutoff",
    "eta_cutoff",
})  # fmt: skip
"""With them transformers chooses the tokens, not our sampler."""

_OURS_ALONE = (
    "presence_penalty", "frequency_penalty", "mirostat", "dry_multiplier", "xtc_probability", "top_n_sigma", "dynatemp_range",
)  # fmt: skip


@dataclass(frozen=True)
class Divided:
    """A job's wishes, parted: `sampling` for our sampler, `arguments` for generate(). `theirs`: the argument because of which
    transformers chooses the tokens; "" = our sampler does."""

    sampling: Sampling
    arguments: Mapping[str, Any]
    theirs: str = ""

    @property
    def is_plain(self) -> bool:
        """Nothing of it needs generate()."""
        return not self.arguments


def check(arguments: Mapping[str, Any], *, vocab_size: int = 0) -> dict[str, Any]:
    """The arguments under their own names, converted; null is as good as none, and so are values that mean nothing here.

    `vocab_size`: token ids must be below it; 0 = not known. Raises InvalidField, for what is no argument or of another type,
    and UnsupportedField, for what no server can do; the field is the argument's name.
    """
    checked: dict[str, Any] = {}
    for given, value in arguments.items():
        name = ALIASES.get(given, given)
        if name not in ARGUMENTS:
            raise _unknown(given)
        if value is None:
            continue
        checked[name] = _converted(name, given, value)
        _refuse(name, checked[name])
    for name, value in checked.items():
        _check_tokens(name, value, vocab_size)
    if checked.get("assistant_early_exit") and checked.get("num_beams", 1) > 1:
        raise InvalidField(
            "assistant_early_exit: num_beams takes no guesses: leave one of them out", field="assistant_early_exit"
        )
    return {name: value for name, value in checked.items() if name not in REFUSED}


def divide(
    sampling: Sampling, generate: Mapping[str, Any], prompt_tokens: int, *, asks_more: str = "", vocab_size: int = 0
) -> Divided:
    """What of a job our sampler does, and what generate() must be told. An argument of the request counts more than its
    sampling fields; one of `generate`, the YAML's, less.

    `asks_more`: what else the job asks for that only our sampler can do (logprobs, response_format). Raises as `check` does.
    """
    own = check(generate, vocab_size=vocab_size)
    asked = check(sampling.extra, vocab_size=vocab_size)
    if "max_new_tokens" in asked or "max_length" in asked:
        own.pop("max_new_tokens", None)
        own.pop("max_length", None)
    arguments = {**own, **asked}
    for name in _IDLE:
        arguments.pop(name, None)
    beams = arguments.get("num_beams", 1) > 1
    core = _core_fields(sampling, own, asked, arguments, prompt_tokens, beams)
    _lengthen(arguments, prompt_tokens)
    rest = {
        name: value
        for name, value in arguments.items()
        if _NEUTRAL.get(name) != value
        and (beams or name not in _OF_BEAMS)
        and ("prompt_lookup_num_tokens" in arguments or "assistant_early_exit" in arguments or name not in _OF_GUESSES)
    }
    theirs = next((name for name in sorted(THEIRS) if name in rest), "")
    settled = msgspec.structs.replace(sampling, **core, extra={})
    if theirs:
        _check_theirs(theirs, settled, asks_more)
    return Divided(settled, rest, theirs)


def _unknown(name: str) -> InvalidField:
    near = tuple(get_close_matches(name, [*ARGUMENTS, *ALIASES], n=3))
    meant = f": did you mean {near[0]}?" if near else ""
    return InvalidField(f"{name[:80]} is no argument of transformers' generate(){meant}", field=name[:80], hints=near)


def _converted(name: str, given: str, value: Any) -> Any:
    if name == "sequence_bias" and isinstance(value, dict):
        raise InvalidField(f"{given}: expected a list of [[token ids], bias]: JSON has no lists as keys", field=given)
    try:
        told = msgspec.convert(value, ARGUMENTS[name])
        return [list(pair) for pair in told] if name == "sequence_bias" else told  # generate() takes lists only
    except msgspec.ValidationError as exc:
        raise InvalidField(f"{given}: {str(exc)[:1].lower()}{str(exc)[1:]}", field=given) from exc


def _refuse(name: str, value: Any) -> None:
    harmless, why = REFUSED.get(name, (value, ""))
    if value != harmless:
        raise UnsupportedField(f"{name}: {why}", field=name)
    if name == "cache_implementation" and value not in _CACHES:
        reason = "static caches are one for all requests of a model" if "static" in value else "there is no such cache"
        raise UnsupportedField(f"{name}: {reason}; the caches are {', '.join(_CACHES)}", field=name)


def _check_tokens(name: str, value: Any, vocab_size: int) -> None:
    """Ids beyond the vocabulary would end the process on a GPU."""
    if not vocab_size or not (name.endswith(("_ids", "token_id", "_tokens")) or name == "sequence_bias"):
        return
    if name in ("max_new_tokens", "min_new_tokens", "num_assistant_tokens", "prompt_lookup_num_tokens"):
        return
    if (strange := next((token for token in _numbers(name, value) if token >= vocab_size), None)) is not None:
        raise InvalidField(f"{name}: token {strange} is not in the vocabulary of {vocab_size} tokens", field=name)


def _numbers(name: str, value: Any) -> list[int]:
    if isinstance(value, int):
        return [value]
    if name == "sequence_bias":
        return [token for tokens, _ in value for token in tokens]
    return [token for each in value for token in (each if isinstance(each, list) else [each])]


def _core_fields(
    sampling: Sampling,
    own: Mapping[str, Any],
    asked: Mapping[str, Any],
    arguments: dict[str, Any],
    prompt_tokens: int,
    beams: bool,
) -> dict[str, Any]:
    """The fields that arguments stand for; those arguments are taken out."""
    core: dict[str, Any] = {}

    def settle(field: str, name: str, value: Any) -> None:
        if name in asked or getattr(sampling, field) is None:
            core[field] = value

    for name in _CORE:
        if name in arguments:
            settle(name, name, arguments.pop(name))
    penalty = arguments.pop("repetition_penalty", None)
    if penalty is not None and ("repetition_penalty" in asked or sampling.repeat_penalty is None):
        core |= {"repeat_penalty": penalty, "repeat_last_n": -1}
    longest, newest = arguments.pop("max_length", None), arguments.pop("max_new_tokens", None)
    if newest is not None:
        settle("max_tokens", "max_new_tokens", newest)
    elif longest is not None:
        if longest <= prompt_tokens and "max_length" in asked:
            raise InvalidField(
                f"max_length: {longest} tokens are to hold a prompt of {prompt_tokens} and an answer; max_new_tokens counts the "
                "answer alone",
                field="max_length",
            )
        settle("max_tokens", "max_length", max(1, longest - prompt_tokens))
    do_sample = arguments.pop("do_sample", False if beams else None)
    heat = core.get("temperature", sampling.temperature)
    if do_sample is False:
        core["temperature"] = 0.0
    elif do_sample is True and heat is not None and heat <= 0:
        core["temperature"] = 1.0
    return core


def _lengthen(arguments: dict[str, Any], prompt_tokens: int) -> None:
    """min_length counts the prompt; min_new_tokens counts more, as in generate()."""
    shortest = arguments.pop("min_length", 0)
    if shortest > prompt_tokens and "min_new_tokens" not in arguments:
        arguments["min_new_tokens"] = shortest - prompt_tokens


def _check_theirs(name: str, sampling: Sampling, asks_more: str) -> None:
    if asks_more:
        raise UnsupportedField(f"{name}: not together with {asks_more}", field=name)
    for field in _OURS_ALONE:
        value = getattr(sampling, field)
        if value is not None and value != getattr(DEFAULTS, field):
            raise UnsupportedField(f"{name}: not together with {field}, which transformers does not have", field=name)
