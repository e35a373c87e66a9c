"""Go's time.Time and time.Duration."""

from __future__ import annotations

import calendar
import re
import time
from collections.abc import Callable, Mapping
from datetime import UTC, datetime, timedelta, timezone, tzinfo
from typing import Any, ClassVar
from zoneinfo import ZoneInfo, ZoneInfoNotFoundError

from llmgallery.templates.gotmpl.functions import Library
from llmgallery.templates.gotmpl.layouts import DAYS, MONTHS, Read, read, write
from llmgallery.templates.gotmpl.printing import quoted
from llmgallery.templates.gotmpl.values import GoError, Int64, Object, wrap_int

SECOND = 1_000_000_000
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_ZERO = -62_135_596_800  # seconds of 1 January of the year 1
_FIRST = _ZERO + 400 * 86_400  # with room for a zone's offset
_LAST = 253_402_300_799 - 400 * 86_400  # the end of the year 9999, likewise
_CYCLE = 146_097 * 86_400  # 400 years
_FAR = 10_000_000_000 * 365 * 86_400 * SECOND
_STRING = "2006-01-02 15:04:05.999999999 -0700 MST"


class Named(Object):
    """A time.Month or time.Weekday."""

    go_kind = "int"

    def __init__(self, go_type: str, name: str, number: int) -> None:
        self.go_type = go_type  # type: ignore[misc]
        self._name = name
        self._number = number

    def text(self) -> str:
        return self._name

    def json(self) -> str:
        return str(self._number)


class Time(Object):
    """A moment, in nanoseconds since 1970, and the zone that it is told in (None: the machine's own)."""

    go_type: ClassVar[str] = "time.Time"

    def __init__(self, nanos: int, zone: tzinfo | None = None) -> None:
        self.nanos = min(max(nanos, -_FAR), _FAR)
        self.zone = zone

    def civil(self) -> tuple[datetime, int]:
        """Date and time in the zone, and the year. Python's calendar has the years 1 to 9999; others are taken from 400 years,
        or several times 400, away: there all days are the same ones.
        """
        cycles = 0
        seconds = self.nanos // SECOND
        if not _FIRST <= seconds < _LAST:
            cycles = (seconds - _FIRST) // _CYCLE
            seconds -= cycles * _CYCLE
        moment = (_EPOCH + timedelta(seconds=seconds)).astimezone(self.zone)
        return moment, moment.year + 400 * cycles

    def format(self, layout: str) -> str:
        return write(*self.civil(), self.nanos % SECOND, layout)

    def text(self) -> str:
        return self.format(_STRING)

    def json(self) -> str:
        return f'"{self.format("2006-01-02T15:04:05.999999999Z07:00")}"'

    def unix(self) -> int:
        return self.nanos // SECOND

    def methods(self) -> Mapping[str, Callable[..., Any]]:
        moment, year = self.civil()
        weekday = (moment.weekday() + 1) % 7
        found = Library()
        found.add("Format", "string")(self.format)
        found.add("String")(self.text)
        found.add("Year")(lambda: year)
        found.add("Month")(lambda: Named("time.Month", MONTHS[moment.month - 1], moment.month))
        found.add("Day")(lambda: moment.day)
        found.add("Hour")(lambda: moment.hour)
        found.add("Minute")(lambda: moment.minute)
        found.add("Second")(lambda: moment.second)
        found.add("Nanosecond")(lambda: self.nanos % SECOND)
        found.add("Weekday")(lambda: Named("time.Weekday", DAYS[weekday - 1], weekday))
        found.add("YearDay")(lambda: moment.timetuple().tm_yday)
        found.add("Unix")(lambda: Int64(self.unix()))
        found.add("UnixMilli")(lambda: Int64(self.nanos // 1_000_000))
        found.add("UnixMicro")(lambda: Int64(self.nanos // 1_000))
        found.add("UnixNano")(lambda: Int64(wrap_int(self.nanos)))
        found.add("UTC")(lambda: Time(self.nanos, UTC))
        found.add("Local")(lambda: Time(self.nanos))
        found.add("IsZero")(lambda: self.nanos == _ZERO * SECOND)
        found.add("AddDate", "int int int")(self.add_date)
        found.add("Before", "time")(lambda other: self.nanos < other.nanos)
        found.add("After", "time")(lambda other: self.nanos > other.nanos)
        found.add("Equal", "time")(lambda other: self.nanos == other.nanos)
        return found

    def add_date(self, years: int, months: int, days: int) -> Time:
        """A day beyond the end of its month goes on into the next: 31 January and a month is 3 March."""
        moment, year = self.civil()
        clock = moment.hour * 3600 + moment.minute * 60 + moment.second
        seconds = _days(year + years, moment.month + months, moment.day + days) * 86_400 + clock
        return Time(_to_utc(seconds, self.zone) * SECOND + self.nanos % SECOND, self.zone)


def _days(year: int, month: int, day: int) -> int:
    """Days from 1970 to a date; months and days may be out of range."""
    year, month = year + (month - 1) // 12, (month - 1) % 12 + 1
    cycles, year = divmod(year - 1, 400)
    return (datetime(year + 1, month, 1, tzinfo=UTC) - _EPOCH).days + cycles * 146_097 + day - 1


def _to_utc(seconds: int, zone: tzinfo | None) -> int:
    """What a zone's clock says, in seconds as if it were UTC, as real seconds."""
    cycles = 0 if _FIRST <= seconds < _LAST else (seconds - _FIRST) // _CYCLE
    clock = datetime(1970, 1, 1) + timedelta(seconds=seconds - cycles * _CYCLE)
    moment = clock.astimezone() if zone is None else clock.replace(tzinfo=zone)
    offset = moment.utcoffset() or timedelta()
    return seconds - round(offset.total_seconds())


def now() -> Time:
    return Time(time.time_ns())


def zero_time() -> Time:
    return Time(_ZERO * SECOND, UTC)


def find_zone(name: str) -> tzinfo | None:
    """Of the IANA names; UTC for an unknown one, None for "Local"."""
    if name == "Local":
        return None
    try:
        return ZoneInfo(name) if name not in ("", "UTC") else UTC
    except (ZoneInfoNotFoundError, ValueError, OSError):
        return UTC


def parse_time(layout: str, text: str) -> Time:
    """time.ParseInLocation with the machine's zone. Raises GoError."""
    found = read(layout, text)
    month, day = _month_and_day(found, text)
    clock = _hour(found) * 3600 + found.minute * 60 + found.second
    zone = _zone(found)
    seconds = _to_utc(_days(found.year, month, day) * 86_400 + clock, zone)
    return Time(seconds * SECOND + found.nanos, zone)


def _month_and_day(found: Read, text: str) -> tuple[int, int]:
    def fail(what: str) -> GoError:
        return GoError(f"parsing time {quoted(text)}: {what}")

    like = (found.year - 1) % 400 + 1
    if found.year_day is not None:
        if not 1 <= found.year_day <= 365 + calendar.isleap(like):
            raise fail("day-of-year out of range")
        date = datetime(like, 1, 1) + timedelta(days=found.year_day - 1)
        for name, wanted in (("month", found.month), ("day", found.day)):
            if wanted is not None and wanted != getattr(date, name):
                raise fail(f"day-of-year does not match {name}")
        return date.month, date.day
    month, day = found.month or 1, 1 if found.day is None else found.day
    if not 1 <= day <= calendar.monthrange(like, month)[1]:
        raise fail("day out of range")
    return month, day


def _hour(found: Read) -> int:
    if found.half == "pm" and found.hour < 12:
        return found.hour + 12
    return 0 if found.half == "am" and found.hour == 12 else found.hour


def _zone(found: Read) -> tzinfo | None:
    if found.zone == "UTC":
        return UTC
    if found.offset is not None:
        return timezone(timedelta(seconds=found.offset), found.zone)
    return timezone(timedelta(), found.zone) if found.zone else None


_UNITS = {"ns": 1, "us": 1_000, "µs": 1_000, "μs": 1_000, "ms": 1_000_000, "s": SECOND, "m": 60 * SECOND, "h": 3600 * SECOND}
_TERM = re.compile(r"(?P<whole>\d*)(?:\.(?P<part>\d*))?(?P<unit>[^\d.]*)", re.ASCII)
_LONGEST = (1 << 63) - 1


def parse_duration(text: str) -> int:
    """time.ParseDuration, in nanoseconds: "1h30m", "-1.5s". Raises GoError with its message."""
    body = text[1:] if text[:1] in ("+", "-") else text
    if body == "0":
        return 0
    total, at = 0, 0
    while at < len(body):
        found = _TERM.match(body, at)
        if found is None or not (found["whole"] or found["part"]):
            break
        if found["unit"] not in _UNITS:
            what = f"unknown unit {quoted(found['unit'])}" if found["unit"] else "missing unit"
            raise GoError(f"time: {what} in duration {quoted(text)}")
        unit = _UNITS[found["unit"]]
        digits = (found["part"] or "")[:18]
        total += int((found["whole"] or "0")[:30]) * unit + (int(digits) * unit // 10 ** len(digits) if digits else 0)
        at = found.end()
    if not body or at < len(body) or total > _LONGEST:
        raise GoError(f"time: invalid duration {quoted(text)}")
    return -total if text.startswith("-") else total


def duration_text(nanos: int) -> str:
    """time.Duration's String: 1h0m0s, 1.5s, 250ms, 0s."""
    sign, left = ("-", -nanos) if nanos < 0 else ("", nanos)
    if left < SECOND:
        for unit, size in (("ms", 1_000_000), ("µs", 1_000), ("ns", 1)):
            if left >= size:
                return sign + _decimal(left, size) + unit
        return "0s"
    seconds = left // SECOND
    out = _decimal(left % (60 * SECOND), SECOND) + "s"
    if seconds >= 60:
        out = f"{seconds // 60 % 60}m{out}"
    return sign + (f"{seconds // 3600}h{out}" if seconds >= 3600 else out)


def _decimal(number: int, unit: int) -> str:
    whole, rest = divmod(number, unit)
    digits = f"{rest:0{len(str(unit)) - 1}d}".rstrip("0") if rest else ""
    return f"{whole}.{digits}" if digits else str(whole)
