"""From any value to a number, a text or a list, as sprig does it (with spf13/cast)."""

from __future__ import annotations

import math
import re
from typing import Any

from llmgallery.templates.gotmpl.printing import plain
from llmgallery.templates.gotmpl.values import GoError, TypedNil, is_int, kind, truth

_FLOAT = re.compile(r"[+-]?(\d+\.?\d*([eE][+-]?\d+)?|\.\d+([eE][+-]?\d+)?|(?i:inf|infinity|nan))", re.ASCII)
_HEX_FLOAT = re.compile(r"[+-]?0[xX][0-9a-fA-F]*\.?[0-9a-fA-F]*[pP][+-]?\d+", re.ASCII)
_INT = re.compile(
    r"(?P<sign>[+-]?)(0[xX]_?(?P<x>[\da-fA-F]+(_[\da-fA-F]+)*)|0[bB]_?(?P<b>[01]+(_[01]+)*)|0[oO]?_?(?P<o>[0-7]+(_[0-7]+)*)|(?P<d>[1-9]\d*(_\d+)*|0))",
    re.ASCII,
)
_LEAST, _MOST = -(1 << 63), (1 << 63) - 1
_LONGEST = 100  # digits; more never fit 64 bits, and zeros at the front are not worth the time


def to_int(value: Any) -> int:
    """0 for what is no number. Floats lose what is behind the point; a text may be written as in Go: 0x10, 0b1, 010."""
    if isinstance(value, bool) or is_int(value):
        return int(value)
    if isinstance(value, float):
        return _LEAST if math.isnan(value) or not _LEAST <= value < 2.0**63 else int(value)
    return _parsed(value) if isinstance(value, str) else 0


def _parsed(text: str) -> int:
    text = re.sub(r"\.0+$", "", text, count=1) if len(text) < _LONGEST else text
    found = _INT.fullmatch(text) if len(text) < _LONGEST else None
    if found is None:
        return 0
    base = next(base for name, base in (("x", 16), ("b", 2), ("o", 8), ("d", 10)) if found[name] is not None)
    digits = next(found[name] for name in "xbod" if found[name] is not None)
    number = int(found["sign"] + digits, base)
    return number if _LEAST <= number <= _MOST else 0


def decimal_int(text: str, *, base: int = 10) -> int:
    """strconv.ParseInt without its error: 0 for no number, the nearest for one that does not fit."""
    if not re.fullmatch(r"[+-]?[0-7]+" if base == 8 else r"[+-]?[0-9]+", text):
        return 0
    if len(text) > 400:
        return _LEAST if text[0] == "-" else _MOST
    return min(max(int(text, base), _LEAST), _MOST)


def to_float(value: Any) -> float:
    """0 for what is no number."""
    if isinstance(value, bool | float) or is_int(value):
        return float(value)
    return parse_float(value) or 0.0 if isinstance(value, str) else 0.0


def parse_float(text: str) -> float | None:
    if len(text) < 1000 and _HEX_FLOAT.fullmatch(text):
        try:
            return float.fromhex(text)
        except (ValueError, OverflowError):
            return None
    if len(text) > 1000 or not _FLOAT.fullmatch(text):
        return None
    value = float(text)
    return None if math.isinf(value) and any(char.isdigit() for char in text) else value


def to_text(value: Any) -> str:
    """sprig's strval: texts as they are, all else as %v."""
    return plain(value)


def is_empty(value: Any) -> bool:
    """Zero, false, nil, "", and what has no elements. A struct never is."""
    return not truth(value)


def as_list(value: Any, message: str) -> list[Any]:
    """The elements of a slice; `message` says what cannot be done "on type X"."""
    if isinstance(value, list | tuple):
        return list(value)
    if value is None:
        raise GoError("runtime error: invalid memory address or nil pointer dereference")
    if isinstance(value, TypedNil) and kind(value) == "slice":
        return []
    raise GoError(f"{message} {kind(value)}")


def to_texts(value: Any) -> list[str]:
    """sprig's strslice: the elements as texts, nils left out; one text for what is no list."""
    if isinstance(value, list | tuple):
        return [to_text(item) for item in value if item is not None]
    if isinstance(value, TypedNil) and kind(value) == "slice":
        return []
    return [] if value is None else [to_text(value)]
