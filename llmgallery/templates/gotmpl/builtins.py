"""What a template may call: the functions that Go's text/template defines, and sprig's. `and` and `or` are the evaluator's."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from typing import Any
from urllib.parse import quote_plus

from llmgallery.templates.gotmpl.budget import current
from llmgallery.templates.gotmpl.compare import equal, less
from llmgallery.templates.gotmpl.formatting import sprintf
from llmgallery.templates.gotmpl.functions import Function, Library
from llmgallery.templates.gotmpl.printing import indirect, is_print, plain, sprint, sprintln, text
from llmgallery.templates.gotmpl.sprig import LIBRARY, REFUSED
from llmgallery.templates.gotmpl.values import (
    Byte,
    GoError,
    TypedNil,
    is_int,
    kind,
    truth,
    type_name,
    utf8,
)

__all__ = ["FUNCTIONS", "REFUSED"]
_GO = Library()


@_GO.add("not", "value")
def _not(value: Any) -> bool:
    return not truth(value)


@_GO.add("len", "value")
def _len(value: Any) -> int:
    if value is None:
        raise GoError("len of untyped nil")
    if isinstance(value, TypedNil):
        if kind(value) == "ptr":
            raise GoError("len of nil pointer")
        return 0
    if isinstance(value, str):
        return len(utf8(value))
    if isinstance(value, list | tuple | dict | bytes):
        return len(value)
    raise GoError(f"len of type {type_name(indirect(value))}")


@_GO.add("index", "value value...")
def _index(item: Any, *indexes: Any) -> Any:
    if item is None:
        raise GoError("index of untyped nil")
    for index in indexes:
        item = _item(item, index)
    return item


def _item(item: Any, index: Any) -> Any:
    if item is None or (isinstance(item, TypedNil) and kind(item) == "ptr"):
        raise GoError("index of nil pointer")
    if isinstance(item, TypedNil):
        item = {} if kind(item) == "map" else []
    if isinstance(item, dict):
        return _entry(item, index)
    if isinstance(item, str):
        data = utf8(item)
        return Byte(data[_position(index, len(data), "string")])
    if isinstance(item, list | tuple | bytes):
        return item[_position(index, len(item), "slice")]
    raise GoError(f"can't index item of type {type_name(indirect(item))}")


def _entry(item: dict[str, Any], key: Any) -> Any:
    if key is None:
        raise GoError("value is nil; should be of type string")
    if not isinstance(key, str):
        raise GoError(f"value has type {type_name(key)}; should be string")
    zero = "" if type_name(item) == "map[string]string" else None
    return item.get(key, zero)


def _position(index: Any, length: int, what: str) -> int:
    if index is None:
        raise GoError("cannot index slice/array with nil")
    if not is_int(index):
        raise GoError(f"cannot index slice/array with type {type_name(index)}")
    if not 0 <= index <= length:
        raise GoError(f"index out of range: {int(index)}")
    if index == length:
        raise GoError(f"reflect: {what} index out of range")
    return int(index)


@_GO.add("call", "value value...")
def _call(function: Any, *_: Any) -> Any:
    if function is None:
        raise GoError("call of nil")
    raise GoError(f"non-function {plain(function)} of type {type_name(function)}")


@_GO.add("eq", "value value...", deep=True)
def _eq(first: Any, *others: Any) -> bool:
    if not others:
        raise GoError("missing argument for comparison")
    return any(equal(first, other) for other in others)


@_GO.add("ne", "value value", deep=True)
def _ne(left: Any, right: Any) -> bool:
    return not equal(left, right)


_GO.add("lt", "value value")(less)


@_GO.add("le", "value value")
def _le(left: Any, right: Any) -> bool:
    return less(left, right) or equal(left, right)


@_GO.add("gt", "value value")
def _gt(left: Any, right: Any) -> bool:
    return not _le(left, right)


@_GO.add("ge", "value value")
def _ge(left: Any, right: Any) -> bool:
    return not less(left, right)


@_GO.add("print", "any...")
def _print(*values: Any) -> str:
    return sprint(values)


@_GO.add("printf", "string any...")
def _printf(template: str, *values: Any) -> str:
    return sprintf(template, values)


@_GO.add("println", "any...")
def _println(*values: Any) -> str:
    return sprintln(values)


def _shown(values: tuple[Any, ...]) -> str:
    """The operands of an escaping function, as one text."""
    if len(values) == 1 and isinstance(values[0], str):
        return values[0]
    return sprint(tuple(text(value) if value is None else indirect(value) for value in values))


def _escaping(pattern: str, escape: Callable[[re.Match[str]], str]) -> Callable[..., str]:
    compiled = re.compile(pattern)

    def run(*values: Any) -> str:
        shown = _shown(values)
        current().text(6 * len(shown))
        current().step(len(shown) // 8)
        return compiled.sub(escape, shown)

    return run


_HTML = {'"': "&#34;", "'": "&#39;", "&": "&amp;", "<": "&lt;", ">": "&gt;", "\0": "\ufffd"}
_GO.add("html", "any...")(_escaping("[\"'&<>\\0]", lambda found: _HTML[found[0]]))


def _script(found: re.Match[str]) -> str:
    char = found[0]
    if char in "\\'\"":
        return "\\" + char
    return char if char > "~" and is_print(char) else f"\\u{ord(char):04X}"


_GO.add("js", "any...")(_escaping(r"""[\\'"<>&=\x00-\x1f\x80-\U0010ffff]""", _script))


@_GO.add("urlquery", "any...")
def _urlquery(*values: Any) -> str:
    shown = _shown(values)
    current().text(9 * len(shown))
    current().step(len(shown) // 8)
    return quote_plus(utf8(shown))


FUNCTIONS: Mapping[str, Function] = {**_GO, **LIBRARY}
