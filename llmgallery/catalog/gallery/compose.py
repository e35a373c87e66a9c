"""An entry and its base file to one model file's keys. Pure; checks no values, which reading the model file does."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from llmgallery.catalog.gallery.entry import Composed, EntryFile, GalleryEntry
from llmgallery.catalog.gallery.read import Base, read_base
from llmgallery.config.ignored import FOREIGN
from llmgallery.config.suggest import dotted, model_levels, nearest
from llmgallery.core.errors import ConfigError

_NO_LICENCE = frozenset({"", "n/a", "none", "unknown"})
_FILE_KEYS = frozenset({"filename", "uri", "sha256"})


def compose(
    entry: GalleryEntry,
    base: bytes | None,
    overrides: Mapping[str, Any] | None = None,
    files: Sequence[EntryFile] = (),
) -> Composed:
    """The entry's keys over its base file's, the request's `overrides` and `files` over both.

    Maps merge key by key, lists and all else replace, a key without a value leaves what was there. Of files of one name the
    request's counts, then the entry's. Raises ConfigError for a base file that cannot be read, with all its problems.
    """
    below = _base(entry, base)
    layers = (below.config, entry.config or {}, entry.overrides, overrides or {})
    merged: dict[str, Any] = {}
    for layer in layers:
        merged = merge(merged, layer)
    config, moved, dropped = _lift(merged)
    downloads, warnings = _downloads(config.pop("download_files", None))
    config.pop("name", None)
    written = config.get("aliases", [])
    if entry.aliases and isinstance(written, list):
        config["aliases"] = [*entry.aliases, *(alias for alias in written if alias not in entry.aliases)]
    return Composed(
        config=config,
        files=_files(files, entry.files, below.files, downloads),
        licence=_licence(entry.licence) or _licence(below.licence),
        description=str(config.get("description") or entry.description or below.description),
        urls=entry.urls or below.urls,
        lifted=tuple(moved),
        warnings=(*entry.warnings, *below.warnings, *warnings, *map(_unread, dropped)),
        dropped=dropped,
    )


def merge(below: Mapping[str, Any], above: Mapping[str, Any]) -> dict[str, Any]:
    """Maps recurse, all else replaces; None replaces nothing."""
    merged = dict(below)
    for key, value in above.items():
        if isinstance(value, Mapping):
            under = merged.get(key)
            merged[key] = merge(under if isinstance(under, Mapping) else {}, value)
        elif value is not None or key not in merged:
            merged[key] = value
    return merged


def _base(entry: GalleryEntry, base: bytes | None) -> Base:
    if base is not None:
        return read_base(base, entry.url or entry.id)
    if entry.url is not None:
        raise ConfigError(f"{entry.where}: {entry.id} is written over {entry.url}, which is not here", field="url")
    return Base()


# --- keys that nobody reads --------------------------------------------------------------------------------------------------


def _lift(merged: Mapping[str, Any]) -> tuple[dict[str, Any], list[str], dict[str, Any]]:
    """The keys that a model file has; what was moved, in sentences; what has no place, by dotted key.

    A key under the wrong parent, as LocalAI's own base files have it, means what it says: LocalAI drops it in silence.
    """
    strays: dict[tuple[str, str], Any] = {}
    config = _known(merged, "", strays)
    moved: list[str] = []
    dropped: dict[str, Any] = {}
    for (level, key), value in strays.items():
        home = _home(level, key)
        if home is None:
            dropped[dotted(level, key)] = value
        elif _get(config, home, key) is None:
            _set(config, home, key, value)
            moved.append(f"{dotted(level, key)} has no meaning there, and is taken as {dotted(home, key)}")
        elif _get(config, home, key) != value:
            moved.append(f"{dotted(level, key)} has no meaning there, and {dotted(home, key)} says otherwise, which counts")
    return config, moved, dropped


def _known(values: Mapping[str, Any], level: str, strays: dict[tuple[str, str], Any]) -> dict[str, Any]:
    """What has a place at this level, without keys that have no value; the others go to `strays`."""
    levels = model_levels()
    kept: dict[str, Any] = {}
    for key, value in values.items():
        if value is None:
            continue
        if key not in levels[level]:
            strays[level, key] = value
        elif isinstance(value, Mapping) and (inner := dotted(level, key)) in levels:
            kept[key] = _known(value, inner, strays)
        else:
            kept[key] = value
    return kept


def _home(level: str, key: str) -> str | None:
    """The only other level that has the key."""
    found = [other for other, keys in model_levels().items() if key in keys and other != level]
    return found[0] if len(found) == 1 else None


def _get(config: Mapping[str, Any], level: str, key: str) -> Any:
    inner = _section(config, level)
    return None if inner is None else inner.get(key)


def _section(config: Mapping[str, Any], level: str) -> Mapping[str, Any] | None:
    """The mapping at a level; None = it is not written, or is no mapping."""
    here: Any = config
    for part in level.split(".") if level else ():
        here = here.get(part) if isinstance(here, Mapping) else None
    return here if isinstance(here, Mapping) else None


def _set(config: dict[str, Any], level: str, key: str, value: Any) -> None:
    here = config
    for part in level.split(".") if level else ():
        inner = here.get(part)
        here[part] = dict(inner) if isinstance(inner, Mapping) else {}
        here = here[part]
    here[key] = value


def _unread(key: str) -> str:
    """The sentence about a key without a place."""
    first, _, last = key.rpartition(".")
    if key in FOREIGN:
        return f"{key}: not used: {FOREIGN[key]}"
    near = nearest(last, model_levels().get(first, ()))
    return f"{key}: unknown key, not used" + (f"; did you mean {dotted(first, near)}?" if near else "")


# --- files -------------------------------------------------------------------------------------------------------------------


def _files(*layers: Iterable[EntryFile]) -> tuple[EntryFile, ...]:
    found: dict[str, EntryFile] = {}
    for layer in layers:
        for file in layer:
            found.setdefault(file.filename, file)
    return tuple(found.values())


def _downloads(value: Any) -> tuple[list[EntryFile], list[str]]:
    """LocalAI's `download_files` of a model file, which are files of the entry like all others."""
    if value is None:
        return [], []
    found, wrong = [], []
    for index, item in enumerate(value if isinstance(value, list) else [value]):
        texts = {key: text for key, text in item.items() if isinstance(text, str)} if isinstance(item, Mapping) else {}
        if "uri" not in texts or not texts.keys() <= _FILE_KEYS:
            wrong.append(f"download_files[{index}]: expected filename, uri and sha256; not used")
            continue
        name = texts.get("filename") or texts["uri"].partition("?")[0].rpartition("/")[2]
        found.append(EntryFile(name, texts["uri"], texts.get("sha256", "").lower() or None))
    return found, wrong


def _licence(text: str | None) -> str | None:
    return None if text is None or text.strip().lower() in _NO_LICENCE else text.strip()
