"""The files of all running installs, each fetched once however many of them need it."""

from __future__ import annotations

import asyncio
import logging
import re
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from llmgallery.catalog.download import Tell, disk_error
from llmgallery.catalog.hub import Hub
from llmgallery.catalog.hub_cache import RepoCache
from llmgallery.catalog.install.plan import PlannedFile
from llmgallery.catalog.install.store import MEND_MODELS, Store
from llmgallery.catalog.keep.places import digest
from llmgallery.catalog.lock import LockedFile
from llmgallery.catalog.partial import Expected
from llmgallery.catalog.reference import HubReference
from llmgallery.core.errors import HubCorrupt

log = logging.getLogger(__name__)
MOST = 8
"""Files that are fetched at a time, over all jobs."""

ROUNDED = 1 << 20
"""Bytes that a file may be larger than its index says, or a tenth of it."""

_SHA256 = re.compile(r"[0-9a-f]{64}")


@dataclass
class _Flight:
    """A file on its way, and who is told how far it is. The last who leaves ends it."""

    task: asyncio.Task[LockedFile] | None = None
    now: tuple[int, int | None] = (0, None)
    tells: dict[object, Tell] = field(default_factory=dict)

    def tell(self, done: int, total: int | None) -> None:
        self.now = (done, total)
        for tell in tuple(self.tells.values()):
            tell(done, total)


class Fetches:
    """Belongs to one event loop."""

    def __init__(self, hub: Hub, store: Store) -> None:
        self._hub = hub
        self._store = store
        self._flights: dict[Path, _Flight] = {}
        self._slots = asyncio.Semaphore(MOST)

    async def bring(self, file: PlannedFile, tell: Tell) -> LockedFile:
        """The file, whole and checked, as the lock records it. `tell(bytes here, bytes in all or None)`.

        Who is cancelled leaves; when all have left, it stops, and what has come stays. Raises HubError, ConfigError.
        """
        key, me = self._store.final(file), object()
        flight = self._flights.get(key)
        if flight is None:
            flight = self._flights[key] = _Flight()
            flight.task = asyncio.create_task(self._run(file, flight), name=f"fetch {file.uri}")
        assert flight.task is not None
        flight.tells[me] = tell
        tell(*flight.now)
        try:
            return await asyncio.shield(flight.task)
        finally:
            del flight.tells[me]
            if not flight.tells and self._flights.get(key) is flight:
                del self._flights[key]
                flight.task.cancel()
                await asyncio.wait({flight.task})

    async def _run(self, file: PlannedFile, flight: _Flight) -> LockedFile:
        async with self._slots:
            try:
                return await self._fetch(file, flight.tell)
            except OSError as exc:
                found = self._store.hub(file) if file.path is None else None
                if found is not None:
                    raise disk_error(exc, RepoCache(self._store.cache, found.repo).folder) from exc
                raise disk_error(exc, self._store.folder, MEND_MODELS) from exc

    async def _fetch(self, file: PlannedFile, tell: Tell) -> LockedFile:
        final = self._store.final(file)
        if await asyncio.to_thread(final.is_file):
            sha256 = file.sha256 or await _hashed(final)
        elif (ref := self._store.hub(file)) is not None:
            sha256 = await self._from_hub(file, ref, tell)
        else:
            sha256 = await self._from_elsewhere(file, tell)
        size = (await asyncio.to_thread(final.stat)).st_size
        tell(size, size)
        return LockedFile(uri=file.uri, sha256=sha256, size=size, path=file.path, commit=self._commit(file))

    async def _from_hub(self, file: PlannedFile, ref: HubReference, tell: Tell) -> str:
        assert ref.file is not None
        meta = await self._hub.metadata(ref.repo, ref.revision, ref.file)
        known = meta.etag if _SHA256.fullmatch(meta.etag) else None
        if file.sha256 and known and file.sha256 != known:
            raise _other_bytes(file, known)
        log.info("downloading %s (%s bytes)", file.uri, f"{meta.size:,}")
        path = await self._hub.download(self._hub.remote(meta), self._store.place(file, meta.etag), tell).run()
        if known is None:
            known = await _hashed(path)
            if file.sha256 not in (None, known):
                await asyncio.to_thread(path.unlink, True)
                raise _other_bytes(file, known)
        if file.path is None:
            await asyncio.to_thread(RepoCache(self._store.cache, ref.repo).link, ref.revision, ref.file, path)
        return known

    async def _from_elsewhere(self, file: PlannedFile, tell: Tell) -> str:
        """Where the digest is known it decides; a size that an index states may be rounded, but not far off."""
        most = file.size + max(file.size // 10, ROUNDED) if file.size is not None else None
        size = None if file.sha256 else file.size
        expected = Expected(file.uri, file.sha256 or file.uri, size, inside=file.inside, most=most)
        log.info("downloading %s", file.uri)
        planned: Tell = lambda done, total: tell(done, file.size if total is None else total)  # noqa: E731
        download = self._hub.download(self._hub.remote(expected), self._store.place(file, expected.etag), planned)
        path = await download.run()
        return file.sha256 or download.sha256 or await _hashed(path)

    def _commit(self, file: PlannedFile) -> str | None:
        found = self._store.hub(file)
        return found.revision if found is not None else None


async def _hashed(path: Path) -> str:
    sha256, _ = await asyncio.to_thread(digest, path)
    return sha256


def _other_bytes(file: PlannedFile, found: str) -> HubCorrupt:
    return HubCorrupt(
        f"{file.uri} is not the file that was planned: its sha256 is {found}, and {file.sha256} was expected; "
        "the entry is out of date, or somebody has put another file there"
    )


Progress = Callable[[PlannedFile, int, int | None], None]


async def bring_all(fetches: Fetches, files: tuple[PlannedFile, ...], tell: Progress, parallel: int) -> tuple[LockedFile, ...]:
    """All files, `parallel` at a time. The first that fails stops the others, whose bytes stay; its error is raised."""
    slots = asyncio.Semaphore(parallel)

    async def bring(file: PlannedFile) -> LockedFile:
        async with slots:
            return await fetches.bring(file, lambda done, total: tell(file, done, total))

    tasks = [asyncio.create_task(bring(file)) for file in files]
    try:
        return tuple(await asyncio.gather(*tasks))
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
