"""Durations and sizes as people write them: 15m, 1h30m, 8GiB."""

from __future__ import annotations

import math
import re

_SECONDS = {"ms": 0.001, "s": 1.0, "m": 60.0, "h": 3600.0, "d": 86400.0}
_SECONDS_NAMES = {"sec": "s", "secs": "s", "min": "m", "mins": "m", "hr": "h", "hrs": "h"}
_PART = re.compile(r"\s*(\d+(?:\.\d+)?)\s*([a-z]+)\s*")
_SIZE = re.compile(r"(\d+(?:\.\d+)?)\s*([kmgt]?)(i?)b?", re.IGNORECASE)
_POWERS = {"": 0, "k": 1, "m": 2, "g": 3, "t": 4}

DURATION = "a duration such as 90s, 15m or 1h30m, or a number of seconds (0 = at once, -1 = never)"
SIZE = "a size such as 8GiB or 500MB, or a number of bytes"
_MOST = 2**63  # what crosses a process border


class Seconds(float):
    """A duration in a settings file; math.inf = never."""


class Bytes(int):
    """A size in a settings file."""


def parse_duration(value: str | float) -> float:
    """Seconds of "15m", "1h30m", "90s", "250ms" or a number; a negative number means never: math.inf. Raises ValueError."""
    if isinstance(value, str):
        return _parse_duration_text(value.strip().lower())
    if isinstance(value, bool) or math.isnan(value):
        raise ValueError(DURATION)
    return math.inf if value < 0 else float(value)


def _parse_duration_text(text: str) -> float:
    if text in ("never", "forever"):
        return math.inf
    if re.fullmatch(r"-?\d+(\.\d+)?", text):
        return parse_duration(float(text))
    total, position = 0.0, 0
    sign = text.startswith("-")
    position = 1 if sign else 0
    while match := _PART.match(text, position):
        unit = _SECONDS_NAMES.get(match[2], match[2])
        if unit not in _SECONDS:
            break
        total, position = total + float(match[1]) * _SECONDS[unit], match.end()
    if position != len(text) or position <= sign:
        raise ValueError(DURATION)
    return math.inf if sign else total


def parse_size(value: str | int) -> int:
    """Bytes of "8GiB" (1024-based), "500MB" (1000-based), "8G" (1024-based, as tools mean it) or a number. Raises ValueError."""
    if isinstance(value, int) and not isinstance(value, bool) and 0 <= value < _MOST:
        return value
    match = _SIZE.fullmatch(value.strip()) if isinstance(value, str) else None
    if match is None:
        raise ValueError(SIZE)
    number, prefix, binary = match.groups()
    decimal = not binary and match[0].lower().endswith("b") and bool(prefix)
    size = float(number) * (1000 if decimal else 1024) ** _POWERS[prefix.lower()]
    if size >= _MOST:
        raise ValueError(SIZE)
    return int(size)
