"""Go's values as Python values, and what Go says about them. Knows no syntax and prints nothing.

nil is None, string is str, bool is bool, int is int, int64 and the like are the subclasses of int below, float64 is float,
[]interface {} is list, map[string]interface {} is dict. What else a template can hold has a class here.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

NESTING = 100  # of values: Go would run out of stack on a map that holds itself
ANY_LIST = "[]interface {}"
ANY_MAP = "map[string]interface {}"


class GoError(Exception):
    """A function of a template failed. `message` is what Go's function would say; the evaluator adds the place, and "error
    calling NAME: " before it.
    """

    def __init__(self, message: str) -> None:
        super().__init__(message)
        self.message = message


class ArgumentError(GoError):
    """A call does not fit the function: the number or the types of its arguments. Goes without "error calling NAME: "."""


class Int64(int):
    """An int64. Go's templates do not pass it where an int is wanted."""

    go_type: ClassVar[str] = "int64"


class Int32(int):
    """An int32, also known as rune."""

    go_type: ClassVar[str] = "int32"


class Byte(int):
    """A uint8, also known as byte: what `index` takes out of a string."""

    go_type: ClassVar[str] = "uint8"


class TypedList(list[Any]):
    """A slice of something other than interface {}."""

    def __init__(self, items: Iterable[Any] = (), go_type: str = "[]string") -> None:
        super().__init__(items)
        self.go_type = go_type


class TypedDict(dict[str, Any]):
    """A map of strings to something other than interface {}."""

    def __init__(self, items: Mapping[str, Any] | Iterable[tuple[str, Any]] = (), go_type: str = "map[string]string") -> None:
        super().__init__(items)
        self.go_type = go_type


@dataclass(frozen=True)
class Field:
    """One field of a Struct. `json_name` is what its JSON tag says, None for "-"."""

    name: str
    value: Any
    json_name: str | None
    omitempty: bool = False


@dataclass(frozen=True, eq=False)
class Struct:
    """A Go struct without methods; a pointer to one when `type_name` begins with "*"."""

    type_name: str
    fields: tuple[Field, ...]

    def get(self, name: str) -> Field | None:
        return next((field for field in self.fields if field.name == name), None)


@dataclass(frozen=True)
class TypedNil:
    """A nil that knows its type: a nil map, slice or pointer."""

    type_name: str


class Object:
    """A Go value with methods, such as time.Time. `methods` are what a template may call on it."""

    go_type: ClassVar[str]
    go_kind: ClassVar[str] = "struct"

    def methods(self) -> Mapping[str, Callable[..., Any]]:
        return {}

    def text(self) -> str:
        """What its String method says."""
        raise NotImplementedError

    def json(self) -> str:
        """What its MarshalJSON method writes."""
        raise NotImplementedError


def wrap_int(number: int) -> int:
    """As 64 bits hold it."""
    return (number + (1 << 63)) % (1 << 64) - (1 << 63)


def is_nil(value: Any) -> bool:
    return value is None or isinstance(value, TypedNil)


def truth(value: Any) -> bool:
    """Whether `if` takes it for true."""
    if isinstance(value, Struct | Object):
        return True
    return not isinstance(value, TypedNil) and bool(value)


def is_int(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def kind(value: Any) -> str:
    """The name of its reflect.Kind: "invalid" for nil."""
    name = type_name(value)
    if value is None:
        return "invalid"
    if isinstance(value, Object):
        return value.go_kind
    for start, found in (("*", "ptr"), ("[]", "slice"), ("map[", "map"), ("func(", "func")):
        if name.startswith(start):
            return found
    return "struct" if isinstance(value, Struct) else name


def type_name(value: Any) -> str:
    """Its type as Go's messages and %T write it: "<nil>" for nil."""
    plain = _PLAIN.get(type(value))
    if plain is not None:
        return plain
    if isinstance(value, Struct | TypedNil):
        return value.type_name
    found: str | None = getattr(value, "go_type", None)
    if found is not None:
        return found
    return next((name for base, name in _PLAIN.items() if isinstance(value, base)), "func()")


_PLAIN: dict[type, str] = {
    str: "string",
    bool: "bool",
    int: "int",
    float: "float64",
    complex: "complex128",
    list: ANY_LIST,
    tuple: ANY_LIST,
    dict: ANY_MAP,
    bytes: "[]uint8",
    type(None): "<nil>",
}


def utf8(text: str) -> bytes:
    """The bytes that Go has for a text: its lengths and positions count these."""
    return text.encode("utf-8", "surrogatepass")


def from_utf8(data: bytes) -> str:
    """A text again. Of a character that was cut in two each byte is U+FFFD, as Go reads it (Go itself keeps the bytes)."""
    return _BROKEN.sub("\ufffd", data.decode("utf-8", "surrogateescape"))


_BROKEN = re.compile("[\udc80-\udcff]")
