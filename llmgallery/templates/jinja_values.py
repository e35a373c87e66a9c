"""Operators, methods and filters of values, each charged to the current Guard before it runs."""

from __future__ import annotations

import json
import operator
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sized
from string import Formatter
from typing import Any

from jinja2 import Environment, Undefined, filters, pass_environment
from jinja2.sandbox import SandboxedFormatter

from llmgallery.core.errors import TemplateError
from llmgallery.templates.account import CHARS_A_STEP
from llmgallery.templates.jinja_guard import INT_BITS, current, leaves

MAX_FILL = 10_000
"""Widths, precisions and other counts that have no honest use above this."""

_OPERATORS: dict[str, Callable[[Any, Any], Any]] = {
    "+": operator.add,
    "-": operator.sub,
    "*": operator.mul,
    "/": operator.truediv,
    "//": operator.floordiv,
    "**": operator.pow,
    "%": operator.mod,
}
_CONVERSION = re.compile(r"%[-+ #0]*(\*|\d+)?(?:\.(\*|\d+))?")
_NUMBER = re.compile(r"\d+")
_ADDRESS = re.compile(r" at 0x[0-9a-fA-F]+")


def small(value: Any, what: str, limit: int = MAX_FILL) -> None:
    """Refuse a number whose size alone makes the work explode."""
    if isinstance(value, int) and abs(value) > limit:
        raise TemplateError(f"{what} in the chat template is too large: {value} (limit: {limit})")


def binary(sign: str, left: Any, right: Any) -> Any:
    """left sign right, as Python does it."""
    guard = current()
    guard.step()
    if sign == "*":
        _before_multiplying(left, right)
    elif sign == "**":
        _before_raising(left, right)
    elif sign == "%" and isinstance(left, str):
        _before_formatting(left, right)
    elif sign == "+":
        _before_adding(left, right)
    result = guard.made(_OPERATORS[sign](left, right))
    return without_addresses(result, right) if isinstance(result, str) and sign == "%" else result


def _before_adding(left: Any, right: Any) -> None:
    if isinstance(left, str) and isinstance(right, str):
        current().text(len(left) + len(right))
    elif isinstance(left, list | tuple) and isinstance(right, list | tuple):
        current().items(len(left) + len(right))


def _before_multiplying(left: Any, right: Any) -> None:
    for value, times in ((left, right), (right, left)):
        if isinstance(times, int) and isinstance(value, str):
            current().text(len(value) * max(times, 0))
        elif isinstance(times, int) and isinstance(value, list | tuple):
            current().items(len(value) * max(times, 0))


def _before_raising(left: Any, right: Any) -> None:
    if isinstance(left, int) and isinstance(right, int):
        small(left.bit_length() * abs(right), "a power", INT_BITS)


def _before_formatting(pattern: str, values: Any) -> None:
    guard = current()
    guard.text(len(pattern))
    # A key may hold brackets, "%((a)b)9s": with keys every number of the pattern counts as a width.
    numbers = _NUMBER.findall(pattern) if "%(" in pattern else [n for found in _CONVERSION.findall(pattern) for n in found if n]
    if "*" in numbers:
        raise TemplateError("a '*' width in a format of the chat template is not allowed")
    for number in numbers:
        small(int(number[:9]), "a width")
    guard.text(len(pattern) + pattern.count("%") * guard.weigh(values).chars + sum(map(int, numbers)))


def text_of(value: Any) -> str:
    """str(value), charged."""
    guard = current()
    if isinstance(value, str):
        guard.step()
        return str(guard.made(value))
    guard.text(guard.weigh(value).chars)
    return without_addresses(str(guard.made(str(value))), value)


def without_addresses(text: str, printed: Any) -> str:
    """The text of something `printed`, without the places in memory that Python tells of functions, methods and iterators: a
    prompt is the same in every process."""
    if " at 0x" not in text:
        return text
    guard = current()
    for leaf in leaves(printed):
        if not isinstance(leaf, str) and _ADDRESS.search(written := str(leaf)):
            guard.text(len(text))
            text = text.replace(written, _ADDRESS.sub("", written))
    return text


def concat(values: Iterable[Any]) -> str:
    """The texts of `values`, one after the other."""
    return join_texts("", values)


def join_texts(separator: str, values: Iterable[Any]) -> str:
    guard = current()
    parts: list[str] = []
    length = 0
    for value in values:
        part = value if isinstance(value, str) else text_of(value)
        parts.append(part)
        length += len(part) + len(separator)
        guard.step()
        if length > guard.limits.chars:
            guard.text(length)
    guard.text(length)
    return separator.join(parts)


def counted(values: Iterable[Any], cost: int = 1) -> Iterable[Any]:
    """`values`, every item at a cost. Keeps its length, which `loop.length` asks for, when it has one."""
    return _Counted(values, cost) if isinstance(values, Sized) else _count(values, cost)


def _count(values: Iterable[Any], cost: int) -> Iterator[Any]:
    guard = current()
    for value in values:
        guard.step(cost)
        yield value


class _Counted:
    def __init__(self, values: Iterable[Any], cost: int) -> None:
        self._values = values
        self._cost = cost

    def __iter__(self) -> Iterator[Any]:
        return _count(self._values, self._cost)

    def __len__(self) -> int:
        return len(self._values)  # type: ignore[arg-type]


def cut(value: Any, start: Any, stop: Any, step: Any) -> Any:
    """value[start:stop:step]."""
    return current().made(value[start:stop:step])


# methods


def before_method(owner: Any, name: str, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[Any, ...]:
    """Charge a method of a built-in value before it is called. Returns the positional arguments to call it with."""
    guard = current()
    if isinstance(owner, str):
        guard.text(len(owner))
        args = (kwargs.pop("sep"), *args) if "sep" in kwargs else args
        return _STRING_METHODS[name](owner, *args) if name in _STRING_METHODS and args else args
    if isinstance(owner, list | tuple):
        guard.weigh(owner)
    for arg in args:
        guard.heavy(arg)
    return args


def _before_fill(owner: str, width: Any, *rest: Any) -> tuple[Any, ...]:
    if isinstance(width, int):
        current().text(max(width, 0))
    return (width, *rest)


def _before_replace(owner: str, *args: Any) -> tuple[Any, ...]:
    if len(args) >= 2 and isinstance(args[0], str) and isinstance(args[1], str):
        times = owner.count(args[0])
        current().text(len(owner) + times * max(len(args[1]) - len(args[0]), 0))
    return args


def _before_join(owner: str, *args: Any) -> tuple[Any, ...]:
    parts = list(counted(args[0]))
    current().text(sum(len(part) + len(owner) for part in parts if isinstance(part, str)))
    return (parts, *args[1:])


def _before_square(owner: str, *args: Any) -> tuple[Any, ...]:
    """Python strips, and searches from the right, in time of length times length."""
    if isinstance(args[0], str):
        current().step(len(owner) * len(args[0]) // CHARS_A_STEP)
    return args


_STRING_METHODS: dict[str, Callable[..., tuple[Any, ...]]] = {
    "center": _before_fill,
    "ljust": _before_fill,
    "rjust": _before_fill,
    "zfill": _before_fill,
    "replace": _before_replace,
    "join": _before_join,
    **dict.fromkeys(("strip", "lstrip", "rstrip", "rfind", "rindex", "rsplit", "rpartition"), _before_square),
}


class BoundedFormatter(SandboxedFormatter):
    """str.format without attributes outside the data and without explosive widths."""

    def format_field(self, value: Any, format_spec: str) -> Any:
        for number in re.findall(r"\d+", format_spec):
            small(int(number[:9]), "a width")
        if isinstance(value, Undefined):
            value = str(value)
        guard = current()
        guard.text(guard.weigh(value).chars + len(format_spec))
        return without_addresses(guard.made(super().format_field(value, format_spec)), value)

    def parse(self, format_string: str) -> Any:
        return counted(Formatter.parse(self, format_string))


def bounded_format(env: Environment, text: str, is_map: bool) -> Callable[..., str]:
    """What `text.format` (`text.format_map`) is in a template."""

    def formatted(*args: Any, **kwargs: Any) -> str:
        guard = current()
        guard.text(len(text))
        if is_map:
            args, kwargs = (), dict(args[0]) if args else kwargs
        # Every field is charged on its way; what they add up to is bounded by the same count.
        fields = sum(1 for _ in Formatter().parse(text))
        guard.text(len(text) + fields * max((guard.weigh(value).chars for value in (*args, *kwargs.values())), default=0))
        return str(guard.made(BoundedFormatter(env).vformat(text, args, kwargs)))

    return formatted


# filters


def tojson(
    value: Any,
    ensure_ascii: bool = False,
    indent: int | str | None = None,
    separators: tuple[str, str] | None = None,
    sort_keys: bool = False,
) -> str:
    """As transformers has it: plain JSON, without Jinja's escaping for HTML."""
    guard = current()
    weight = guard.weigh(value)
    small(indent if isinstance(indent, int) else len(indent or ""), "an indent", 64)
    small(sum(len(part) for part in separators or ()), "a separator", 64)
    width = indent if isinstance(indent, int) else len(indent or "")
    guard.text(weight.chars + weight.nodes * (weight.depth * max(width, 0) + 1))
    text = json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)
    return str(guard.made(text))


@pass_environment
def join(env: Environment, value: Iterable[Any], d: Any = "", attribute: str | int | None = None) -> str:
    if attribute is not None:
        value = map(filters.make_attrgetter(env, attribute), value)
    return join_texts(text_of(d), value)


@pass_environment
def total(env: Environment, iterable: Iterable[Any], attribute: str | int | None = None, start: Any = 0) -> Any:
    if attribute is not None:
        iterable = map(filters.make_attrgetter(env, attribute), iterable)
    for value in iterable:
        start = binary("+", start, value)
    return start


def replace(s: Any, old: Any, new: Any, count: int | None = None) -> str:
    text, old, new = text_of(s), text_of(old), text_of(new)
    _before_replace(text, old, new)
    return text.replace(old, new, -1 if count is None else count)


def trimmed(value: Any, chars: str | None = None) -> str:
    text = text_of(value)
    return text.strip() if chars is None else text.strip(*_before_square(text, chars))


def indented(s: Any, width: int | str = 4, first: bool = False, blank: bool = False) -> str:
    small(width if isinstance(width, int) else len(width), "an indent")
    text = text_of(s)
    times = width if isinstance(width, int) else len(width)
    current().text(len(text) + (text.count("\n") + 1) * max(times, 0))
    return filters.do_indent(text, width, first, blank)


def rounded(value: Any, precision: int = 0, method: Any = "common") -> float:
    small(precision, "a precision", 300)
    return filters.do_round(value, precision, method)


def centered(value: Any, width: int = 80) -> str:
    current().text(max(width, 0))
    return text_of(value).center(width)


def formatted(value: Any, *args: Any, **kwargs: Any) -> str:
    if args and kwargs:
        raise TemplateError("the filter 'format' takes positional or keyword arguments, not both")
    return str(binary("%", text_of(value), kwargs or args))


def batched(value: Any, linecount: int, fill_with: Any = None) -> Iterator[list[Any]]:
    small(linecount, "a batch")
    return filters.do_batch(value, linecount, fill_with)


def sliced(value: Any, slices: int, fill_with: Any = None) -> Iterator[list[Any]]:
    small(slices, "a number of slices")
    return filters.sync_do_slice(value, slices, fill_with)


def url_encoded(value: Any) -> str:
    return filters.do_urlencode(value if isinstance(value, Iterable) else text_of(value))


OWN_FILTERS: Mapping[str, Callable[..., Any]] = {
    "tojson": tojson,
    "join": join,
    "sum": total,
    "replace": replace,
    "trim": trimmed,
    "indent": indented,
    "round": rounded,
    "center": centered,
    "format": formatted,
    "batch": batched,
    "slice": sliced,
    "string": text_of,
    "urlencode": url_encoded,
}
LEFT_OUT = frozenset({"pprint", "random", "urlize", "xmlattr", "striptags", "wordwrap"})
"""Jinja's filters without a use in a prompt whose cost or result cannot be told beforehand."""

TEXTUAL = frozenset({"capitalize", "e", "escape", "forceescape", "lower", "safe", "title", "upper", "wordcount"})
"""Filters that take what is no text for the text that it prints as."""

SHALLOW = frozenset({"length", "count", "first", "last", "default", "d", "attr", "abs"})
"""Filters that cost the same whatever the value's size."""

LAZY = frozenset(
    {"list", "map", "select", "selectattr", "reject", "rejectattr", "reverse", "batch", "slice", "items", "join", "sum"}
)
"""Filters that walk over a value without looking into its items, or charge for each item themselves."""
