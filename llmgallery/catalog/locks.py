"""Locks between processes that share a folder. The system frees them when their process ends, however it ends."""

from __future__ import annotations

import asyncio
import fcntl
import os
import time
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractContextManager, asynccontextmanager, suppress
from pathlib import Path
from typing import Any, Protocol

_WAIT = 0.5
_TICK = 0.05


class Lock(Protocol):
    def acquire(self) -> bool:
        """Wait for it for a moment. Blocks. False: somebody else still has it."""
        ...

    def release(self) -> None: ...


class FileLock:
    """Ours alone: its file goes when it is released. Any thread may release it; two of one path exclude each other, in one
    process too."""

    def __init__(self, path: Path, wait: float = _WAIT) -> None:
        """`wait`: seconds that `acquire` waits at most."""
        self._path = path
        self._wait = wait
        self._held: int | None = None

    def acquire(self) -> bool:
        until = time.monotonic() + self._wait
        while not self._try():
            if time.monotonic() >= until:
                return False
            time.sleep(_TICK)
        return True

    def _try(self) -> bool:
        while True:
            self._path.parent.mkdir(parents=True, exist_ok=True)
            try:
                file = os.open(self._path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
            except FileNotFoundError:
                continue  # somebody has just tidied the folder away
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                os.close(file)
                return False
            if os.fstat(file).st_nlink:
                self._held = file
                return True
            os.close(file)  # its last holder has taken the name away meanwhile: such a lock keeps nobody out

    def release(self) -> None:
        if self._held is not None:
            self._path.unlink(missing_ok=True)
            os.close(self._held)
            self._held = None


class BlobLock:
    """huggingface_hub's lock on a blob, so that its downloads and ours in other processes wait for each other. Belongs to
    the thread that acquires it. Its file stays, as with huggingface_hub.
    """

    def __init__(self, path: Path, wait: float = _WAIT) -> None:
        self._path = path
        self._wait = wait
        self._held: AbstractContextManager[Any] | None = None

    def acquire(self) -> bool:
        from filelock import Timeout
        from huggingface_hub.utils import WeakFileLock  # type: ignore[attr-defined]

        self._path.parent.mkdir(parents=True, exist_ok=True)
        lock = WeakFileLock(self._path, timeout=self._wait)
        try:
            lock.__enter__()
        except Timeout:
            return False
        self._held = lock
        return True

    def release(self) -> None:
        if self._held is not None:
            self._held.__exit__(None, None, None)
            self._held = None


def _nothing() -> None:
    """Nobody wants to know how long it takes."""


async def take(lock: Lock, meanwhile: Callable[[], object] = _nothing) -> None:
    """Wait for a lock that any thread may hold: best one that does not wait itself, as its thread is one of few, and who holds
    the lock may need one to go on. `meanwhile` is called between tries. Who is cancelled does not hold it."""
    while True:
        taking = asyncio.ensure_future(asyncio.to_thread(lock.acquire))
        try:
            if await asyncio.shield(taking):
                return
        except asyncio.CancelledError:
            while not taking.done():
                with suppress(asyncio.CancelledError):  # however often: a lock must not be forgotten
                    await asyncio.wait({taking})
            if taking.exception() is None and taking.result():
                lock.release()
            raise
        meanwhile()
        await asyncio.sleep(_TICK)


@asynccontextmanager
async def holding(lock: Lock, meanwhile: Callable[[], object] = _nothing) -> AsyncIterator[None]:
    await take(lock, meanwhile)
    try:
        yield
    finally:
        lock.release()
