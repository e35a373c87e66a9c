"""The configured galleries: their entries at hand, kept for offline use, refreshed in the background. One per event loop."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from llmgallery.catalog.gallery.cache import CopyCache
from llmgallery.catalog.gallery.choose_variant import Candidate, Choice, Host, choose_variant
from llmgallery.catalog.gallery.compose import compose
from llmgallery.catalog.gallery.entry import Composed, GalleryEntry
from llmgallery.catalog.gallery.localai import plain_backend
from llmgallery.catalog.gallery.origins import Means, foreign_base
from llmgallery.catalog.gallery.search import Contents, Found
from llmgallery.catalog.gallery.shelf import GalleryState as GalleryState
from llmgallery.catalog.gallery.shelf import Shelf
from llmgallery.catalog.gallery.sources import BUILTIN, RAW_GITHUB, GallerySource, check_names
from llmgallery.catalog.gallery.web import Bounds, ClientFactory, Clock, WebFiles, new_client
from llmgallery.catalog.hub import Hub
from llmgallery.core.errors import ConfigError, GalleryError

log = logging.getLogger(__name__)

Sleep = Callable[[float], Awaitable[None]]
Size = Callable[[GalleryEntry, Composed | None], Awaitable[int | None]]
"""Bytes of all files of an entry that does not tell them; None = nobody tells."""

REFRESH_EVERY = 24 * 3600.0
FOREIGN_FRESH = 60.0
"""Seconds for which a base file that only a request names is not asked for again."""
FIRST_WAIT = 15.0
"""Seconds that a name waits for galleries that have never been read."""

_SHORTEST, _LONGEST = 1.0, 3600.0  # seconds between two looks at what is due; a machine that slept does not count them
_LOOK = 1.0  # seconds between two looks at local galleries


class Library:
    """Entries of all galleries, the one that ships with us (`builtin`, its folder) first.

    `folder`: where relative paths of `sources` start. `hub` None = galleries on the Hub tell an error; `cache_dir` is ours
    alone. Raises ConfigError for a source that is none.
    """

    def __init__(
        self,
        sources: Sequence[GallerySource],
        cache_dir: Path,
        builtin: Path | None = None,
        *,
        hub: Hub | None = None,
        client: ClientFactory = new_client,
        refresh_every: float = REFRESH_EVERY,
        first_wait: float = FIRST_WAIT,
        bounds: Bounds | None = None,
        folder: Path | None = None,
        github: str = RAW_GITHUB,
        sleep: Sleep = asyncio.sleep,
        clock: Clock = time.time,
    ) -> None:
        check_names(sources)
        if builtin is not None and not any(source.name.lower() == BUILTIN for source in sources):
            sources = [GallerySource(BUILTIN, str(builtin.absolute())), *sources]
        bounds = bounds or Bounds()
        offline = hub is not None and hub.settings.offline
        self._web = WebFiles(CopyCache(cache_dir), client=client, bounds=bounds, offline=offline, clock=clock)
        self._means = means = Means(self._web, hub, bounds.bytes, bounds.seconds, github)
        here = folder or Path.cwd()
        self._shelves = [Shelf(source, means, here, refresh_every, clock) for source in sources]
        self._first_wait = first_wait
        self._sleep = sleep
        self._clock = clock
        self._contents = Contents()
        self._arranging = asyncio.Lock()
        self._looked = 0.0
        self._reading: asyncio.Task[None] | None = None
        self._keeping: asyncio.Task[None] | None = None

    async def start(self) -> None:
        """Reads what is on this machine, then begins to refresh the rest in the background. Raises nothing for a gallery that
        cannot be read: `states` tells."""
        if self._reading is None:
            self._reading = asyncio.create_task(self._read_kept(), name="reads the galleries")
        await asyncio.shield(self._reading)

    async def aclose(self) -> None:
        """Ends the refreshing."""
        tasks = [task for task in (self._reading, self._keeping) if task is not None]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, *(shelf.aclose() for shelf in self._shelves), return_exceptions=True)
        await self._web.aclose()

    async def ready(self) -> None:
        """To be awaited before a name is looked up: until everything that is on this machine has been read, local galleries as
        they are now, and, for at most `first_wait`, those of the network of which there is no copy yet."""
        if self._reading is None:
            raise RuntimeError("the library was not started")
        await asyncio.shield(self._reading)
        if new := [shelf for shelf in self._shelves if shelf.is_remote and not shelf.tried.is_set()]:
            waits = [asyncio.ensure_future(shelf.tried.wait()) for shelf in new]
            try:
                await asyncio.wait(waits, timeout=self._first_wait)
            finally:
                for wait in waits:
                    wait.cancel()
        if abs(self._clock() - self._looked) > _LOOK:
            self._looked = self._clock()
            await self._refresh([shelf for shelf in self._shelves if not shelf.is_remote])

    async def refresh(self, name: str | None = None) -> None:
        """Ask all galleries, or one, now. Errors are in `states`. Raises ConfigError when no gallery has this name."""
        shelves = [shelf for shelf in self._shelves if name is None or shelf.source.name == name]
        if not shelves:
            names = ", ".join(shelf.source.name for shelf in self._shelves)
            raise ConfigError(f"there is no gallery {name!r}; configured: {names or 'none'}", field="galleries")
        await self._refresh(shelves)

    def states(self) -> tuple[GalleryState, ...]:
        """All galleries, in their order."""
        return tuple(shelf.state() for shelf in self._shelves)

    # What is in them; at once, as of the last reading

    @property
    def contents(self) -> Contents:
        """Everything that is known now; nothing in it changes."""
        return self._contents

    def find(self, name: str) -> Found | None:
        """What `name` means (`entry`, `gallery@entry`, an alias, each with `:VARIANT` or `:QUANT`); None = no entry."""
        return self._contents.find(name)

    def near(self, name: str, count: int = 3) -> tuple[str, ...]:
        """Names most like `name`, the nearest first."""
        return self._contents.near(name, count)

    def search(self, text: str = "", *, tag: str | None = None, gallery: str | None = None) -> list[GalleryEntry]:
        """Entries that fit all words of `text`, best first; see Contents.search."""
        return self._contents.search(text, tag=tag, gallery=gallery)

    # What needs a base file

    async def composed(self, entry: GalleryEntry, overrides: Mapping[str, Any] | None = None) -> Composed:
        """The entry with its base file, and with a request's own `overrides` on top. Raises HubError where the base file cannot
        be had, ConfigError where it or the entry is wrong."""
        base = None
        if entry.url is not None:
            try:
                shelf = self._shelf(entry.gallery) if entry.gallery else None
                base = await (shelf.base(entry.url) if shelf else foreign_base(entry.url, self._means, FOREIGN_FRESH))
            except GalleryError as error:
                message = f"{entry.id} needs the base file {entry.url}: {error.message}"
                raise type(error)(message, field=error.field, hints=error.hints) from error
        return await asyncio.to_thread(compose, entry, base, overrides)

    async def choose(self, entry: GalleryEntry, host: Host, size: Size | None = None) -> Choice:
        """The variant of `entry` that the host takes; itself where it has none. A variant whose base file cannot be had counts
        as one that could run: the installation tells."""
        variants = self._contents.variants(entry)
        if not variants:
            return Choice(entry)
        candidates = await asyncio.gather(*(self._candidate(other, size) for other in (entry, *variants)))
        return choose_variant(candidates, host)

    async def _candidate(self, entry: GalleryEntry, size: Size | None) -> Candidate:
        composed = None
        backend = entry.overrides.get("backend")
        total = _size(entry)
        if backend is None or (total is None and size is not None):
            try:
                composed = await self.composed(entry)
                backend = composed.config.get("backend")
            except GalleryError as error:
                log.debug("%s: %s", entry.id, error.message)
        if total is None and size is not None:
            try:
                total = await size(entry, composed)
            except GalleryError as error:
                log.debug("the size of %s is not known: %s", entry.id, error.message)
        return Candidate(entry, plain_backend(backend) if isinstance(backend, str) and backend else None, total)

    def _shelf(self, gallery: str) -> Shelf:
        found = next((shelf for shelf in self._shelves if shelf.source.name == gallery), None)
        if found is None:
            raise ConfigError(f"there is no gallery {gallery!r} here", field="galleries")
        return found

    # Keeping them fresh

    async def _read_kept(self) -> None:
        await asyncio.gather(*(shelf.read_kept() for shelf in self._shelves))
        await self._arrange()
        self._looked = self._clock()
        if any(shelf.is_remote for shelf in self._shelves):
            self._keeping = asyncio.create_task(self._keep_fresh(), name="refreshes the galleries")
            self._keeping.add_done_callback(_tell_end)

    async def _keep_fresh(self) -> None:
        remote = [shelf for shelf in self._shelves if shelf.is_remote]
        while True:
            await self._refresh([shelf for shelf in remote if shelf.is_due()])
            left = min(shelf.due for shelf in remote) - self._clock()
            await self._sleep(min(max(_SHORTEST, left), _LONGEST))

    async def _refresh(self, shelves: Sequence[Shelf]) -> None:
        """Each becomes visible when it is there, whatever the others take."""
        await asyncio.gather(*(self._refresh_one(shelf) for shelf in shelves))

    async def _refresh_one(self, shelf: Shelf) -> None:
        try:
            if await shelf.refresh():
                await self._arrange()
        finally:
            shelf.tried.set()

    async def _arrange(self) -> None:
        async with self._arranging:
            held = {shelf.source.name: shelf.entries for shelf in self._shelves}
            self._contents = await asyncio.to_thread(Contents, held)


def _tell_end(task: asyncio.Task[None]) -> None:
    """It ends when it is cancelled; all else is a fault of ours."""
    if not task.cancelled() and (error := task.exception()) is not None:
        log.error("galleries are not refreshed any more", exc_info=error)


def _size(entry: GalleryEntry) -> int | None:
    """Bytes of all files, as the entry tells."""
    if entry.size is not None:
        return entry.size
    sizes = [file.size for file in entry.files]
    return sum(size for size in sizes if size is not None) if sizes and None not in sizes else None
