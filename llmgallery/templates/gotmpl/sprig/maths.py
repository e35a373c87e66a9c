"""sprig's arithmetic. Its integers are int64 and wrap; its addf, subf, mulf and divf count in decimal."""

from __future__ import annotations

import math
import random
from collections.abc import Callable
from fractions import Fraction
from typing import Any

from llmgallery.templates.gotmpl.functions import Library
from llmgallery.templates.gotmpl.printing import plain
from llmgallery.templates.gotmpl.sprig.convert import decimal_int, to_float, to_int
from llmgallery.templates.gotmpl.values import GoError, Int64, wrap_int

LIBRARY = Library()
_PLACES = 10**16  # behind the point, of a quotient

LIBRARY.add("int", "any")(to_int)
LIBRARY.add("int64", "any")(lambda value: Int64(to_int(value)))
LIBRARY.add("float64", "any")(to_float)
LIBRARY.add("atoi", "string")(decimal_int)
LIBRARY.add("toDecimal", "any", deep=True)(lambda value: Int64(decimal_int(plain(value), base=8)))


@LIBRARY.add("add", "any...")
def _add(*values: Any) -> int:
    return Int64(wrap_int(sum(map(to_int, values))))


LIBRARY.add("add1", "any")(lambda value: _add(value, 1))
LIBRARY.add("sub", "any any")(lambda left, right: Int64(wrap_int(to_int(left) - to_int(right))))


@LIBRARY.add("mul", "any any...")
def _mul(first: Any, *others: Any) -> int:
    product = to_int(first)
    for value in others:
        product = wrap_int(product * to_int(value))
    return Int64(product)


def _divided(left: int, right: int) -> tuple[int, int]:
    """Quotient and remainder, cut towards zero."""
    if not right:
        raise GoError("runtime error: integer divide by zero")
    quotient = abs(left) // abs(right) * (1 if (left < 0) == (right < 0) else -1)
    return wrap_int(quotient), left - quotient * right


LIBRARY.add("div", "any any")(lambda left, right: Int64(_divided(to_int(left), to_int(right))[0]))
LIBRARY.add("mod", "any any")(lambda left, right: Int64(_divided(to_int(left), to_int(right))[1]))
LIBRARY.add("max", "any any...", also="biggest")(lambda *values: Int64(max(map(to_int, values))))
LIBRARY.add("min", "any any...")(lambda *values: Int64(min(map(to_int, values))))


def _extreme(choose: Callable[[float, float], float]) -> Callable[..., float]:
    def run(*values: Any) -> float:
        found = to_float(values[0])
        for other in map(to_float, values[1:]):
            found = math.nan if math.isnan(found) or math.isnan(other) else choose(found, other)
        return found

    return run


LIBRARY.add("maxf", "any any...")(_extreme(max))
LIBRARY.add("minf", "any any...")(_extreme(min))


def _whole(value: float, cut: Callable[[float], int]) -> float:
    if not math.isfinite(value):
        return value
    return math.copysign(float(cut(value)), value) if abs(value) < 1 and not cut(value) else float(cut(value))


LIBRARY.add("floor", "any")(lambda value: _whole(to_float(value), math.floor))
LIBRARY.add("ceil", "any")(lambda value: _whole(to_float(value), math.ceil))


@LIBRARY.add("round", "any int float64...")
def _round(value: Any, places: int, *at: float) -> float:
    """Negative numbers are rounded down, as sprig does it: -2.4 to -3."""
    number = to_float(value)
    try:
        power = math.pow(10, places)
    except OverflowError:
        power = math.inf
    scaled = power * number
    fraction = math.modf(scaled)[0] if math.isfinite(scaled) else math.nan
    whole = _whole(scaled, math.ceil if fraction >= (at[0] if at else 0.5) else math.floor)
    if power == 0:
        return math.nan if not whole or math.isnan(whole) else math.copysign(math.inf, whole)
    return math.nan if math.isinf(power) and math.isinf(whole) else whole / power


def _exact(value: Any) -> Fraction:
    number = to_float(value)
    if not math.isfinite(number):
        raise GoError(f"Cannot create a Decimal from {plain(number)}")
    return Fraction(repr(number))


def _decimal(run: Callable[[Fraction, Fraction], Fraction], first: Any, others: tuple[Any, ...]) -> float:
    found = _exact(first)
    for value in others:
        found = run(found, _exact(value))
    try:
        return float(found)
    except OverflowError:
        return math.inf if found > 0 else -math.inf


def _quotient(left: Fraction, right: Fraction) -> Fraction:
    """To 16 places, half away from zero."""
    if not right:
        raise GoError("decimal division by 0")
    scaled = left / right * _PLACES
    rounded = (2 * abs(scaled.numerator) + scaled.denominator) // (2 * scaled.denominator)
    return Fraction(rounded if scaled >= 0 else -rounded, _PLACES)


LIBRARY.add("addf", "any...")(lambda *values: _decimal(Fraction.__add__, 0.0, values))
LIBRARY.add("add1f", "any")(lambda value: _decimal(Fraction.__add__, value, (1,)))
LIBRARY.add("subf", "any any...")(lambda first, *others: _decimal(Fraction.__sub__, first, others))
LIBRARY.add("mulf", "any any...")(lambda first, *others: _decimal(Fraction.__mul__, first, others))
LIBRARY.add("divf", "any any...")(lambda first, *others: _decimal(_quotient, first, others))


@LIBRARY.add("randInt", "int int")
def _rand_int(least: int, end: int) -> int:
    if end <= least:
        raise GoError("invalid argument to Intn")
    return random.randrange(least, end)
