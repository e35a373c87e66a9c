"""Many requests to one model as one generation: they share a lease, an end and a sum of usage."""

from __future__ import annotations

import asyncio
import hashlib
import math
from collections import deque
from collections.abc import AsyncGenerator, AsyncIterator, Mapping, Sequence
from functools import partial
from types import TracebackType
from typing import Any, Self

import msgspec

from llmgallery import __version__
from llmgallery.catalog.registry import Entry
from llmgallery.core.errors import Cancelled, GalleryError, WorkerDied, from_info
from llmgallery.core.events import Done, Event, Progress, Reason, TextDelta, TokenLogprob, ToolCallDelta, Usage, joined
from llmgallery.runtime.answer import Answer
from llmgallery.runtime.handle import Handle
from llmgallery.service.parts import united, whole_calls
from llmgallery.service.silence import Silence
from llmgallery.service.spread import Spread
from llmgallery.service.turn import Turn

Item = tuple[int, Event]


class Choice(msgspec.Struct, frozen=True):
    """One whole answer. `logprobs`, `offsets`: as in TextDelta, where they were asked for. `tool_calls`: the calls that it
    makes; then there may be no text. `message`: other fields of the message, `extra`: Done's, of a remote endpoint."""

    text: str
    reason: Reason
    stop: str | None = None
    logprobs: tuple[TokenLogprob, ...] = ()
    offsets: tuple[int, ...] = ()
    tool_calls: tuple[ToolCallDelta, ...] = ()
    message: dict[str, Any] = {}
    extra: dict[str, Any] = {}


class Generation:
    """Used with `async with`: entering starts it (Overloaded when the model's limit is reached), leaving cancels at once
    what still runs. An async iterator of (index, event) that ends after the last Done; index = prompt * copies + copy.
    Raises GalleryError: one failed answer fails all.

    `coalesce`: nobody streams it. `logprobs`: the client wants them. `headers`: what a remote endpoint said with the first
    answer that it took.
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
        self.headers: Mapping[str, str] = {}
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
        # Whose mailboxes have something. They are bounded, and read when the client takes what they hold.
        self._news: deque[int] = deque()
        self._reader: asyncio.Future[None] | None = None
        self._retried: set[int] = set()
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
    def is_elsewhere(self) -> bool:
        """Another server answers, and says what is not ours to say."""
        return self._turn.is_elsewhere

    @property
    def job(self) -> str | None:
        """The id of the install that the model comes by."""
        return self._turn.job

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

    @property
    def body(self) -> Mapping[str, Any]:
        """What a remote endpoint's answer said that nobody here knows, and its `usage` as it came; nothing where there are
        several answers, each of which may say something else."""
        done = self._done.get(0)
        return done.extra.get("body", {}) if done is not None and len(self) == 1 else {}

    async def __aenter__(self) -> Self:
        await self._turn.begin()
        for index in range(len(self._requests)):
            self._start(index)
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
        while (item := self._take()) is None:
            if self._is_over:
                raise StopAsyncIteration
            await self._told()
        return item

    async def batches(self, pause: float) -> AsyncGenerator[list[Item], None]:
        """All that has come, as soon as something has; an empty list for each `pause` seconds without anything."""
        silence = Silence(pause, self._wake)
        try:
            while True:
                items = self._take_all()
                if items or silence.is_long:
                    yield items
                    silence.broken()
                elif self._is_over:
                    return
                else:
                    await self._told()
        finally:
            silence.end()

    def _outcome(self) -> str:
        if self._failure is not None:
            return type(self._failure).__name__
        return "ok" if len(self._done) == len(self._requests) else "cancelled"

    def _abandon(self) -> None:
        """Cancel answers and tasks, except the task that calls this; nothing is tried again."""
        self._retried.update(range(len(self._requests)))
        for answer in self._answers.values():
            answer.cancel()
        for task in self._tasks:
            if task is not asyncio.current_task():
                task.cancel()

    # --- from request to answer ------------------------------------------------------------------------------------------

    def _start(self, index: int, dead: Handle | None = None) -> None:
        self._tasks.append(asyncio.create_task(self._submit(index, dead), name=f"answer {index} of {self.entry.name}"))

    async def _submit(self, index: int, dead: Handle | None) -> None:
        """Until the worker has taken the request, or another when the first died: `dead`."""
        try:
            while True:
                handle = await self._acquire(dead)
                answer = self._answers[index] = handle.submit(self._requests[index], self._turn.config, self._coalesce)
                answer.listen(partial(self._hear, index))
                try:
                    await answer.accepted()
                except WorkerDied:
                    if not self._may_retry(index):
                        raise
                    dead = handle
                else:
                    break
            self.warnings = tuple(dict.fromkeys((*self.warnings, *answer.warnings)))
            self.headers = self.headers or answer.headers
            self._accept(index)
        except Exception as exc:  # noqa: BLE001 - task border: the reader must hear of every failure
            self._fail(exc)

    def _may_retry(self, index: int) -> bool:
        """Once, when the worker died before the answer can have had a part in that."""
        answer = self._answers[index]
        allowed = not (index in self._retried or answer.started or answer.emitted)
        self._retried.add(index)
        return allowed

    def _fail(self, error: Exception) -> None:
        if self._failure is None:
            self._failure = error
            self._abandon()
        if not self._accepted.done():
            self._accepted.set_exception(error)
            self._accepted.exception()  # retrieved: the client may have left
        self._wake()

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

    # --- events ----------------------------------------------------------------------------------------------------------

    @property
    def _is_over(self) -> bool:
        return self._failure is None and len(self._done) == len(self._requests)

    def _hear(self, index: int) -> None:
        """The mailbox of this answer has something. Whether anybody reads or not: who waits behind others is tried again."""
        answer = self._answers[index]
        if isinstance(answer.failure, WorkerDied) and answer.is_accepted and self._may_retry(index):
            self._start(index, self._handle)
            return
        if index not in self._news:
            self._news.append(index)
        self._wake()

    def _wake(self) -> None:
        if self._reader is not None and not self._reader.done():
            self._reader.set_result(None)

    async def _told(self) -> None:
        """Until `_wake` is called."""
        self._reader = asyncio.get_running_loop().create_future()
        try:
            await self._reader
        finally:
            self._reader = None

    def _take_all(self) -> list[Item]:
        """What a failure comes after is taken before it is raised."""
        items: list[Item] = []
        try:
            while (item := self._take()) is not None:
                items.append(item)
        except Exception:
            if not items:
                raise
        return items

    def _take(self) -> Item | None:
        """The next event, of each answer that has some in turn; None = there is none yet."""
        while self._failure is None and self._news:
            index = self._news.popleft()
            if (event := self._taken(index)) is not None:
                self._news.append(index)
                self._note(index, event)
                return index, event
        if self._failure is not None:
            raise self._failure
        return None

    def _taken(self, index: int) -> Event | None:
        answer = self._answers[index]
        try:
            event = answer.take()
            return None if event is None else _checked(event)
        except GalleryError as exc:
            if answer.is_accepted:  # else the task that waits for that hears of it, too
                self._fail(exc)
            return None

    def _note(self, index: int, event: Event) -> None:
        if isinstance(event, Done):
            self._done[index] = event
            self.warnings = tuple(dict.fromkeys((*self.warnings, *event.warnings)))
        elif not self._texted and (isinstance(event, ToolCallDelta) or event.text):
            self._texted = True
            self._turn.metrics.first_text(self.entry.name, self._turn.seconds)


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
    calls: list[list[ToolCallDelta]] = [[] for _ in range(len(generation))]
    ends: dict[int, Done] = {}
    async for index, event in generation:
        match event:
            case TextDelta():
                deltas[index].append(event)
            case ToolCallDelta():
                calls[index].append(event)
            case Done():
                ends[index] = event
    chosen = likeliest([ends[index] for index in range(len(generation))], generation.copies, generation.choices)
    return [_choice(deltas[index], whole_calls(calls[index]), ends[index], generation.logprobs) for index in chosen]


def _choice(deltas: Sequence[TextDelta], calls: Sequence[ToolCallDelta], end: Done, logprobs: bool) -> Choice:
    whole, message = joined(deltas), united([delta.extra for delta in deltas if delta.extra])
    tokens, offsets = (whole.logprobs, whole.offsets) if logprobs else ((), ())
    return Choice(whole.text, end.reason, end.stop, tokens, offsets, tuple(calls), message, end.extra)


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
