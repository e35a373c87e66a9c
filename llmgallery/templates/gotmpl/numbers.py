"""Numbers with fmt's verbs and flags, and how fmt pads."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from decimal import Decimal

from llmgallery.templates.gotmpl.printing import positional, scientific, shortest


@dataclass
class Flags:
    """The flags of one directive, in the order `-+# 0`, its width and its precision. A width counts characters. Of %v the
    signs `#` and `+` mean something else: `source` (as in Go's source) and `named` (with the names of fields).
    """

    minus: bool = False
    plus: bool = False
    sharp: bool = False
    space: bool = False
    zero: bool = False
    width: int | None = None
    precision: int | None = None
    source: bool = False
    named: bool = False


def pad(text: str, flags: Flags) -> str:
    if flags.width is None:
        return text
    if flags.minus:
        return text.ljust(flags.width)
    return text.rjust(flags.width, "0" if flags.zero else " ")


def int_verb(value: int, verb: str, flags: Flags) -> str:
    """The verbs d b o O x X of an integer. A precision is the least number of digits."""
    if flags.precision == 0 and value == 0:
        return " " * (flags.width or 0)
    sign = "-" if value < 0 else "+" if flags.plus else " " if flags.space else ""
    digits = format(abs(value), {"O": "o"}.get(verb, verb))
    least = flags.precision or 0
    zero = flags.zero
    if flags.precision is not None:
        zero = False
    elif zero and not flags.minus and flags.width is not None:
        least = flags.width - len(sign)
    digits = digits.rjust(least, "0")
    if flags.sharp and verb in "bxX":
        digits = "0" + verb + digits
    elif flags.sharp and verb in "oO" and not digits.startswith("0"):
        digits = "0" + digits
    if verb == "O":
        digits = "0o" + digits
    return pad(sign + digits, replace(flags, zero=False))


def float_verb(value: float, verb: str, flags: Flags) -> str:
    """The verbs v b g G x X f F e E of a float."""
    verb = {"v": "g", "F": "f"}.get(verb, verb)
    if math.isinf(value) or math.isnan(value):
        return _unreal(value, flags)
    body = _body(abs(value), verb, flags)
    negative = math.copysign(1, value) < 0
    sign = "-" if negative else "+" if flags.plus else " " if flags.space else ""
    if flags.zero and not flags.minus and flags.width is not None and sign:
        return sign + body.rjust(flags.width - 1, "0")
    return pad(sign + body, flags)


def _unreal(value: float, flags: Flags) -> str:
    if math.isnan(value):
        name = "+NaN" if flags.plus else " NaN" if flags.space else "NaN"
    else:
        name = "-Inf" if value < 0 else " Inf" if flags.space and not flags.plus else "+Inf"
    return pad(name, replace(flags, zero=False))


def _body(value: float, verb: str, flags: Flags) -> str:
    precision = flags.precision
    if verb == "b":
        return _binary(value)
    if verb in "xX":
        found = _hexadecimal(value, precision)
        if flags.sharp:
            found = _pointed(found, 6 if precision is None else precision if verb == "x" else 0)
    elif verb in "gG" and precision is None:
        found = _general(value, flags.sharp)
    else:
        sharp = "#" if flags.sharp else ""
        found = format(value, f"{sharp}.{6 if precision is None else precision}{verb.lower()}")
    return found.upper() if verb in "XEG" else found


def _general(value: float, sharp: bool) -> str:
    """'g' with the shortest digits; with `sharp` at least six of them and a point."""
    digits, exponent = shortest(value)
    small = exponent < -4 or exponent >= 6
    if sharp:
        digits = digits.ljust(6, "0") if value else "000000"
    found = scientific(digits, exponent) if small else positional(digits, exponent)
    return found if not sharp or "." in found else found + "."


def _pointed(written: str, digits: int) -> str:
    """With a point, and zeros up to so many digits, of which Go takes the x for one."""
    body, _, exponent = written.partition("p")
    point = "" if "." in body else "."
    return f"{body}{point}{'0' * (digits - len(body.replace('.', '')) + 1)}p{exponent}"


def _binary(value: float) -> str:
    mantissa, exponent = math.frexp(value)
    return f"{int(mantissa * (1 << 53))}p{exponent - 53:+d}" if value else "0p-1074"


def _hexadecimal(value: float, precision: int | None) -> str:
    if not value:
        return "0x0" + ("." + "0" * precision if precision else "") + "p+00"
    mantissa, exponent = math.frexp(value)
    bits, exponent = int(mantissa * (1 << 53)), exponent - 1
    if precision is None:
        digits = f"{bits % (1 << 52):013x}".rstrip("0")
    else:
        whole = round(Decimal(bits) * Decimal(16) ** precision / (1 << 52)) if precision < 13 else bits << 4 * (precision - 13)
        if whole >> (4 * precision + 1):
            whole, exponent = whole >> 1, exponent + 1
        digits = f"{whole % (1 << 4 * precision):0{precision}x}" if precision else ""
    point = f".{digits}" if digits else ""
    return f"0x1{point}p{'-' if exponent < 0 else '+'}{abs(exponent):02d}"
