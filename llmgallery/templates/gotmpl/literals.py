"""The constants of a Go template as values: Go's quoting, and numbers that keep every type they fit."""

from __future__ import annotations

import re

from llmgallery.templates.gotmpl.nodes import Number

INT64 = (-(1 << 63), (1 << 63) - 1)
UINT64_MAX = (1 << 64) - 1
_SIMPLE = {"a": 7, "b": 8, "f": 12, "n": 10, "r": 13, "t": 9, "v": 11, "\\": 92}
_ESCAPE = re.compile(r"\\(?:x([0-9a-fA-F]{2})|u([0-9a-fA-F]{4})|U([0-9a-fA-F]{8})|([0-7]{3})|(.))|([^\\]+)", re.DOTALL)
_DIGITS = {2: re.compile(r"[01]+"), 8: re.compile(r"[0-7]+"), 10: re.compile(r"[0-9]+"), 16: re.compile(r"[0-9a-fA-F]+")}
_DECIMAL = re.compile(r"[+-]?(?:\d+\.?\d*|\.\d+)(?:[eE][+-]?\d+)?", re.ASCII)
_HEX_FLOAT = re.compile(r"[+-]?0[xX](?:[0-9a-fA-F]+\.?[0-9a-fA-F]*|\.[0-9a-fA-F]+)[pP][+-]?\d+", re.ASCII)
_COMPLEX = re.compile(r"([+-]?[^+-]+(?:(?<=[eEpP])[+-]\d+)?)([+-].+)i", re.DOTALL)


class LiteralError(ValueError):
    """No constant. Its words are for the user."""


def unquote(text: str) -> str:
    """The string that a quoted or raw literal stands for. Bytes that are no UTF-8 become U+FFFD. Raises LiteralError."""
    if text.startswith("`"):
        return text[1:-1].replace("\r", "")
    return _bytes(text[1:-1], '"', text).decode("utf-8", "replace")


def _bytes(inner: str, quote: str, text: str) -> bytes:
    made, pos = bytearray(), 0
    while pos < len(inner):
        match = _ESCAPE.match(inner, pos)
        if match is None:
            raise LiteralError(f"invalid syntax in {text}")
        pos = match.end()
        byte, short, long, octal, sign, plain = match.groups()
        if plain is not None:
            made += plain.encode("utf-8", "surrogatepass")
        elif byte or octal:
            made.append(_below(int(byte, 16) if byte else int(octal, 8), 256, text))
        elif short or long:
            made += _char(int(short or long, 16), text).encode()
        elif sign == quote:
            made += sign.encode()
        elif sign in _SIMPLE:
            made.append(_SIMPLE[sign])
        else:
            raise LiteralError(f"invalid syntax: \\{sign} is no escape in {text}")
    return bytes(made)


def _below(number: int, bound: int, text: str) -> int:
    if number >= bound:
        raise LiteralError(f"invalid syntax: an escape in {text} is out of range")
    return number


def _char(code: int, text: str) -> str:
    if 0xD800 <= code < 0xE000:
        raise LiteralError(f"invalid syntax: an escape in {text} is no character")
    return chr(_below(code, 0x110000, text))


def number(text: str, kind: str, pos: int) -> Number:
    """The constant of a "number", "complex" or "rune" token. Raises LiteralError."""
    if kind == "rune":
        code = _rune(text)
        return Number(pos, text, code, code, float(code))
    if kind == "complex":
        return _complex(text, pos)
    if text.endswith("i"):
        return _from_complex(text, pos, complex(0.0, _float(text[:-1], text)))
    whole = _integer(text)
    if whole is None:
        return _from_float(text, pos)
    as_int = whole if INT64[0] <= whole <= INT64[1] else None
    as_uint = whole if 0 <= whole <= UINT64_MAX and (text[0] not in "+-" or whole == 0) else None
    if as_int is None and as_uint is None:
        raise LiteralError(f"integer overflow: {text!r}")
    return Number(pos, text, as_int, as_uint, float(whole))


def _rune(text: str) -> int:
    inner = text[1:-1]
    if inner.startswith("\\"):
        match = _ESCAPE.fullmatch(inner)
        if match and (match[1] or match[4]):
            return _below(int(match[1], 16) if match[1] else int(match[4], 8), 256, text)
    elif len(inner) == 1:
        return ord(inner)
    value = _bytes(inner, "'", text).decode("utf-8", "replace") if inner.startswith("\\") else inner
    if len(value) != 1:
        raise LiteralError(f"malformed character constant: {text}")
    return ord(value)


def _complex(text: str, pos: int) -> Number:
    match = _COMPLEX.fullmatch(text)
    if match is None:
        raise LiteralError(f"illegal number syntax: {text!r}")
    return _from_complex(text, pos, complex(_float(match[1], text), _float(match[2], text)))


def _from_complex(text: str, pos: int, value: complex) -> Number:
    if value.imag:
        return Number(pos, text, as_complex=value)
    whole = int(value.real) if value.real.is_integer() else None
    return Number(pos, text, _in_int(whole), _in_uint(whole), value.real, value)


def _from_float(text: str, pos: int) -> Number:
    value = _float(text, text)
    if not any(sign in text for sign in ".eEpP"):
        raise LiteralError(f"integer overflow: {text!r}")
    whole = int(value) if value.is_integer() else None
    return Number(pos, text, _in_int(whole), _in_uint(whole), value)


def _in_int(whole: int | None) -> int | None:
    return whole if whole is not None and INT64[0] <= whole <= INT64[1] else None


def _in_uint(whole: int | None) -> int | None:
    return whole if whole is not None and 0 <= whole <= UINT64_MAX else None


def _integer(text: str) -> int | None:
    """As strconv.ParseInt with base 0; None for what is no integer."""
    sign, digits = (text[0], text[1:]) if text[:1] in ("+", "-") else ("", text)
    base, start = 10, 0
    if digits[:1] == "0" and len(digits) > 1:
        base, start = {"x": (16, 2), "b": (2, 2), "o": (8, 2)}.get(digits[1].lower(), (8, 1))
    plain = _without_underscores(digits)
    if plain is None or not _DIGITS[base].fullmatch(plain[start:]) or len(plain) > 80:
        return None
    value = int(plain[start:], base)
    return -value if sign == "-" else value


def _without_underscores(text: str) -> str | None:
    """None when one stands where Go allows none: they separate digits, or a base prefix from its digits."""
    if "_" not in text:
        return text
    unsigned = text[1:] if text[:1] in ("+", "-") else text
    is_hex = unsigned[:2].lower() == "0x"
    prefixed = is_hex or unsigned[:2].lower() in ("0b", "0o")
    digit = "[0-9a-fA-F]" if is_hex else "[0-9]"
    rest = unsigned[2:] if prefixed else unsigned
    if prefixed and rest.startswith("_"):
        rest = rest[1:]
        if not re.match(digit, rest):
            return None
    if re.search(rf"(?<!{digit})_|_(?!{digit})", rest):
        return None
    return text.replace("_", "")


def _float(text: str, whole: str) -> float:
    """As strconv.ParseFloat. Raises LiteralError, also when it is too large."""
    plain = _without_underscores(text)
    value = None
    if plain is not None and _DECIMAL.fullmatch(plain):
        value = float(plain)
    elif plain is not None and _HEX_FLOAT.fullmatch(plain):
        try:
            value = float.fromhex(plain)
        except OverflowError:
            value = None
    if value is None or value in (float("inf"), float("-inf")):
        raise LiteralError(f"illegal number syntax: {whole!r}")
    return value
