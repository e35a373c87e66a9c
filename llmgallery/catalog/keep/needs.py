"""Which files the YAMLs of a folder name, as far as that can be told without loading anything."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from llmgallery.catalog.formats import YAML_SUFFIXES
from llmgallery.catalog.hub_cache import cached_files
from llmgallery.catalog.index import Snapshot
from llmgallery.catalog.keep.places import Folders
from llmgallery.catalog.lock import Locked, LockedFile, hub_reference
from llmgallery.catalog.reference import HubReference, parse_reference
from llmgallery.config.model import ModelConfig
from llmgallery.core.errors import ConfigError


def references(config: ModelConfig) -> Iterator[tuple[str, str]]:
    """(key, reference) of everything that a model is loaded from, the weights first."""
    pairs = [
        ("parameters.model", config.weights),
        ("mmproj", config.mmproj),
        ("draft_model", config.draft_model),
        ("lora_adapter", config.lora_adapter),
        *(("lora_adapters", reference) for reference in config.lora_adapters),
    ]
    yield from ((key, reference) for key, reference in pairs if reference)


@dataclass(frozen=True)
class Needs:
    """`texts`: of all YAMLs and of what else may name files; who is named there by a digest is needed. `places`: files in the
    Hugging Face cache. `repos`: those of which any file may be meant. `names`: the models of each folder."""

    texts: tuple[str, ...]
    places: frozenset[Path]
    repos: frozenset[str]
    names: Mapping[Path, frozenset[str]]

    def mentions(self, word: str) -> bool:
        """A text holds it."""
        return any(word in text for text in self.texts)


def needs(served: Mapping[Path, Snapshot], cache: Path, locks: Mapping[Path, Locked], busy: Sequence[str]) -> Needs:
    """What the YAMLs of these models folders need, and locked models that one of their folder serves. `busy`: texts of
    installs that still run. Raises ConfigError for a YAML that cannot be read: what it needs is not known then."""
    names = {folder: _names(snapshot) for folder, snapshot in served.items()}
    places: set[Path] = set()
    repos: set[str] = set()
    for found in _hub_references(served.values()):
        paths = cached_files(cache, found) if found.file or found.pinned else None
        places.update(paths or ())
        repos.update(() if paths else {found.repo})
    for folder, locked in locks.items():
        here = Folders(folder, cache)
        places.update(here.place(file) for name, model in locked.models.items() if name in names[folder] for file in model.files)
    broken = [item.path for snapshot in served.values() for item in snapshot.broken.values()]
    unsure = [*(_text(path) for path in broken if path.suffix.lower() in YAML_SUFFIXES), *busy]
    known = {hub_reference(file).repo for locked in locks.values() for file in _hub_files(locked)}
    repos.update(repo for repo in known if any(repo in text for text in unsure))
    return Needs((*_texts(served), *busy), frozenset(places), frozenset(repos), names)


def _names(snapshot: Snapshot) -> frozenset[str]:
    return frozenset([*snapshot.entries, *snapshot.disabled, *(broken.name for broken in snapshot.broken.values())])


def _hub_files(locked: Locked) -> Iterator[LockedFile]:
    return (file for model in locked.models.values() for file in model.files if file.path is None)


def _hub_references(snapshots: Iterable[Snapshot]) -> Iterator[HubReference]:
    for entry in (entry for one in snapshots for entry in (*one.entries.values(), *one.disabled.values())):
        for _, reference in references(entry.config):
            try:
                found = parse_reference(reference)
            except ConfigError:
                continue
            if found is not None:
                yield found


def _texts(models: Iterable[Path]) -> Iterator[str]:
    for folder in models:
        try:
            paths = sorted(folder.iterdir())
        except FileNotFoundError:
            continue
        except OSError as error:
            raise ConfigError(f"{folder} cannot be read ({error.strerror or error}): what it needs is not known") from error
        yield from (_text(path) for path in paths if path.suffix.lower() in YAML_SUFFIXES and not path.is_dir())


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8", errors="replace")
    except OSError as error:
        raise ConfigError(f"{path} cannot be read ({error.strerror or error}): what it needs is not known") from error
