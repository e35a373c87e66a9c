"""sprig's functions on lists. None changes the list that it is given."""

from __future__ import annotations

from typing import Any

from llmgallery.templates.gotmpl.budget import current
from llmgallery.templates.gotmpl.compare import deep_equal
from llmgallery.templates.gotmpl.functions import Library
from llmgallery.templates.gotmpl.sprig.convert import as_list, is_empty, to_int, to_texts
from llmgallery.templates.gotmpl.values import ANY_LIST, GoError, TypedList, TypedNil, kind, utf8

LIBRARY = Library()

LIBRARY.add("list", "any...", also="tuple")(lambda *values: list(values))


def _items(value: Any, message: str) -> list[Any]:
    found = as_list(value, message)
    current().items(len(found))
    return found


@LIBRARY.add("append", "any any", also="push mustAppend mustPush")
def _append(items: Any, item: Any) -> list[Any]:
    return [*_items(items, "Cannot push on type"), item]


@LIBRARY.add("prepend", "any any", also="mustPrepend")
def _prepend(items: Any, item: Any) -> list[Any]:
    return [item, *_items(items, "Cannot prepend on type")]


@LIBRARY.add("first", "any", also="mustFirst")
def _first(items: Any) -> Any:
    return next(iter(_items(items, "Cannot find first on type")), None)


@LIBRARY.add("last", "any", also="mustLast")
def _last(items: Any) -> Any:
    found = _items(items, "Cannot find last on type")
    return found[-1] if found else None


def _or_nil(items: list[Any], rest: list[Any]) -> Any:
    """Of an empty list Go returns the nil slice."""
    return rest if items else TypedNil(ANY_LIST)


@LIBRARY.add("rest", "any", also="mustRest")
def _rest(items: Any) -> Any:
    found = _items(items, "Cannot find rest on type")
    return _or_nil(found, found[1:])


@LIBRARY.add("initial", "any", also="mustInitial")
def _initial(items: Any) -> Any:
    found = _items(items, "Cannot find initial on type")
    return _or_nil(found, found[:-1])


@LIBRARY.add("reverse", "any", also="mustReverse")
def _reverse(items: Any) -> list[Any]:
    return _items(items, "Cannot find reverse on type")[::-1]


@LIBRARY.add("compact", "any", also="mustCompact")
def _compact(items: Any) -> list[Any]:
    return [item for item in _items(items, "Cannot compact on type") if not is_empty(item)]


@LIBRARY.add("concat", "any...")
def _concat(*lists: Any) -> Any:
    out: list[Any] = []
    for items in lists:
        if items is not None and kind(items) != "slice":
            raise GoError(f"Cannot concat type {kind(items)} as list")
        out += _items(items, "Cannot concat type")
    return out or TypedNil(ANY_LIST)


def _among(items: list[Any], item: Any) -> bool:
    """Each look costs what the item weighs: a list of lists may hold the same part many times."""
    budget = current()
    for other in items:
        budget.step()
        if type(item) is type(other) and isinstance(item, dict | list):
            budget.weigh(other)
        if deep_equal(item, other):
            return True
    return False


@LIBRARY.add("uniq", "any", also="mustUniq", deep=True)
def _uniq(items: Any) -> list[Any]:
    out: list[Any] = []
    for item in _items(items, "Cannot find uniq on type"):
        if not _among(out, item):
            out.append(item)
    return out


@LIBRARY.add("without", "any any...", also="mustWithout", deep=True)
def _without(items: Any, *unwanted: Any) -> list[Any]:
    return [item for item in _items(items, "Cannot find without on type") if not _among(list(unwanted), item)]


@LIBRARY.add("has", "any any", also="mustHas", deep=True)
def _has(item: Any, items: Any) -> bool:
    return items is not None and _among(_items(items, "Cannot find has on type"), item)


@LIBRARY.add("slice", "any any...", also="mustSlice")
def _slice(items: Any, *indexes: Any) -> Any:
    found = _items(items, "list should be type of slice or array but")
    if not found:
        return None
    start = to_int(indexes[0]) if indexes else 0
    end = to_int(indexes[1]) if len(indexes) > 1 else len(found)
    if not 0 <= start <= end <= len(found):
        raise GoError("reflect.Value.Slice: slice index out of bounds")
    part = found[start:end]
    return TypedList(part, items.go_type) if isinstance(items, TypedList) else part


@LIBRARY.add("chunk", "int any", also="mustChunk")
def _chunk(size: int, items: Any) -> list[Any]:
    found = _items(items, "Cannot chunk type")
    if size < 1:
        raise GoError(f"a chunk of {size} elements cannot be made")
    return TypedList((found[at : at + size] for at in range(0, len(found), size)), "[][]interface {}")


@LIBRARY.add("sortAlpha", "any", deep=True)
def _sort_alpha(items: Any) -> list[str]:
    found = to_texts(items)
    current().step(len(found) * len(found).bit_length())
    return TypedList(sorted(found, key=utf8))


def _count(start: int, stop: int, step: int) -> int:
    """How many integers untilStep makes: none when the step leads away."""
    return max(0, -((start - stop) // step)) if step else 0  # len(range(...)) has no room for all of them


def _integers(start: int, stop: int, step: int) -> list[int]:
    current().items(_count(start, stop, step))
    return TypedList(range(start, stop, step) if step else (), "[]int")


@LIBRARY.add("until", "int")
def _until(count: int) -> list[int]:
    return _integers(0, count, -1 if count < 0 else 1)


LIBRARY.add("untilStep", "int int int")(_integers)


@LIBRARY.add("seq", "int...")
def _seq(*bounds: int) -> str:
    """As the shell's: the last number is among them."""
    if not 1 <= len(bounds) <= 3:
        return ""
    start, end = (1, bounds[0]) if len(bounds) == 1 else (bounds[0], bounds[-1])
    direction = -1 if end < start else 1
    step = bounds[1] if len(bounds) == 3 else direction
    if direction < 0 and step > 0:
        return ""
    current().text((1 + max(len(str(start)), len(str(end)))) * _count(start, end + direction, step))
    return " ".join(map(str, _integers(start, end + direction, step)))
