"""Server-sent events of jobs: their state now and each change, as GET /models/jobs/{uuid} tells it."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import aclosing, suppress

import msgspec
from litestar.types import Receive, Scope, Send

from llmgallery.api.dialects.localai.convert import job_body
from llmgallery.api.errors import ClientGone
from llmgallery.api.respond import IDLE_SECONDS, while_connected
from llmgallery.core.installs import Install

OVER = "over"
"""The id of the last event. A browser that connects again says it, and then is told to leave it at that."""

_HEADERS = [
    (b"content-type", b"text/event-stream; charset=utf-8"),
    (b"cache-control", b"no-cache"),
    (b"x-accel-buffering", b"no"),
]


class JobEvents:
    """An ASGI app that streams `states` until they end, or `leaving` is set because the server stops: an open stream would
    hold that up. Comments keep a silent stream open."""

    def __init__(self, states: AsyncIterator[Install], leaving: asyncio.Event, *, idle: float = IDLE_SECONDS) -> None:
        self._states = states
        self._leaving = leaving
        self._idle = idle

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        with suppress(ClientGone):
            await while_connected(receive, self._run(send))

    async def _run(self, send: Send) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": _HEADERS})
        await send({"type": "http.response.body", "body": b": jobs\n\n", "more_body": True})  # headers go out at once
        async with aclosing(self._pieces()) as pieces:
            async for piece in pieces:
                await send({"type": "http.response.body", "body": piece, "more_body": True})
        await send({"type": "http.response.body", "body": b"", "more_body": False})

    async def _pieces(self) -> AsyncGenerator[bytes, None]:
        """Events, and a comment whenever `idle` seconds have passed without one."""
        leaving = asyncio.ensure_future(self._leaving.wait())
        coming = asyncio.ensure_future(anext(self._states))
        try:
            while not leaving.done():
                await asyncio.wait({coming, leaving}, timeout=self._idle, return_when=asyncio.FIRST_COMPLETED)
                if not coming.done():
                    yield b": keep-alive\n\n"
                    continue
                with suppress(StopAsyncIteration):
                    yield _event(coming.result())
                    coming = asyncio.ensure_future(anext(self._states))
                    continue
                return
        finally:
            for task in (leaving, coming):
                task.cancel()
            await asyncio.gather(leaving, coming, return_exceptions=True)
            if isinstance(self._states, AsyncGenerator):
                await self._states.aclose()


def _event(state: Install) -> bytes:
    last = f"id: {OVER}\n".encode() if state.is_over else b""
    return last + b"data: " + msgspec.json.encode(job_body(state)) + b"\n\n"
