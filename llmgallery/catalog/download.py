"""Downloads one file into the cache, resumable across restarts: Range, a partial file with a journal, verified at the end."""

from __future__ import annotations

import asyncio
import errno
import shutil
from collections.abc import AsyncIterator, Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import ParamSpec, TypeVar

import httpx

from llmgallery.catalog.hub_cache import RepoCache
from llmgallery.catalog.hub_client import Again, FileMeta, HubClient
from llmgallery.catalog.partial import BlobLock, Partial
from llmgallery.core.errors import HubCorrupt, HubError, HubUnavailable, NoSpace

P = ParamSpec("P")
T = TypeVar("T")
FreeBytes = Callable[[Path], int]
MARGIN = 64 << 20
"""Bytes left free on the disk beside the download."""

_MOST_PENDING = 8 << 20


def free_bytes(folder: Path) -> int:
    """What this user may still write to the disk of `folder`, which need not exist yet."""
    while not folder.exists():
        folder = folder.parent
    return shutil.disk_usage(folder).free


def check_space(folder: Path, needed: int, free: int) -> None:
    """Raise NoSpace when `needed` bytes and the margin are more than `free`."""
    if needed > 0 and needed + MARGIN > free:
        raise NoSpace(
            f"not enough disk space in {folder}: {needed + MARGIN:,} bytes are needed, {free:,} are free; "
            "delete something there, or set HF_HUB_CACHE to a folder on another disk"
        )


class _Feed:
    """Bytes on their way to the thread: what arrives during a write is the next write. A cancel never reaches a write,
    because one that is left out would make a hole.
    """

    def __init__(self, write: Callable[[list[bytes]], asyncio.Future[None]], written: Callable[[], None]) -> None:
        self._write = write
        self._written = written
        self._pending: list[bytes] = []
        self._unwritten = 0
        self._writing: asyncio.Future[None] | None = None
        self._error: BaseException | None = None

    def put(self, piece: bytes) -> None:
        self._pending.append(piece)
        self._unwritten += len(piece)
        if self._writing is None:
            self._next()

    async def drain(self, most: int) -> None:
        """Wait until at most `most` bytes are not written yet. Raises what a write raised."""
        while self._writing is not None and self._unwritten > most:
            await asyncio.wait({self._writing})
        if self._error is not None:
            raise self._error

    def _next(self) -> None:
        batch, self._pending = self._pending, []
        self._writing = self._write(batch)
        self._writing.add_done_callback(lambda future: self._done(future, sum(map(len, batch))))

    def _done(self, future: asyncio.Future[None], size: int) -> None:
        self._writing, self._error = None, future.exception()
        self._unwritten -= size
        if self._error is None:
            self._written()
            if self._pending:
                self._next()


class Download:
    """One file on its way. All disk work happens in one thread of its own: huggingface_hub's lock belongs to a thread."""

    def __init__(self, client: HubClient, cache: RepoCache, meta: FileMeta, free: FreeBytes, tell: Callable[[int], None]) -> None:
        self._client = client
        self._cache = cache
        self._meta = meta
        self._free = free
        self._tell = tell
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="download")

    async def run(self) -> Path:
        """The blob's path. Raises HubError, or the disk's OSError; what has come so far stays for the next run."""
        try:
            return await self._locked()
        finally:
            self._thread.shutdown(wait=False)

    async def _locked(self) -> Path:
        lock, partial = BlobLock(self._cache.lock(self._meta.etag)), Partial(self._cache, self._meta)
        try:
            while not await self._in_thread(lock.acquire):
                pass
            return await self._unless_there(partial)
        finally:
            # Queued behind whatever the thread still does; not awaited, so that a cancelled download leaves at once.
            self._thread.submit(partial.close)
            self._thread.submit(lock.release)

    async def _unless_there(self, partial: Partial) -> Path:
        blob = self._cache.blob(self._meta.etag)
        if blob.is_file():
            return blob
        await self._in_thread(partial.open)
        folder, missing = self._cache.folder, self._meta.size - partial.size
        await self._in_thread(lambda: check_space(folder, missing, self._free(folder)))
        await self._fetch_verified(partial)
        return await self._in_thread(partial.finish)

    async def _fetch_verified(self, partial: Partial) -> None:
        for last in (False, True):
            await self._fetch(partial)
            if await self._in_thread(partial.is_right):
                return
            await self._in_thread(partial.discard if last else partial.restart)
        meta = self._meta
        raise HubCorrupt(
            f"{meta.repo}/{meta.file} came twice with a wrong checksum (expected {meta.etag}, {meta.size:,} bytes): "
            "something between the Hub and here alters it, or the Hub's file is damaged"
        )

    async def _fetch(self, partial: Partial) -> None:
        """Bytes until the size is reached. Attempts count from the last one that brought any."""
        meta, failures = self._meta, 0
        self._tell(partial.size)
        while partial.size < meta.size:
            before = partial.size
            try:
                await self._attempt(meta, partial)
                if partial.size >= meta.size:
                    return
                raise Again(HubUnavailable(f"{httpx.URL(meta.location).host} ended {meta.file} too early"))
            except Again as again:
                failures = 1 if partial.size > before else failures + 1
                if failures >= self._client.settings.attempts:
                    kept = f"{partial.size:,} of {meta.size:,} bytes of {meta.file} are here and kept"
                    raise HubUnavailable(f"{again.error.message} ({kept})") from again
                await self._client.pause(failures, again.pause)
            meta = await self._resolve_again()

    async def _resolve_again(self) -> FileMeta:
        """Links expire. At the commit itself a file cannot change; a Hub that says otherwise is not the one we began with."""
        attempts = self._client.settings.attempts  # all of them: the connection that just broke may be away for longer
        meta = await self._client.metadata(self._meta.repo, self._meta.commit, self._meta.file, attempts)
        if (meta.etag, meta.size) != (self._meta.etag, self._meta.size):
            raise HubUnavailable(f"{meta.repo}/{meta.file} at {meta.commit} changed while it was downloaded: ask again")
        return meta

    async def _attempt(self, meta: FileMeta, partial: Partial) -> None:
        headers = {}
        if partial.size:
            headers["Range"] = f"bytes={partial.size}-"
            if partial.validator:
                headers["If-Range"] = partial.validator
        async with self._client.open(meta, headers) as response:
            if response.status_code == 416 or not _continues(response, partial.size):
                await self._in_thread(partial.restart)
                if response.status_code != 200:
                    raise Again(HubUnavailable(f"{response.request.url.host} has no such part of {meta.file}"), 0.0)
            await self._in_thread(partial.begin, _strong(response.headers.get("etag")))
            try:
                await self._pump(response.aiter_raw(), partial)
            except httpx.RequestError as exc:
                raise Again(
                    HubUnavailable(f"the connection to {response.request.url.host} broke: {exc or type(exc).__name__}")
                ) from exc

    async def _pump(self, pieces: AsyncIterator[bytes], partial: Partial) -> None:
        feed = _Feed(lambda batch: self._in_thread(partial.write, batch), lambda: self._tell(partial.size))
        try:
            async for piece in pieces:
                feed.put(piece)
                await feed.drain(_MOST_PENDING)
                if partial.size > self._meta.size:
                    return
        finally:
            await feed.drain(0)  # what has arrived counts, however the answer ended

    def _in_thread(self, function: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> asyncio.Future[T]:
        return asyncio.get_running_loop().run_in_executor(self._thread, lambda: function(*args, **kwargs))


def _continues(response: httpx.Response, offset: int) -> bool:
    """The answer's first byte is the one at `offset`."""
    if response.status_code != 206:
        return response.status_code == 200 and offset == 0
    return str(response.headers.get("content-range", "")).startswith(f"bytes {offset}-")


def _strong(etag: str | None) -> str | None:
    return None if etag is None or etag.startswith("W/") else etag


def disk_error(exc: OSError, folder: Path) -> HubError:
    """What the disk said, as ours."""
    if exc.errno in (errno.ENOSPC, errno.EDQUOT):
        return NoSpace(f"the disk of {folder} is full: delete something there, or set HF_HUB_CACHE to a folder on another disk")
    return HubError(f"cannot write to {folder}: {exc.strerror or exc}; set HF_HUB_CACHE to a folder that can be written")
