"""Downloads one file into its place, resumable across restarts: Range, a partial file with a journal, verified at the end."""

from __future__ import annotations

import asyncio
import errno
import logging
import shutil
from collections.abc import AsyncIterator, Awaitable, Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractAsyncContextManager
from pathlib import Path
from typing import ParamSpec, TypeVar

import httpx

from llmgallery.catalog.hub_client import Again
from llmgallery.catalog.partial import Partial, Place, partial_size
from llmgallery.catalog.remote import Answer, Remote
from llmgallery.core.errors import HubCorrupt, HubError, HubUnavailable, NoSpace

log = logging.getLogger(__name__)
P = ParamSpec("P")
T = TypeVar("T")
FreeBytes = Callable[[Path], int]
Tell = Callable[[int, int | None], None]
Pause = Callable[[int, float | None], Awaitable[None]]
"""Between attempts: how many have failed, and the seconds that were asked for."""

MARGIN = 64 << 20
"""Bytes left free on the disk beside the download."""

CHECK_EVERY = 64 << 20
"""Bytes, after which the disk is looked at again: others write to it too, and a file's size may not be known."""

MEND_CACHE = "set HF_HUB_CACHE to another folder"

_MOST_PENDING = 8 << 20


def free_bytes(folder: Path) -> int:
    """What this user may still write to the disk of `folder`, which need not exist yet."""
    while not folder.exists():
        folder = folder.parent
    return shutil.disk_usage(folder).free


def check_space(folder: Path, needed: int, free: int, mend: str = MEND_CACHE) -> None:
    """Raise NoSpace when `needed` bytes and the margin are more than `free`. `mend`: the setting that leads elsewhere."""
    if needed > 0 and needed + MARGIN > free:
        raise NoSpace(
            f"not enough disk space in {folder}: {needed + MARGIN:,} bytes are needed, {free:,} are free; "
            f"delete something there, or {mend}, on another disk"
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
    """One file on its way. All disk work happens in one thread of its own: huggingface_hub's lock belongs to a thread.

    `tell(bytes here, bytes in all or None)` is called in the loop. `sha256`: of the file that `run` brought, None where
    another digest has checked it, or somebody else had brought it.
    """

    def __init__(self, remote: Remote, place: Place, free: FreeBytes, tell: Tell, attempts: int, pause: Pause) -> None:
        self._remote = remote
        self._place = place
        self._free = free
        self._tell = tell
        self._attempts = attempts
        self._pause = pause
        self._checked = 0
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="download")
        self.sha256: str | None = None

    async def run(self) -> Path:
        """The file's path. Raises HubError, or the disk's OSError; what has come so far stays for the next run."""
        try:
            return await self._locked()
        finally:
            self._thread.shutdown(wait=False)

    async def _locked(self) -> Path:
        lock, partial = self._place.new_lock(), Partial(self._place, self._remote.expected)
        try:
            while not await self._in_thread(lock.acquire):
                self._tell(await self._in_thread(partial_size, self._place, self._remote.expected), partial.total)
            return await self._unless_there(partial)
        finally:
            # Queued behind whatever the thread still does; not awaited, so that a cancelled download leaves at once.
            self._thread.submit(partial.close)
            self._thread.submit(lock.release)

    async def _unless_there(self, partial: Partial) -> Path:
        if self._place.final.is_file():
            return self._place.final
        await self._in_thread(partial.open)
        await self._check_space(partial)
        await self._fetch_verified(partial)
        self.sha256 = partial.sha256
        return await self._in_thread(partial.finish)

    async def _check_space(self, partial: Partial) -> None:
        place, self._checked = self._place, partial.size
        missing = 1 if partial.total is None else partial.total - partial.size
        await self._in_thread(lambda: check_space(place.folder, missing, self._free(place.folder), place.mend))

    async def _fetch_verified(self, partial: Partial) -> None:
        expected = self._remote.expected
        for last in (False, True):
            await self._fetch(partial)
            if await self._in_thread(partial.is_right):
                return
            if not last:
                log.warning("the bytes of %s have another checksum than %s: fetched again", expected.source, expected.etag)
            await self._in_thread(partial.discard if last else partial.restart)
        size = "" if expected.size is None else f", {expected.size:,} bytes"
        raise HubCorrupt(
            f"{expected.source} came twice with a wrong checksum (expected {expected.etag}{size}): "
            f"something between {self._remote.host} and here alters it, or the file there is damaged or another one"
        )

    async def _fetch(self, partial: Partial) -> None:
        """Bytes until the size is reached. Attempts count from the last one that brought any."""
        failures = 0
        self._tell(partial.size, partial.total)
        while partial.total is None or partial.size < partial.total:
            before = partial.size
            try:
                await self._attempt(partial)
                await self._refuse_more(partial)
                if partial.total is not None and partial.size >= partial.total:
                    return
                raise Again(HubUnavailable(f"{self._remote.host} ended {self._name} too early"))
            except Again as again:
                failures = 1 if partial.size > before else failures + 1
                if failures >= self._attempts:
                    of = "" if partial.total is None else f" of {partial.total:,}"
                    kept = f"{partial.size:,}{of} bytes of {self._name} are here and kept"
                    raise HubUnavailable(f"{again.error.message} ({kept})") from again
                await self._pause(failures, again.pause)
            await self._remote.renew()

    async def _attempt(self, partial: Partial) -> None:
        if partial.size and not partial.may_go_on:
            await self._in_thread(partial.restart)
        async with self._open(partial) as answer:
            if answer.offset != partial.size:
                await self._in_thread(partial.restart)
                if answer.offset != 0:
                    raise Again(HubUnavailable(f"{self._remote.host} has no such part of {self._name}"), 0.0)
            self._check_total(answer.total)
            await self._in_thread(partial.begin, answer.validator, answer.total)
            try:
                await self._pump(answer.pieces, partial)
            except httpx.RequestError as exc:
                raise Again(HubUnavailable(f"the connection to {self._remote.host} broke: {exc or type(exc).__name__}")) from exc
            if partial.total is None and (answer.whole or self._remote.expected.digest):
                partial.total = partial.size

    def _open(self, partial: Partial) -> AbstractAsyncContextManager[Answer]:
        return self._remote.open(partial.size, partial.validator)

    def _is_too_much(self, size: int | None) -> bool:
        most = self._remote.expected.most
        return most is not None and size is not None and size > most

    async def _refuse_more(self, partial: Partial) -> None:
        if self._is_too_much(partial.size):
            await self._in_thread(partial.discard)
            raise self._too_much(f"more than {partial.size - 1:,}")

    def _too_much(self, size: str) -> HubCorrupt:
        expected = self._remote.expected
        what = f"is of {size} bytes, and at most {expected.most:,} were expected"
        return HubCorrupt(f"{expected.source} {what}: it is another file")

    def _check_total(self, total: int | None) -> None:
        expected = self._remote.expected
        if self._is_too_much(total):
            raise self._too_much(f"{total:,}")
        if None not in (total, expected.size) and total != expected.size:
            raise HubCorrupt(f"{expected.source} is of {total:,} bytes, and {expected.size:,} were expected: it is another file")

    async def _pump(self, pieces: AsyncIterator[bytes], partial: Partial) -> None:
        feed = _Feed(lambda batch: self._in_thread(partial.write, batch), lambda: self._tell(partial.size, partial.total))
        try:
            async for piece in pieces:
                feed.put(piece)
                await feed.drain(_MOST_PENDING)
                if self._is_too_much(partial.size) or (partial.total is not None and partial.size > partial.total):
                    return
                if partial.size >= self._checked + CHECK_EVERY:
                    await self._check_space(partial)
        finally:
            await feed.drain(0)  # what has arrived counts, however the answer ended

    @property
    def _name(self) -> str:
        return self._remote.expected.source.rsplit("/", 1)[-1].partition("@")[0]

    def _in_thread(self, function: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> asyncio.Future[T]:
        return asyncio.get_running_loop().run_in_executor(self._thread, lambda: function(*args, **kwargs))


def disk_error(exc: OSError, folder: Path, mend: str = MEND_CACHE) -> HubError:
    """What the disk said, as ours."""
    if exc.errno in (errno.ENOSPC, errno.EDQUOT):
        return NoSpace(f"the disk of {folder} is full: delete something there, or {mend}, on another disk")
    return HubError(f"cannot write to {folder}: {exc.strerror or exc}; {mend}, where you may write")
