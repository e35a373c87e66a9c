"""sprig's functions on dictionaries. `set`, `unset`, `merge` and `mergeOverwrite` change the one that they are given."""

from __future__ import annotations

from typing import Any

from llmgallery.templates.gotmpl.budget import current
from llmgallery.templates.gotmpl.functions import Library
from llmgallery.templates.gotmpl.sprig.convert import is_empty, to_text
from llmgallery.templates.gotmpl.values import NESTING, GoError, TypedDict, TypedList, TypedNil, is_nil, type_name

LIBRARY = Library()


def _entries(value: Any) -> dict[str, Any]:
    """Of a nil map: none."""
    return value if isinstance(value, dict) else {}


def _writable(value: Any) -> dict[str, Any]:
    if is_nil(value):
        raise GoError("assignment to entry in nil map")
    return _entries(value)


@LIBRARY.add("dict", "any...")
def _dict(*pairs: Any) -> dict[str, Any]:
    return {to_text(key): pairs[2 * at + 1] if 2 * at + 1 < len(pairs) else "" for at, key in enumerate(pairs[::2])}


@LIBRARY.add("get", "map string")
def _get(entries: Any, key: str) -> Any:
    return _entries(entries).get(key, "")


@LIBRARY.add("set", "map string any")
def _set(entries: Any, key: str, value: Any) -> Any:
    _writable(entries)[key] = value
    return entries


@LIBRARY.add("unset", "map string")
def _unset(entries: Any, key: str) -> Any:
    _entries(entries).pop(key, None)
    return entries


@LIBRARY.add("hasKey", "map string")
def _has_key(entries: Any, key: str) -> bool:
    return key in _entries(entries)


@LIBRARY.add("pluck", "string map...")
def _pluck(key: str, *maps: Any) -> list[Any]:
    return [_entries(each)[key] for each in maps if key in _entries(each)]


@LIBRARY.add("keys", "map...")
def _keys(*maps: Any) -> list[str]:
    """In sorted order. (Go's own order is another one each time.)"""
    current().items(sum(len(_entries(each)) for each in maps))
    return TypedList(key for each in maps for key in sorted(_entries(each)))


@LIBRARY.add("values", "map")
def _values(entries: Any) -> list[Any]:
    """In the order of their keys."""
    found = _entries(entries)
    current().items(len(found))
    return [found[key] for key in sorted(found)]


@LIBRARY.add("pick", "map string...")
def _pick(entries: Any, *keys: str) -> dict[str, Any]:
    return {key: _entries(entries)[key] for key in keys if key in _entries(entries)}


@LIBRARY.add("omit", "map string...")
def _omit(entries: Any, *keys: str) -> dict[str, Any]:
    current().items(len(_entries(entries)))
    return {key: value for key, value in _entries(entries).items() if key not in keys}


@LIBRARY.add("merge", "map map...", also="mustMerge", deep=True)
def _merge(into: Any, *others: Any) -> Any:
    """What `into` has keeps, unless it is empty; maps merge within."""
    for other in others:
        _fill(_writable(into), _entries(other), overwrite=False)
    return into


@LIBRARY.add("mergeOverwrite", "map map...", also="mustMergeOverwrite", deep=True)
def _merge_overwrite(into: Any, *others: Any) -> Any:
    """What the others have replaces; maps merge within, but replace nothing else."""
    for other in others:
        _fill(_writable(into), _entries(other), overwrite=True)
    return into


def _fill(into: dict[str, Any], other: dict[str, Any], *, overwrite: bool, depth: int = 0) -> None:
    current().items(len(other))
    if depth > NESTING:
        raise GoError("the maps to merge are nested too deeply")
    for key, value in list(other.items()):
        old = into.get(key)
        if isinstance(old, dict) and isinstance(value, dict):
            if old is not value:
                _fill(old, value, overwrite=overwrite, depth=depth + 1)
        elif value is None:
            if overwrite:
                into[key] = None
        elif is_empty(old) or (overwrite and not isinstance(value, dict)):
            into[key] = value


@LIBRARY.add("deepCopy", "any", also="mustDeepCopy", deep=True)
def deep_copy(value: Any) -> Any:
    if isinstance(value, dict):
        copied = {key: deep_copy(item) for key, item in value.items()}
        return TypedDict(copied, value.go_type) if isinstance(value, TypedDict) else copied
    if isinstance(value, list):
        items = [deep_copy(item) for item in value]
        return TypedList(items, value.go_type) if isinstance(value, TypedList) else items
    return value


@LIBRARY.add("dig", "any...")
def _dig(*path: Any) -> Any:
    """`dig KEY... DEFAULT DICT`."""
    if len(path) < 3:
        raise GoError("dig needs at least three arguments")
    *keys, default, found = path
    for at, key in enumerate(keys):
        if not isinstance(key, str):
            raise GoError(f"interface conversion: interface {{}} is {type_name(key)}, not string")
        if not isinstance(found, dict) and not isinstance(found, TypedNil):
            shown = "nil" if found is None else type_name(found)
            raise GoError(f"interface conversion: interface {{}} is {shown}, not map[string]interface {{}}")
        entries = _entries(found)
        if key not in entries:
            return default
        found = entries[key]
        if at == len(keys) - 1:
            return found
    return default
