"""Workers that only write prompts: a vocabulary without its weights, or nothing but the YAML. They take no model's memory."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Coroutine
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any

from llmgallery.backends.base import Files
from llmgallery.config.model import ModelConfig
from llmgallery.core.errors import GalleryError
from llmgallery.runtime.handle import Handle
from llmgallery.runtime.interpreters import Interpreters

IDLE_SECONDS = 30.0
MOST_WORKERS = 4


@dataclass
class _Worker:
    """`users`: who holds it; `ending`: the timer that ends it once nobody has for a while."""

    starting: asyncio.Task[Handle]
    users: int = 0
    ending: asyncio.TimerHandle | None = None

    @property
    def is_dead(self) -> bool:
        """It failed to start, or has ended, or is about to."""
        if not self.starting.done():
            return False
        if self.starting.cancelled() or self.starting.exception() is not None:
            return True
        handle = self.starting.result()
        return handle.failure is not None or handle.ended.done()


class LightWorkers:
    """One for each key, shared by who asks at once, and ended `idle` seconds after the last. At most `most` at a time: who needs
    another waits until one is idle, which then ends. Beside the models' memory: nobody is evicted for them, and nobody counts
    what they take, which is that of a vocabulary."""

    def __init__(self, *, idle: float = IDLE_SECONDS, most: int = MOST_WORKERS, interpreters: Interpreters | None = None) -> None:
        self._interpreters = interpreters or Interpreters()
        self._idle = idle
        self._most = most
        self._places = asyncio.Semaphore(most)
        self._workers: dict[str, _Worker] = {}  # the least recently used first
        self._tasks: set[asyncio.Task[Any]] = set()
        self._refusal: GalleryError | None = None

    def __len__(self) -> int:
        """How many there are."""
        return len(self._workers)

    @asynccontextmanager
    async def worker(self, key: str, name: str, backend: str, config: ModelConfig, files: Files) -> AsyncIterator[Handle]:
        """That of `key`, which stands for `backend` and `files`; no backend = by the YAML alone. Raises LoadError, BadWeights,
        BackendMissing, WorkerDied, and after `stop` what that was given."""
        async with self._places:
            python = self._interpreters.of(backend)
            worker = self._taken(
                key, lambda: Handle.start(name, backend, config, files, _unheard, render=True, interpreter=python)
            )
            try:
                yield await asyncio.shield(worker.starting)
            finally:
                self._leave(key, worker)

    async def stop(self, why: GalleryError) -> None:
        """Returns when all have ended. Who still asks one, or wants to, gets `why`."""
        self._refusal = why
        for key in list(self._workers):
            self._end(key)
        await asyncio.gather(*self._tasks, return_exceptions=True)

    def _taken(self, key: str, start: Callable[[], Coroutine[Any, Any, Handle]]) -> _Worker:
        """There is always room: each of the others that are busy has one of the places, and this call the last of them."""
        if self._refusal is not None:
            raise self._refusal
        worker = self._workers.pop(key, None)
        if worker is None or worker.is_dead:
            idle = [other for other, each in self._workers.items() if not each.users]
            for other in idle[: len(self._workers) - self._most + 1]:
                self._end(other)
            worker = _Worker(self._spawn(start(), f"light worker {key}"))
        self._workers[key] = worker
        worker.users += 1
        if worker.ending is not None:
            worker.ending.cancel()
            worker.ending = None
        return worker

    def _leave(self, key: str, worker: _Worker) -> None:
        worker.users -= 1
        if worker.users or self._workers.get(key) is not worker:
            return
        if worker.is_dead:
            self._end(key)
        else:
            worker.ending = asyncio.get_running_loop().call_later(self._idle, self._end, key)

    def _end(self, key: str) -> None:
        worker = self._workers.pop(key)
        if worker.ending is not None:
            worker.ending.cancel()
        self._spawn(_ended(worker, self._refusal), f"end of light worker {key}")

    def _spawn(self, work: Coroutine[Any, Any, Any], name: str) -> asyncio.Task[Any]:
        task = asyncio.create_task(work, name=name)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        task.add_done_callback(lambda done: done.cancelled() or done.exception())  # retrieved: who waited may have left
        return task


async def _ended(worker: _Worker, why: GalleryError | None) -> None:
    """One that still starts is not cut off: it has a process of which nobody would know."""
    await asyncio.wait({worker.starting})
    if worker.starting.cancelled() or worker.starting.exception() is not None:
        return
    await worker.starting.result().stop(why)


def _unheard(fraction: float) -> None:
    """Nobody watches a load that takes half a second."""
