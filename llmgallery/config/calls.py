"""How a model file says that its model writes calls: the tags of LocalAI's function.xml_format, and its presets of them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import msgspec


class Tags(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """LocalAI's XMLToolCallFormat (pkg/functions/parse.go). `raw_argval`: values are text (true), JSON (false), or JSON where
    they read as such (unset). The keys from allow_toolcall_in_think on are read and have no use here."""

    scope_start: str = ""
    tool_start: str = ""
    tool_sep: str = ""
    key_start: str = ""
    key_val_sep: str = ""
    val_end: str = ""
    tool_end: str = ""
    scope_end: str = ""
    key_val_sep2: str | None = None
    raw_argval: bool | None = None
    last_val_end: str | None = None
    last_tool_end: str | None = None
    trim_raw_argval: bool = False
    allow_toolcall_in_think: bool = False
    thinking_forced_open: bool = False
    reasoning_in_content: bool = False
    reasoning_format: str = ""


_QWEN3 = Tags(
    scope_start="<tool_call>",
    tool_start="<function=",
    tool_sep=">",
    key_start="<parameter=",
    key_val_sep=">",
    val_end="</parameter>",
    tool_end="</function>",
    scope_end="</tool_call>",
    trim_raw_argval=True,
)
PRESETS: Mapping[str, Tags] = {
    "functionary": Tags(tool_start="<function=", tool_sep=">", tool_end="</function>", raw_argval=False),
    "qwen3-coder": _QWEN3,
    "qwen3.5": _QWEN3,
    "glm-4.5": Tags(
        tool_start="<tool_call>",
        key_start="<arg_key>",
        key_val_sep="</arg_key>",
        key_val_sep2="<arg_value>",
        val_end="</arg_value>",
        tool_end="</tool_call>",
    ),
    "minimax-m2": Tags(
        scope_start="<minimax:tool_call>",
        tool_start='<invoke name="',
        tool_sep='">',
        key_start='<parameter name="',
        key_val_sep='">',
        val_end="</parameter>",
        tool_end="</invoke>",
        scope_end="</minimax:tool_call>",
    ),
    "kimi-k2": Tags(
        scope_start="<|tool_calls_section_begin|>",
        tool_start="<|tool_call_begin|>",
        tool_sep="<|tool_call_argument_begin|>{",
        key_start='"',
        key_val_sep='":',
        val_end=",",
        last_val_end="",
        tool_end="}<|tool_call_end|>",
        scope_end="<|tool_calls_section_end|>",
        raw_argval=False,
    ),
}
"""By LocalAI's names, in its order, which is that in which they are tried."""

JSON_PRESETS: Mapping[str, tuple[str, str]] = {
    "apriel-1.5": ("<tool_calls>", "</tool_calls>"),
    "xiaomi-mimo": ("<tool_call>", "</tool_call>"),
}
"""Those whose calls are JSON between two tags."""


def tags_fault(written: Mapping[str, Any]) -> str:
    """What is wrong with a function.xml_format; "" when nothing is."""
    try:
        tags = msgspec.convert(written, Tags)
    except msgspec.ValidationError as exc:
        return str(exc)
    if not tags.tool_start.strip() or not tags.tool_end.strip():
        return "tool_start and tool_end are needed: what a call begins and ends with"
    if tags.key_start and not (tags.key_val_sep.strip() and (tags.val_end.strip() or tags.last_val_end is not None)):
        return "key_val_sep and val_end are needed beside key_start: what an argument's name and value end with"
    if not tags.tool_sep.strip() and not tags.key_start.strip():
        return "tool_sep is needed: what a call's name ends with"
    return ""
