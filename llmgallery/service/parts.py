"""Calls and fields that remote endpoints send in parts, put together. Pure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from llmgallery.core.events import ToolCallDelta

_NOT_IN_PARTS = frozenset({"id", "type", "name", "format", "index"})
"""Texts that streams repeat instead of adding to them."""


def whole_calls(parts: Sequence[ToolCallDelta]) -> list[ToolCallDelta]:
    """The calls, in the order in which they began; the parts of one have the same index."""
    calls: dict[int, list[ToolCallDelta]] = {}
    for part in parts:
        calls.setdefault(part.index, []).append(part)
    return [same[0] if len(same) == 1 else _whole_call(same) for same in calls.values()]


def _whole_call(parts: Sequence[ToolCallDelta]) -> ToolCallDelta:
    return ToolCallDelta(
        parts[0].index,
        next((part.id for part in parts if part.id), ""),
        next((part.name for part in parts if part.name), ""),
        "".join(part.arguments for part in parts),
        united([part.extra for part in parts if part.extra]),
    )


def united(said: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Fields that came in parts: texts are joined, also within objects; of other values the last holds."""
    whole: dict[str, Any] = {}
    for fields in said:
        for name, value in fields.items():
            before = whole.get(name)
            if isinstance(before, str) and isinstance(value, str) and name not in _NOT_IN_PARTS:
                whole[name] = before + value
            elif isinstance(before, dict) and isinstance(value, dict):
                whole[name] = united([before, value])
            else:
                whole[name] = value
    return whole
