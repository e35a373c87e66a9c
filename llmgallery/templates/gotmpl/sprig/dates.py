"""sprig's functions on dates and durations."""

from __future__ import annotations

from typing import Any

from llmgallery.templates.gotmpl.clock import (
    SECOND,
    Time,
    duration_text,
    find_zone,
    now,
    parse_duration,
    parse_time,
    zero_time,
)
from llmgallery.templates.gotmpl.functions import Library
from llmgallery.templates.gotmpl.sprig.convert import decimal_int
from llmgallery.templates.gotmpl.values import Byte, GoError, Int64, is_int, wrap_int

LIBRARY = Library()
_HTML = "2006-01-02"

LIBRARY.add("now")(now)


def _moment(value: Any) -> Time:
    """A Time as it is, an integer as seconds since 1970, now for anything else."""
    if isinstance(value, Time):
        return value
    return Time(int(value) * SECOND) if is_int(value) and not isinstance(value, Byte) else now()


@LIBRARY.add("dateInZone", "string any string", also="date_in_zone")
def _date_in_zone(layout: str, value: Any, zone: str) -> str:
    return Time(_moment(value).nanos, find_zone(zone)).format(layout)


LIBRARY.add("date", "string any")(lambda layout, value: _date_in_zone(layout, value, "Local"))
LIBRARY.add("htmlDate", "any")(lambda value: _date_in_zone(_HTML, value, "Local"))
LIBRARY.add("htmlDateInZone", "any string")(lambda value, zone: _date_in_zone(_HTML, value, zone))
LIBRARY.add("unixEpoch", "time")(lambda value: str(value.unix()))


@LIBRARY.add("mustDateModify", "string time", also="must_date_modify")
def _must_modify(duration: str, value: Time) -> Time:
    return Time(value.nanos + parse_duration(duration), value.zone)


@LIBRARY.add("dateModify", "string time", also="date_modify")
def _modify(duration: str, value: Time) -> Time:
    try:
        return _must_modify(duration, value)
    except GoError:
        return value


LIBRARY.add("mustToDate", "string string")(parse_time)


@LIBRARY.add("toDate", "string string")
def _to_date(layout: str, text: str) -> Time:
    try:
        return parse_time(layout, text)
    except GoError:
        return zero_time()


@LIBRARY.add("ago", "any")
def _ago(value: Any) -> str:
    passed = now().nanos - _moment(value).nanos
    seconds = (abs(passed) + SECOND // 2) // SECOND
    return duration_text((seconds if passed >= 0 else -seconds) * SECOND)


@LIBRARY.add("duration", "any")
def _duration(value: Any) -> str:
    number = decimal_int(value) if isinstance(value, str) else value if isinstance(value, Int64) else 0
    return duration_text(wrap_int(number * SECOND))


_STEPS = (("y", 365 * 86400), ("mo", 30 * 86400), ("d", 86400), ("h", 3600), ("m", 60), ("s", 1))


def _nanos(value: Any) -> int:
    if isinstance(value, Time):
        return now().nanos - value.nanos
    if isinstance(value, str):
        try:
            return parse_duration(value)
        except GoError:
            return 0
    return int(value) if isinstance(value, Int64) else 0


@LIBRARY.add("durationRound", "any")
def _duration_round(value: Any) -> str:
    """To the largest unit of which there is more than one: 2h10m is 2h."""
    left = abs(_nanos(value))
    for unit, seconds in _STEPS:
        if left > seconds * SECOND:
            return f"{left // (seconds * SECOND)}{unit}"
    return "0s"
