"""Packs models for a machine without a network: YAMLs, lock entries and every file that they are loaded from."""

from __future__ import annotations

import hashlib
import re
import uuid
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from llmgallery.catalog.formats import YAML_SUFFIXES
from llmgallery.catalog.hub_cache import RepoCache, cached_files
from llmgallery.catalog.index import Entry
from llmgallery.catalog.keep.manifest import (
    FILES,
    BundledFile,
    BundledModel,
    BundledPreset,
    HubPlace,
    Manifest,
    encode,
    member_name,
)
from llmgallery.catalog.keep.needs import references
from llmgallery.catalog.keep.places import Folders, OnBytes, digest, pieces
from llmgallery.catalog.keep.tar import END, header, padding
from llmgallery.catalog.lock import LockedFile, LockedModel, LockFile, hub_reference
from llmgallery.catalog.reference import HubReference
from llmgallery.catalog.weights import LocalFiles, locate
from llmgallery.config.load import load_model
from llmgallery.config.model import ModelConfig, Parameters
from llmgallery.config.outside import Spec
from llmgallery.config.problems import as_error, shown
from llmgallery.core.errors import ConfigError, HubOffline

_BLOB = re.compile(r"[0-9a-f]{40}|[0-9a-f]{64}")


@dataclass(frozen=True)
class _Source:
    """A file where it lies now, and what is known of it; `sha256` None = it is hashed."""

    real: Path
    path: str | None = None
    hub: HubReference | None = None
    revisions: tuple[str, ...] = ()
    sha256: str | None = None


def bundle(
    entries: Sequence[Entry],
    cache: Path,
    specs: Mapping[str, Spec],
    out: Path,
    on_bytes: OnBytes | None = None,
) -> Manifest:
    """Pack these models into `out`, which must not be there yet; what it holds comes back. The same models give the same bytes.

    Files that the lock knows are checked against it while they are packed, all others are hashed before. Blocks.
    Raises ConfigError, LoadError and HubOffline for a model that is not complete here; `out` appears only when it is whole.
    """
    if out.exists():
        raise ConfigError(f"{shown(out)} is there already: name another file with -o, or delete it")
    packed = [
        _model(entry, Folders(entry.folder, cache), specs, on_bytes) for entry in sorted(entries, key=lambda entry: entry.name)
    ]
    places = {(file.path, file.hub): (file, real) for _, files in packed for file, real in files}
    files = sorted((file for file, _ in places.values()), key=lambda file: (file.sha256, file.path or "", str(file.hub)))
    manifest = Manifest(models=tuple(model for model, _ in packed), files=tuple(files))
    reals = {file.sha256: real for file, real in places.values()}
    temporary = out.with_name(f".{out.name}.{uuid.uuid4().hex[:8]}.tmp")
    try:
        with temporary.open("wb") as file:
            _write(file, manifest, reals, on_bytes)
        temporary.replace(out)
    except OSError as error:
        raise ConfigError(f"{shown(out)} cannot be written: {error.strerror or error}") from error
    finally:
        with suppress(OSError):
            temporary.unlink(missing_ok=True)
    return manifest


def _write(file: BinaryIO, manifest: Manifest, reals: Mapping[str, Path], on_bytes: OnBytes | None) -> None:
    first = encode(manifest)
    file.write(header(member_name(first), len(first)) + first + padding(len(first)))
    for sha256, size in manifest.sizes.items():
        file.write(header(FILES + sha256, size))
        found, count = hashlib.sha256(), 0
        for piece in pieces(reals[sha256]):
            found.update(piece)
            count += len(piece)
            file.write(piece)
            if on_bytes is not None:
                on_bytes(len(piece))
        if (found.hexdigest(), count) != (sha256, size):
            raise ConfigError(f"{reals[sha256]} has other bytes than it should: `llmgallery verify` tells what is wrong")
        file.write(padding(size))
    file.write(END)


# --- what belongs to a model -------------------------------------------------------------------------------------------------


def _model(
    entry: Entry, folders: Folders, specs: Mapping[str, Spec], on_bytes: OnBytes | None
) -> tuple[BundledModel, list[tuple[BundledFile, Path]]]:
    """A model as it goes into the manifest, and its files with where they lie now."""
    mine = LockFile.of(folders.models).read().models.get(entry.name)
    repos = {hub_reference(file).repo for file in (mine.files if mine else ()) if file.path is None}
    sources = {source.real: source for source in _sources(entry, folders, specs, repos)}
    for source in (_locked_source(file, folders) for file in (mine.files if mine else ())):
        before = sources.get(source.real)
        sources[source.real] = (
            source if before is None else _Source(before.real, before.path, before.hub, before.revisions, source.sha256)
        )
    try:
        files = [(_bundled(source, on_bytes), source.real) for source in sources.values()]
        is_yaml = entry.path.suffix.lower() in YAML_SUFFIXES
        yaml = entry.path.read_bytes().decode() if is_yaml else None
        preset = load_model(entry.path, specs).preset if is_yaml else None
        own = BundledPreset(name=preset.stem, yaml=preset.read_bytes().decode()) if preset is not None else None
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"{entry.name} cannot be packed: {error}") from error
    if mine is None and (fetched := tuple(_lock_entry(file.hub, file) for file, _ in files if file.hub)):
        mine = LockedModel(source="bundle", files=fetched)
    path = entry.path.name if is_yaml else None
    return BundledModel(name=entry.name, path=path, yaml=yaml, locked=mine, preset=own), files


def _sources(entry: Entry, folders: Folders, specs: Mapping[str, Spec], repos: Collection[str]) -> Iterator[_Source]:
    """Everything that the YAML names, but for whole repos of which the lock knows the files: `repos`. Raises when something is
    not here, or lies outside the models folder."""
    spec = specs.get(entry.backend) if entry.backend is not None else None
    for key, reference in references(entry.config):
        if key.startswith("parameters") and spec is not None and not spec.needs_weights:
            continue
        named = entry.config if key.startswith("parameters") else ModelConfig(parameters=Parameters(model=reference))
        place = locate(named, entry.folder, spec.formats if spec is not None else None)
        if isinstance(place, LocalFiles):
            for path in place.paths:
                yield from (_local(entry, key, file) for file in _files(path))
        elif place.file or place.quant or place.repo not in repos:
            yield from _cached(entry, key, place, folders)
    if entry.path.suffix.lower() in YAML_SUFFIXES:
        model = load_model(entry.path, specs)
        if model.problems:
            raise as_error(model.problems, str(entry.path))
        for key, path in model.templates:
            yield _local(entry, key, path)
    elif (beside := entry.folder / f"{entry.config.weights}.tmpl").is_file():
        yield _local(entry, "template.chat", beside)


def _files(path: Path) -> Iterator[Path]:
    """The file, or all files of a folder; hidden ones are no weights."""
    if not path.is_dir():
        yield path
        return
    for file in sorted(path.rglob("*")):
        if file.is_file() and not any(part.startswith(".") for part in file.relative_to(path).parts):
            yield file


def _local(entry: Entry, key: str, path: Path) -> _Source:
    try:
        return _Source(path, path.relative_to(entry.folder).as_posix())
    except ValueError:
        raise ConfigError(
            f"{entry.name} cannot be packed: {key} names {path}, which lies outside {entry.folder}: move it there", field=key
        ) from None


def _cached(entry: Entry, key: str, ref: HubReference, folders: Folders) -> Iterator[_Source]:
    paths = cached_files(folders.cache, ref)
    if not paths:
        raise HubOffline(f"{entry.name} cannot be packed: {key} names {ref}, which is not downloaded: ask for the model once")
    repo = RepoCache(folders.cache, ref.repo)
    for path in paths:
        commit, _, file = path.relative_to(repo.folder / "snapshots").as_posix().partition("/")
        yield _Source(path, hub=HubReference(ref.repo, file, None, commit), revisions=() if ref.pinned else (ref.revision,))


def _locked_source(file: LockedFile, folders: Folders) -> _Source:
    hub = hub_reference(file) if file.path is None else None
    return _Source(folders.place(file), file.path, hub, sha256=file.sha256)


def _bundled(source: _Source, on_bytes: OnBytes | None) -> BundledFile:
    sha256, size = source.sha256, source.real.stat().st_size
    if sha256 is None:
        sha256, size = digest(source.real, on_bytes)
    if source.hub is None:
        return BundledFile(sha256=sha256, size=size, path=source.path)
    blob = source.real.resolve().name if source.real.is_symlink() else ""
    place = HubPlace(
        repo=source.hub.repo,
        file=source.hub.file or "",
        commit=source.hub.revision,
        blob=blob if _BLOB.fullmatch(blob) else sha256,
        revisions=source.revisions,
    )
    return BundledFile(sha256=sha256, size=size, hub=place)


def _lock_entry(hub: HubPlace, file: BundledFile) -> LockedFile:
    uri = f"hf://{hub.repo}/{hub.file}@{hub.commit}"
    return LockedFile(uri=uri, commit=hub.commit, sha256=file.sha256, size=file.size)
