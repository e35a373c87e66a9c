"""A request's JSON body as a typed struct, and what is wrong with it, in words that need no knowledge of our libraries."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any, TypeVar

import msgspec

from llmgallery.api.errors import BadBody
from llmgallery.core.errors import InvalidField

Choices = Mapping[str, Sequence[str]]
"""What a field of few values may say, by its path without indices."""

B = TypeVar("B", bound=msgspec.Struct)


def read(data: bytes, body: type[B], choices: Choices) -> tuple[B, dict[str, Any]]:
    """The body, and the fields that it does not know. Raises BadBody when it is no JSON object, InvalidField with the
    field's path (`messages[0].role`) when a field is missing, of a wrong type, or out of range."""
    return parse(json_object(data), body, choices)


def parse(fields: dict[str, Any], body: type[B], choices: Choices) -> tuple[B, dict[str, Any]]:
    """The same of a JSON object."""
    try:
        parsed = msgspec.convert(fields, body, str_keys=True)
    except msgspec.ValidationError as exc:
        raise _invalid(str(exc), choices) from exc
    known = body.__struct_fields__
    return parsed, {name: value for name, value in fields.items() if name not in known}


def json_object(data: bytes) -> dict[str, Any]:
    """Raises BadBody."""
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


def _invalid(text: str, allowed: Choices) -> InvalidField:
    """msgspec says `Expected ... - at `$.a[0].b``, or names a missing field before that."""
    what, place = text.rsplit(" - at ", 1) if " - at " in text else (text, "")
    found = re.search(r"`\$\.?([^`]*)`", place)
    path = found[1].removesuffix("[...]") if found else ""
    if missing := re.search(r"missing required field `([^`]+)`", what):
        path = f"{path}.{missing[1]}" if path else missing[1]
    choices = allowed.get(re.sub(r"\d+", "", path))
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
