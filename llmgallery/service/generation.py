"""Many requests to one model as one generation: they share a lease, an end and a sum of usage."""

from __future__ import annotations

import asyncio
import hashlib
import math
from collections.abc import AsyncGenerator, AsyncIterator, Sequence
from contextlib import aclosing
from types import TracebackType
from typing import Self

import msgspec

from llmgallery import __version__
from llmgallery.catalog.registry import Entry
from llmgallery.core.errors import Cancelled, GalleryError, WorkerDied, from_info
from llmgallery.core.events import Done, Event, Progress, Reason, TextDelta, TokenLogprob, Usage, joined
from llmgallery.core.requests import Request
from llmgallery.runtime.answer import Answer
from llmgallery.runtime.handle import Handle
from llmgallery.service.spread import Spread
from llmgallery.service.turn import Turn

Item = tuple[int, Event]


class Choice(msgspec.Struct, frozen=True):
    """One whole answer. `logprobs`, `offsets`: as in TextDelta, where they were asked for."""

    text: str
    reason: Reason
    stop: str | None = None
    logprobs: tuple[TokenLogprob, ...] = ()
    offsets: tuple[int, ...] = ()


class Generation:
    """Used with `async with`: entering starts it (Overloaded when the model's limit is reached), leaving cancels at once
    what still runs. An async iterator of (index, event) that ends after the last Done; index = prompt * copies + copy.
    Raises GalleryError: one failed answer fails all.

    `coalesce`: nobody streams it. `logprobs`: the client wants them.
    """

    def __init__(
        self,
        turn: Turn,
        asked: Spread,
        *,
        coalesce: bool = False,
        warnings: tuple[str, ...] = (),
    ) -> None:
        self.entry: Entry = turn.entry
        self.warnings = warnings
        self.copies = asked.copies
        self.choices = asked.choices
        self.logprobs = asked.logprobs
        self._turn = turn
        self._requests = asked.requests
        self._coalesce = coalesce
        self._handle: Handle | None = None
        self._acquiring = asyncio.Lock()
        self._answers: dict[int, Answer] = {}
        self._tasks: list[asyncio.Task[None]] = []
        # Holds one event: what a slow client does not take stays in the answers' mailboxes, which are bounded.
        self._items: asyncio.Queue[tuple[int, Event | Exception]] = asyncio.Queue(1)
        self._accepted: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._unaccepted = set(range(len(asked.requests)))
        self._done: dict[int, Done] = {}
        self._failure: Exception | None = None
        self._texted = False

    def __len__(self) -> int:
        """How many answers there will be."""
        return len(self._requests)

    @property
    def name(self) -> str:
        """The model's."""
        return self.entry.name

    @property
    def fingerprint(self) -> str:
        """Changes with anything but the seed that decides what is answered: our version, backend, configuration."""
        identity = msgspec.msgpack.encode([__version__, self.entry.backend, self.entry.config])
        return f"fp_{hashlib.sha256(identity).hexdigest()[:10]}"

    @property
    def progress(self) -> Progress | None:
        """How far the model is on its way; None once it is ready."""
        return self._turn.progress

    async def changed(self) -> None:
        """Until the progress changes."""
        await self._turn.changed()

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
        await self._turn.begin()
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
            await self._turn.end(self._outcome(), self.usage)

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
            self._turn.metrics.first_text(self.entry.name, self._turn.seconds)
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
                self.warnings = tuple(dict.fromkeys((*self.warnings, *answer.warnings)))
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
                self._handle = await self._turn.handle()
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
    """The whole answers, by index: what streaming would have sent, or of more copies than choices the likeliest. Raises
    GalleryError."""
    deltas: list[list[TextDelta]] = [[] for _ in range(len(generation))]
    ends: dict[int, Done] = {}
    async for index, event in generation:
        match event:
            case TextDelta():
                deltas[index].append(event)
            case Done():
                ends[index] = event
    chosen = likeliest([ends[index] for index in range(len(generation))], generation.copies, generation.choices)
    return [_choice(joined(deltas[index]), ends[index], generation.logprobs) for index in chosen]


def _choice(whole: TextDelta, end: Done, logprobs: bool) -> Choice:
    tokens, offsets = (whole.logprobs, whole.offsets) if logprobs else ((), ())
    return Choice(whole.text, end.reason, end.stop, tokens, offsets)


def likeliest(ends: Sequence[Done], copies: int, choices: int) -> list[int]:
    """The answers that are given: of each prompt's copies those whose tokens are likeliest on average, the best first."""
    if copies == choices:
        return list(range(len(ends)))
    return [
        index
        for start in range(0, len(ends), copies)
        for index in sorted(range(start, start + copies), key=lambda index: _score(ends[index]), reverse=True)[:choices]
    ]


def _score(end: Done) -> float:
    """OpenAI's measure; an answer without any token has none, and comes last."""
    return -math.inf if end.mean_logprob is None else end.mean_logprob
