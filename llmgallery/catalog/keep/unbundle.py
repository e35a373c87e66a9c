"""Unpacks a bundle: every place is checked before the first byte is written, every digest before a file gets its name."""

from __future__ import annotations

import hashlib
import os
import re
import shutil
import tempfile
import uuid
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import BinaryIO

from llmgallery.catalog.download import check_space, free_bytes
from llmgallery.catalog.hub_cache import RepoCache
from llmgallery.catalog.hub_repo import RepoFile
from llmgallery.catalog.keep.manifest import (
    FILES,
    MANIFEST,
    MOST,
    BundledFile,
    BundledModel,
    BundledPreset,
    HubPlace,
    Manifest,
    decode,
    member_name,
)
from llmgallery.catalog.keep.needs import references
from llmgallery.catalog.keep.places import PIECE, Folders, OnBytes, digest
from llmgallery.catalog.keep.tar import Member, members
from llmgallery.catalog.lock import LockFile
from llmgallery.catalog.repo_folder import is_folder
from llmgallery.catalog.weights import local_path
from llmgallery.config.load import parse_model
from llmgallery.config.outside import Outside, Spec
from llmgallery.config.problems import as_error, shown
from llmgallery.config.regular import open_regular
from llmgallery.config.templates import MAX_TEMPLATE
from llmgallery.core.errors import ConfigError, GalleryError, HubCorrupt

_IS_MANIFEST = re.compile(r"llmgallery-bundle-[0-9a-f]{64}\.json")
FreeBytes = Callable[[Path], int]


@dataclass(frozen=True)
class Unbundled:
    """`models`: names of all that the bundle holds. `written`: files that were not here before; `size`: their bytes."""

    models: tuple[str, ...]
    written: tuple[Path, ...]
    size: int


@dataclass(frozen=True)
class Target:
    """Where a bundle goes. `taken`: names of the models that are there -> their files. `specs`, `outside`: what reading a
    model file needs."""

    folders: Folders
    specs: Mapping[str, Spec]
    outside: Outside = field(default_factory=Outside)
    taken: Mapping[str, Path] = field(default_factory=dict)
    free: FreeBytes = free_bytes


def unbundle(source: Path, target: Target, on_bytes: OnBytes | None = None) -> Unbundled:
    """Put the files, lock entries and YAMLs of a bundle where they belong. What is there already and the same is passed over,
    so that an unpacking that was stopped goes on when it is run again. Blocks.

    Raises ConfigError (or HubCorrupt for wrong bytes, NoSpace) for what does not fit; a YAML appears only after all files
    of the bundle are in place.
    """
    try:
        with open_regular(source) as file:
            archive = members(file, source)
            manifest = _manifest(archive, source)
            if (size := sum(manifest.sizes.values())) > source.stat().st_size:
                raise ConfigError(f"{MANIFEST}: the files are said to have {size:,} bytes, which is more than the bundle has")
            work = _plan(manifest, target)
            written = _unpack(archive, source, manifest, work, target, on_bytes)
    except GalleryError as error:
        raise _in_bundle(error, source) from error
    except OSError as error:
        raise ConfigError(f"{shown(source)} cannot be unpacked: {error.filename or ''} {error.strerror or error}") from error
    sizes = manifest.sizes
    return Unbundled(
        tuple(model.name for model in manifest.models), tuple(path for path, _ in written), sum(sizes[sha] for _, sha in written)
    )


def _in_bundle(error: GalleryError, source: Path) -> GalleryError:
    message = error.message if str(source) in error.message else f"{shown(source)}: {error.message}"
    return type(error)(message, hints=error.hints)


def _manifest(archive: Iterator[Member], source: Path) -> Manifest:
    first = next(archive, None)
    if first is None or not _IS_MANIFEST.fullmatch(first.name) or first.size > MOST:
        raise ConfigError(f"{source} is no bundle: it does not begin with a manifest, as `llmgallery bundle` writes it")
    data = b"".join(first.pieces(PIECE))
    if first.name != member_name(data):
        raise HubCorrupt(f"{MANIFEST} has other bytes than its name says: copy the bundle again")
    return decode(data)


# --- before anything is written ----------------------------------------------------------------------------------------------


@dataclass
class _Work:
    """What is to be done. `files`: sha256 -> the places that miss it; `links`: entries of the cache's snapshots to make, each
    with its blob; `yamls`: models whose YAML is not there; `presets`: place -> text of preset files that are not there."""

    files: dict[str, list[Path]] = field(default_factory=dict)
    links: list[tuple[RepoCache, HubPlace]] = field(default_factory=list)
    yamls: list[BundledModel] = field(default_factory=list)
    presets: dict[Path, str] = field(default_factory=dict)


def _plan(manifest: Manifest, target: Target) -> _Work:
    """Raises ConfigError when something else is in the way: then nothing is written."""
    work = _Work()
    files = {file.path for file in manifest.files}
    small = [file.path for file in manifest.files if file.path and file.size <= MAX_TEMPLATE]
    for model in manifest.models:
        _check_name(model, files, target)
        _check_yaml(model, small, target)
        if model.path is not None and model.yaml is not None and not _is_there(target.folders.models / model.path, model.yaml):
            work.yamls.append(model)
        if model.preset is not None:
            _plan_preset(model.preset, target.folders.models, work)
    for file in manifest.files:
        if file.path is not None:
            _plan_file(target.folders.models / file.path, target.folders.models, file, work)
        elif file.hub is not None:
            _plan_hub(file.hub, file, target.folders.cache, work)
    for folder, places in _by_folder(work, target.folders):
        check_space(folder, sum(manifest.sizes[sha256] for sha256 in places), target.free(folder))
    return work


def _by_folder(work: _Work, folders: Folders) -> Iterator[tuple[Path, list[str]]]:
    every = [(place, sha256) for sha256, places in work.files.items() for place in places]
    for folder in (folders.models, folders.cache):
        yield folder, [sha256 for place, sha256 in every if place.is_relative_to(folder)]


def _check_name(model: BundledModel, files: Collection[str | None], target: Target) -> None:
    """It is free, or what has it is the bundle's own."""
    other = target.taken.get(model.name)
    if other is not None and other.name != model.path and other.name not in files:
        raise ConfigError(f"a model {model.name!r} is there already ({shown(other)}): remove it first")


def _check_yaml(model: BundledModel, files: Iterable[str], target: Target) -> None:
    """It is sound, and names nothing outside the models folder. `files`: small ones of the bundle, a template perhaps."""
    if model.path is None or model.yaml is None:
        return
    outside = replace(target.outside, absent=None, malformed=None, recognise=None, trained=None)
    with tempfile.TemporaryDirectory(prefix="llmgallery-") as name:
        folder = Path(name)
        for file in files:
            (folder / file).parent.mkdir(parents=True, exist_ok=True)
            (folder / file).write_text("what it says comes later", encoding="utf-8")
        if model.preset is not None:
            preset = folder / model.preset.path
            preset.parent.mkdir(parents=True, exist_ok=True)
            preset.write_bytes(model.preset.yaml.encode())
        found = parse_model(model.yaml.encode(), folder / model.path, target.specs, outside)
        if found.config is None:
            raise as_error([replace(one, path=_named(one.path, folder)) for one in found.problems], model.path)
        if found.name != model.name:
            raise ConfigError(f"{model.path} is called {found.name!r}, not {model.name!r}")
        for key, reference in references(found.config):
            place = local_path(reference, folder)
            if place is not None and not place.is_relative_to(folder):
                raise ConfigError(f"{model.path}: {key} names {reference}, which is no file of the bundle")


def _named(path: Path | str, folder: Path) -> str:
    return str(Path(path).relative_to(folder)) if Path(path).is_relative_to(folder) else str(path)


def _is_there(path: Path, text: str) -> bool:
    """The file has this text. Raises ConfigError when it has another."""
    try:
        if path.read_bytes() == text.encode():
            return True
    except FileNotFoundError:
        return False
    raise ConfigError(f"{shown(path)} is there already, and differs from the bundle's: move it away, or remove the model first")


def _plan_preset(preset: BundledPreset, folder: Path, work: _Work) -> None:
    place = folder / preset.path
    if not place.parent.resolve().is_relative_to(folder.resolve()):
        raise ConfigError(f"{shown(place)}: a link on the way leads out of {shown(folder)}")
    if not _is_there(place, preset.yaml):
        work.presets[place] = preset.yaml


def _plan_file(place: Path, folder: Path, file: BundledFile, work: _Work) -> None:
    if not place.parent.resolve().is_relative_to(folder.resolve()):
        raise ConfigError(f"{shown(place)}: a link on the way leads out of {shown(folder)}")
    if not _is_same(place, file):
        work.files.setdefault(file.sha256, []).append(place)


def _plan_hub(hub: HubPlace, file: BundledFile, cache: Path, work: _Work) -> None:
    repo = RepoCache(cache, hub.repo)
    for revision in hub.revisions:
        before = repo.commit(revision)
        if before not in (None, hub.commit):
            raise ConfigError(
                f"{hub.repo}@{revision} is another commit here ({before}): pin the revision in the YAML, and pack again"
            )
    work.links.append((repo, hub))
    pointer, blob = repo.pointer(hub.commit, hub.file), repo.blob(hub.blob)
    for place in (pointer.parent, blob.parent):
        if not place.resolve().is_relative_to(cache.resolve()):
            raise ConfigError(f"{place}: a link on the way leads out of {cache}")
    dangling = pointer.is_symlink() and not pointer.exists()
    if (not dangling and _is_same(pointer, file)) or _is_same(blob, file):
        return
    places = work.files.setdefault(file.sha256, [])
    if blob not in places:
        places.append(blob)


def _is_same(place: Path, file: BundledFile) -> bool:
    """False: nothing is there. Raises ConfigError when it is something else."""
    if not os.path.lexists(place):
        return False
    if place.is_file() and place.stat().st_size == file.size and digest(place) == (file.sha256, file.size):
        return True
    raise ConfigError(f"{shown(place)} is there already, with other bytes than the bundle's: nothing was unpacked; move it away")


# --- writing -----------------------------------------------------------------------------------------------------------------


def _unpack(
    archive: Iterator[Member], source: Path, manifest: Manifest, work: _Work, target: Target, on_bytes: OnBytes | None
) -> list[tuple[Path, str]]:
    """Everything, YAMLs last; (place, sha256) of each file that was written."""
    left, written = manifest.sizes, []
    blobs = {file.sha256: file.hub.blob for file in manifest.files if file.hub and len(file.hub.blob) == 40}
    for member in archive:
        sha256 = member.name.removeprefix(FILES)
        if member.name != FILES + sha256 or left.pop(sha256, None) != member.size:
            raise ConfigError(f"{member.name!r} is in it, but not in its manifest, or twice, or with another size")
        places = work.files.get(sha256, [])
        _put(member, sha256, blobs.get(sha256), places, on_bytes)
        written += [(place, sha256) for place in places]
    if left:
        raise ConfigError(f"{source} is cut: {next(iter(left))} is not in it; copy it again")
    for repo, commit, files in _folders(manifest, target.folders.cache):
        repo.write_listing(commit, files, full=False)
    for repo, hub in work.links:
        repo.link(hub.commit, hub.file, repo.blob(hub.blob))
        for revision in hub.revisions:
            repo.write_ref(revision, hub.commit)
    LockFile.of(target.folders.models).update_all({model.name: model.locked for model in manifest.models if model.locked})
    for place, text in work.presets.items():
        with _replacing(place) as file:
            file.write(text.encode())
    for model in work.yamls:
        with _replacing(target.folders.models / (model.path or "")) as file:
            file.write((model.yaml or "").encode())
    return written


def _folders(manifest: Manifest, cache: Path) -> list[tuple[RepoCache, str, list[RepoFile]]]:
    """Folders of weights that come along, as they are known to be whole."""
    found: dict[tuple[str, str], list[RepoFile]] = {}
    for file in manifest.files:
        if file.hub is not None:
            found.setdefault((file.hub.repo, file.hub.commit), []).append(RepoFile(file.hub.file, file.size))
    return [(RepoCache(cache, repo), commit, files) for (repo, commit), files in found.items() if is_folder(files)]


def _put(member: Member, sha256: str, sha1: str | None, places: Sequence[Path], on_bytes: OnBytes | None) -> None:
    """One member into all its places, under its name only when its bytes are right."""
    found = hashlib.sha256()
    git = hashlib.sha1(b"blob %d\0" % member.size, usedforsecurity=False)

    def checked() -> Iterator[bytes]:
        for piece in member.pieces(PIECE):
            found.update(piece)
            git.update(piece if sha1 else b"")
            if on_bytes is not None:
                on_bytes(len(piece))
            yield piece
        if found.hexdigest() != sha256 or (sha1 and git.hexdigest() != sha1):
            raise HubCorrupt(f"{member.name} has other bytes than its name says ({found.hexdigest()}): copy the bundle again")

    if not places:
        for _ in checked():
            pass
        return
    with _replacing(places[0]) as file:
        for piece in checked():
            file.write(piece)
    for place in places[1:]:
        with _replacing(place) as file, places[0].open("rb") as first:
            shutil.copyfileobj(first, file, PIECE)


class _replacing:
    """A file that is written beside its place and gets there when the block ends well; else nothing stays."""

    def __init__(self, place: Path) -> None:
        self._place = place
        self._temporary = place.with_name(f".{place.name[:100]}.{uuid.uuid4().hex[:8]}.tmp")

    def __enter__(self) -> BinaryIO:
        self._place.parent.mkdir(parents=True, exist_ok=True)
        self._file = self._temporary.open("wb")
        return self._file

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        try:
            if kind is None:
                self._file.flush()
                os.fsync(self._file.fileno())
            self._file.close()
            if kind is None:
                self._temporary.replace(self._place)
        finally:
            with suppress(OSError):
                self._temporary.unlink(missing_ok=True)
