"""When Go's values are equal, and which is less."""

from __future__ import annotations

from typing import Any

from llmgallery.templates.gotmpl.printing import plain
from llmgallery.templates.gotmpl.values import GoError, Object, Struct, TypedNil, is_int, is_nil, kind, type_name

_UNFIT = "invalid type for comparison"


def _basic(value: Any) -> str:
    """Values of one of these kinds can be compared with each other; "" for all that is not basic."""
    if is_int(value):
        return "int"  # signed or not
    for base in (bool, str, float, complex):
        if isinstance(value, base):
            return base.__name__
    return ""


def equal(left: Any, right: Any) -> bool:
    """The template function `eq` of two values. Raises GoError for types that do not compare."""
    basic = _basic(left)
    if basic != _basic(right):
        if left is None or right is None:
            return False
        raise _incompatible(left, right)
    return bool(left == right) if basic else _same(left, right)


def _same(left: Any, right: Any) -> bool:
    """Of values that are no numbers, texts or bools. A map or slice compares with nil alone."""
    if left is not None and right is not None and kind(left) != kind(right):
        pair = f"{plain(left)}: {type_name(left)}, {type_name(right)}: {plain(right)}"
        raise GoError(f"non-comparable types {pair}")
    if is_nil(left) or is_nil(right):
        return is_nil(left) and is_nil(right)
    if not _is_comparable(right):
        raise GoError(f"non-comparable type {plain(right)}: {type_name(right)}")
    return left is right if kind(left) == "ptr" else deep_equal(left, right)


def _is_comparable(value: Any) -> bool:
    if isinstance(value, Struct) and kind(value) != "ptr":
        return all(_is_comparable(field.value) for field in value.fields)
    return kind(value) not in ("map", "slice")


def less(left: Any, right: Any) -> bool:
    """The template function `lt`. Raises GoError for types without an order."""
    basic, other = _basic(left), _basic(right)
    if not basic or not other:
        raise GoError(_UNFIT)
    if basic != other:
        raise _incompatible(left, right)
    if basic in ("bool", "complex"):
        raise GoError(_UNFIT)
    return bool(left < right)


def _incompatible(left: Any, right: Any) -> GoError:
    return GoError(f"incompatible types for comparison: {type_name(left)} and {type_name(right)}")


def deep_equal(left: Any, right: Any) -> bool:
    """reflect.DeepEqual: of the same type all the way down. Weigh the values before."""
    if type_name(left) != type_name(right):
        return False
    if isinstance(left, TypedNil) or isinstance(right, TypedNil):
        return bool(left == right)
    if isinstance(left, dict):
        return bool(left.keys() == right.keys() and all(deep_equal(item, right[key]) for key, item in left.items()))
    if isinstance(left, list | tuple):
        return len(left) == len(right) and all(map(deep_equal, left, right))
    if isinstance(left, Struct):
        pairs = zip(left.fields, right.fields, strict=True)
        return left is right or all(deep_equal(one.value, other.value) for one, other in pairs)
    if isinstance(left, Object):
        return bool(left.text() == right.text())
    return bool(left == right)
