"""openai's implementation: conversations as tasks of one event loop, in a thread of its own."""

from __future__ import annotations

import asyncio
import os
import sys
import threading
import traceback
from collections.abc import Callable, Coroutine
from contextlib import aclosing
from typing import Any

import msgspec

from llmgallery.backends.base import Conversation, Files, Loaded, Pooled, RemoteEmit
from llmgallery.backends.openai import failures, vectors
from llmgallery.backends.openai.body import answer_body, embed_body, rerank_body
from llmgallery.backends.openai.connection import Arriving, Connections, post
from llmgallery.backends.openai.endpoint import Endpoint, endpoint
from llmgallery.backends.openai.events import AnswerReader
from llmgallery.backends.openai.spec import SPEC
from llmgallery.backends.openai.sse import EventReader
from llmgallery.config.model import ModelConfig
from llmgallery.core.errors import Cancelled, GalleryError, UpstreamUnavailable
from llmgallery.core.events import Done, Event
from llmgallery.core.requests import ChatRequest, EmbedRequest, RerankRequest

ANY_SIZE = 2**31 - 1
"""Of a context that only the endpoint knows the size of."""
SMALL = 1024 * 1024
"""Bytes of JSON of which no frame becomes too large."""
PROBABILITIES = "probabilities"
"""Scores are given as they come."""

Work = Coroutine[Any, Any, None]


class OpenAIBackend:
    """Implements RemoteBackend."""

    def __init__(self) -> None:
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="endpoints", daemon=True)
        self._connections = Connections()
        # Of the loop's thread alone.
        self._tasks: dict[int, asyncio.Task[None]] = {}

    def load(self, config: ModelConfig, files: Files, emit: RemoteEmit) -> Loaded:
        """Asks no endpoint: each request brings the configuration that it is for."""
        self._emit = emit
        self._thread.start()
        return Loaded(ANY_SIZE, capabilities=SPEC.capabilities | {PROBABILITIES})

    def converse(self, conversation: Conversation) -> None:
        exchange = _Exchange(conversation.id, self._emit)
        self._begin(exchange.id, lambda: self._converse(conversation, exchange), exchange.fail)

    def embed(self, id: int, request: EmbedRequest, config: ModelConfig) -> None:
        self._begin(id, lambda: self._embed(id, request, config), lambda error: self._emit.pooled(Pooled(id, error=error)))

    def rerank(self, id: int, request: RerankRequest, config: ModelConfig) -> None:
        self._begin(id, lambda: self._rerank(id, request, config), lambda error: self._emit.pooled(Pooled(id, error=error)))

    def cancel(self, id: int) -> None:
        self._call(self._cancel, id)

    def close(self) -> None:
        """Whoever still waits is told that the request was withdrawn."""
        if not self._thread.is_alive():
            return
        asyncio.run_coroutine_threadsafe(self._end_all(), self._loop).result()
        self._call(self._loop.stop)
        self._thread.join()
        self._loop.close()

    # --- in the loop's thread --------------------------------------------------------------------------------------------

    def _call(self, function: Callable[..., object], *arguments: Any) -> None:
        if not self._loop.is_closed():
            self._loop.call_soon_threadsafe(function, *arguments)

    def _begin(self, id: int, work: Callable[[], Work], fail: Callable[[GalleryError], None]) -> None:
        self._call(self._start, id, work, fail)

    def _start(self, id: int, work: Callable[[], Work], fail: Callable[[GalleryError], None]) -> None:
        task = self._tasks[id] = self._loop.create_task(work(), name=f"request {id}")

        def ended(task: asyncio.Task[None]) -> None:
            del self._tasks[id]
            if (error := _failure(task)) is not None:
                fail(error)

        task.add_done_callback(ended)

    def _cancel(self, id: int) -> None:
        if id in self._tasks:
            self._tasks[id].cancel()

    async def _end_all(self) -> None:
        tasks = [*self._tasks.values()]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        await self._connections.close()

    async def _converse(self, conversation: Conversation, exchange: _Exchange) -> None:
        request, config, streamed = conversation.request, conversation.config, conversation.streamed
        where = endpoint(config, os.environ)
        is_chat = isinstance(request, ChatRequest)
        path, reader = "chat/completions" if is_chat else "completions", AnswerReader("chat" if is_chat else "completion")
        limit = where.options.max_tokens_field or ("max_completion_tokens" if where.is_openai else "max_tokens")
        body = answer_body(request, config, where.model, streamed=streamed, usage=where.options.stream_usage, limit=limit)
        async with post(self._connections, where, path, body, streamed=streamed) as arriving:
            if arriving.is_stream:
                exchange.accept(arriving)
                await _follow(arriving, reader, exchange, where)
            else:
                events = fitting(reader.whole(await arriving.json()))
                exchange.accept(arriving)
                exchange.say(events)

    async def _embed(self, id: int, request: EmbedRequest, config: ModelConfig) -> None:
        where = endpoint(config, os.environ)
        body = embed_body(request, config, where.model)
        async with post(self._connections, where, "embeddings", body) as arriving:
            found, tokens = vectors.embeddings(await arriving.json(), len(request.inputs))
            self._emit.accepted(id, arriving.headers)
        self._emit.pooled(Pooled(id, found, tokens))

    async def _rerank(self, id: int, request: RerankRequest, config: ModelConfig) -> None:
        where = endpoint(config, os.environ)
        body = rerank_body(request, config, where.model)
        async with post(self._connections, where, "rerank", body) as arriving:
            found, tokens = vectors.scores(await arriving.json(), len(request.documents))
            self._emit.accepted(id, arriving.headers)
        self._emit.pooled(Pooled(id, found, tokens))


class _Exchange:
    """One conversation, as far as it was told of: accepted or not, and ended once."""

    def __init__(self, id: int, emit: RemoteEmit) -> None:
        self.id = id
        self._emit = emit
        self._accepted = False
        self._over = False

    def accept(self, arriving: Arriving) -> None:
        self._accepted = True
        self._emit.accepted(self.id, arriving.headers)

    def say(self, events: list[Event]) -> None:
        if events:
            self._over = isinstance(events[-1], Done)
            self._emit.events(self.id, events)

    def fail(self, error: GalleryError) -> None:
        if self._over:
            return
        self._over = True
        if not self._accepted:
            self._emit.rejected(self.id, error)
        elif isinstance(error, Cancelled):
            self._emit.events(self.id, [Done("cancelled")])
        else:
            self._emit.events(self.id, [Done("error", error=error.info())])


async def _follow(arriving: Arriving, reader: AnswerReader, exchange: _Exchange, where: Endpoint) -> None:
    """A stream to its end: what each piece of it says is said at once. Raises UpstreamUnavailable when it breaks off."""
    sent = EventReader()
    async with aclosing(arriving.pieces()) as pieces:
        async for piece in pieces:
            for data in sent.feed(piece):
                if data.strip() == b"[DONE]":
                    exchange.say([reader.done()])
                    await arriving.drain()
                    return
                if data.strip():
                    events = reader.chunk(arriving.decoded(data))
                    exchange.say(fitting(events) if len(data) > SMALL else events)
    # Some endpoints send no [DONE]; the reason why the answer ended must have come.
    if not reader.has_ended:
        raise UpstreamUnavailable(f"{where.shown()} broke off in the middle of its answer")
    exchange.say([reader.done()])


def fitting(events: list[Event]) -> list[Event]:
    """The same. Raises UpstreamUnavailable for more than a frame holds, which would end the worker."""
    if (size := len(msgspec.msgpack.encode(events))) > failures.MOST:
        raise UpstreamUnavailable(f"the endpoint said {size} bytes at once, and {failures.MOST} can be passed on")
    return events


def _failure(task: asyncio.Task[None]) -> GalleryError | None:
    """Why it ended early, if it did; what nobody foresaw leaves its traceback in the log."""
    if task.cancelled():
        return Cancelled("the request was withdrawn")
    error = task.exception()
    if error is None or isinstance(error, GalleryError):
        return error
    traceback.print_exception(error, file=sys.stderr)
    return GalleryError(f"{type(error).__name__}: {error}")
