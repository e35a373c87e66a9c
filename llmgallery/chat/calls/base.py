"""A call as it stands in an answer, and the JSON of its arguments."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, NoReturn

from llmgallery.templates.gotmpl.budget import current

MOST_ATTEMPTS = 256
"""Places at which JSON is looked for in vain; each failed attempt may read to the text's end."""
READ_A_STEP, SKIMMED_A_STEP, COPIED_A_STEP = 16, 64, 4096
"""Characters of JSON, of JSON that is nested too deeply, and of text that may hold some."""


@dataclass(frozen=True)
class Found:
    """A call, and the part of the text that it is. `arguments`: JSON text, or what the model wrote in its place."""

    name: str
    arguments: str
    begin: int
    end: int


def _no_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is no JSON")


def _finite(text: str) -> float:
    number = float(text)
    return number if math.isfinite(number) else _no_constant(text)


# Models write line ends into strings as they are. A number like 1e999 could not be written as JSON again.
_DECODER = json.JSONDecoder(strict=False, parse_constant=_no_constant, parse_float=_finite)


def json_at(text: str, at: int) -> tuple[Any, int] | None:
    """The JSON value that begins there, and where it ends; None = there is none. To be called within an Allowance's `spending`,
    which pays for it."""
    budget = current()
    budget.step(1 + (len(text) - at) // COPIED_A_STEP)
    part = text[at:]  # to tell of a fault, the decoder counts the lines before it
    try:
        value, end = _DECODER.raw_decode(part)
    except json.JSONDecodeError as exc:
        budget.step((len(part) if "Unterminated" in exc.msg else exc.pos) // READ_A_STEP)
        return None
    except (ValueError, RecursionError):
        budget.step(len(part) // SKIMMED_A_STEP)
        return None
    budget.step(end // READ_A_STEP)
    return value, at + end


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
