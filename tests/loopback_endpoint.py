"""An endpoint on loopback that says, byte by byte, what a test wants it to say; and an emit that keeps what it is told."""

from __future__ import annotations

import asyncio
import json
import threading
from collections.abc import AsyncIterator, Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

from llmgallery.backends.base import Conversation, Files, Pooled
from llmgallery.backends.openai.backend import OpenAIBackend
from llmgallery.config.model import ModelConfig
from llmgallery.core.errors import GalleryError
from llmgallery.core.events import Done, Event, TextDelta
from llmgallery.core.messages import say
from llmgallery.core.requests import ChatRequest, Request

SECONDS = 20


@dataclass
class Asked:
    """One request that came. `left`: set once the client has closed the connection."""

    method: str
    path: str
    headers: dict[str, str]
    body: Any
    go: asyncio.Event = field(default_factory=asyncio.Event)
    left: threading.Event = field(default_factory=threading.Event)


Reply = Callable[[Asked], AsyncIterator[bytes]]


def head(status: int = 200, kind: str = "application/json", length: int | None = None, **headers: str) -> bytes:
    lines = [f"HTTP/1.1 {status} Said", f"content-type: {kind}", *(f"{k.replace('_', '-')}: {v}" for k, v in headers.items())]
    lines.append("transfer-encoding: chunked" if length is None else f"content-length: {length}")
    return "\r\n".join([*lines, "", ""]).encode()


def piece(data: bytes | str) -> bytes:
    data = data.encode() if isinstance(data, str) else data
    return f"{len(data):x}\r\n".encode() + data + b"\r\n"


END = b"0\r\n\r\n"


def event(value: Any) -> str:
    return f"data: {value if isinstance(value, str) else json.dumps(value)}\n\n"


def whole(body: Any, status: int = 200, kind: str = "application/json", **headers: str) -> Reply:
    data = body if isinstance(body, bytes) else json.dumps(body).encode()

    async def reply(asked: Asked) -> AsyncIterator[bytes]:
        yield head(status, kind, len(data), **headers) + data

    return reply


def stream(*values: Any, end: bool = True, **headers: str) -> Reply:
    """Each value in a piece of its own; bytes as they are."""

    async def reply(asked: Asked) -> AsyncIterator[bytes]:
        yield head(kind="text/event-stream", **headers)
        for value in values:
            yield piece(value if isinstance(value, bytes) else event(value))
        if end:
            yield piece(event("[DONE]")) + END

    return reply


def chunk(content: str | None = None, finish: str | None = None, **delta: Any) -> dict[str, Any]:
    said = {**({} if content is None else {"content": content}), **delta}
    return {"id": "x", "object": "chat.completion.chunk", "choices": [{"index": 0, "delta": said, "finish_reason": finish}]}


def answered(content: str, **fields: Any) -> dict[str, Any]:
    choice = {"index": 0, "message": {"role": "assistant", "content": content}, "finish_reason": "stop"}
    return {"id": "x", "object": "chat.completion", "choices": [choice], **fields}


class LoopbackEndpoint:
    """`reply` may be changed at any time. `asked`: what came, in order."""

    def __init__(self) -> None:
        self.reply: Reply = whole({})
        self.asked: list[Asked] = []
        self.connections = 0
        self.loop = asyncio.new_event_loop()
        self._changed = threading.Condition()
        self._thread = threading.Thread(target=self.loop.run_forever, daemon=True)
        self._thread.start()
        self._server = asyncio.run_coroutine_threadsafe(self._serve(), self.loop).result()
        self.port: int = self._server.sockets[0].getsockname()[1]
        self.url = f"http://127.0.0.1:{self.port}/v1"

    async def _serve(self) -> asyncio.Server:
        return await asyncio.start_server(self._connected, "127.0.0.1", 0)

    async def _connected(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.connections += 1
        try:
            while await self._answer(reader, writer):
                pass
        except (ConnectionError, asyncio.IncompleteReadError, asyncio.CancelledError):
            pass
        finally:
            writer.close()

    async def _answer(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> bool:
        """False = the connection is at its end."""
        first = await reader.readuntil(b"\r\n\r\n")
        line, *lines = first.decode().strip().split("\r\n")
        headers = {name.lower(): value for name, _, value in (each.partition(": ") for each in lines)}
        body = await reader.readexactly(int(headers.get("content-length", 0)))
        method, path, _ = line.split(" ")
        asked = Asked(method, path, headers, json.loads(body) if body else None)
        with self._changed:
            self.asked.append(asked)
            self._changed.notify_all()
        watch = asyncio.ensure_future(self._watch(reader, asked))
        try:
            data = b""
            async for data in self.reply(asked):
                writer.write(data)
                await writer.drain()
            return data.endswith(END) or b"content-length" in data
        finally:
            if not asked.left.is_set():
                watch.cancel()
            await asyncio.gather(watch, return_exceptions=True)

    async def _watch(self, reader: asyncio.StreamReader, asked: Asked) -> None:
        """Nothing comes while we answer, but perhaps the end."""
        while not reader.at_eof() and reader.exception() is None:  # noqa: ASYNC110 - a read would take the next request's bytes
            await asyncio.sleep(0.002)
        asked.left.set()
        asked.go.set()

    def wait_for_request(self, count: int = 1) -> Asked:
        with self._changed:
            assert self._changed.wait_for(lambda: len(self.asked) >= count, SECONDS)
            return self.asked[count - 1]

    def release(self, asked: Asked) -> None:
        self.loop.call_soon_threadsafe(asked.go.set)

    def close(self) -> None:
        async def end() -> None:
            self._server.close()
            others = asyncio.all_tasks() - {asyncio.current_task()}
            for task in others:
                task.cancel()
            await asyncio.gather(*others, return_exceptions=True)

        asyncio.run_coroutine_threadsafe(end(), self.loop).result()
        self.loop.call_soon_threadsafe(self.loop.stop)
        self._thread.join()
        self.loop.close()


class RemoteListener:
    """A RemoteEmit that keeps everything it is told, and can wait for it."""

    def __init__(self) -> None:
        self.heads: dict[int, Mapping[str, str]] = {}
        self.refusals: dict[int, GalleryError] = {}
        self.calls: dict[int, list[Sequence[Event]]] = {}
        self.vectors: dict[int, Pooled] = {}
        self.failure: BaseException | None = None
        self._ended: set[int] = set()
        self._changed = threading.Condition()

    def progress(self, fraction: float) -> None: ...

    def accepted(self, id: int, headers: Mapping[str, str]) -> None:
        with self._changed:
            assert id not in self.heads and id not in self.refusals
            self.heads[id] = headers
            self._changed.notify_all()

    def rejected(self, id: int, error: GalleryError) -> None:
        with self._changed:
            assert id not in self.heads and id not in self.refusals
            self.refusals[id] = error
            self._changed.notify_all()

    def events(self, id: int, events: Sequence[Event]) -> None:
        with self._changed:
            assert id in self.heads and id not in self._ended
            self._ended.update(id for event in events if isinstance(event, Done))
            self.calls.setdefault(id, []).append(events)
            self._changed.notify_all()

    def pooled(self, result: Pooled) -> None:
        with self._changed:
            assert result.id not in self.vectors
            self.vectors[result.id] = result
            self._changed.notify_all()

    def fatal(self, error: BaseException) -> None:
        self.failure = error

    def said(self, id: int) -> list[Event]:
        return [event for events in self.calls.get(id, []) for event in events]

    def done(self, id: int) -> Done | None:
        if id not in self._ended:
            return None
        return next(event for event in self.said(id) if isinstance(event, Done))

    def text(self, id: int) -> str:
        return "".join(event.text for event in self.said(id) if isinstance(event, TextDelta))

    def wait(self, passed: Callable[[], bool]) -> None:
        with self._changed:
            assert self._changed.wait_for(passed, SECONDS), (self.calls, self.refusals, self.failure)

    def wait_for_end(self, *ids: int) -> None:
        self.wait(lambda: all(id in self.refusals or id in self.vectors or self.done(id) for id in ids))


class Client:
    """A backend, what it says, and the endpoint that it asks."""

    def __init__(self, server: LoopbackEndpoint) -> None:
        self.server = server
        self.heard = RemoteListener()
        self.backend = OpenAIBackend()
        self.loaded = self.backend.load(ModelConfig(), Files(), self.heard)
        self._ids = 0

    def config(self, **options: Any) -> ModelConfig:
        return ModelConfig(name="far", backend="openai", options={"base_url": self.server.url, **options})

    def begin(self, request: Request | None = None, config: ModelConfig | None = None, *, streamed: bool = True) -> int:
        self._ids += 1
        request = request or ChatRequest((say("user", "Hi"),))
        self.backend.converse(Conversation(self._ids, request, config or self.config(), streamed))
        return self._ids

    def ask(self, request: Request | None = None, config: ModelConfig | None = None, *, streamed: bool = True) -> int:
        id = self.begin(request, config, streamed=streamed)
        self.heard.wait_for_end(id)
        return id

    def refused(self, config: ModelConfig | None = None, *, streamed: bool = True) -> GalleryError:
        return self.heard.refusals[self.ask(config=config, streamed=streamed)]

    def next_id(self) -> int:
        self._ids += 1
        return self._ids


@contextmanager
def far_model() -> Iterator[Client]:
    server = LoopbackEndpoint()
    client = Client(server)
    try:
        yield client
    finally:
        client.backend.close()
        server.close()
