"""What the models folders hold, as an immutable snapshot that is swapped as a whole. Loads no model."""

from __future__ import annotations

import gc
import os
import threading
import time
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path, PurePath
from typing import TypeVar

import msgspec

from llmgallery.catalog import formats
from llmgallery.catalog.companions import absent
from llmgallery.catalog.formats import YAML_SUFFIXES
from llmgallery.catalog.index import Broken, Entry, Snapshot, Source, build
from llmgallery.catalog.weights import check_folder, check_whole, listed, malformed, recognise, trained_context
from llmgallery.config.checks import name_fault
from llmgallery.config.load import LoadedModel, load_model
from llmgallery.config.model import ModelConfig, Parameters
from llmgallery.config.outside import Outside, Spec, backend_of_format
from llmgallery.config.problems import Problem
from llmgallery.config.templates import read_sidecar, sidecar_path, with_sidecar
from llmgallery.core.errors import BadWeights

__all__ = ["YAML_SUFFIXES", "Broken", "Entry", "Registry", "Snapshot"]

UNFINISHED = (
    "~",
    ".swp",
    ".swx",
    ".tmp",
    ".temp",
    ".bak",
    ".part",
    ".partial",
    ".incomplete",
    ".download",
    ".crdownload",
    ".lock",
)
WEIGHTS_SUFFIXES = (".gguf.bin", ".gguf", ".bin")

Signature = tuple[int, ...]

L = TypeVar("L", LoadedModel, LoadedModel | None)

MOST_READINGS = 3
TICK_NS = 50_000_000
"""File systems tell times in steps: two changes within one look like one."""


@dataclass(frozen=True)
class _Read:
    """A file as it was when it was read. `unsure`: what it means may change without it changing."""

    signature: Signature
    source: Source
    depends: tuple[tuple[Path, Signature], ...] = ()
    unsure: bool = False

    def holds_at(self, path: Path) -> bool:
        """The file, which lies there, and what it depends on are as they were."""
        return all(_signature(other) == then for other, then in [(path, self.signature), *self.depends])

    def holds(self, forced: set[Path]) -> bool:
        """Nothing beside the file has changed what it means."""
        same = all(_signature(other) == then and other not in forced for other, then in self.depends)
        return same and not self.unsure


@dataclass
class _Scan:
    """What lies in the folders now, in the order in which names are given away."""

    yamls: list[tuple[Path, Signature]] = field(default_factory=list)
    weights: list[tuple[Path, Signature]] = field(default_factory=list)
    problems: list[Problem] = field(default_factory=list)


class Registry:
    """The folders and their newest snapshot. `read` and `refresh` block (files) and may be called from any thread."""

    def __init__(
        self,
        folders: Sequence[Path],
        specs: Mapping[str, Spec],
        outside: Outside | None = None,
        *,
        loud: Collection[Path] = (),
    ) -> None:
        """`folders` in order of priority: the user's first, then the built-in one. None of them need exist. A model hides
        those of its name in later folders without a word, except in `loud` ones: these are listed as broken.
        """
        seen: dict[Path, Path] = {}
        for folder in folders:
            seen.setdefault(folder.resolve(), folder.absolute())
        self.folders = tuple(seen.values())
        self.specs = specs
        outside = outside or Outside()
        self._outside = replace(
            outside,
            recognise=outside.recognise or recognise,
            malformed=outside.malformed or malformed,
            trained=outside.trained or trained_context,
            absent=outside.absent or absent,
        )
        self._loud = frozenset(folder.absolute() for folder in loud)
        self._reads: dict[Path, _Read] = {}
        self._looks: dict[Path, Signature] = {}
        self._lock = threading.Lock()
        self._snapshot: Snapshot | None = None

    @property
    def snapshot(self) -> Snapshot:
        """The newest; empty before the first read."""
        return self._snapshot or Snapshot()

    @property
    def ready(self) -> bool:
        """The folders have been read once."""
        return self._snapshot is not None

    def is_current(self, entry: Entry) -> bool:
        """The entry's file, and those that it depends on, are as they were when they were read. A stat or two."""
        read = self._reads.get(entry.path)
        if read is None:
            return False
        return read.holds_at(entry.path)

    def may_have_news(self) -> bool:
        """Something was added to a folder, or taken away, or a broken file or what it depends on was touched, since the last
        reading. A few stats."""
        if self._snapshot is None or {folder: _signature(folder) for folder in self.folders} != self._looks:
            return True
        reads = [(broken.path, self._reads.get(broken.path)) for broken in self._snapshot.broken.values()]
        return any(read is not None and not read.holds_at(path) for path, read in reads)

    def read(self) -> Snapshot:
        """Read everything that is not known yet. The objects of many files, which live as long as the server, are kept out of
        the garbage collector's rounds: these would take a quarter of the time now, and hold streams up later."""
        swept = gc.isenabled()
        gc.disable()
        try:
            return self.refresh()
        finally:
            gc.freeze()
            if swept:
                gc.enable()

    def refresh(self, paths: Collection[Path] | None = None) -> Snapshot:
        """Read what changed since the last time, and `paths` in any case; swap the snapshot and return it."""
        forced = {path.absolute() for path in paths or ()}
        with self._lock:
            looks = {folder: _signature(folder) for folder in self.folders}
            begun = time.time_ns()
            scan = self._scan()
            # A folder that has only just changed may change again without its time telling: it is not trusted.
            self._looks = {folder: look for folder, look in looks.items() if not look or look[0] < begun - TICK_NS}
            reads = {path: self._current(path, signature, forced) for path, signature in scan.yamls}
            taken = _referenced(reads.values())
            for path, signature in scan.weights:
                if str(path) not in taken and (read := self._weights(path, signature)) is not None:
                    reads[path] = read
            self._reads = reads
            self._snapshot = build([read.source for read in reads.values()], self._loud, tuple(scan.problems))
            return self._snapshot

    def _scan(self) -> _Scan:
        scan = _Scan()
        for folder in self.folders:
            try:
                names = sorted(os.listdir(folder))  # noqa: PTH208 - 10,000 names, no need for as many Paths
            except FileNotFoundError:
                continue
            except OSError as error:
                scan.problems.append(Problem(folder, 0, 0, "", f"the folder cannot be read: {error.strerror or error}"))
                continue
            for name in names:
                if name.startswith((".", "#")) or name.lower().endswith(UNFINISHED):
                    continue
                kind = scan.yamls if name.lower().endswith(YAML_SUFFIXES) else scan.weights
                if kind is scan.yamls or not name.lower().endswith(formats.NO_WEIGHTS):
                    kind.append((folder / name, _signature(folder / name)))
        return scan

    def _current(self, path: Path, signature: Signature, forced: set[Path]) -> _Read:
        known = self._reads.get(path)
        if known is not None and known.signature == signature and path not in forced and known.holds(forced):
            return known
        loaded, depends = _settled(partial(load_model, path, self.specs, self._outside))
        if known is not None and known.source.loaded == loaded:
            return replace(known, signature=signature, depends=depends)
        unsure = loaded.config is not None and loaded.backend is None
        return _Read(signature, _source(path, loaded, signature), depends, unsure)

    def _weights(self, path: Path, signature: Signature) -> _Read | None:
        known = self._reads.get(path)
        if known is not None and known.signature == signature and not path.is_dir() and known.holds(set()):
            return known
        loaded, depends = _settled(partial(self._detected, path))
        if loaded is None:
            return None
        if known is not None and known.source.loaded == loaded:
            return replace(known, signature=signature, depends=depends)
        return _Read(signature, _source(path, loaded, signature, weights=True), depends)

    def _detected(self, path: Path) -> LoadedModel | None:
        """Defaults for a weights file or folder that has no YAML; None when it is none, or only part of one."""
        name = weights_name(path)
        if name_fault(name):
            return None
        backend: str | None = None
        try:
            found = formats.detect(path)
            if not _is_meant(path, found):
                return None
            spec = backend_of_format(found, self.specs, self._outside.lacks)
            backend = spec.name if spec is not None else None
            fault = _fault(path, found, backend)
        except FileNotFoundError:
            return None
        except OSError as error:
            if not _named_weights(path):
                return None
            fault = f"cannot be read: {error.strerror or error}"
        if fault is not None:
            problem = fault if isinstance(fault, Problem) else Problem(path, 0, 0, "", fault)
            return LoadedModel(path, name, problems=(problem,))
        config = ModelConfig(name=name, backend=backend, parameters=Parameters(model=path.name))
        beside = sidecar_path(config, path.parent)
        if beside is None:
            return LoadedModel(path, name, config, backend)
        source = read_sidecar(beside, self._outside.go_template)
        if isinstance(source, Problem):
            return LoadedModel(path, name, problems=(source,), depends=(beside,))
        return LoadedModel(path, name, with_sidecar(config, source), backend, depends=(beside,))


def _named_weights(path: Path) -> bool:
    """The name promises weights, whatever is in the file: one that holds none is told, others are none of our business."""
    return path.name.lower().endswith((".gguf", ".gguf.bin")) and not path.is_dir()


def _is_meant(path: Path, found: str | None) -> bool:
    """The file or folder stands for a model, be it a damaged one: no stray file, no projector, no later part."""
    if found is None:
        return _named_weights(path)
    return found != formats.GGUF or path.is_dir() or formats.is_model(path)


def _fault(path: Path, found: str | None, backend: str | None) -> Problem | str | None:
    """Why weights without a YAML cannot be served."""
    if found is None:
        return "is in no format that is known here" if path.stat().st_size else "is empty: it has 0 bytes"
    if backend is None:
        return f"holds {found} weights, which no backend here loads"
    if found == formats.GGUF and path.is_dir():
        return _several(path)
    try:
        if path.is_dir():
            check_folder(path)
        elif found == formats.GGUF:
            check_whole(path)
    except BadWeights as error:
        return error.message.removeprefix(str(path)).removeprefix("/").removeprefix(":").strip()
    return None


def _several(path: Path) -> Problem | None:
    """A folder with more models than one needs a YAML that chooses."""
    models = formats.gguf_models(path) if path.is_dir() else []
    if len(models) < 2:
        return None
    message = f"the folder holds several models ({listed([model.name for model in models])}) and no YAML chooses one"
    return Problem(path, 0, 0, "", message, f"write a YAML with `parameters: {{model: {path.name}/{models[0].name}}}`")


def weights_name(path: PurePath) -> str:
    """The name of a model that has no YAML: its file's, without the suffix of a weights file."""
    for suffix in WEIGHTS_SUFFIXES:
        if path.name.lower().endswith(suffix) and len(path.name) > len(suffix):
            return path.name[: -len(suffix)]
    return path.name


def _settled(load: Callable[[], L]) -> tuple[L, tuple[tuple[Path, Signature], ...]]:
    """What `load` reads, and the files that it depends on as they were before that. Which ones these are is known only
    afterwards: when one has changed meanwhile, or just before, it may have been read as it was, and all is read once more."""
    begun = time.time_ns()
    loaded = load()
    for _ in range(MOST_READINGS):
        depends = tuple((path, _signature(path)) for path in (loaded.depends if loaded else ()))
        if all(not look or look[3] < begun - TICK_NS for _, look in depends):
            break
        before, loaded = loaded, load()
        if loaded is None or before is None or loaded.depends == before.depends:
            break
    return loaded, depends


def _signature(path: Path) -> Signature:
    """What changes when a file does: times, size and inode; () = not there."""
    try:
        found = path.stat()
    except (OSError, ValueError):  # a NUL in the name
        return ()
    return (found.st_mtime_ns, found.st_size, found.st_ino, found.st_ctime_ns)


def _source(path: Path, loaded: LoadedModel, signature: Signature, weights: bool = False) -> Source:
    created = signature[0] // 1_000_000_000 if signature else 0
    if loaded.config is None:
        return Source(loaded, Broken(loaded.name, path, loaded.problems, loaded.warnings))
    aliases = tuple(loaded.config.aliases)
    warnings, places = loaded.warnings, loaded.places
    entry = Entry(loaded.name, path, path.parent, loaded.config, loaded.backend, aliases, warnings, created, places)
    if not weights:
        return Source(loaded, entry)
    by_file = replace(entry, name=path.name, config=msgspec.structs.replace(loaded.config, name=path.name))
    return Source(loaded, entry if path.name == entry.name else replace(entry, aliases=(path.name,)), by_file)


def _referenced(reads: Collection[_Read]) -> set[str]:
    """Paths that a YAML's weights keys name, and the folders around them: these are not models of their own."""
    found: set[str] = set()
    for read in reads:
        if isinstance(read.source.item, Entry):
            entry = read.source.item
            for reference in _references(entry.config):
                path = os.path.normpath(entry.folder / reference)
                while path not in found:
                    found.add(path)
                    path = os.path.dirname(path)  # noqa: PTH120 - for 10,000 files at every change
    return found


def _references(config: ModelConfig) -> Iterator[str]:
    for reference in (config.weights, config.mmproj, config.draft_model, config.lora_adapter, *config.lora_adapters):
        if reference:
            yield reference.removeprefix("file://")
