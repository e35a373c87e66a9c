"""Workers that only write prompts: shared, few, gone when nobody needs them."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest
from test_manager import DEADLINE, chat, is_alive

from llmgallery.backends.base import Files
from llmgallery.config.model import ModelConfig, Template
from llmgallery.core.errors import InvalidField, LoadError, Overloaded
from llmgallery.core.requests import ChatRequest
from llmgallery.runtime.handle import Handle
from llmgallery.runtime.light import LightWorkers

ECHO = ModelConfig(name="m")


@asynccontextmanager
async def light(**options: float) -> AsyncIterator[LightWorkers]:
    workers = LightWorkers(**options)  # type: ignore[arg-type]
    try:
        async with asyncio.timeout(DEADLINE):
            yield workers
    finally:
        await workers.stop(Overloaded("no more"))
    assert len(workers) == 0


async def shown(workers: LightWorkers, key: str = "a", config: ModelConfig = ECHO, backend: str = "echo") -> tuple[str, Handle]:
    async with workers.worker(key, "m", backend, config, Files()) as handle:
        return (await handle.render(chat("Hi"), config)).prompt, handle


async def test_who_asks_at_once_shares_one_and_it_ends_when_idle() -> None:
    async with light(idle=0.0) as workers:
        told = await asyncio.gather(*(shown(workers) for _ in range(8)))
        assert {prompt for prompt, _ in told} == {"<|user|>Hi<|end|><|assistant|>"}
        (handle,) = {handle for _, handle in told}
        await handle.ended
        assert not is_alive(handle.pid) and len(workers) == 0


async def test_there_are_few_and_the_longest_idle_goes_first() -> None:
    bare = ModelConfig(template=Template(chat_template="{{ messages[0].content }}"))
    async with light(most=2) as workers:
        _, first = await shown(workers, "a")
        prompt, second = await shown(workers, "b", bare, backend="")
        assert prompt == "Hi" and await shown(workers, "a") == ("<|user|>Hi<|end|><|assistant|>", first)
        _, third = await shown(workers, "c")
        await second.ended
        assert len(workers) == 2 and is_alive(first.pid) and is_alive(third.pid)
    assert not is_alive(first.pid) and not is_alive(third.pid)
    with pytest.raises(Overloaded, match="no more"):
        await shown(workers, "a")


async def test_one_that_does_not_load_is_tried_again_and_one_that_died_is_replaced() -> None:
    async with light() as workers:
        with pytest.raises(LoadError, match="this worker has no backend nothing"):
            await shown(workers, backend="nothing")
        assert len(workers) == 0
        _, handle = await shown(workers)
        await handle.stop()
        _, other = await shown(workers)
        assert other is not handle
        with pytest.raises(InvalidField, match="no text that could be continued"):
            async with workers.worker("a", "m", "echo", ECHO, Files()) as same:
                await same.render(ChatRequest((), continue_final=True), ECHO)
        assert same is other and len(workers) == 1


async def test_a_worker_of_a_vocabulary_answers_nothing() -> None:
    async with light() as workers, workers.worker("a", "m", "echo", ECHO, Files()) as handle:
        with pytest.raises(LoadError, match="nothing is loaded that could answer"):
            await handle.submit(chat("Hi"), ECHO).accepted()
        assert await handle.tokenize("Hi") == (72, 105)
