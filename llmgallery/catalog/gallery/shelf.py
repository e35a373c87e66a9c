"""One gallery: its entries, how fresh they are, and what went wrong when it was asked last."""

from __future__ import annotations

import asyncio
import hashlib
import logging
from collections.abc import Mapping, Sequence
from pathlib import Path

import msgspec

from llmgallery.catalog.gallery.entry import GalleryEntry
from llmgallery.catalog.gallery.origins import Files, IndexFile, Means, origin_of
from llmgallery.catalog.gallery.read import read_index
from llmgallery.catalog.gallery.sources import GallerySource, place_of
from llmgallery.catalog.gallery.web import Clock
from llmgallery.config.problems import Problem
from llmgallery.core.errors import Cancelled, ConfigError, GalleryError

log = logging.getLogger(__name__)

_RETRY = 60.0  # seconds after a first failure; doubled after each further one
_LONGEST_RETRY = 3600.0
_SHOWN = 5


class GalleryState(msgspec.Struct, frozen=True):
    """A gallery as lists show it. `entries`: how many; `refreshed`: when it was last seen to be so, in Unix seconds, None =
    never. `error`: why the last try failed; what it served before is served on. `problems`: what of its index is not read."""

    name: str
    url: str
    entries: int = 0
    refreshed: float | None = None
    error: str | None = None
    problems: tuple[Problem, ...] = ()


class Shelf:
    """One gallery: its entries, and how it fares. `tried`: it has been read, or asked at least once. `due`: when to ask again."""

    def __init__(self, source: GallerySource, means: Means, folder: Path, refresh_every: float, clock: Clock) -> None:
        self.source = source
        self.tried = asyncio.Event()
        self.due = 0.0
        self._origin = origin_of(place_of(source, folder, means.github), means)
        self.is_remote = self._origin.is_remote
        self._bases: dict[str, asyncio.Task[bytes]] = {}
        self._refresh_every = refresh_every
        self._clock = clock
        self._read = self._news = _Read()
        self._refreshed: float | None = None
        self._error: str | None = None
        self._failures = 0
        self._busy = asyncio.Lock()

    @property
    def entries(self) -> Mapping[str, GalleryEntry]:
        return self._read.entries

    def is_due(self) -> bool:
        """Time to ask again; also when the clock was set back to long before that."""
        return not 0 < self.due - self._clock() <= self._refresh_every

    async def aclose(self) -> None:
        """Ends what is being fetched; nobody waits for it any more."""
        self.tried.set()
        tasks = list(self._bases.values())
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    async def base(self, url: str) -> bytes:
        """A base file of its entries, fetched once for all who want it now. Raises GalleryError."""
        task = self._bases.get(url)
        if task is None:
            task = self._bases[url] = asyncio.create_task(self._origin.base(url, self._refresh_every), name=f"base file {url}")
            task.add_done_callback(lambda done: self._fetched(url, done))
        await asyncio.wait({task})
        if task.cancelled():
            raise Cancelled("the base file was not fetched, because the server stops")
        return task.result()

    def _fetched(self, url: str, task: asyncio.Task[bytes]) -> None:
        del self._bases[url]
        if not task.cancelled():
            task.exception()  # whoever asked may have left

    def state(self) -> GalleryState:
        """As lists show it."""
        source, read = self.source, self._read
        return GalleryState(source.name, source.url, len(read.entries), self._refreshed, self._error, read.problems)

    async def read_kept(self) -> None:
        """What is on this machine. A copy that is old is read all the same."""
        try:
            files = await asyncio.to_thread(self._origin.kept)
            if files is not None:
                await self._take(files)
                self.due = 0.0 if files.seen is None else min(files.seen, self._clock()) + self._refresh_every
                self.tried.set()
        except (GalleryError, OSError) as error:
            self._failed(error)

    async def refresh(self) -> bool:
        """Ask where it lies; True = its entries are others now."""
        async with self._busy:
            try:
                return await self._take(await self._origin.fetch(self._parse))
            except (GalleryError, OSError) as error:
                self._failed(error)
                return False

    async def _take(self, files: Files) -> bool:
        await asyncio.to_thread(self._parse, files.files)
        if self._error is not None:
            log.info("the gallery %s can be read again", self.source.name)
        self._error, self._failures = None, 0
        self._refreshed = self._clock() if files.seen is None else files.seen
        self.due = self._clock() + self._refresh_every
        if self._news is self._read:
            return False
        self._read = self._news
        _tell(self.source.name, self._read.problems)
        return True

    def _parse(self, files: Sequence[IndexFile]) -> None:
        """Read these files into `_news`, unless that is what they are. Blocks. Raises ConfigError where they are no index."""
        digest = _digest(files)
        if digest != self._news.digest:
            self._news = self._read if digest == self._read.digest else _parse(files, self.source.name, digest)

    def _failed(self, error: GalleryError | OSError) -> None:
        """Warns once, until it can be read again."""
        message = error.message if isinstance(error, GalleryError) else f"{error.strerror or error}"
        if self._error is None:
            then = f"its copy is served ({len(self.entries):,} entries)" if self.entries else "it has no copy here"
            log.warning("the gallery %s cannot be read, %s: %s", self.source.name, then, message)
        self._error = message
        self._failures += 1
        self.due = self._clock() + min(_RETRY * 2.0 ** (self._failures - 1), _LONGEST_RETRY, self._refresh_every)


class _Read(msgspec.Struct, frozen=True):
    """An index as read. `digest`: of its files."""

    digest: str = ""
    entries: Mapping[str, GalleryEntry] = {}
    problems: tuple[Problem, ...] = ()


def _parse(files: Sequence[IndexFile], gallery: str, digest: str) -> _Read:
    """The entries of all files; of two with one name, the first counts. Raises ConfigError for what holds none, only problems."""
    entries: dict[str, GalleryEntry] = {}
    problems: list[Problem] = []
    for file in files:
        index = read_index(file.data, file.source, gallery)
        problems += index.problems
        for name, entry in index.entries.items():
            first = entries.setdefault(name, entry)
            if first is not entry:
                message = f"{name!r} is already taken by {first.where}"
                problems.append(Problem(file.source, *entry.place, "name", message, "this one is not read"))
    if problems and not entries:
        lines = tuple(map(str, problems))
        raise ConfigError(f"this is no index of a gallery: {lines[0]}", hints=lines)
    return _Read(digest, entries, tuple(problems))


def _digest(files: Sequence[IndexFile]) -> str:
    found = hashlib.sha256()
    for file in files:
        found.update(f"{file.source}\0{len(file.data)}\0".encode())
        found.update(file.data)
    return found.hexdigest()


def _tell(gallery: str, problems: Sequence[Problem]) -> None:
    if problems:
        more = f"\n  and {len(problems) - _SHOWN} more" if len(problems) > _SHOWN else ""
        lines = "".join(f"\n  {problem}" for problem in problems[:_SHOWN])
        log.warning("the gallery %s is not read in full:%s%s", gallery, lines, more)
