"""From OpenAI's wire to core. Pure functions."""

from __future__ import annotations

import re
from typing import Any

from llmgallery.api.dialects.openai import elsewhere, offered, schema
from llmgallery.core.errors import InvalidField
from llmgallery.core.messages import Message, Part, RawPart, RefusalPart, TextPart, Tool, ToolCall
from llmgallery.core.requests import ChatRequest, CompletionRequest
from llmgallery.core.sampling import MOST_BREAKERS, Sampling, sampler_order
from llmgallery.service.demands import IMAGES, PROMPT_LOGPROBS, Wish
from llmgallery.service.gallery import Ask

Prompt = str | tuple[int, ...]
LAST_TOKEN = 2**31 - 1
"""The wire's bound; the model's vocabulary is looked at in its worker."""
MOST_BIAS = 100
IMAGE_KEYS = ("add_sd_prompt", "add_sd_negative_prompt")
"""Keys of a KoboldCpp adapter that are for images."""


def chat_ask(body: schema.ChatBody, extra: dict[str, Any], token: str | None) -> Ask:
    """Raises InvalidField for what the schema alone cannot refuse."""
    _check_stream_options(body)
    offer, fault = _offer(body)
    request = ChatRequest(
        tuple(to_message(message, f"messages[{index}]") for index, message in enumerate(body.messages)),
        _sampling(body, _max_tokens(body)),
        _stops(body),
        offer.tools,
        offer.mode,
        offer.forced,
        body.parallel_tool_calls is not False and not offered.is_older(body),
        reasoning_effort=body.reasoning_effort,
        metadata=body.metadata or {},
        template_vars=_template_vars(body),
        continue_final=_continue_final(body),
        add_generation_prompt=body.add_generation_prompt is not False,
        adapter=body.adapter,
        logprobs=_chat_logprobs(body),
        extra={**extra, **elsewhere.chat_extra(body, foreign=fault is not None)},
    )
    refusals = [elsewhere.refusal(fault)] if fault is not None else []
    wishes = (*refusals, *_chat_demands(body, offer), *_common_wishes(body, extra))
    unsaid = _unsaid(n=body.n, logprobs=body.logprobs, top_logprobs=body.top_logprobs)
    return Ask(body.model, (request,), body.n or 1, wishes, bool(body.stream), token, unsaid=unsaid)


def completion_ask(body: schema.CompletionBody, extra: dict[str, Any], token: str | None) -> Ask:
    """Raises InvalidField for what the schema alone cannot refuse."""
    _check_stream_options(body)
    sampling, stops, suffix, echo = _sampling(body, body.max_tokens), _stops(body), body.suffix or None, bool(body.echo)
    said = extra if body.user is None else {**extra, "user": body.user}
    requests = tuple(
        CompletionRequest(prompt, sampling, stops, suffix, echo, body.logprobs, said) for prompt in read_prompts(body.prompt)
    )
    wishes = (*_completion_demands(body), *_common_wishes(body, extra))
    unsaid = _unsaid(n=body.n, echo=body.echo, logprobs=body.logprobs)
    return Ask(body.model, requests, body.n or 1, wishes, bool(body.stream), token, body.best_of, unsaid)


# --- messages ----------------------------------------------------------------------------------------------------------------


def to_message(message: schema.Message, place: str) -> Message:
    """`place` is the path that errors name."""
    calls = _tool_calls(message, place)
    if message.role == "tool" and message.tool_call_id is None:
        raise InvalidField(f"{place}.tool_call_id is missing: it says which call this answers", field=f"{place}.tool_call_id")
    parts = _parts(message, place)
    if message.refusal:
        parts = (*parts, RefusalPart(message.refusal))
    extra = elsewhere.message_extra(message.raw)
    if message.content is None and not calls and not message.refusal and not extra:
        raise InvalidField(f"{place}.content is missing", field=f"{place}.content")
    return Message(message.role, parts, message.name, calls, message.tool_call_id, message.reasoning_content, extra)


def _tool_calls(message: schema.Message, place: str) -> tuple[ToolCall, ...]:
    calls = [ToolCall(call.id, call.function.name, call.function.arguments, call.index or 0) for call in message.tool_calls or []]
    if message.function_call is not None:
        calls.append(ToolCall("", message.function_call.name, message.function_call.arguments))
    if calls and message.role != "assistant":
        field = f"{place}.tool_calls" if message.tool_calls else f"{place}.function_call"
        raise InvalidField(f"{field}: only an assistant calls tools, not {message.role}", field=field)
    return tuple(calls)


def _parts(message: schema.Message, place: str) -> tuple[Part, ...]:
    """Parts that are no text are wishes, too, and passed over when the model's YAML says so."""
    if message.content is None:
        return ()
    if isinstance(message.content, str):
        return (TextPart(message.content),)
    parts: list[Part] = []
    for index, part in enumerate(message.content):
        if isinstance(part, schema.TextPart):
            parts.append(TextPart(part.text))
        elif isinstance(part, schema.RefusalPart):
            _check_role(message, part, f"{place}.content[{index}]", "assistant")
            parts.append(RefusalPart(part.refusal))
        elif isinstance(part, schema.ImagePart):
            _check_role(message, part, f"{place}.content[{index}]", "user")
            parts.append(elsewhere.image(part, message.raw["content"][index]))
        else:
            if not isinstance(part, schema.OtherPart):
                _check_role(message, part, f"{place}.content[{index}]", "user")
            parts.append(RawPart(message.raw["content"][index]))
    return tuple(parts)


def _check_role(message: schema.Message, part: schema.Part, place: str, role: str) -> None:
    if message.role != role:
        tag = part.__struct_config__.tag
        raise InvalidField(f"{place}: a part of type {tag} is for the role {role}, not {message.role}", field=f"{place}.type")


# --- tools -------------------------------------------------------------------------------------------------------------------


def _offer(body: schema.ChatBody) -> tuple[offered.Offer, InvalidField | None]:
    """What is on offer; with tools that are no functions nothing, and what is wrong with them for models that are here."""
    try:
        return offered.offer(body, tools(body)), None
    except InvalidField as fault:
        if not elsewhere.has_foreign_tools(body):
            raise
        return offered.Offer(), fault


def tools(body: schema.ChatBody) -> tuple[Tool, ...]:
    """The functions on offer: `tools`, then the older `functions`. Raises InvalidField with the place of one that is none."""
    offered = [_tool(tool, f"tools[{index}]") for index, tool in enumerate(body.tools or [])]
    older = [_function(function, f"functions[{index}]") for index, function in enumerate(body.functions or [])]
    return (*offered, *older)


def _tool(tool: dict[str, Any], place: str) -> Tool:
    if tool.get("type") != "function":
        raise InvalidField(f"{place}.type: expected function", field=f"{place}.type")
    return _function(tool.get("function"), f"{place}.function")


def _function(function: Any, place: str) -> Tool:
    """A function with a name, and perhaps with a description, a JSON schema of its parameters, and `strict`."""
    if not isinstance(function, dict):
        raise InvalidField(f"{place}: expected an object with the function's name", field=place)
    name, description = function.get("name"), function.get("description")
    parameters, strict = function.get("parameters"), function.get("strict")
    faults = {
        "name": None if isinstance(name, str) and name else "expected text that is not empty",
        "description": None if isinstance(description, str | None) else "expected text or null",
        "parameters": None if isinstance(parameters, dict | None) else "expected a JSON schema, which is an object, or null",
        "strict": None if isinstance(strict, bool | None) else "expected true, false or null",
    }
    for key, fault in faults.items():
        if fault is not None:
            raise InvalidField(f"{place}.{key}: {fault}", field=f"{place}.{key}")
    return Tool(str(name), description or "", parameters, strict)


# --- prompts -----------------------------------------------------------------------------------------------------------------


def read_prompts(prompt: Any, field: str = "prompt") -> list[Prompt]:
    """Text, token ids, or a list of either, which came in `field`: one prompt each."""
    if isinstance(prompt, str):
        return [prompt]
    if not isinstance(prompt, list) or not prompt:
        raise InvalidField(f"{field}: expected text, token ids, or a list of either that is not empty", field=field)
    if _are_numbers(prompt):
        return [_tokens(prompt, field)]
    return [_one_prompt(item, f"{field}[{index}]") for index, item in enumerate(prompt)]


def _one_prompt(item: Any, place: str) -> Prompt:
    if isinstance(item, str):
        return item
    if isinstance(item, list) and item and _are_numbers(item):
        return _tokens(item, place)
    raise InvalidField(f"{place}: expected text, or a list of token ids (whole numbers from 0) that is not empty", field=place)


def _are_numbers(items: list[Any]) -> bool:
    return all(type(item) in (int, float) for item in items)


def _tokens(numbers: list[Any], place: str) -> tuple[int, ...]:
    for index, number in enumerate(numbers):
        if type(number) is not int or not 0 <= number <= LAST_TOKEN:
            field = f"{place}[{index}]"
            raise InvalidField(f"{field}: token ids are whole numbers from 0 to {LAST_TOKEN}, not {number}", field=field)
    return tuple(numbers)


# --- templates ---------------------------------------------------------------------------------------------------------------


def _template_vars(body: schema.ChatBody) -> dict[str, Any]:
    documents = {} if body.documents is None else {"documents": body.documents}
    return {**documents, **(body.chat_template_kwargs or {})}


def _continue_final(body: schema.ChatBody) -> bool:
    if body.continue_final_message and body.add_generation_prompt:
        field = "continue_final_message"
        raise InvalidField(
            f"{field} and add_generation_prompt cannot both be true: a message is continued or followed", field=field
        )
    return bool(body.continue_final_message)


# --- parameters --------------------------------------------------------------------------------------------------------------


def _sampling(body: schema.Generating, max_tokens: int | None) -> Sampling:
    return Sampling(
        temperature=body.temperature,
        top_k=None if body.top_k is None else max(0, body.top_k),
        top_p=body.top_p,
        min_p=body.min_p,
        typical_p=body.typical_p,
        seed=body.seed,
        max_tokens=max_tokens,
        repeat_penalty=body.repeat_penalty,
        repeat_last_n=body.repeat_last_n,
        presence_penalty=body.presence_penalty,
        frequency_penalty=body.frequency_penalty,
        logit_bias=None if body.logit_bias is None else read_bias(body.logit_bias),
        ignore_eos=body.ignore_eos,
        top_n_sigma=body.top_n_sigma,
        xtc_probability=body.xtc_probability,
        xtc_threshold=body.xtc_threshold,
        dry_multiplier=body.dry_multiplier,
        dry_base=body.dry_base if body.dry_base and body.dry_base >= 1 else None,
        dry_allowed_length=body.dry_allowed_length,
        dry_penalty_last_n=body.dry_penalty_last_n,
        dry_sequence_breakers=None if body.dry_sequence_breakers is None else _breakers(body.dry_sequence_breakers),
        mirostat=body.mirostat,
        mirostat_tau=body.mirostat_tau,
        mirostat_eta=body.mirostat_eta,
        dynatemp_range=body.dynatemp_range,
        dynatemp_exponent=body.dynatemp_exponent,
        samplers=None if body.samplers is None else sampler_order(body.samplers),
    )


def _breakers(texts: list[str]) -> tuple[str, ...]:
    field = "dry_sequence_breakers"
    if len(texts) > MOST_BREAKERS:
        raise InvalidField(f"{field}: expected at most {MOST_BREAKERS} texts, got {len(texts)}", field=field)
    for index, text in enumerate(texts):
        if "\0" in text:
            raise InvalidField(f"{field}[{index}]: expected a text without a null character", field=f"{field}[{index}]")
    return tuple(texts)


def read_bias(biases: dict[str, Any]) -> dict[int, float]:
    """Token id -> added logit. Raises InvalidField with the key that is no token id, or has no number from -100 to 100."""
    return {_token_key(key): _bias(value, f"logit_bias.{key}") for key, value in biases.items()}


def _token_key(key: str) -> int:
    if re.fullmatch(r"[0-9]{1,10}", key) and int(key) <= LAST_TOKEN:
        return int(key)
    field = f"logit_bias.{key}"
    raise InvalidField(f"{field}: expected a token id, a whole number from 0 to {LAST_TOKEN}, as the key", field=field)


def _bias(value: Any, field: str) -> float:
    if type(value) in (int, float) and -MOST_BIAS <= value <= MOST_BIAS:
        return float(value)
    raise InvalidField(f"{field}: expected a number from -{MOST_BIAS} to {MOST_BIAS}", field=field)


def _stops(body: schema.Generating) -> tuple[str, ...]:
    return (body.stop,) if isinstance(body.stop, str) else tuple(body.stop or ())


def _max_tokens(body: schema.ChatBody) -> int | None:
    old = _positive(body.max_tokens, "max_tokens")
    new = _positive(body.max_completion_tokens, "max_completion_tokens")
    if old is not None and new is not None and old != new:
        raise InvalidField("max_tokens and max_completion_tokens mean the same; send one of them", field="max_tokens")
    asked = old if new is None else new
    return _adapter_length(body.adapter) if asked is None else asked


def _adapter_length(adapter: dict[str, Any] | str | None) -> int | None:
    """KoboldCpp's adapters may say how long an answer is where the request does not; the worker reads all else of them."""
    length = adapter.get("max_length") if isinstance(adapter, dict) else None
    return length if type(length) is int and 0 < length < 2**31 else None


def _positive(value: int | None, field: str) -> int | None:
    if value == 0:
        raise InvalidField(f"{field}: expected at least 1, or -1 for no limit", field=field)
    return value


def _chat_logprobs(body: schema.ChatBody) -> int | None:
    if body.logprobs:
        return body.top_logprobs or 0
    if body.top_logprobs:
        raise InvalidField("top_logprobs is only for `logprobs: true`", field="top_logprobs")
    return None


def _unsaid(**fields: Any) -> frozenset[str]:
    """Those that are left to the model's YAML."""
    return frozenset(name for name, value in fields.items() if value is None)


def _check_stream_options(body: schema.Generating) -> None:
    if body.stream_options is not None and not body.stream:
        raise InvalidField("stream_options is only for `stream: true`", field="stream_options")


# --- what is asked beyond text -----------------------------------------------------------------------------------------------


def _chat_demands(body: schema.ChatBody, offer: offered.Offer) -> list[Wish]:
    asked = {
        "response_format": body.response_format is not None and body.response_format.type != "text",
        "logprobs": body.logprobs,
        "modalities": body.modalities is not None and body.modalities != ["text"],
        "audio": body.audio is not None,
        "web_search_options": body.web_search_options is not None,
    }
    demands = [Wish(field, field) for field, wanted in asked.items() if wanted]
    return [*offered.wishes(body, offer), *demands, *_media_demands(body.messages), *_adapter_hints(body.adapter)]


def _adapter_hints(adapter: dict[str, Any] | str | None) -> list[Wish]:
    """What KoboldCpp's adapters say of images that the model would ask for."""
    written = [key for key in IMAGE_KEYS if isinstance(adapter, dict) and adapter.get(key)]
    return [Wish("images of its own", f"adapter.{key}", hint=True) for key in written]


def _media_demands(messages: list[schema.Message]) -> list[Wish]:
    kinds: dict[type[schema.Part], str] = {
        schema.ImagePart: IMAGES,
        schema.AudioPart: "audio input",
        schema.FilePart: "files",
    }
    wishes: list[Wish] = []
    for row, message in enumerate(messages):
        place = f"messages[{row}]"
        parts = message.content if isinstance(message.content, list) else []
        wishes += elsewhere.faults(message, place)
        wishes += [Wish(kinds[type(part)], f"{place}.content[{at}]") for at, part in enumerate(parts) if type(part) in kinds]
    return wishes


def _completion_demands(body: schema.CompletionBody) -> list[Wish]:
    asked = {
        "suffix": bool(body.suffix),
        "best_of": body.best_of is not None and body.best_of > (body.n or 1),
        "logprobs": body.logprobs is not None,
    }
    demands = [Wish(field, field) for field, wanted in asked.items() if wanted]
    return [*demands, Wish(PROMPT_LOGPROBS, "echo")] if body.echo and body.logprobs is not None else demands


def _common_wishes(body: schema.Generating, extra: dict[str, Any]) -> list[Wish]:
    hints = [name for name, value in {"user": body.user, **extra}.items() if value is not None]
    several = [Wish("n", "n")] if (body.n or 1) > 1 else []
    return [*several, *(Wish(name, name, hint=True) for name in hints)]
