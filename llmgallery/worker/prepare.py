"""From a request to a job: render, tokenise, check that it fits. Everything that can refuse a request is here."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

import msgspec

from llmgallery.backends.base import Backend, HasParameters, Job, Loaded
from llmgallery.chat.prompt import Rendered, render_chat, render_completion
from llmgallery.config.model import ModelConfig
from llmgallery.core.errors import ContextExceeded, InvalidField, TemplateError, UnsupportedField
from llmgallery.core.requests import ChatRequest, CompletionRequest, Request
from llmgallery.worker.images import image_files, seen, tokens_with_images

LONGEST_TOKEN = 512
"""Characters; the longest that known vocabularies have are runs of 128 or 256 spaces."""


MOST_LOGPROBS = 1_000_000
"""Log probabilities in one piece: those of an echoed prompt come at once, and must fit into a frame."""


@dataclass(frozen=True)
class Prepared:
    """A job that fits, the strings that end it, and text that comes before its answer (echo).
    `echoed`: which of the prompt's tokens that text shows. `warnings`: what of the request is ignored. `config`: the keys that
    cut answers and tell calls apart; `tools`: names of the functions that may be called."""

    job: Job
    stops: tuple[str, ...] = ()
    preamble: str = ""
    echoed: slice = field(default_factory=lambda: slice(None))
    warnings: tuple[str, ...] = ()
    config: ModelConfig = field(default_factory=ModelConfig)
    tools: tuple[str, ...] = ()
    parallel_tool_calls: bool = True


class _Prompt(NamedTuple):
    """The tokens of a completion's prompt; those of `own` are the request's, the others mark where its text is filled in.
    `text`: what an echo of it shows, None = what the tokens say; `stops`: what ends the answer;
    `origin`: where the template is from that wrote it, if one did."""

    tokens: list[int]
    own: slice = slice(None)
    warnings: tuple[str, ...] = ()
    text: str | None = None
    stops: tuple[str, ...] = ()
    origin: str = ""


def prepare(id: int, request: Request, config: ModelConfig, backend: Backend, loaded: Loaded) -> Prepared:
    """Raises InvalidField, UnsupportedField, TemplateError, ContextExceeded."""
    check_bias(request.sampling.logit_bias or {}, config, loaded.vocab_size)
    sampling = request.sampling
    if sampling.max_tokens is not None and sampling.max_tokens < 0:
        sampling = msgspec.structs.replace(sampling, max_tokens=None)
    if isinstance(request, ChatRequest):
        request, unseen = seen(request, config, backend, loaded)
        rendered, tokens = chat_tokens(request, config, backend, loaded)
        check_fits(len(tokens), loaded.context_size, "messages")
        stops = tuple(dict.fromkeys((*request.stop, *rendered.stops)))
        preamble = "" if request.continue_final else config.template.reply_prefix or ""
        return Prepared(
            _checked(Job(id, tokens, sampling, request.logprobs, images=image_files(request)), backend),
            stops,
            preamble,
            warnings=(*unseen, *rendered.warnings),
            config=config,
            tools=tuple(tool.name for tool in request.tools) if request.tool_choice != "none" else (),
            parallel_tool_calls=request.parallel_tool_calls,
        )
    prompt = completion_prompt(request, config, backend, loaded)
    check_fits(len(prompt.tokens), loaded.context_size, _field(request), answer=sampling.max_tokens != 0)
    scored = request.echo and request.logprobs is not None
    if scored:
        check_scores(len(prompt.tokens), request.logprobs or 0)
    job = _checked(Job(id, prompt.tokens, sampling, request.logprobs, scored), backend)
    echoed = (backend.detokenize(prompt.tokens) if prompt.text is None else prompt.text) if request.echo else ""
    preamble = echoed + (config.template.reply_prefix or "")
    return Prepared(job, prompt.stops, preamble, prompt.own, prompt.warnings, config)


def _checked(job: Job, backend: Backend) -> Job:
    """Raises InvalidField, UnsupportedField for parameters that are the backend's own."""
    if isinstance(backend, HasParameters):
        backend.check(job)
    return job


def chat_tokens(request: ChatRequest, config: ModelConfig, backend: Backend, loaded: Loaded) -> tuple[Rendered, list[int]]:
    """The prompt of a chat, with the stop strings that its template brings, and its tokens; for a model that sees, those of its
    images too."""
    rendered = chat_prompt(request, config, loaded)
    bos = loaded.add_bos and not rendered.bos_in_text
    if "images" in loaded.capabilities and any(message.images for message in request.messages):
        tokens = tokens_with_images(rendered.prompt, request, backend, bos=bos)
    else:
        tokens = backend.tokenize(rendered.prompt, special=True, bos=bos)
    if not tokens:
        raise InvalidField("the chat template made an empty prompt of these messages", field="messages")
    return rendered, tokens


def chat_prompt(request: ChatRequest, config: ModelConfig, loaded: Loaded) -> Rendered:
    """The same without its tokens."""
    rendered = _rendered(request, config, loaded)
    check_length(rendered.prompt, loaded.context_size, "messages")
    return rendered


def _rendered(request: ChatRequest, config: ModelConfig, loaded: Loaded) -> Rendered:
    """A template that gives up on more messages than the context has tokens is not what is wrong."""
    try:
        return render_chat(request, config, loaded)
    except TemplateError as exc:
        count = len(request.messages)
        if count < loaded.context_size:
            raise
        raise ContextExceeded(
            f"the chat has {count} messages, too many for a context of {loaded.context_size} tokens: send fewer messages",
            field="messages",
        ) from exc


def completion_prompt(request: CompletionRequest, config: ModelConfig, backend: Backend, loaded: Loaded) -> _Prompt:
    """The prompt of a completion or an edit, as the model's templates write it, if they do; token ids are taken as they are,
    once they are known to the vocabulary."""
    text, stops = request.prompt, tuple(dict.fromkeys(request.stop))
    if not isinstance(text, str):
        check_tokens(text, loaded.vocab_size, "prompt")
    if request.suffix and loaded.fim is not None:
        return _filled_in(request, backend, loaded, loaded.fim)._replace(stops=stops)
    warnings = _ignored_suffix(config) if request.suffix else ()
    bos, origin = loaded.add_bos, ""
    if (rendered := render_completion(request, config, loaded)) is not None:
        origin = rendered.origin
        text, stops, warnings = rendered.prompt, rendered.stops, (*warnings, *rendered.warnings)
        bos = bos and not rendered.bos_in_text
    tokens = _tokens(text, _field(request), backend, loaded, special=True, bos=bos)
    if not tokens:
        raise InvalidField("the prompt is empty", field=_field(request))
    return _Prompt(tokens, warnings=warnings, text=text if isinstance(text, str) else None, stops=stops, origin=origin)


def _field(request: CompletionRequest) -> str:
    """Where the text of a completion, or of an edit, came from."""
    return "prompt" if request.instruction is None else "input"


def _ignored_suffix(config: ModelConfig) -> tuple[str, ...]:
    """The warning that the client is owed of a model that cannot fill in text. Raises UnsupportedField by `on_unsupported`."""
    why = "this model cannot fill in text: its vocabulary has no tokens for that"
    if config.on_unsupported.demands == "error":
        raise UnsupportedField(
            f"suffix: {why}; leave it out, or set `on_unsupported: {{demands: warn}}` in the model's YAML to have it ignored",
            field="suffix",
        )
    return (f"suffix was ignored: {why}",) if config.on_unsupported.demands == "warn" else ()


def _filled_in(request: CompletionRequest, backend: Backend, loaded: Loaded, marks: tuple[int, int, int]) -> _Prompt:
    """BOS, prefix mark, prompt, suffix mark, suffix, middle mark: the order of llama-server's /infill. Texts are taken as text:
    nothing in them is a control token."""
    before, after, middle = marks
    bos = backend.tokenize("", special=False, bos=True) if loaded.add_bos else []
    own = _tokens(request.prompt, "prompt", backend, loaded, special=False, bos=False)
    if bos and own[: len(bos)] == bos:
        own = own[len(bos) :]
    rest = _tokens(request.suffix or "", "suffix", backend, loaded, special=False, bos=False)
    head = [*bos, before]
    text = request.prompt if isinstance(request.prompt, str) else backend.detokenize(request.prompt)
    return _Prompt([*head, *own, after, *rest, middle], slice(len(head), len(head) + len(own)), text=text)


def _tokens(text: str | tuple[int, ...], field: str, backend: Backend, loaded: Loaded, *, special: bool, bos: bool) -> list[int]:
    if not isinstance(text, str):
        return list(text)
    check_length(text, loaded.context_size, field)
    return backend.tokenize(text, special=special, bos=bos)


def check_tokens(tokens: Sequence[int], vocab_size: int, field: str) -> None:
    """Token ids that came in `field` must be in the vocabulary: engines trust them."""
    if strange := [token for token in tokens if not 0 <= token < vocab_size]:
        raise InvalidField(f"token {strange[0]} is not in the vocabulary of {vocab_size} tokens", field=field)


def check_bias(biases: Mapping[int, float], config: ModelConfig, vocab_size: int) -> None:
    """Every token must be in the vocabulary, where its size is known. The YAML's own are not the request's fault."""
    own = config.parameters.logit_bias or {}
    strange = [token for token in biases if token >= vocab_size > 0 and str(token) not in own]
    if strange:
        message = f"logit_bias: token {strange[0]} is not in the vocabulary of {vocab_size} tokens"
        raise InvalidField(message, field="logit_bias")


def check_length(prompt: str, context_size: int, field: str) -> None:
    """Refuses, before time is spent on tokens, what no vocabulary could make fit; check_fits judges the rest."""
    if len(prompt) > context_size * LONGEST_TOKEN:
        raise ContextExceeded(
            f"the prompt has {len(prompt)} characters, far too many for a context of {context_size} tokens: "
            f"shorten the {field}, or raise context_size in the model's YAML",
            field=field,
        )


def check_fits(prompt_tokens: int, context_size: int, field: str, *, answer: bool = True) -> None:
    """A prompt, which came in `field`, must leave room for one token at least when there is to be an answer. An answer that
    meets the end of the context ends with "length"."""
    if prompt_tokens + answer > context_size:
        raise ContextExceeded(
            f"the prompt has {prompt_tokens} tokens, but the context holds {context_size}{' with the answer' if answer else ''}: "
            f"shorten the {field}, or raise context_size in the model's YAML",
            field=field,
        )


def check_scores(prompt_tokens: int, top: int) -> None:
    """A prompt's log probabilities must be few enough to be sent."""
    if prompt_tokens * (top + 1) > MOST_LOGPROBS:
        most = MOST_LOGPROBS // prompt_tokens - 1
        advice = f"ask for logprobs of {most} at most" if most >= 0 else "shorten the prompt"
        raise InvalidField(
            f"logprobs: {top} for each of {prompt_tokens} echoed tokens are more than fit into an answer; {advice}",
            field="logprobs",
        )
