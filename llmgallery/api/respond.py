"""When the status line is written, and who cancels whom. Knows no dialect: encoders are handed in.

No stream begins before the worker has taken the request or refused it, except while the model is still on its way for
longer than `hold` seconds. A client that leaves cancels its generation at once, streaming or not.
"""

from __future__ import annotations

import asyncio
import re
import time
from collections.abc import AsyncGenerator, Coroutine, Mapping, Sequence
from contextlib import aclosing, suppress
from typing import Any, Protocol, TypeVar

from litestar.enums import HttpMethod, ScopeType
from litestar.types import ASGIApp, Message, Receive, Scope, Send

from llmgallery.api.errors import BodyTooLarge, ClientGone, Failure, passed_on, to_failure
from llmgallery.core.errors import Overloaded
from llmgallery.core.events import Event, Progress
from llmgallery.service.generation import Choice, Generation, fold
from llmgallery.service.pooling import Pooled, Pooling

IDLE_SECONDS = 15.0
PROGRESS_SECONDS = 0.5
SHORTEST_WAIT = 0.25
"""A model that is ready shows it within this time, whatever the client prefers."""
BODY_BYTES = 32 * 1024 * 1024

READS = (HttpMethod.GET, HttpMethod.HEAD)
"""The methods of routes that tell: load balancers ask by HEAD."""

T = TypeVar("T")


class Bodiless:
    """ASGI around the whole application: answers to HEAD, errors as well, have the headers of GET and no body."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        async def heads(message: Message) -> None:
            if message["type"] == "http.response.body":
                message = {**message, "body": b""}
            await send(message)

        is_head = scope["type"] == ScopeType.HTTP and scope["method"] == HttpMethod.HEAD
        await self._app(scope, receive, heads if is_head else send)


class Encoder(Protocol):
    """How a dialect streams. Every method returns what goes over the wire, perhaps nothing."""

    media_type: str

    def begin(self) -> bytes: ...
    def event(self, index: int, event: Event) -> bytes: ...
    def end(self, generation: Generation) -> bytes: ...
    def progress(self, progress: Progress) -> bytes: ...
    def keep_alive(self) -> bytes: ...
    def failure(self, failure: Failure) -> bytes: ...


async def read_body(receive: Receive, limit: int = BODY_BYTES) -> bytes:
    """The request's body. Raises BodyTooLarge, ClientGone."""
    pieces: list[bytes] = []
    size = 0
    while True:
        message = await receive()
        if message["type"] == "http.disconnect":
            raise ClientGone
        if message["type"] == "http.request":
            pieces.append(message["body"])
            size += len(message["body"])
            if size > limit:
                raise BodyTooLarge(f"the body is longer than {limit} bytes")
            if not message["more_body"]:
                return b"".join(pieces)


async def while_connected(receive: Receive, work: Coroutine[Any, Any, T]) -> T:
    """The result of `work`. When the client leaves first, `work` is cancelled, has ended, and ClientGone is raised: ASGI
    servers do not cancel a handler by themselves."""
    working = asyncio.create_task(work, name="a request's work")
    leaving = asyncio.create_task(_disconnected(receive), name="a request's client")
    try:
        await asyncio.wait({working, leaving}, return_when=asyncio.FIRST_COMPLETED)
        if working.done():
            return working.result()
        raise ClientGone
    finally:
        for task in (working, leaving):
            task.cancel()
        await asyncio.gather(working, leaving, return_exceptions=True)


async def _disconnected(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass


def preferred_wait(headers: Mapping[str, str], longest: float) -> tuple[float, dict[str, str]]:
    """Seconds to wait for a model: `longest`, or less by `Prefer: wait=N` (RFC 7240); and the headers that say so."""
    found = re.search(r"(?:^|[,;\s])wait\s*=\s*\"?(\d{1,9})", headers.get("prefer", ""))
    if found is None:
        return longest, {}
    return min(longest, float(found[1])), {"Preference-Applied": f"wait={found[1]}"}


class Patience:
    """How long a request that came just now waits for its model, whatever it waits for. `headers` say that it is by the
    client's wish."""

    def __init__(self, headers: Mapping[str, str], longest: float) -> None:
        self._wait, self.headers = preferred_wait(headers, longest)
        self._began = time.monotonic()

    @property
    def left(self) -> float:
        """Seconds; 0 = none, or less."""
        return self._wait - (time.monotonic() - self._began)


def warned(warnings: Sequence[str]) -> dict[str, str]:
    """The header that says how many warnings there are. The worker's own are known once it has accepted the request."""
    return {"x-llmgallery-warnings": str(len(warnings))} if warnings else {}


def told(asked: Generation | Pooling) -> dict[str, str]:
    """Headers of an answer: how many warnings there are, and what a remote endpoint wants its clients to know. Both are known
    once the worker has accepted the request."""
    return {**passed_on(asked.headers), **warned(asked.warnings)}


# --- not streaming ---------------------------------------------------------------------------------------------------------


class Underway(Protocol):
    """What a model has been asked, while it may still be on its way: a Generation, a Pooling."""

    @property
    def name(self) -> str: ...
    @property
    def job(self) -> str | None: ...
    @property
    def progress(self) -> Progress | None: ...
    @property
    def is_accepted(self) -> bool: ...
    async def accepted(self) -> None: ...


async def whole(generation: Generation, wait: float) -> list[Choice]:
    """The whole answers. Raises Overloaded when the model is not ready within `wait` seconds; its load goes on."""
    await taken(generation, wait)
    return await fold(generation)


async def pooled(pooling: Pooling, wait: float) -> Pooled:
    """The vectors or scores of what is entered here. Raises Overloaded as `whole` does."""
    async with pooling:
        await taken(pooling, wait)
        return await pooling.result()


async def taken(asked: Underway, wait: float) -> None:
    """Until the worker has it. Raises Overloaded when the model is not ready within `wait` seconds; its load goes on."""
    began = time.monotonic()
    with suppress(TimeoutError):
        async with asyncio.timeout(max(wait, SHORTEST_WAIT)):
            await asked.accepted()
    if not asked.is_accepted and asked.progress is not None:
        raise _still_loading(asked, time.monotonic() - began)
    await asked.accepted()


def _still_loading(asked: Underway, waited: float) -> Overloaded:
    progress = asked.progress or Progress("queued")
    return Overloaded(
        f"model {asked.name} is still {describe(progress)} after {waited:.0f} s; that goes on: ask again",
        retry_after=_remaining(progress, waited),
        job=asked.job,
    )


def describe(progress: Progress) -> str:
    """`loading 34%`, `queued`"""
    return progress.phase if progress.fraction is None else f"{progress.phase} {progress.fraction:.0%}"


def _remaining(progress: Progress, waited: float) -> float:
    """Seconds until the model might be there, from how far it came; between 1 and 60."""
    if not progress.fraction:
        return 10.0
    return min(60.0, max(1.0, waited * (1 - progress.fraction) / progress.fraction))


# --- streaming -------------------------------------------------------------------------------------------------------------


class Streaming:
    """An ASGI app that streams one generation. Errors before the status line are raised, for the error handlers."""

    def __init__(self, generation: Generation, encoder: Encoder, *, hold: float) -> None:
        self._generation = generation
        self._encoder = encoder
        self._hold = max(hold, 0.05)
        self._headers = {"content-type": encoder.media_type, "cache-control": "no-cache", "x-accel-buffering": "no"}

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        with suppress(ClientGone):
            await while_connected(receive, self._run(send))

    async def _run(self, send: Send) -> None:
        async with self._generation as generation:
            await self._held(generation)
            said = {**self._headers, **told(generation)}
            headers = [(name.lower().encode("latin-1"), value.encode("latin-1")) for name, value in said.items()]
            await send({"type": "http.response.start", "status": 200, "headers": headers})
            async with aclosing(self._pieces(generation)) as pieces:
                async for piece in pieces:
                    if piece:
                        await send({"type": "http.response.body", "body": piece, "more_body": True})
        await send({"type": "http.response.body", "body": b"", "more_body": False})

    async def _held(self, generation: Generation) -> None:
        """Until the requests are accepted, or `hold` is over and the model is not there yet."""
        while not generation.is_accepted:
            with suppress(TimeoutError):
                async with asyncio.timeout(self._hold):
                    await generation.accepted()
            if generation.progress is not None:
                break

    async def _pieces(self, generation: Generation) -> AsyncGenerator[bytes, None]:
        try:
            async for piece in self._on_the_way(generation):
                yield piece
            yield self._encoder.begin()
            async with aclosing(generation.batches(IDLE_SECONDS)) as batches:
                async for items in batches:
                    yield b"".join([self._encoder.event(*item) for item in items]) if items else self._encoder.keep_alive()
            yield self._encoder.end(generation)
        except Exception as exc:  # noqa: BLE001 - the status line is out: the stream is the only place left to tell
            yield self._encoder.failure(to_failure(exc))

    async def _on_the_way(self, generation: Generation) -> AsyncGenerator[bytes, None]:
        """What goes out until the requests are accepted: progress when there is news, else a keep-alive now and then."""
        told: Progress | None = None
        silent_since = time.monotonic()
        while not generation.is_accepted:
            now = time.monotonic()
            progress = generation.progress
            if progress is not None and progress != told:
                told, silent_since = progress, now
                yield self._encoder.progress(progress)
            elif now - silent_since >= IDLE_SECONDS:
                silent_since = now
                yield self._encoder.keep_alive()
            with suppress(TimeoutError):
                async with asyncio.timeout(PROGRESS_SECONDS):
                    await generation.accepted()
