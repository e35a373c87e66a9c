"""Whether what is asked for is installed as it is asked for, so that nothing is to be done. Pure.

Where that cannot be told without asking the network, as of a branch that may have moved on, the answer is no.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable, Mapping
from typing import Any

import msgspec
import yaml

from llmgallery.catalog.gallery.compose import compose
from llmgallery.catalog.gallery.entry import GalleryEntry
from llmgallery.catalog.gallery.search import Found
from llmgallery.catalog.install.addresses import address
from llmgallery.catalog.install.entry_files import references
from llmgallery.catalog.install.job import Asked
from llmgallery.catalog.lock import LockedModel
from llmgallery.catalog.reference import HubReference, parse_reference
from llmgallery.core.errors import ConfigError


def is_unchanged(asked: Asked, found: Found | None, sources: Collection[str], model: LockedModel, text: str) -> bool:
    """`found`: the entry that is asked for; `sources`: it and its variants, None and () = it is no gallery's. `model`: as it is
    locked. `text`: of its YAML, with what the user has changed in it: those are no settings of the ask's, and stay."""
    return _is_source(asked, found, sources, model) and _has_settings(asked, model, text)


def _is_source(asked: Asked, found: Found | None, sources: Collection[str], model: LockedModel) -> bool:
    if found is not None:
        return model.source in sources and (found.quant is None or any(_is_of(found.quant, uri) for uri in _uris(model)))
    if model.source == asked.reference:
        return True  # an address
    reference = _reference(asked.reference)
    source = _reference(model.source)
    if reference is None or source is None or reference.repo != source.repo:
        return False
    if asked.name is None and reference.revision != "main" and not reference.pinned:
        reference = msgspec.structs.replace(reference, revision="main")  # the model's name tells the branch
    return reference.revision in ("main", source.revision) and any(_means(reference, uri) for uri in _uris(model))


def _has_settings(asked: Asked, model: LockedModel, text: str) -> bool:
    """All that is laid over the entry is in the YAML, and the files are those that were fetched."""
    composed = compose(GalleryEntry(name="request", gallery="request"), None, asked.overrides)
    files = {**{file.filename: file.uri for file in composed.files}, **dict(map(_file, asked.files))}
    config, named = composed.config, references(composed.config)
    wanted = [files.pop(value, value) for value in named.values()]
    if not all(any(_is_file(uri, locked) for locked in _uris(model)) for uri in (*wanted, *files.values())):
        return False
    try:
        written = yaml.load(text, yaml.CSafeLoader)
    except yaml.YAMLError:
        return False
    return _is_in(config, written, set(named))


def _is_in(wanted: Any, written: Any, but: Collection[str], level: str = "") -> bool:
    """Maps by their keys, without those dotted keys that name files; all else as it is."""
    if not isinstance(wanted, Mapping):
        return bool(wanted == written)
    if not isinstance(written, Mapping):
        return False
    keys = [key for key in wanted if f"{level}{key}" not in but and not _lists_files(f"{level}{key}", but)]
    return all(_is_in(wanted[key], written.get(key), but, f"{level}{key}.") for key in keys)


def _lists_files(key: str, named: Iterable[str]) -> bool:
    return key == "lora_adapters" and any(name.startswith(f"{key}.") for name in named)


def _is_file(uri: str, locked: str) -> bool:
    """Both are the same file; a plain name is that of one."""
    if uri == locked or uri.rpartition("/")[2] == uri == _name(locked):
        return True
    try:
        found = address(uri)
    except ConfigError:
        return False
    return _means(found, locked) if isinstance(found, HubReference) else found == locked


def _means(reference: HubReference, locked: str) -> bool:
    """What was asked for is, or has with it, this file of the Hub."""
    found = _reference(locked)
    if found is None or found.repo != reference.repo or reference.revision not in ("main", found.revision):
        return False
    return reference.file in (None, found.file) and (reference.quant is None or _is_of(reference.quant, locked))


def _is_of(quant: str, uri: str) -> bool:
    return re.search(rf"(?<![a-z0-9]){re.escape(quant)}(?![a-z0-9_])", _name(uri), re.IGNORECASE) is not None


def _name(uri: str) -> str:
    return uri.rpartition("/")[2].partition("@")[0]


def _uris(model: LockedModel) -> list[str]:
    return [file.uri for file in model.files]


def _file(said: Mapping[str, Any]) -> tuple[str, str]:
    uri = str(said.get("uri") or "")
    return str(said.get("filename") or uri.rpartition("/")[2]), uri


def _reference(text: str) -> HubReference | None:
    try:
        return parse_reference(text)
    except ConfigError:
        return None
