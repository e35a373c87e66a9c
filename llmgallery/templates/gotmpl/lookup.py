"""What fields, keys and nils of a Go template's data give. Errors carry an offset, never a line."""

from __future__ import annotations

import difflib
from collections.abc import Mapping, Sequence
from typing import Any

from llmgallery.templates.gotmpl.values import Struct, TypedNil, kind, type_name


class _Missing:
    """Go's invalid reflect.Value: what a missing key gives, and a nil that went through a pipeline. Fields of it are missing
    too, where fields of a nil are an error.
    """

    def __repr__(self) -> str:
        return "<no value>"


MISSING = _Missing()


class Fault(Exception):
    """The template cannot go on. `pos` is the offset of the part at fault."""

    def __init__(self, pos: int, message: str) -> None:
        super().__init__(message)
        self.pos = pos
        self.message = message


def plain(value: Any) -> Any:
    return None if value is MISSING else value


def field(pos: int, value: Any, name: str) -> Any:
    """A struct's field or a map's value."""
    if value is MISSING:
        return MISSING
    if isinstance(value, dict):
        return value.get(name, MISSING)
    if isinstance(value, Struct):
        found = value.get(name)
        if found is not None:
            return found.value
        hint = meant(name, [each.name for each in value.fields])
        raise Fault(pos, f"can't evaluate field {name} in type {type_name(value)}{hint}")
    if value is None:
        raise Fault(pos, f"nil pointer evaluating interface {{}}.{name}: it is asked of a null")
    if isinstance(value, TypedNil):
        if value.type_name.startswith("map["):
            return MISSING
        if value.type_name.startswith("*"):
            raise Fault(pos, f"nil pointer evaluating {value.type_name}.{name}")
    hint = " (a list: go through it with range, or take one with index)" if kind(value) == "slice" else ""
    raise Fault(pos, f"can't evaluate field {name} in type {type_name(value)}{hint}")


def sorted_keys(value: dict[Any, Any]) -> list[Any]:
    """In Go's order: texts by their code points, which is that of their bytes."""
    return sorted(value, key=lambda key: (not isinstance(key, int), key if isinstance(key, int) else str(key)))


def meant(name: str, known: Sequence[str] | Mapping[str, Any]) -> str:
    near = difflib.get_close_matches(name, list(known), n=1)
    return f" (did you mean {near[0]}?)" if near else ""
