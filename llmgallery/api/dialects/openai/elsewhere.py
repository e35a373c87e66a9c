"""What of a chat only servers elsewhere may know: kept as it came, and a fault for models that are here. Pure."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from llmgallery.api.dialects.openai import schema
from llmgallery.core.errors import InvalidField
from llmgallery.core.messages import ImagePart, RawPart
from llmgallery.service.demands import ELSEWHERE, Wish

MESSAGE_FIELDS = frozenset(schema.Message.__struct_fields__) - {"raw"}
_PART_FIELDS = {
    "text": ({"type", "text"}, ""),
    "refusal": ({"type", "refusal"}, ""),
    "image_url": ({"type", "image_url"}, "image_url"),
}
"""Of the parts that core knows: their fields, and the one that is an object."""
_IMAGE_FIELDS = {"url", "detail"}
_CALL_FIELDS, _CALLED_FIELDS = {"id", "type", "function", "index"}, {"name", "arguments"}
_TOOL_FIELDS, _FUNCTION_FIELDS = {"type", "function"}, {"name", "description", "parameters", "strict"}
_CHOICES = ("function", "allowed_tools")


# --- messages ----------------------------------------------------------------------------------------------------------------


def message_extra(raw: dict[str, Any]) -> dict[str, Any]:
    """Fields that core does not know; and as they came, parts and calls that hold more than core does."""
    extra = {name: value for name, value in raw.items() if name not in MESSAGE_FIELDS and value is not None}
    content, calls = raw.get("content"), raw.get("tool_calls")
    if isinstance(content, list) and any(map(_holds_more, content)):
        extra["content"] = content
    if isinstance(calls, list) and any(_calls_more(call) for call in calls):
        extra["tool_calls"] = calls
    return extra


def _holds_more(part: Any) -> bool:
    """Parts that are kept whole anyway do not."""
    if not isinstance(part, dict) or part.get("type") not in _PART_FIELDS:
        return False
    fields, below = _PART_FIELDS[part["type"]]
    inner = part.get(below)
    return bool(part.keys() - fields) or (isinstance(inner, dict) and bool(inner.keys() - _IMAGE_FIELDS))


def _calls_more(call: Any) -> bool:
    if not isinstance(call, dict):
        return False
    function = call.get("function")
    return (
        schema.is_other_call(call)
        or bool(call.keys() - _CALL_FIELDS)
        or (isinstance(function, dict) and bool(function.keys() - _CALLED_FIELDS))
    )


def image(part: schema.ImagePart, raw: Any) -> ImagePart | RawPart:
    """OpenAI's {url, detail}; some clients send the url alone. `raw`: all of the part, for what is neither."""
    found = {"url": part.image_url} if isinstance(part.image_url, str) else part.image_url
    url, detail = (found.get("url"), found.get("detail") or "auto") if isinstance(found, dict) else (None, None)
    if isinstance(url, str) and url and isinstance(detail, str):
        return ImagePart(url=url, detail=detail)
    return RawPart(raw if isinstance(raw, dict) else {"type": "image_url", "image_url": part.image_url})


def faults(message: schema.Message, place: str) -> Iterator[Wish]:
    """What is wrong with a message for every model that is here."""
    for index, part in enumerate(message.content if isinstance(message.content, list) else []):
        if isinstance(part, schema.OtherPart):
            value = message.raw["content"][index]["type"]
            yield _fault(f"{place}.content[{index}].type", f"{value!r} is not one of {', '.join(schema.PART_TYPES)}")
    for index, call in enumerate(message.raw.get("tool_calls") or []):
        if schema.is_other_call(call):
            yield _fault(f"{place}.tool_calls[{index}].type", f"{call['type']!r} is not function")


def _fault(field: str, what: str) -> Wish:
    return Wish(ELSEWHERE, field, fault=f"{field}: {what}")


# --- tools -------------------------------------------------------------------------------------------------------------------


def has_foreign_tools(body: schema.ChatBody) -> bool:
    """It offers, or chooses, what is no function."""
    choice = body.tool_choice
    kind = choice.get("type") if isinstance(choice, dict) else None
    chooses = isinstance(kind, str) and kind not in _CHOICES
    return chooses or any(isinstance(tool.get("type"), str) and tool["type"] != "function" for tool in body.tools or [])


def refusal(fault: InvalidField) -> Wish:
    """What a model that is here says to foreign tools."""
    return Wish(ELSEWHERE, fault.field or "tools", fault=fault.message)


def chat_extra(body: schema.ChatBody, *, foreign: bool) -> dict[str, Any]:
    """Fields that core cannot hold as they came, or not at all."""
    said = {
        "response_format": body.response_format.raw if body.response_format is not None else None,
        "modalities": body.modalities,
        "audio": body.audio,
        "web_search_options": body.web_search_options,
        "user": body.user,
        "max_completion_tokens": body.max_completion_tokens if body.max_completion_tokens != -1 else None,
        "functions": body.functions,
        "function_call": body.function_call,
        "parallel_tool_calls": body.parallel_tool_calls,
        "tools": body.tools if foreign or any(map(_offers_more, body.tools or [])) else None,
        "tool_choice": body.tool_choice if foreign else None,
    }
    return {name: value for name, value in said.items() if value is not None}


def _offers_more(tool: dict[str, Any]) -> bool:
    function = tool.get("function")
    return bool(tool.keys() - _TOOL_FIELDS) or (isinstance(function, dict) and bool(function.keys() - _FUNCTION_FIELDS))
