"""What a scalar of a type looks like, in words, and how it is converted."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Annotated, Any, Literal, Union

import msgspec
from msgspec import inspect

from llmgallery.config.units import DURATION, SIZE, Bytes, Seconds, parse_duration, parse_size


def convert(value: Any, type_: Any) -> Any:
    """The value as the type has it. Raises ValueError or msgspec.ValidationError."""
    return finite(msgspec.convert(value, type_, dec_hook=from_text))


def finite(value: Any) -> Any:
    """The value, unless it is a float that is no number. Raises ValueError."""
    if isinstance(value, float) and not isinstance(value, Seconds) and not math.isfinite(value):
        raise ValueError("not finite")
    return value


def from_text(type_: type, value: Any) -> Any:
    """msgspec's dec_hook for what a settings file holds beside plain data. Raises ValueError."""
    if type_ is Seconds:
        return Seconds(parse_duration(value))
    if type_ is Bytes:
        return Bytes(parse_size(value))
    if type_ is Path and isinstance(value, str) and value:
        try:
            return Path(value).expanduser()
        except RuntimeError as error:
            raise ValueError("no such home folder") from error
    raise ValueError(f"not a {type_.__name__}")


def expectation(info: inspect.Type) -> str:
    """What a scalar of this type looks like, in words."""
    if isinstance(info, inspect.Metadata):
        return expectation(info.type)
    if isinstance(info, (inspect.IntType, inspect.FloatType)):
        return _number(info)
    if isinstance(info, inspect.LiteralType):
        return "one of " + ", ".join(map(str, info.values))
    if isinstance(info, inspect.CustomType):
        return {Seconds: DURATION, Bytes: SIZE, Path: "a path"}[info.cls]
    return "true or false" if isinstance(info, inspect.BoolType) else "text"


def _number(info: inspect.IntType | inspect.FloatType) -> str:
    noun = "a whole number" if isinstance(info, inspect.IntType) else "a number"
    low = info.ge if info.ge is not None else info.gt
    high = info.le if info.le is not None else info.lt
    if low is not None and high is not None:
        return f"{noun} from {low:g} to {high:g}"
    if low is not None:
        return f"{noun}, at least {low:g}" if info.ge is not None else f"{noun} above {low:g}"
    return noun if high is None else f"{noun}, at most {high:g}"


def python_type(leaves: list[inspect.Type]) -> Any:
    """The type again, for msgspec.convert."""
    made: list[Any] = []
    for info in leaves:
        if isinstance(info, (inspect.IntType, inspect.FloatType)):
            bounds = {name: getattr(info, name) for name in ("ge", "gt", "le", "lt") if getattr(info, name) is not None}
            base = int if isinstance(info, inspect.IntType) else float
            made.append(Annotated[base, msgspec.Meta(**bounds)] if bounds else base)
        elif isinstance(info, inspect.LiteralType):
            made.append(Literal[info.values])
        elif isinstance(info, inspect.CustomType):
            made.append(info.cls)
        else:
            made.append(bool if isinstance(info, inspect.BoolType) else str)
    return Union[tuple(made)]  # noqa: UP007 - made at run time
