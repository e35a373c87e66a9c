"""OpenAI's wire: requests as they may come, in typed structs. Source: OpenAI's published OpenAPI 3.1 schemas, and the sampling
fields that llama-server, vLLM and LocalAI take beside them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Any, Literal, TypeVar, get_args

import msgspec
from msgspec import Meta

from llmgallery.api import bodies
from llmgallery.core.messages import Role

Penalty = Annotated[float, Meta(ge=-2, le=2)]
Share = Annotated[float, Meta(ge=0, le=1)]
Int64 = Annotated[int, Meta(ge=-(2**63), le=2**63 - 1)]
Tokens = Annotated[int, Meta(ge=-1, le=2**31 - 1)]
StopText = Annotated[str, Meta(min_length=1)]
Magnitude = Annotated[float, Meta(ge=0, le=100)]


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
PART_TYPES = tuple(str(part.__struct_config__.tag) for part in get_args(AnyPart))
"""Those that OpenAI knows."""

_OTHER = "\0"


class OtherPart(Part, tag=_OTHER):
    """Of a type that is none of PART_TYPES."""


class CalledFunction(msgspec.Struct):
    name: str
    arguments: str


class ToolCall(msgspec.Struct):
    id: str
    function: CalledFunction
    type: Literal["function"] = "function"
    index: int | None = None


class Message(msgspec.Struct):
    """`raw`: all of it, as it came."""

    role: Role
    content: str | Annotated[list[AnyPart | OtherPart], Meta(min_length=1)] | None = None
    name: str | None = None
    tool_calls: list[ToolCall] | None = None
    tool_call_id: str | None = None
    function_call: CalledFunction | None = None
    refusal: str | None = None
    reasoning_content: str | None = None
    raw: dict[str, Any] = msgspec.field(default_factory=dict, name="")


class StreamOptions(msgspec.Struct):
    include_usage: bool | None = None
    include_obfuscation: bool | None = None


Format = Literal["text", "json_object", "json_schema"]


class ResponseFormat(msgspec.Struct):
    """`raw`: all of it, as it came."""

    type: Format
    raw: dict[str, Any] = msgspec.field(default_factory=dict, name="")


class Generating(msgspec.Struct, kw_only=True):
    """What chats and completions have in common. `stop`: any number of texts, where OpenAI takes four. `logit_bias`: token ids
    as text, each with a number from -100 to 100 (convert reads them, to name the id at fault). From top_n_sigma to samplers:
    llama-server's, whose README says what they do; `dry_base` below 1 = its default, as there."""

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
    top_n_sigma: Annotated[float, Meta(ge=-1, le=1000)] | None = None
    xtc_probability: Share | None = None
    xtc_threshold: Share | None = None
    dry_multiplier: Magnitude | None = None
    dry_base: Magnitude | None = None
    dry_allowed_length: Annotated[int, Meta(ge=0, le=2**31 - 1)] | None = None
    dry_penalty_last_n: Tokens | None = None
    dry_sequence_breakers: Annotated[list[StopText], Meta(min_length=1)] | None = None
    mirostat: Annotated[int, Meta(ge=0, le=2)] | None = None
    mirostat_tau: Magnitude | None = None
    mirostat_eta: Magnitude | None = None
    dynatemp_range: Magnitude | None = None
    dynatemp_exponent: Magnitude | None = None
    samplers: str | list[str] | None = None
    user: str | None = None


class ChatBody(Generating, kw_only=True):
    """POST /v1/chat/completions. From chat_template_kwargs on: vLLM's, with its names and meanings, and transformers'
    (documents: [{title, text}, ...]). `adapter`: KoboldCpp's, or the name of one."""

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
    reasoning_effort: Annotated[str, Meta(min_length=1, max_length=64)] | None = None
    metadata: Annotated[dict[str, str], Meta(max_length=64)] | None = None
    chat_template_kwargs: dict[str, Any] | None = None
    documents: list[dict[str, Any]] | None = None
    add_generation_prompt: bool | None = None
    continue_final_message: bool | None = None
    adapter: dict[str, Any] | Annotated[str, Meta(min_length=1, max_length=200)] | None = None


class CompletionBody(Generating, kw_only=True):
    """POST /v1/completions. `prompt`: text, token ids, or a list of either (read_prompts tells them apart). `max_tokens` may
    be 0: then nothing is generated, and with `echo` the prompt's log probabilities are told."""

    prompt: Any
    suffix: str | None = None
    echo: bool | None = None
    best_of: Annotated[int, Meta(ge=1, le=20)] | None = None
    logprobs: Annotated[int, Meta(ge=0, le=20)] | None = None


class Usage(msgspec.Struct):
    """CompletionUsage of the answers."""

    prompt_tokens: int
    completion_tokens: int
    total_tokens: int
    prompt_tokens_details: dict[str, int]


B = TypeVar("B", bound=Generating)


def read(data: bytes, body: type[B]) -> tuple[B, dict[str, Any]]:
    """The body, and the fields that it does not know. Raises BadBody, InvalidField (bodies.read)."""
    fields = bodies.json_object(data)
    messages = fields.get("messages") if body is ChatBody else None
    if not isinstance(messages, list):
        return bodies.parse(fields, body, _CHOICES)
    parsed, extra = bodies.parse({**fields, "messages": [_readable(message) for message in messages]}, body, _CHOICES)
    assert isinstance(parsed, ChatBody)
    for message, raw in zip(parsed.messages, messages, strict=True):
        message.raw = raw
    if parsed.response_format is not None:
        parsed.response_format.raw = fields["response_format"]
    return parsed, extra


def _readable(message: Any) -> Any:
    """Without what only servers elsewhere may know: parts and calls of other types. They remain in Message.raw."""
    if not isinstance(message, dict):
        return message
    content, calls = message.get("content"), message.get("tool_calls")
    if isinstance(content, list) and any(map(is_other_part, content)):
        message = {**message, "content": [{"type": _OTHER} if is_other_part(part) else part for part in content]}
    if isinstance(calls, list) and any(map(is_other_call, calls)):
        message = {**message, "tool_calls": [call for call in calls if not is_other_call(call)]}
    return message


def is_other_part(part: Any) -> bool:
    """It has a type, which is none of PART_TYPES."""
    return isinstance(part, dict) and isinstance(part.get("type"), str) and part["type"] not in PART_TYPES


def is_other_call(call: Any) -> bool:
    """It calls something else than a function."""
    return isinstance(call, dict) and isinstance(call.get("type"), str) and call["type"] != "function"


_CHOICES: dict[str, Sequence[str]] = {
    "messages[].role": get_args(Role),
    "messages[].content[].type": PART_TYPES,
    "messages[].tool_calls[].type": ("function",),
    "response_format.type": get_args(Format),
}
"""What a field of few values may say, by its path without indices."""
