"""Many requests to one model as one generation: they share a lease, an end and a sum of usage."""

from __future__ import annotations

import asyncio
import hashlib
import time
from collections import Counter
from collections.abc import AsyncGenerator, AsyncIterator, Sequence
from contextlib import aclosing
from types import TracebackType
from typing import Self

import msgspec

from llmgallery import __version__
from llmgallery.catalog.registry import Entry
from llmgallery.core.errors import Cancelled, GalleryError, Overloaded, WorkerDied, from_info
from llmgallery.core.events import Done, Event, Progress, Reason, TextDelta, Usage
from llmgallery.core.requests import Request
from llmgallery.metrics import Metrics
from llmgallery.runtime.answer import Answer
from llmgallery.runtime.handle import Handle
from llmgallery.runtime.lease import Lease

Item = tuple[int, Event]


class Choice(msgspec.Struct, frozen=True):
    """One whole answer."""

    text: str
    reason: Reason
    stop: str | None = None


class Generation:
    """Used with `async with`: entering starts it (Overloaded when the model's limit is reached), leaving cancels at once
    what still runs. An async iterator of (index, event) that ends after the last Done; index = prompt * copies + copy.
    Raises GalleryError: one failed answer fails all.

    `requests`: all copies of a prompt stand together. `running`: open generations by model. `coalesce`: nobody streams it.
    """

    def __init__(
        self,
        entry: Entry,
        lease: Lease,
        requests: Sequence[Request],
        metrics: Metrics,
        running: Counter[str],
        *,
        copies: int = 1,
        coalesce: bool = False,
        warnings: tuple[str, ...] = (),
    ) -> None:
        self.entry = entry
        self.warnings = warnings
        self.copies = copies
        self._lease = lease
        self._requests = requests
        self._coalesce = coalesce
        self._metrics = metrics
        self._running = running
        self._handle: Handle | None = None
        self._acquiring = asyncio.Lock()
        self._answers: dict[int, Answer] = {}
        self._tasks: list[asyncio.Task[None]] = []
        # Holds one event: what a slow client does not take stays in the answers' mailboxes, which are bounded.
        self._items: asyncio.Queue[tuple[int, Event | Exception]] = asyncio.Queue(1)
        self._accepted: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._unaccepted = set(range(len(requests)))
        self._done: dict[int, Done] = {}
        self._failure: Exception | None = None
        self._started = time.monotonic()
        self._texted = False

    def __len__(self) -> int:
        """How many answers there will be."""
        return len(self._requests)

    @property
    def fingerprint(self) -> str:
        """Changes with anything but the seed that decides what is answered: our version, backend, configuration."""
        identity = msgspec.msgpack.encode([__version__, self.entry.backend, self.entry.config])
        return f"fp_{hashlib.sha256(identity).hexdigest()[:10]}"

    @property
    def progress(self) -> Progress | None:
        """How far the model is on its way; None once it is ready."""
        return self._lease.progress

    async def changed(self) -> None:
        """Until the progress changes."""
        await self._lease.changed()

    async def accepted(self) -> None:
        """Until the worker has taken all requests. Raises what one was refused for, or why there is no worker."""
        await asyncio.shield(self._accepted)

    @property
    def is_accepted(self) -> bool:
        return self._accepted.done() and self._accepted.exception() is None

    @property
    def usage(self) -> Usage:
        """Of the answers that are done; each prompt counts once, however many copies it has."""
        prompts = [done.usage for index, done in self._done.items() if index % self.copies == 0]
        return Usage(
            sum(usage.prompt_tokens for usage in prompts),
            sum(done.usage.completion_tokens for done in self._done.values()),
            sum(usage.cached_tokens for usage in prompts),
        )

    async def __aenter__(self) -> Self:
        self._check_limit()
        await self._lease.__aenter__()
        self._metrics.began(self.entry.name)
        self._running[self.entry.name] += 1
        self._tasks = [
            asyncio.create_task(self._answer(index, request), name=f"answer {index} of {self.entry.name}")
            for index, request in enumerate(self._requests)
        ]
        return self

    async def __aexit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        try:
            self._abandon()
            await asyncio.gather(*self._tasks, return_exceptions=True)
        finally:
            await self._lease.__aexit__(kind, error, trace)
            self._running[self.entry.name] -= 1
            self._metrics.ended(self.entry.name, self._outcome(), time.monotonic() - self._started, self.usage)

    def _check_limit(self) -> None:
        """Here, where the count grows: a check that comes earlier lets more in than the limit allows."""
        limits, running = self.entry.config.limits, self._running[self.entry.name]
        if limits.max_concurrent is not None and running >= limits.max_concurrent:
            raise Overloaded(
                f"model {self.entry.name} already answers {running} requests, as many as its limits.max_concurrent allows",
                retry_after=limits.retry_after_seconds if limits.retry_after_seconds is not None else 1,
            )

    def __aiter__(self) -> AsyncIterator[Item]:
        return self

    async def __anext__(self) -> Item:
        """May be cancelled and called again without losing an event."""
        if self._failure is None and len(self._done) == len(self._requests):
            raise StopAsyncIteration
        index, event = await self._items.get()
        if isinstance(event, Exception):
            raise event
        if isinstance(event, Done):
            self._done[index] = event
        elif not self._texted and event.text:
            self._texted = True
            self._metrics.first_text(self.entry.name, time.monotonic() - self._started)
        return index, event

    def _outcome(self) -> str:
        if self._failure is not None:
            return type(self._failure).__name__
        return "ok" if len(self._done) == len(self._requests) else "cancelled"

    def _abandon(self) -> None:
        """Cancel answers and tasks, except the task that calls this."""
        for answer in self._answers.values():
            answer.cancel()
        for task in self._tasks:
            if task is not asyncio.current_task():
                task.cancel()

    async def _answer(self, index: int, request: Request) -> None:
        try:
            async with aclosing(self._events(index, request)) as events:
                async for event in events:
                    await self._items.put((index, _checked(event)))
        except Exception as exc:  # noqa: BLE001 - task border: the reader must hear of every failure
            self._fail(exc)
            await self._items.put((index, exc))

    def _fail(self, error: Exception) -> None:
        self._failure = error
        self._abandon()
        if not self._accepted.done():
            self._accepted.set_exception(error)
            self._accepted.exception()  # retrieved: the client may have left

    async def _events(self, index: int, request: Request) -> AsyncGenerator[Event, None]:
        """All events of one answer. It is submitted once more when its worker died before it can have had a part in that."""
        dead: Handle | None = None
        while True:
            handle = await self._acquire(dead)
            answer = self._answers[index] = handle.submit(request, self.entry.config, self._coalesce)
            try:
                await answer.accepted()
                self._accept(index)
                async for event in answer:
                    yield event
                return
            except WorkerDied:
                if dead is not None or answer.started or answer.emitted:
                    raise
            dead = handle

    async def _acquire(self, dead: Handle | None) -> Handle:
        """The worker that all answers share; a new one when it is `dead`."""
        async with self._acquiring:
            if self._handle is None or self._handle is dead:
                self._handle = await self._lease.handle()
            return self._handle

    def _accept(self, index: int) -> None:
        self._unaccepted.discard(index)
        if not self._unaccepted and not self._accepted.done():
            self._accepted.set_result(None)


def _checked(event: Event) -> Event:
    """Raises what a Done says of an answer that did not come to its end."""
    if isinstance(event, Done) and event.reason == "error":
        raise from_info(event.error) if event.error is not None else GalleryError("the answer failed and nobody said why")
    if isinstance(event, Done) and event.reason == "cancelled":
        raise Cancelled("the answer was cancelled by the server")
    return event


async def fold(generation: Generation) -> list[Choice]:
    """The whole answers, by index: what streaming would have sent. Raises GalleryError."""
    texts: list[list[str]] = [[] for _ in range(len(generation))]
    ends: dict[int, Done] = {}
    async for index, event in generation:
        match event:
            case TextDelta(text):
                texts[index].append(text)
            case Done():
                ends[index] = event
    return [Choice("".join(text), ends[index].reason, ends[index].stop) for index, text in enumerate(texts)]
