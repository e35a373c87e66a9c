"""Dates written and read by Go's layouts: how "Mon Jan 2 15:04:05 MST 2006" would be written."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import datetime

from llmgallery.templates.gotmpl.printing import quoted
from llmgallery.templates.gotmpl.values import GoError

MONTHS = (
    "January February March April May June July August September October November December".split()  # noqa: SIM905
)
DAYS = "Monday Tuesday Wednesday Thursday Friday Saturday Sunday".split()  # noqa: SIM905
_CHUNK = re.compile(
    r"January|Jan(?![a-z])|Monday|Mon(?![a-z])|MST|002|0[1-6]|15|1|2006|2|__2|_2(?!006)|3|4|5|PM|pm"
    r"|[-Z]070000|[-Z]07:00:00|[-Z]0700|[-Z]07:00|[-Z]07|[.,](?:0+|9+)(?!\d)"
)
_ZONES = {"Z070000", "Z07:00:00", "Z0700", "Z07:00", "Z07"}


def chunks(layout: str) -> Iterator[tuple[str, str]]:
    """(plain text, element) pairs; the last element is ""."""
    at = 0
    for found in _CHUNK.finditer(layout):
        yield layout[at : found.start()], found[0]
        at = found.end()
    yield layout[at:], ""


def write(moment: datetime, year: int, nanos: int, layout: str) -> str:
    """`moment` knows its zone; its year is another one than `year` where that is beyond Python's calendar. `nanos` counts within
    the second.
    """
    return "".join(plain + _element(moment, year, nanos, element) for plain, element in chunks(layout))


def _seconds(moment: datetime) -> int:
    offset = moment.utcoffset()
    return round(offset.total_seconds()) if offset is not None else 0


def _element(moment: datetime, year: int, nanos: int, element: str) -> str:
    offset = _seconds(moment)
    if element[:1] in (".", ","):
        return fraction(nanos, element)
    if element[:1] in ("-", "Z"):
        return "Z" if element[0] == "Z" and not offset else _offset(offset, element[1:])
    if element == "MST":
        return moment.tzname() or _offset(offset, "0700")
    hour = moment.hour % 12 or 12
    return {
        "": "",
        "January": MONTHS[moment.month - 1],
        "Jan": MONTHS[moment.month - 1][:3],
        "Monday": DAYS[moment.weekday()],
        "Mon": DAYS[moment.weekday()][:3],
        "2006": f"{'-' if year < 0 else ''}{abs(year):04d}",
        "06": f"{abs(year) % 100:02d}",
        "01": f"{moment.month:02d}",
        "1": f"{moment.month}",
        "02": f"{moment.day:02d}",
        "_2": f"{moment.day:2d}",
        "2": f"{moment.day}",
        "002": f"{moment.timetuple().tm_yday:03d}",
        "__2": f"{moment.timetuple().tm_yday:3d}",
        "15": f"{moment.hour:02d}",
        "03": f"{hour:02d}",
        "3": f"{hour}",
        "04": f"{moment.minute:02d}",
        "4": f"{moment.minute}",
        "05": f"{moment.second:02d}",
        "5": f"{moment.second}",
        "PM": "PM" if moment.hour >= 12 else "AM",
        "pm": "pm" if moment.hour >= 12 else "am",
    }[element]


def fraction(nanos: int, element: str) -> str:
    """`.000`: so many digits; `.999`: the same without zeros at the end."""
    digits = f"{nanos:09d}".ljust(len(element) - 1, "0")[: len(element) - 1]
    if element[1] == "9":
        digits = digits.rstrip("0")
    return element[0] + digits if digits else ""


def _offset(seconds: int, form: str) -> str:
    """+0700, +07:00, +07, +070000 or +07:00:00."""
    sign, seconds = ("-", -seconds) if seconds < 0 else ("+", seconds)
    parts = [f"{seconds // 3600:02d}", f"{seconds // 60 % 60:02d}", f"{seconds % 60:02d}"]
    count = len(form.replace(":", "")) // 2
    return sign + (":" if ":" in form else "").join(parts[:count])


@dataclass
class Read:
    """What a text said. `offset` in seconds, None when it named no offset; `zone` a zone's name."""

    year: int = 0
    month: int | None = None
    day: int | None = None
    year_day: int | None = None
    hour: int = 0
    minute: int = 0
    second: int = 0
    nanos: int = 0
    half: str = ""
    offset: int | None = None
    zone: str = ""


_NUMBERS = {
    "2006": (r"\d{4}", "year"),
    "01": (r"\d{2}", "month"),
    "1": (r"\d{1,2}", "month"),
    "02": (r"\d{2}", "day"),
    "_2": (r" ?\d{1,2}", "day"),
    "2": (r" ?\d{1,2}", "day"),
    "002": (r"\d{3}", "year_day"),
    "__2": (r" {0,2}\d{1,3}", "year_day"),
    "15": (r"\d{1,2}", "hour"),
    "03": (r"\d{2}", "hour"),
    "3": (r"\d{1,2}", "hour"),
    "04": (r"\d{2}", "minute"),
    "4": (r"\d{1,2}", "minute"),
    "05": (r"\d{2}", "second"),
    "5": (r"\d{1,2}", "second"),
}
_RANGES = {"month": (1, 12), "hour": (0, 23), "minute": (0, 59), "second": (0, 59)}


def read(layout: str, text: str) -> Read:
    """time.Parse. Raises GoError with its message."""
    found = Read()
    rest = text
    elements = list(chunks(layout))
    for index, (plain, element) in enumerate(elements):
        if not rest.startswith(plain):
            raise _cannot(layout, text, rest, plain)
        rest = rest[len(plain) :]
        if not element:
            break
        length = _take(found, element, rest)
        if length is None:
            raise _cannot(layout, text, rest, element)
        if length < 0:
            raise GoError(f"parsing time {quoted(text)}: {_NUMBERS[element][1]} out of range")
        rest = rest[length:]
        following = elements[index + 1][1] if not elements[index + 1][0] else ""
        if element in ("05", "5") and not following.startswith((".", ",")):
            rest = rest[_extra_fraction(found, rest) :]
    if rest:
        raise GoError(f"parsing time {quoted(text)}: extra text: {quoted(rest)}")
    return found


def _cannot(layout: str, text: str, rest: str, element: str) -> GoError:
    return GoError(f"parsing time {quoted(text)} as {quoted(layout)}: cannot parse {quoted(rest)} as {quoted(element)}")


def _extra_fraction(found: Read, rest: str) -> int:
    """A fraction of a second may follow the seconds also where the layout has none."""
    digits = re.match(r"[.,]\d+", rest, re.ASCII)
    if digits is None:
        return 0
    found.nanos = _nanos(digits[0])
    return digits.end()


def _nanos(digits: str) -> int:
    return int(digits[1:10].ljust(9, "0"))


def _take(found: Read, element: str, rest: str) -> int | None:
    """Reads an element at the beginning of `rest`; how long it is, None for no such thing, -1 for out of range."""
    if element in _NUMBERS:
        return _take_number(found, element, rest)
    if element in ("January", "Jan", "Monday", "Mon"):
        return _take_name(found, element, rest)
    if element in ("PM", "pm"):
        half = rest[:2]
        found.half = half.lower()
        return 2 if half in ((element, "AM") if element == "PM" else (element, "am")) else None
    if element == "06":
        digits = re.match(r"\d{2}", rest, re.ASCII)
        if digits is not None:
            found.year = int(digits[0]) + (1900 if digits[0] >= "69" else 2000)
        return 2 if digits is not None else None
    if element[0] in ".,":
        return _take_fraction(found, element, rest)
    return _take_zone(found, rest) if element == "MST" else _take_offset(found, element, rest)


def _take_number(found: Read, element: str, rest: str) -> int | None:
    pattern, name = _NUMBERS[element]
    digits = re.match(pattern, rest, re.ASCII)
    if digits is None:
        return None
    number = int(digits[0])
    low, high = _RANGES.get(name, (0, number))
    if element in ("03", "3"):
        high = 12
    setattr(found, name, number)
    return digits.end() if low <= number <= high else -1


def _take_name(found: Read, element: str, rest: str) -> int | None:
    names = MONTHS if element[0] == "J" else DAYS
    short = len(element) == 3
    for index, name in enumerate(names):
        wanted = name[:3] if short else name
        if rest[: len(wanted)].lower() == wanted.lower():
            if names is MONTHS:
                found.month = index + 1
            return len(wanted)
    return None


def _take_fraction(found: Read, element: str, rest: str) -> int | None:
    if element[1] == "0":
        digits = re.match(rf"[.,]\d{{{len(element) - 1}}}", rest, re.ASCII)
        if digits is None:
            return None
    else:
        digits = re.match(r"[.,]\d{1,9}", rest, re.ASCII)
        if digits is None:
            return 0
    found.nanos = _nanos(digits[0])
    return digits.end()


def _take_offset(found: Read, element: str, rest: str) -> int | None:
    if element in _ZONES and rest.startswith("Z"):
        found.offset, found.zone = 0, "UTC"
        return 1
    colon = ":" if ":" in element else ""
    count = len(element.replace(":", "")) // 2
    digits = re.match(r"([+-])" + colon.join([r"(\d\d)"] * count), rest, re.ASCII)
    if digits is None:
        return None
    parts = [int(part) for part in digits.groups()[1:]]
    seconds = sum(part * unit for part, unit in zip(parts, (3600, 60, 1), strict=False))
    found.offset = -seconds if digits[1] == "-" else seconds
    return digits.end()


def _take_zone(found: Read, rest: str) -> int | None:
    """UTC, GMT+3, +03, or an abbreviation of three letters, or of four or five that end in T."""
    name = re.match(r"UTC|ChST|MeST|GMT[+-]\d{1,2}(?!\d)|[+-]\d{1,2}(?!\d)|[A-Z]{3,5}(?![A-Z])", rest, re.ASCII)
    if name is None or (len(name[0]) > 3 and name[0].isalpha() and name[0][-1] != "T" and name[0] != "WITA"):
        return None
    number = name[0].removeprefix("GMT")
    if number[:1] in ("+", "-"):
        if abs(int(number)) > 23:
            return None
        found.offset = int(number) * 3600 if name[0] != number else 0
    found.zone = name[0]
    return name.end()
