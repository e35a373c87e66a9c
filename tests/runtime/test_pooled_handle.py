"""Embeddings and scores through a real worker process: order, cancels, refusals, and the worker's end."""

from __future__ import annotations

import asyncio
import os
import signal
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from struct import unpack

import pytest

from llmgallery.backends.base import Files
from llmgallery.config.model import ModelConfig
from llmgallery.core.errors import Cancelled, ContextExceeded, InvalidField, UnsupportedField, WorkerDied
from llmgallery.core.messages import say
from llmgallery.core.requests import ChatRequest, EmbedRequest, RerankRequest
from llmgallery.runtime.handle import Handle

DEADLINE = 20


@asynccontextmanager
async def loaded(**config: object) -> AsyncIterator[Handle]:
    model = ModelConfig(name="m", **{"embeddings": True, "reranking": True, **config})  # type: ignore[arg-type]
    async with asyncio.timeout(DEADLINE):
        handle = await Handle.start("m", "echo", model, Files(), lambda fraction: None)
        try:
            yield handle
        finally:
            await handle.stop()


def embed(*texts: str) -> EmbedRequest:
    return EmbedRequest(texts)


async def test_vectors_come_back_in_order_and_are_counted() -> None:
    async with loaded() as handle:
        assert {"embed", "rerank", "generate"} <= set(handle.ready.capabilities)
        answers = [handle.pool(embed("one", "two", f"number {index}"), ModelConfig()) for index in range(5)]
        reports = [await answer.vectors() for answer in answers]
        (alone,) = (await handle.pool(embed("one"), ModelConfig()).vectors()).vectors
        scores = await handle.pool(RerankRequest("red fox", ("a fox", "red fox", "bird")), ModelConfig()).vectors()
    assert {len(vector) for report in reports for vector in report.vectors} == {64 * 4}
    assert all(report.vectors[0] == alone and report.prompt_tokens == 6 + 8 for report in reports)
    assert len({report.vectors[2] for report in reports}) == 5
    assert [unpack("<f", score)[0] for score in scores.vectors] == [0.5, 1.0, 0.0]
    assert handle.open_answers == 0


async def test_a_refusal_is_an_error_and_the_worker_goes_on() -> None:
    async with loaded(context_size=10) as handle:
        with pytest.raises(ContextExceeded) as caught:
            await handle.pool(embed("short", "much too long"), ModelConfig()).vectors()
        assert caught.value.field == "input[1]"
        with pytest.raises(InvalidField, match="64 numbers"):
            await handle.pool(EmbedRequest(("a",), 65), ModelConfig()).vectors()
        assert len((await handle.pool(embed("a"), ModelConfig()).vectors()).vectors) == 1


async def test_a_model_without_embeddings_refuses() -> None:
    async with loaded(embeddings=None) as handle:
        with pytest.raises(UnsupportedField):
            await handle.pool(embed("a"), ModelConfig()).vectors()
        assert await handle.pool(RerankRequest("a", ("a",)), ModelConfig()).vectors()


async def test_running_and_waiting_requests_can_be_cancelled(tmp_path: Path) -> None:
    gate = tmp_path / "gate"
    async with loaded(options={"gate": str(gate)}) as handle:
        running, waiting, kept = (handle.pool(embed(text), ModelConfig()) for text in ("running", "waiting", "kept"))
        for answer in (waiting, running, running):
            answer.cancel()
        for answer in (running, waiting):
            with pytest.raises(Cancelled):
                await answer.vectors()
        gate.touch()
        assert len((await kept.vectors()).vectors) == 1
        kept.cancel()
        assert handle.open_answers == 0


async def test_a_cancel_of_one_kind_leaves_the_other_alone(tmp_path: Path) -> None:
    gate = tmp_path / "gate"
    async with loaded(options={"gate": str(gate)}) as handle:
        vectors = handle.pool(embed("kept"), ModelConfig())
        answer = handle.submit(ChatRequest((say("user", "gone"),)), ModelConfig())
        await answer.accepted()
        answer.cancel()
        reasons = [event.reason async for event in answer if hasattr(event, "reason")]
        assert reasons == ["cancelled"]
        gate.touch()
        assert len((await vectors.vectors()).vectors) == 1


async def test_who_waits_when_the_worker_dies_hears_of_it(tmp_path: Path) -> None:
    async with loaded(options={"gate": str(tmp_path / "gate")}) as handle:
        answers = [handle.pool(embed("a"), ModelConfig()), handle.pool(RerankRequest("q", ("d",)), ModelConfig())]
        await handle.tokenize("answered after both are with the backend")
        os.kill(handle.pid, signal.SIGKILL)
        for answer in answers:
            with pytest.raises(WorkerDied, match="SIGKILL"):
                await answer.vectors()
            assert answer.started
        late = handle.pool(embed("b"), ModelConfig())
        with pytest.raises(WorkerDied):
            await late.vectors()
        assert not late.started
