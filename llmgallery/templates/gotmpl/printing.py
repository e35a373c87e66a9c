"""How Go's fmt package writes values, as far as %v goes. Formats with verbs are in formatting.py."""

from __future__ import annotations

import math
import re
import unicodedata
from typing import Any

from llmgallery.templates.gotmpl.budget import current
from llmgallery.templates.gotmpl.values import Object, Struct, TypedNil, is_int, kind

NO_VALUE = "<no value>"
NIL = "<nil>"


def text(value: Any) -> str:
    """What {{value}} prints."""
    if isinstance(value, str):
        return value
    return NO_VALUE if value is None else plain(indirect(value))


def indirect(value: Any) -> Any:
    """What a pointer points to. A template's own output and its escaping functions print that."""
    if isinstance(value, Struct) and value.type_name.startswith("*"):
        return Struct(value.type_name[1:], value.fields)
    return value


def plain(value: Any) -> str:
    """fmt's %v."""
    if isinstance(value, str):
        return value
    if isinstance(value, list | tuple | dict | Struct):
        current().text(current().weigh(value))
    return _plain(value, top=True)


def _plain(value: Any, *, top: bool = False) -> str:
    if isinstance(value, str):
        return value
    if isinstance(value, bool):
        return "true" if value else "false"
    if is_int(value):
        return str(int(value))
    if isinstance(value, float):
        return float_text(value)
    if isinstance(value, complex):
        return f"({float_text(value.real)}{_signed(value.imag)}i)"
    if isinstance(value, TypedNil):
        return {"map": "map[]", "slice": "[]"}.get(kind(value), NIL)
    if isinstance(value, Object):
        return value.text()
    if isinstance(value, dict):
        return f"map[{' '.join(f'{key}:{_plain(value[key])}' for key in sorted(value))}]"
    if isinstance(value, list | tuple):
        return f"[{' '.join(map(_plain, value))}]"
    if isinstance(value, Struct):
        return _struct(value, top)
    return NIL if value is None else f"{value}"


def _struct(value: Struct, top: bool) -> str:
    if value.type_name.startswith("*") and not top:
        return "0xc000000000"  # Go prints where it lies in memory
    sign = "&" if value.type_name.startswith("*") else ""
    return f"{sign}{{{' '.join(_plain(field.value) for field in value.fields)}}}"


def sprint(values: tuple[Any, ...]) -> str:
    """fmt.Sprint: spaces between operands when neither is a string."""
    out: list[str] = []
    after_text = True
    for value in values:
        is_text = isinstance(value, str)
        if out and not is_text and not after_text:
            out.append(" ")
        out.append(plain(value))
        after_text = is_text
    return joined(out)


def sprintln(values: tuple[Any, ...]) -> str:
    """fmt.Sprintln: spaces between all operands, and a newline."""
    return joined([" ".join(plain(value) for value in values), "\n"])


def joined(parts: list[str], separator: str = "") -> str:
    current().text(sum(map(len, parts)) + len(separator) * len(parts))
    return separator.join(parts)


def float_text(value: float) -> str:
    """strconv's 'g' with the shortest digits: 1, 0.1, 1e+06, 1e-05."""
    if math.isinf(value):
        return "+Inf" if value > 0 else "-Inf"
    if math.isnan(value):
        return "NaN"
    digits, exponent = shortest(value)
    sign = "-" if math.copysign(1, value) < 0 else ""
    return sign + (scientific(digits, exponent) if exponent < -4 or exponent >= 6 else positional(digits, exponent))


def shortest(value: float) -> tuple[str, int]:
    """The fewest digits that read back as the same number, and the exponent of the first: 1230.0 is ("123", 3)."""
    mantissa, _, exponent = f"{abs(value)!r}".partition("e")
    whole, _, fraction = mantissa.partition(".")
    digits = (whole + fraction).lstrip("0")
    if not digits.strip("0"):
        return "0", 0
    first = len(whole) - 1 if whole != "0" else len(digits) - len(fraction) - 1
    return digits.rstrip("0"), first + int(exponent or 0)


def scientific(digits: str, exponent: int) -> str:
    point = f".{digits[1:]}" if len(digits) > 1 else ""
    return f"{digits[0]}{point}e{'-' if exponent < 0 else '+'}{abs(exponent):02d}"


def positional(digits: str, exponent: int) -> str:
    if exponent < 0:
        return "0." + "0" * (-exponent - 1) + digits
    whole = digits[: exponent + 1].ljust(exponent + 1, "0")
    return f"{whole}.{digits[exponent + 1 :]}" if len(digits) > exponent + 1 else whole


def _signed(value: float) -> str:
    found = float_text(value)
    return found if found[0] in "+-" else f"+{found}"


def is_print(char: str) -> bool:
    """unicode.IsPrint: letters, marks, numbers, punctuation, symbols and the ASCII space."""
    return char == " " or unicodedata.category(char)[0] in "LMNPS"


_SPECIAL = re.compile(r"[^ -~]|[\"'`\\]")
_SPECIAL_ASCII = re.compile(r"[\"'`\\]")
_ESCAPES = {"\a": "\\a", "\b": "\\b", "\f": "\\f", "\n": "\\n", "\r": "\\r", "\t": "\\t", "\v": "\\v", "\\": "\\\\"}


def quoted(value: str, *, quote: str = '"', ascii_only: bool = False) -> str:
    """strconv.Quote: a Go literal."""
    current().step(len(value) // 8)
    special = _SPECIAL if ascii_only or not value.isprintable() else _SPECIAL_ASCII
    step = current().step

    def escape(found: re.Match[str]) -> str:
        step()
        return _escaped(found[0], quote, ascii_only)

    return quote + special.sub(escape, value) + quote


def _escaped(char: str, quote: str, ascii_only: bool) -> str:
    if char == quote:
        return "\\" + char
    if char in _ESCAPES:
        return _ESCAPES[char]
    code = ord(char)
    if " " <= char <= "~" or (not ascii_only and code > 127 and is_print(char)):
        return char
    if code < 0x80:
        return f"\\x{code:02x}"
    return f"\\u{code:04x}" if code < 0x10000 else f"\\U{code:08x}"
