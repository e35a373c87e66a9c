"""A call as it stands in an answer, and the JSON of its arguments."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, NoReturn

MOST_ATTEMPTS = 256
"""Places at which JSON is looked for in vain; each failed attempt may read to the text's end."""


@dataclass(frozen=True)
class Found:
    """A call, and the part of the text that it is. `arguments`: JSON text, or what the model wrote in its place."""

    name: str
    arguments: str
    begin: int
    end: int


def _no_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is no JSON")


# Models write line ends into strings as they are.
_DECODER = json.JSONDecoder(strict=False, parse_constant=_no_constant)


def json_at(text: str, at: int) -> tuple[Any, int] | None:
    """The JSON value that begins there, and where it ends; None = there is none."""
    try:
        return _DECODER.raw_decode(text, at)
    except (ValueError, RecursionError):
        return None


def json_values(text: str, start: int, end: int) -> Iterator[tuple[Any, int, int]]:
    """Objects and arrays in a part of the text, with begin and end, whatever stands between them."""
    part, at = text[start:end], 0
    for _ in range(MOST_ATTEMPTS):
        places = [place for place in (part.find("{", at), part.find("[", at)) if place >= 0]
        if not places:
            return
        at = min(places)
        while (found := json_at(part, at)) is not None:
            value, stop = found
            yield value, start + at, start + stop
            at = _next_open(part, stop)
            if at < 0:
                return
        at += 1


def _next_open(part: str, at: int) -> int:
    places = [place for place in (part.find("{", at), part.find("[", at)) if place >= 0]
    return min(places, default=-1)


def json_text(value: Any) -> str:
    """Compact, in the order in which it came. Half of a surrogate pair is no text, and stays escaped."""
    text = json.dumps(value, ensure_ascii=False, separators=(",", ":"))
    return text if is_text(text) else json.dumps(value, separators=(",", ":"))


def is_text(text: str) -> bool:
    """It can be sent."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True
