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
    runs: dict[str, list[Any]] = {}
    for fields in said:
        for name, value in fields.items():
            run = runs.setdefault(name, [])
            if run and not _adds(run[-1], value, name):
                run.clear()
            run.append(value)
            whole[name] = value
    # Each run is joined once: answers in many parts would be copied as often otherwise.
    return whole | {name: _joined(run) for name, run in runs.items() if len(run) > 1}


def _adds(before: Any, value: Any, name: str) -> bool:
    if isinstance(before, str):
        return isinstance(value, str) and name not in _NOT_IN_PARTS
    return isinstance(before, dict) and isinstance(value, dict)


def _joined(run: Sequence[Any]) -> Any:
    return "".join(run) if isinstance(run[0], str) else united(run)
