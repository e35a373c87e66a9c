"""An event loop in a thread of its own, for commands that also wait for the keyboard. Ctrl-C stays with the main thread."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncIterator, Coroutine, Generator
from concurrent import futures
from types import TracebackType
from typing import Any, Generic, Self, TypeVar

T = TypeVar("T")
SIGNAL_SECONDS = 0.2


class Portal:
    """`with Portal() as portal`: `run` and `each` do in the loop what they are given, while the caller waits."""

    def __init__(self) -> None:
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="event loop", daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.run(self._cancel_rest())
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()

    def run(self, work: Coroutine[Any, Any, T]) -> T:
        """The result of `work`. An exception in the waiting thread (Ctrl-C) cancels it, and waits until it has ended."""
        watched = _Watched(self._loop, work)
        try:
            self._loop.call_soon_threadsafe(watched.begin)
            # A signal that comes just before the thread begins to wait does not wake it: so it never waits for long.
            while not futures.wait([watched.outcome], timeout=SIGNAL_SECONDS).done:
                pass
            return watched.outcome.result()
        except BaseException:
            if not watched.ended.is_set():
                self._loop.call_soon_threadsafe(watched.abandon)
                watched.ended.wait()
            raise

    def each(self, items: AsyncIterator[T]) -> Generator[T, None, None]:
        """The items as they come. Leaving early closes an async generator."""
        try:
            while True:
                try:
                    yield self.run(_next(items))
                except StopAsyncIteration:
                    return
        finally:
            if (close := getattr(items, "aclose", None)) is not None:
                self.run(close())

    async def _cancel_rest(self) -> None:
        tasks = asyncio.all_tasks(self._loop) - {asyncio.current_task()}
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        await self._loop.shutdown_asyncgens()
        await self._loop.shutdown_default_executor()


class _Watched(Generic[T]):
    """Work, and what comes of it. There before the work is handed over, so that a signal in that very moment finds it."""

    def __init__(self, loop: asyncio.AbstractEventLoop, work: Coroutine[Any, Any, T]) -> None:
        self.outcome: futures.Future[T] = futures.Future()
        self.ended = threading.Event()
        self._loop = loop
        self._work = work
        self._task: asyncio.Task[T] | None = None

    def begin(self) -> None:
        """In the loop's thread."""
        self._task = self._loop.create_task(self._work)
        self._task.add_done_callback(self._tell)

    def abandon(self) -> None:
        """In the loop's thread, where it comes after `begin`, or `begin` was never handed over."""
        if self._task is not None:
            self._task.cancel()
        else:
            self._work.close()
            self.ended.set()

    def _tell(self, task: asyncio.Task[T]) -> None:
        self.ended.set()
        if task.cancelled():
            self.outcome.set_exception(futures.CancelledError())
        elif (error := task.exception()) is not None:
            self.outcome.set_exception(error)
        else:
            self.outcome.set_result(task.result())


async def _next(items: AsyncIterator[T]) -> T:
    return await anext(items)
