"""OpenAI's wire: requests as they may come, in typed structs. Source: OpenAI's published OpenAPI 3.1 schemas, and the sampling
fields that llama-server, vLLM and LocalAI take beside them."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Annotated, Any, Literal, TypeVar, get_args

import msgspec
from msgspec import Meta

from llmgallery.api.errors import BadBody
from llmgallery.core.errors import InvalidField
from llmgallery.core.messages import Role

Penalty = Annotated[float, Meta(ge=-2, le=2)]
Share = Annotated[float, Meta(ge=0, le=1)]
Int64 = Annotated[int, Meta(ge=-(2**63), le=2**63 - 1)]
Tokens = Annotated[int, Meta(ge=-1, le=2**31 - 1)]
StopText = Annotated[str, Meta(min_length=1)]


class Part(msgspec.Struct, tag_field="type"):
    """One part of a message's content."""


class TextPart(Part, tag="text"):
    text: str


class RefusalPart(Part, tag="refusal"):
    refusal: str


class ImagePart(Part, tag="image_url"):
    image_url: Any


class AudioPart(Part, tag="input_audio"):
    input_audio: Any


class FilePart(Part, tag="file"):
    file: Any


AnyPart = TextPart | RefusalPart | ImagePart | AudioPart | FilePart


class CalledFunction(msgspec.Struct):
    name: str
    arguments: str


class ToolCall(msgspec.Struct):
    id: str
    function: CalledFunction
    type: Literal["function"] = "function"


class Message(msgspec.Struct):
    role: Role
    content: str | Annotated[list[AnyPart], Meta(min_length=1)] | None = None
    name: str | None = None
    tool_calls: list[ToolCall] | None = None
    tool_call_id: str | None = None
    function_call: CalledFunction | None = None
    refusal: str | None = None
    reasoning_content: str | None = None
    audio: Any = None


class StreamOptions(msgspec.Struct):
    include_usage: bool | None = None
    include_obfuscation: bool | None = None


Format = Literal["text", "json_object", "json_schema"]


class ResponseFormat(msgspec.Struct):
    type: Format


class Generating(msgspec.Struct, kw_only=True):
    """What chats and completions have in common. `stop`: any number of texts, where OpenAI takes four. `logit_bias`: token ids
    as text, each with a number from -100 to 100 (convert reads them, to name the id at fault)."""

    model: str | None = None
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    n: Annotated[int, Meta(ge=1, le=128)] | None = None
    stop: StopText | list[StopText] | None = None
    seed: Int64 | None = None
    temperature: Annotated[float, Meta(ge=0, le=2)] | None = None
    top_p: Share | None = None
    top_k: Annotated[int, Meta(ge=-1, le=2**31 - 1)] | None = None
    min_p: Share | None = None
    typical_p: Share | None = None
    max_tokens: Tokens | None = None
    presence_penalty: Penalty | None = None
    frequency_penalty: Penalty | None = None
    repeat_penalty: Annotated[float, Meta(gt=0, le=10)] | None = None
    repeat_last_n: Tokens | None = None
    logit_bias: dict[str, Any] | None = None
    ignore_eos: bool | None = None
    user: str | None = None


class ChatBody(Generating, kw_only=True):
    """POST /v1/chat/completions"""

    messages: Annotated[list[Message], Meta(min_length=1)]
    max_completion_tokens: Tokens | None = None
    logprobs: bool | None = None
    top_logprobs: Annotated[int, Meta(ge=0, le=20)] | None = None
    response_format: ResponseFormat | None = None
    tools: list[dict[str, Any]] | None = None
    tool_choice: str | dict[str, Any] | None = None
    parallel_tool_calls: bool | None = None
    functions: list[dict[str, Any]] | None = None
    function_call: str | dict[str, Any] | None = None
    modalities: list[str] | None = None
    audio: dict[str, Any] | None = None
    web_search_options: dict[str, Any] | None = None
    chat_template_kwargs: dict[str, Any] | None = None


class CompletionBody(Generating, kw_only=True):
    """POST /v1/completions. `prompt`: text, token ids, or a list of either (read_prompts tells them apart)."""

    prompt: Any
    suffix: str | None = None
    echo: bool | None = None
    best_of: Annotated[int, Meta(ge=1, le=20)] | None = None
    logprobs: Annotated[int, Meta(ge=0)] | None = None


class Usage(msgspec.Struct):
    """CompletionUsage of the answers."""

    prompt_tokens: int
    completion_tokens: int
    total_tokens: int
    prompt_tokens_details: dict[str, int]


B = TypeVar("B", bound=Generating)


def read(data: bytes, body: type[B]) -> tuple[B, dict[str, Any]]:
    """The body, and the fields that it does not know. Raises BadBody when it is no JSON object, InvalidField with the
    field's path (`messages[0].role`) when a field is missing, of a wrong type, or out of range."""
    fields = _json_object(data)
    try:
        parsed = msgspec.convert(fields, body, str_keys=True)
    except msgspec.ValidationError as exc:
        raise _invalid(str(exc)) from exc
    known = body.__struct_fields__
    return parsed, {name: value for name, value in fields.items() if name not in known}


def _json_object(data: bytes) -> dict[str, Any]:
    try:
        fields = msgspec.json.decode(data)
        # What travels to the worker is msgpack, which knows no number beyond 64 bits.
        msgspec.msgpack.encode(fields)
    except (msgspec.DecodeError, UnicodeDecodeError) as exc:
        raise BadBody(f"the body is not valid JSON: {exc}") from exc
    except RecursionError as exc:
        raise BadBody("the body is nested too deeply") from exc
    except OverflowError as exc:
        raise BadBody("the body holds a whole number beyond 64 bits") from exc
    if not isinstance(fields, dict):
        raise BadBody("the body must be a JSON object")
    return fields


# --- what is wrong, in words -------------------------------------------------------------------------------------------------

_CHOICES: dict[str, Sequence[str]] = {
    "messages[].role": get_args(Role),
    "messages[].content[].type": [str(part.__struct_config__.tag) for part in get_args(AnyPart)],
    "messages[].tool_calls[].type": ("function",),
    "response_format.type": get_args(Format),
}
"""What a field of few values may say, by its path without indices."""

_TYPES = {
    "str": "text",
    "int": "a whole number",
    "float": "a number",
    "bool": "true or false",
    "array": "a list",
    "object": "an object",
    "null": "null",
}
_BOUNDS = {">=": "of at least", "<=": "of at most", ">": "above", "<": "below"}


def _invalid(text: str) -> InvalidField:
    """msgspec says `Expected ... - at `$.a[0].b``, or names a missing field before that."""
    what, place = text.rsplit(" - at ", 1) if " - at " in text else (text, "")
    found = re.search(r"`\$\.?([^`]*)`", place)
    path = found[1].removesuffix("[...]") if found else ""
    if missing := re.search(r"missing required field `([^`]+)`", what):
        path = f"{path}.{missing[1]}" if path else missing[1]
    choices = _CHOICES.get(re.sub(r"\d+", "", path))
    if missing:
        said = f"{path} is missing" + (f": expected {_listed(choices)}" if choices else "")
    else:
        said = f"{path}: " + (_not_chosen(what, choices) if choices else _in_words(what))
    return InvalidField(said, field=path or None)


def _not_chosen(what: str, choices: Sequence[str]) -> str:
    value = re.search(r"value ('.*')$", what, re.DOTALL)
    return f"{value[1]} is not {_listed(choices)}" if value else f"expected {_listed(choices)}"


def _listed(choices: Sequence[str]) -> str:
    return choices[0] if len(choices) == 1 else f"one of {', '.join(choices)}"


def _in_words(what: str) -> str:
    """`Expected `str | null`, got `int`` -> `expected text or null, got a whole number`"""
    if empty := re.search(r"`(\w+)` of length >= 1$", what):
        return f"expected {_said(empty[1])} that is not empty"
    if bound := re.search(r"`(\w+)` ([<>]=?) (\S+)$", what):
        return f"expected {_said(bound[1])} {_BOUNDS[bound[2]]} {bound[3].removesuffix('.0')}"
    return re.sub(r"`([^`]*)`", lambda types: _said(types[1]), what[:1].lower() + what[1:])


def _said(types: str) -> str:
    """`str | array | null` -> `text, a list or null`"""
    *names, last = (_TYPES.get(name, name) for name in types.split(" | "))
    return f"{', '.join(names)} or {last}" if names else last
