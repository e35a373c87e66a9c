"""Reads a gallery's index files and base files from where it lies: a folder, the web, a Hub repo. Parses nothing."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path, PurePosixPath
from typing import Protocol
from urllib.parse import urlsplit

import msgspec

from llmgallery.catalog.gallery.read import read_base
from llmgallery.catalog.gallery.sources import INDEX, RAW_GITHUB, YAML_SUFFIXES, HubPlace, LocalPlace, Place, WebPlace, base_place
from llmgallery.catalog.gallery.web import WebFiles
from llmgallery.catalog.hub import Hub
from llmgallery.catalog.hub_cache import RepoCache
from llmgallery.catalog.reference import HubReference
from llmgallery.config.problems import shown
from llmgallery.core.errors import ConfigError, HubError, HubNotFound, HubUnavailable

log = logging.getLogger(__name__)

MAX_FILES = 2000
"""Index files of one gallery."""


_ANYWHERE = WebPlace("https://example.com/")
"""Somewhere on the network."""


class IndexFile(msgspec.Struct, frozen=True):
    """`source`: as messages name it."""

    source: str
    data: bytes


Check = Callable[[Sequence[IndexFile]], None]
"""Blocks; raises GalleryError where these are no index."""


class Files(msgspec.Struct, frozen=True):
    """The index files of a gallery as they are, or as they were when it answered last, `seen` in Unix seconds."""

    files: tuple[IndexFile, ...]
    seen: float | None = None


class Origin(Protocol):
    """Where one gallery lies."""

    is_remote: bool

    def kept(self) -> Files | None:
        """What is on this machine; blocks, asks nobody. None = nothing yet. Raises ConfigError, OSError."""

    async def fetch(self, check: Check) -> Files:
        """What it is now; no copy is kept of what `check` refuses. Raises GalleryError, OSError."""

    async def base(self, url: str, seconds: float) -> bytes:
        """A base file that an entry names; a copy that its server has confirmed within `seconds` will do, and any where it does
        not answer. Raises GalleryError, OSError."""


class Means(msgspec.Struct, frozen=True):
    """What origins fetch with. `hub` None = there is none, and what lies there cannot be had."""

    web: WebFiles
    hub: Hub | None
    max_bytes: int
    seconds: float
    github: str = RAW_GITHUB


def origin_of(place: Place, means: Means) -> Origin:
    """The origin at a place."""
    if isinstance(place, LocalPlace):
        return _Local(place, means)
    return _Web(place, means) if isinstance(place, WebPlace) else _OnHub(place, means)


class _Local:
    is_remote = False

    def __init__(self, place: LocalPlace, means: Means) -> None:
        self._path = place.path
        self._means = means

    def kept(self) -> Files:
        return Files(tuple(IndexFile(shown(path), _read(path, self._means.max_bytes)) for path in self._paths()))

    async def fetch(self, check: Check) -> Files:
        return await asyncio.to_thread(self.kept)

    async def base(self, url: str, seconds: float) -> bytes:
        folder = self._path if self._path.is_dir() else self._path.parent
        return await _base(url, LocalPlace(folder), self._means, seconds)

    def _paths(self) -> list[Path]:
        if not self._path.is_dir():
            if not self._path.exists():
                raise ConfigError(f"there is no file or folder {self._path} (a Hub repo is written hf://owner/repo)")
            return [self._path]
        names = _index_names(path.name for path in self._path.iterdir() if path.is_file())
        return [self._path / name for name in names]


class _Web:
    is_remote = True

    def __init__(self, place: WebPlace, means: Means) -> None:
        self._place = place
        self._means = means

    def kept(self) -> Files | None:
        copy = self._means.web.cache.load(self._place.url)
        return Files((IndexFile(copy.url, copy.body),), copy.fetched) if copy is not None else None

    async def fetch(self, check: Check) -> Files:
        url = self._place.url
        copy = await self._means.web.get(url, lambda body: check((IndexFile(url, body),)), inside=True)
        return Files((IndexFile(copy.url, copy.body),), copy.fetched)

    async def base(self, url: str, seconds: float) -> bytes:
        return await _base(url, self._place, self._means, seconds)


class _OnHub:
    """Its files lie in the Hugging Face cache, as models do."""

    is_remote = True

    def __init__(self, place: HubPlace, means: Means) -> None:
        self._place = place
        self._means = means
        self._folder = str(PurePosixPath(place.path).parent) if place.is_file else place.path
        self._folder = "" if self._folder == "." else self._folder

    def kept(self) -> Files | None:
        if self._means.hub is None:
            return None
        cache = RepoCache(self._means.hub.settings.cache_dir, self._place.repo)
        commit = cache.commit(self._place.revision)
        if commit is None:
            return None
        files = cache.files(commit)
        paths = self._index_paths(files) if not self._place.is_file else [path for path in files if path == self._place.path]
        if not paths:
            return None
        pointers = [cache.pointer(commit, path) for path in paths]
        return self._found(
            paths, [_read(pointer, self._means.max_bytes) for pointer in pointers], _seen(cache, self._place.revision)
        )

    async def fetch(self, check: Check) -> Files:
        place, paths = self._place, [self._place.path]
        if not place.is_file:
            _, files = await _hub(self._means, place.repo).list_files(place.repo, place.revision)
            paths = self._index_paths(files)
            if not paths:
                raise HubNotFound(f"{place.repo} has no {INDEX} nor another YAML file in {place.path or 'its top folder'}")
        bodies = [await _hub_file(HubPlace(place.repo, path, place.revision), self._means) for path in paths]
        return self._found(paths, bodies, None)

    async def base(self, url: str, seconds: float) -> bytes:
        return await _base(url, HubPlace(self._place.repo, self._folder, self._place.revision), self._means, seconds)

    def _index_paths(self, files: Iterable[str]) -> list[str]:
        prefix = f"{self._folder}/" if self._folder else ""
        below = [file[len(prefix) :] for file in files if file.startswith(prefix)]
        return [prefix + name for name in _index_names(name for name in below if "/" not in name)]

    def _found(self, paths: list[str], bodies: list[bytes], seen: float | None) -> Files:
        names = [str(HubReference(self._place.repo, path, revision=self._place.revision)) for path in paths]
        return Files(tuple(IndexFile(f"hf://{name}", body) for name, body in zip(names, bodies, strict=True)), seen)


def _index_names(names: Iterable[str]) -> list[str]:
    """Which files of a folder are its index: index.yaml, else all YAML files, in the order of names."""
    found = sorted(name for name in names if name.lower().endswith(YAML_SUFFIXES) and not name.startswith("."))
    if INDEX in found:
        return [INDEX]
    if len(found) > MAX_FILES:
        raise ConfigError(f"the folder holds {len(found):,} YAML files; at most {MAX_FILES:,} are read as indexes")
    return found


async def _base(url: str, origin: Place, means: Means, seconds: float) -> bytes:
    place = await asyncio.to_thread(base_place, url, origin, means.github)
    if isinstance(place, LocalPlace):
        return await asyncio.to_thread(_read, place.path, means.max_bytes)
    if isinstance(place, WebPlace):
        address, ours = place.url, (means.github, _host(origin))
        inside = isinstance(origin, LocalPlace) or address.startswith(tuple(f"{one}/" for one in ours if one))
        return (await means.web.get_within(address, seconds, lambda body: _check_base(body, address), inside)).body
    return await _hub_base(place, means)


async def foreign_base(url: str, means: Means, seconds: float) -> bytes:
    """A base file that no gallery names, but a request: of the web or the Hub, and not inside this network. Raises
    GalleryError."""
    return await _base(url, _ANYWHERE, means, seconds)


def _host(place: Place) -> str | None:
    """Scheme and host of a gallery on the web: what was configured may be inside this network."""
    parts = urlsplit(place.url) if isinstance(place, WebPlace) and place is not _ANYWHERE else None
    return f"{parts.scheme}://{parts.netloc}" if parts is not None else None


async def _hub_file(place: HubPlace, means: Means) -> bytes:
    """A file of a repo as it is now, within the bounds. Raises HubError, ConfigError."""
    ref = HubReference(place.repo, place.path, revision=place.revision)
    hub = _hub(means, place.repo)
    try:
        async with asyncio.timeout(means.seconds):
            meta = await hub.metadata(ref.repo, ref.revision, place.path)
            if meta.size > means.max_bytes:
                raise _too_large(str(ref), meta.size, means.max_bytes)
            path, *_ = await hub.ensure(ref)
    except TimeoutError as error:
        raise HubUnavailable(f"{ref} was not here after {means.seconds:g} s") from error
    return await asyncio.to_thread(_read, path, means.max_bytes)


async def _hub_base(place: HubPlace, means: Means) -> bytes:
    """A base file in a repo; as it was cached where the Hub does not answer."""
    try:
        return await _hub_file(place, means)
    except HubError as error:
        cached = _hub(means, place.repo).cached(HubReference(place.repo, place.path, revision=place.revision))
        if not cached:
            raise
        log.warning("%s of %s is used as it was kept: %s", place.path, place.repo, error.message)
        return await asyncio.to_thread(_read, cached[0], means.max_bytes)


def _check_base(body: bytes, url: str) -> None:
    read_base(body, url)


def _hub(means: Means, repo: str) -> Hub:
    if means.hub is None:
        raise ConfigError(f"{repo} is on the Hub, and this program does not reach it")
    return means.hub


def _seen(cache: RepoCache, revision: str) -> float | None:
    try:
        return (cache.folder / "refs" / revision).stat().st_mtime
    except OSError:
        return None


def _read(path: Path, most: int) -> bytes:
    """A whole file. Raises ConfigError for one that is too large or no file, and OSError."""
    if path.exists() and not path.is_file():
        raise ConfigError(f"{shown(path)} is no file")
    try:
        size = path.stat().st_size
        if size > most:
            raise _too_large(shown(path), size, most)
        return path.read_bytes()
    except OSError as error:
        raise ConfigError(f"{shown(path)} cannot be read: {error.strerror or error}") from error


def _too_large(name: str, size: int, most: int) -> ConfigError:
    return ConfigError(f"{name} has {size:,} bytes: more than {most:,} are no index of a gallery, nor a base file")
