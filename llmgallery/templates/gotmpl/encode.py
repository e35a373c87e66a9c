"""JSON as Go's encoding/json writes and reads it."""

from __future__ import annotations

import json
import math
import re
from base64 import b64encode
from typing import Any

from llmgallery.templates.gotmpl.budget import current
from llmgallery.templates.gotmpl.json_faults import json_fault
from llmgallery.templates.gotmpl.printing import joined, positional, scientific, shortest
from llmgallery.templates.gotmpl.values import GoError, Object, Struct, TypedNil, is_int, truth, type_name

_PLAIN_ESCAPE = re.compile(r'[\x00-\x1f"\\\u2028\u2029\ud800-\udfff]')
_HTML_ESCAPE = re.compile(r'[\x00-\x1f"\\<>&\u2028\u2029\ud800-\udfff]')
_NAMED = {'"': '\\"', "\\": "\\\\", "\b": "\\b", "\f": "\\f", "\n": "\\n", "\r": "\\r", "\t": "\\t"}


def encode(value: Any, *, html: bool = True, indent: str = "") -> str:
    """json.Marshal: maps in the order of their keys, structs in that of their fields, no spaces. With `html` the characters
    < > & are escaped; with `indent` it is json.MarshalIndent. Raises GoError for what has no JSON (NaN, functions).
    """
    chars = current().weigh(value)
    current().text(chars)
    current().step(chars // 8)
    out: list[str] = []
    _write(value, out, _HTML_ESCAPE if html else _PLAIN_ESCAPE, indent, "\n" if indent else "")
    return joined(out)


def _write(value: Any, out: list[str], escape: re.Pattern[str], indent: str, line: str) -> None:
    if isinstance(value, str):
        out.append(_string(value, escape))
    elif value is None or isinstance(value, TypedNil):
        out.append("null")
    elif isinstance(value, bool):
        out.append("true" if value else "false")
    elif is_int(value):
        out.append(str(int(value)))
    elif isinstance(value, float):
        out.append(_float(value))
    elif isinstance(value, Object):
        out.append(value.json())
    elif isinstance(value, bytes):
        out.append(f'"{b64encode(value).decode()}"')
    elif isinstance(value, list | tuple):
        _block("[]", [("", item) for item in value], out, escape, indent, line)
    elif isinstance(value, dict):
        _block("{}", [(_string(key, escape), value[key]) for key in sorted(value)], out, escape, indent, line)
    elif isinstance(value, Struct):
        _block("{}", _members(value, escape), out, escape, indent, line)
    else:
        raise GoError(f"json: unsupported type: {type_name(value)}")


def _members(value: Struct, escape: re.Pattern[str]) -> list[tuple[str, Any]]:
    return [
        (_string(field.json_name, escape), field.value)
        for field in value.fields
        if field.json_name is not None and not (field.omitempty and _is_empty(field.value))
    ]


def _is_empty(value: Any) -> bool:
    """What omitempty omits: zero, false, "", nil, and what has no elements. Structs stay."""
    return not truth(value)


def _block(ends: str, members: list[tuple[str, Any]], out: list[str], escape: re.Pattern[str], indent: str, line: str) -> None:
    """A list, whose members have no names, or an object."""
    if not members:
        out.append(ends)
        return
    inner = line + indent
    before = ends[0] + inner
    for name, value in members:
        out.append(before)
        if name:
            out.append(name + (": " if indent else ":"))
        _write(value, out, escape, indent, inner)
        before = "," + inner
    out.append(line + ends[1])


def _string(text: str, escape: re.Pattern[str]) -> str:
    return f'"{escape.sub(_escaped, text)}"'


def _escaped(found: re.Match[str]) -> str:
    char = found[0]
    if "\ud800" <= char <= "\udfff":
        return "\\ufffd"
    return _NAMED.get(char) or f"\\u{ord(char):04x}"


def _float(value: float) -> str:
    """As ECMAScript writes numbers."""
    if math.isinf(value) or math.isnan(value):
        raise GoError(f"json: unsupported value: {'NaN' if math.isnan(value) else '+Inf' if value > 0 else '-Inf'}")
    digits, exponent = shortest(value)
    sign = "-" if math.copysign(1, value) < 0 else ""
    if value == 0 or -6 <= exponent < 21:
        return sign + positional(digits, exponent)
    return sign + scientific(digits, exponent).replace("e-0", "e-")


def decode(text: str) -> Any:
    """json.Unmarshal into an interface {}: all numbers are floats. Raises GoError with Go's message."""
    current().text(len(text))
    try:
        value = json.loads(text, parse_int=_number, parse_float=_number, parse_constant=_constant)
    except json.JSONDecodeError as exc:
        raise GoError(json_fault(text)) from exc
    except RecursionError as exc:
        raise GoError("exceeded max depth") from exc
    current().weigh(value)
    return _mended(value) if _LONE.search(text) else value


_LONE = re.compile(r"\\u[dD][89a-fA-F]")


def _mended(value: Any) -> Any:
    """Halves of a surrogate pair that stand alone become U+FFFD."""
    if isinstance(value, str):
        return re.sub(r"[\ud800-\udfff]", "\ufffd", value)
    if isinstance(value, list):
        return [_mended(item) for item in value]
    if isinstance(value, dict):
        return {_mended(key): _mended(item) for key, item in value.items()}
    return value


def _number(written: str) -> float:
    value = float(written)
    if math.isinf(value):
        raise GoError(f"json: cannot unmarshal number {written} into Go value of type float64")
    return value


def _constant(name: str) -> float:
    """Python's reader takes NaN and Infinity."""
    raise json.JSONDecodeError(name, name, 0)
