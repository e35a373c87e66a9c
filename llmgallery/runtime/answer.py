"""One submitted request, seen from the server: accepted or refused, then its events."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import AsyncIterator, Callable, Mapping

import msgspec

from llmgallery.core.errors import GalleryError, Overloaded
from llmgallery.core.events import Done, Event, TextDelta, ToolCallDelta, joined
from llmgallery.wire.frames import Accepted

MAILBOX_BYTES = 1024 * 1024
LOGPROB_BYTES = 16
"""What an unread log probability counts: those of 3,000 tokens with 20 alternatives each fill a mailbox."""


class Answer:
    """An async iterator of events that ends after Done. A slow reader holds only its own answer: adjacent text is merged,
    and what comes on top of unread text beyond MAILBOX_BYTES cancels the answer. What finds the mailbox empty may be of any
    size and does not count: a prompt's echo comes at once, and with it perhaps more log probabilities than an answer has.

    `started`: it may have been in the batch in which its worker died, so it must not be tried again. Once it is accepted:
    `warnings`: what the worker ignores of the request; `headers`: what a remote endpoint wants its clients to know.
    """

    def __init__(self, id: int, cancel: Callable[[int], None]) -> None:
        self.id = id
        self.started = False
        self.emitted = False
        self.warnings: tuple[str, ...] = ()
        self.headers: Mapping[str, str] = {}
        self._cancel = cancel
        self._accepted: asyncio.Future[int] = asyncio.get_running_loop().create_future()
        self._events: deque[tuple[Event, int]] = deque()
        self._unread = 0
        self._news = asyncio.Event()
        self._hear: Callable[[], None] | None = None
        self._closed = False
        self._failure: GalleryError | None = None
        self._read_done = False

    async def accepted(self) -> int:
        """Prompt tokens, once the worker has taken the request. Raises what it was refused for, or WorkerDied."""
        return await asyncio.shield(self._accepted)

    @property
    def is_accepted(self) -> bool:
        return self._accepted.done() and not self._accepted.cancelled() and self._accepted.exception() is None

    @property
    def is_open(self) -> bool:
        """No Done has arrived, and no failure."""
        return not self._closed

    @property
    def failure(self) -> GalleryError | None:
        """What is raised once everything that has arrived is read."""
        return self._failure

    def cancel(self) -> None:
        """At once and more than once: no further text; the slot is free when Done arrives."""
        if not self._closed:
            self._cancel(self.id)

    def listen(self, hear: Callable[[], None]) -> None:
        """`hear` is called whenever `take` may have something; at once if it has."""
        self._hear = hear
        if self._events or self._failure is not None:
            hear()

    def take(self) -> Event | None:
        """The next event if it has come. Raises WorkerDied when the worker ended before Done, and nothing is left to read."""
        if not self._events:
            if self._failure is not None and not self._read_done:
                raise self._failure
            return None
        event, size = self._events.popleft()
        self._unread -= size
        self._read_done = isinstance(event, Done)
        return event

    def __aiter__(self) -> AsyncIterator[Event]:
        return self

    async def __anext__(self) -> Event:
        """Raises as `take` does."""
        while (event := self.take()) is None:
            if self._read_done:
                raise StopAsyncIteration
            self._news.clear()
            await self._news.wait()
        return event

    def _wake(self) -> None:
        self._news.set()
        if self._hear is not None:
            self._hear()

    # --- the worker's side ---------------------------------------------------------------------------------------------

    def accept(self, report: Accepted) -> None:
        self.warnings, self.headers = report.warnings, report.headers
        if not self._accepted.done():
            self._accepted.set_result(report.prompt_tokens)

    def reject(self, error: GalleryError) -> None:
        self._closed = True
        self.fail(error)

    def put(self, event: Event) -> None:
        if isinstance(event, Done):
            self._closed = True
            if self._failure is None:
                self._events.append((event, 0))
        elif not self._overflows(size := _size(event)):
            self.emitted = True
            self._append(event, size)
        self._wake()

    def fail(self, error: GalleryError) -> None:
        """The worker is gone: what has arrived is still read, then this is raised."""
        self._closed = True
        self._failure = error
        if not self._accepted.done():
            self._accepted.set_exception(error)
            self._accepted.exception()  # retrieved: nobody may be waiting for it
        self._wake()

    def _append(self, event: TextDelta | ToolCallDelta, size: int) -> None:
        if not self._events and size > MAILBOX_BYTES:
            self._events.append((event, 0))
            return
        last, counted = self._events[-1] if self._events else (None, 0)
        if isinstance(last, TextDelta) and isinstance(event, TextDelta) and counted and not last.extra and not event.extra:
            self._events[-1] = joined((last, event)), counted + size
        else:
            self._events.append((event, size))
        self._unread += size

    def _overflows(self, size: int) -> bool:
        if self._failure is not None:
            return True
        if not self._unread or self._unread + size <= MAILBOX_BYTES:
            return False
        self._failure = Overloaded(f"the client did not read for {MAILBOX_BYTES} characters; its answer was cancelled")
        self.cancel()
        return True


def _size(event: TextDelta | ToolCallDelta) -> int:
    """At least 1: what counts nothing is never merged with."""
    if isinstance(event, ToolCallDelta):
        return len(event.name) + len(event.arguments) + LOGPROB_BYTES
    extra = len(msgspec.msgpack.encode(event.extra)) if event.extra else 0
    return max(1, len(event.text) + extra + LOGPROB_BYTES * sum(1 + len(entry.top) for entry in event.logprobs))
