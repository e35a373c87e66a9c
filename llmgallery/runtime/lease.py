"""A request's hold on a model: while it is open the model stays, and it tells how far the model is."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from types import TracebackType
from typing import Self

from llmgallery.core.events import Progress
from llmgallery.runtime.handle import Handle


class Board:
    """Who has news for many listeners: the latest value, and a way to wait for the next."""

    def __init__(self, value: Progress | None = None) -> None:
        self.value = value
        self._next = asyncio.Event()

    def post(self, value: Progress | None) -> None:
        self.value = value
        news, self._next = self._next, asyncio.Event()
        news.set()

    async def changed(self) -> None:
        """Until the next post."""
        await self._next.wait()

    async def follow(self, source: Board) -> None:
        """Says what `source` says, until cancelled."""
        while True:
            self.post(source.value)
            await source.changed()


class Lease:
    """Made by Manager.lease. Entering never waits; `handle` does."""

    def __init__(self, acquire: Callable[[Lease], Awaitable[Handle]], release: Callable[[Lease], None]) -> None:
        self.board = Board(Progress("queued"))
        self._acquire = acquire
        self._release = release

    @property
    def progress(self) -> Progress | None:
        """What is still to come; None once the model is ready."""
        return self.board.value

    async def changed(self) -> None:
        """Until the progress changes."""
        await self.board.changed()

    async def handle(self) -> Handle:
        """Waits until the model is ready. Raises LoadError, HubError, Overloaded, WorkerDied. May be called again, after
        the worker's death: then a new one is started."""
        handle = await self._acquire(self)
        self.board.post(None)
        return handle

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._release(self)
