"""The one worker of all models that are elsewhere: in nobody's way, told each model's configuration with its requests."""

from __future__ import annotations

import asyncio
import os
import signal
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
from loopback_endpoint import Asked, LoopbackEndpoint, answered, whole

from llmgallery.backends.base import Files
from llmgallery.catalog.index import Entry
from llmgallery.config.model import ModelConfig
from llmgallery.core.errors import UpstreamError, UpstreamUnavailable, WorkerDied
from llmgallery.core.events import TextDelta
from llmgallery.core.messages import say
from llmgallery.core.requests import ChatRequest, EmbedRequest
from llmgallery.runtime.handle import Handle
from llmgallery.runtime.keys import is_shared, load_key
from llmgallery.runtime.manager import Manager

DEADLINE = 20
HELLO = ChatRequest((say("user", "Hi"),))


@pytest.fixture
def endpoint() -> Iterator[LoopbackEndpoint]:
    scripted = LoopbackEndpoint()
    yield scripted
    scripted.close()


def entry(name: str, url: str = "http://127.0.0.1:9/v1", **config: Any) -> Entry:
    model = ModelConfig(
        name=name, backend="openai", options={"base_url": url, "api_key": "sk-123456", "connect_retries": 0}, **config
    )
    return Entry(name, Path(f"{name}.yaml"), Path(), model, "openai")


class NoFiles:
    async def ensure(self, entry: Entry, on_bytes: Callable[[int, int], None]) -> Files:
        return Files()


@asynccontextmanager
async def running(**options: Any) -> AsyncIterator[Manager]:
    manager = Manager(NoFiles(), **options)
    await manager.start()
    try:
        async with asyncio.timeout(DEADLINE):
            yield manager
    finally:
        await manager.stop()


async def answer(handle: Handle, of: Entry) -> str:
    answer = handle.submit(HELLO, of.config)
    return "".join([event.text async for event in answer if isinstance(event, TextDelta)])


def test_all_remote_models_have_one_key() -> None:
    one, other = entry("one"), entry("two", "https://x.example/v1", context_size=5)
    assert is_shared("openai") and not is_shared("echo") and not is_shared("nobody")
    assert load_key("openai", one.config, Files()) == load_key("openai", other.config, Files())
    assert load_key("openai", one.config, Files()) != load_key("echo", one.config, Files())


async def test_it_takes_no_memory_and_waits_for_nobody(endpoint: LoopbackEndpoint) -> None:
    endpoint.reply = whole(answered("Hi"))
    async with running(memory_budget=0) as manager:
        await manager._room.acquire()  # as if another model waited for memory
        one, two = entry("one", endpoint.url), entry("two", endpoint.url)
        async with manager.lease(one) as first, manager.lease(two) as second:
            handle = await first.handle()
            assert await second.handle() is handle
            assert [await answer(handle, of) for of in (one, two)] == ["Hi", "Hi"]
        assert [asked.body["model"] for asked in endpoint.asked] == ["one", "two"]
        assert {state.memory_bytes for state in manager.states()} == {0}


async def test_an_edited_file_needs_no_new_worker() -> None:
    async with running() as manager:
        before, other = entry("one"), entry("two")
        for each in (before, other):
            async with manager.lease(each) as lease:
                handle = await lease.handle()
        after = entry("one", "https://elsewhere.example/v1")
        manager.retain({"one": after})
        await asyncio.sleep(0)
        async with manager.lease(after) as lease:
            assert await lease.handle() is handle
        manager.retain({})  # of the last one nobody needs it any more
        await asyncio.shield(handle.ended)


async def test_what_was_sent_is_not_sent_again(endpoint: LoopbackEndpoint) -> None:
    async def waits(asked: Asked) -> AsyncIterator[bytes]:
        await asked.go.wait()
        yield b""

    endpoint.reply = waits
    async with running() as manager, manager.lease(entry("one", endpoint.url)) as lease:
        handle = await lease.handle()
        conversation = handle.submit(HELLO, entry("one", endpoint.url).config)
        vectors = handle.pool(EmbedRequest(("a",)), entry("one", endpoint.url).config)
        await asyncio.to_thread(endpoint.wait_for_request, 2)
        assert not conversation.is_accepted
        os.kill(handle.pid, signal.SIGKILL)
        for waiting in (conversation.accepted(), vectors.vectors()):
            with pytest.raises(WorkerDied, match="all remote models"):
                await waiting
        assert conversation.started and vectors.started


async def test_refusals_carry_what_the_endpoint_said(endpoint: LoopbackEndpoint) -> None:
    endpoint.reply = whole({"error": {"message": "no"}}, 418, retry_after="3")
    async with running() as manager, manager.lease(entry("one", endpoint.url)) as lease:
        handle = await lease.handle()
        with pytest.raises(UpstreamError) as caught:
            await handle.submit(HELLO, entry("one", endpoint.url).config).accepted()
        upstream = caught.value.upstream
        assert upstream is not None and (upstream.status, upstream.body) == (418, {"error": {"message": "no"}})
        with pytest.raises(UpstreamError):
            await handle.pool(EmbedRequest(("a",)), entry("one", endpoint.url).config).vectors()
        with pytest.raises(UpstreamUnavailable):
            await handle.submit(HELLO, entry("one").config).accepted()
        endpoint.reply = whole(answered("Hi"), x_ratelimit_limit_requests="5")
        conversation = handle.submit(HELLO, entry("one", endpoint.url).config)
        await conversation.accepted()
        assert conversation.headers == {"x-ratelimit-limit-requests": "5"}
