"""Which of the functions on offer a request lets be called: tool_choice, and the older function_call. Pure."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal, NamedTuple, get_args

from llmgallery.api.dialects.openai import schema
from llmgallery.core.errors import InvalidField
from llmgallery.core.messages import Tool
from llmgallery.service.demands import FORCED, TOOLS, Wish

Mode = Literal["auto", "none", "required"]


class Offer(NamedTuple):
    """What the model is told of, and whether it may or must call some of it; `forced`: the one that it must call."""

    tools: tuple[Tool, ...] = ()
    mode: Mode = "auto"
    forced: str | None = None


def is_older(body: schema.ChatBody) -> bool:
    """The client speaks of functions, as before there were tools, and is answered in these words."""
    return bool(body.functions) and not body.tools


def offer(body: schema.ChatBody, tools: tuple[Tool, ...]) -> Offer:
    """`tools`: all that came. Raises InvalidField for a choice that is none, or of a function that is not on offer."""
    if body.tool_choice is None and body.tools is None and body.function_call is not None:
        return _offer(body.function_call, tools, "function_call")
    return _offer("auto" if body.tool_choice is None else body.tool_choice, tools, "tool_choice")


def _offer(choice: str | dict[str, Any], tools: tuple[Tool, ...], field: str) -> Offer:
    modes = get_args(Mode) if field == "tool_choice" else ("auto", "none")
    if isinstance(choice, str):
        mode = next((mode for mode in modes if mode == choice), None)
        if mode is None:
            raise InvalidField(f"{field}: expected {', '.join(modes)}, or an object that names a function", field=field)
        return Offer(mode="none") if mode == "none" else Offer(tools, mode)
    if choice.get("type") == "allowed_tools":
        return _allowed(choice.get("allowed_tools"), tools, f"{field}.allowed_tools")
    if field == "tool_choice":
        if choice.get("type") != "function":
            raise InvalidField(f"{field}.type: expected function or allowed_tools", field=f"{field}.type")
        named, place = choice.get("function"), f"{field}.function"
    else:
        named, place = choice, field
    (tool,) = _named([named], tools, place)[:1] or (None,)
    return Offer((tool,), "required", tool.name) if tool is not None else Offer(mode="required")


def _allowed(choice: Any, tools: tuple[Tool, ...], place: str) -> Offer:
    """OpenAI's choice among some of the tools: {mode, tools: [{type, function: {name}}]}."""
    mode, listed = (choice.get("mode"), choice.get("tools")) if isinstance(choice, dict) else (None, None)
    if mode not in ("auto", "required"):
        raise InvalidField(f"{place}.mode: expected auto or required", field=f"{place}.mode")
    if not isinstance(listed, list) or not listed:
        raise InvalidField(f"{place}.tools: expected a list of functions that is not empty", field=f"{place}.tools")
    named = [each.get("function") if isinstance(each, dict) else None for each in listed]
    return Offer(tuple(_named(named, tools, f"{place}.tools")), "required" if mode == "required" else "auto")


def _named(named: Sequence[Any], tools: tuple[Tool, ...], place: str) -> list[Tool]:
    """The tools of these names, in the order of the offer. Without any on offer none: what then becomes of it is the model's."""
    names = [each.get("name") if isinstance(each, dict) else None for each in named]
    if not all(isinstance(name, str) and name for name in names):
        raise InvalidField(f"{place}: expected an object with the function's name", field=f"{place}.name")
    known = [tool.name for tool in tools]
    if tools and (strange := [name for name in names if name not in known]):
        raise InvalidField(f"{place}.name: no function on offer is called {strange[0]!r}", field=f"{place}.name")
    return [tool for at, tool in enumerate(tools) if tool.name in names and tool.name not in known[:at]]


def wishes(body: schema.ChatBody, offer: Offer) -> list[Wish]:
    """What of it the model must be able to do. A choice among no tools nobody can honour; one of none asks for nothing."""
    if offer.mode == "none":
        return []
    asked = {"tools": bool(body.tools), "functions": bool(body.functions)}
    found = [Wish(TOOLS, field) for field, wanted in asked.items() if wanted]
    choices = {"tool_choice": body.tool_choice, "function_call": body.function_call}
    feature = TOOLS if found else "a choice among no tools"
    asking = [field for field, choice in choices.items() if choice not in (None, "none")]
    forcing = [Wish(FORCED, asking[0])] if found and offer.mode == "required" else []
    return [*found, *(Wish(feature, field) for field in asking), *forcing]
