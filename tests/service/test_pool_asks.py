"""Embeddings and scores without HTTP: parts put together in order, refusals, a dead worker, a limit, what is counted."""

from __future__ import annotations

import asyncio
import math
import os
import signal
from pathlib import Path
from struct import pack, unpack
from typing import Any

import pytest
from gguf_headers import classifier, write
from hypothesis import given
from hypothesis import strategies as st
from test_gallery import Folder, chat
from test_gallery import folder as folder
from test_metrics import samples

from llmgallery.core.errors import (
    Cancelled,
    ContextExceeded,
    InvalidField,
    Overloaded,
    RequestError,
    UnsupportedField,
    WorkerDied,
)
from llmgallery.core.requests import EmbedRequest, RerankRequest
from llmgallery.service import pooling
from llmgallery.service.gallery import Ask
from llmgallery.service.generation import fold
from llmgallery.service.pooling import PoolAsk, Pooled, parts, placed, scores


def embed(model: str, *inputs: str | tuple[int, ...], **more: Any) -> PoolAsk:
    return PoolAsk(model, EmbedRequest(inputs, **more))


async def result(folder: Folder, ask: PoolAsk) -> Pooled:
    async with await folder.gallery.pool(ask) as entered:
        return await entered.result()


# --- parts -------------------------------------------------------------------------------------------------------------------

INPUTS = st.lists(st.one_of(st.text(max_size=9), st.lists(st.integers(0, 9), max_size=9).map(tuple)), min_size=1, max_size=40)


@given(INPUTS, st.integers(1, 5), st.integers(1, 20))
def test_parts_are_the_whole_in_order_and_within_their_bounds(inputs: list[Any], most: int, units: int) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(pooling, "PART_INPUTS", most)
        patch.setattr(pooling, "PART_UNITS", units)
        embeds = list(parts(EmbedRequest(tuple(inputs), 3, truncate=True)))
        texts = tuple(map(str, inputs))
        reranks = list(parts(RerankRequest("q", texts)))
    assert [item for _, part in embeds for item in part.inputs] == inputs
    assert all(inputs[first] == part.inputs[0] and part.dimensions == 3 and part.truncate for first, part in embeds)
    for _, part in embeds:
        assert len(part.inputs) <= most
        assert len(part.inputs) == 1 or sum(map(len, part.inputs)) <= units
    assert tuple(text for _, part in reranks for text in part.documents) == texts
    assert all(part.query == "q" for _, part in reranks)


def test_an_error_of_a_part_names_the_place_in_the_whole() -> None:
    def place(error: RequestError, **ask: Any) -> tuple[str, str | None]:
        found = placed(error, 256, PoolAsk("m", EmbedRequest(("a",)), **ask))
        assert type(found) is type(error)
        return found.message, found.field

    error = ContextExceeded("input[3] has 9 tokens", field="input[3]")
    assert place(error) == ("input[259] has 9 tokens", "input[259]")
    assert place(error, single=True) == ("input has 9 tokens", "input")
    assert place(ContextExceeded("documents[0] is long", field="documents[0]"), field="texts") == (
        "texts[256] is long",
        "texts[256]",
    )
    assert place(InvalidField("dimensions: no", field="dimensions")) == ("dimensions: no", "dimensions")


@given(st.floats(-(2.0**100), 2.0**100, width=32))
def test_a_sigmoid_is_a_probability_and_keeps_the_order(logit: float) -> None:
    raw, (probability,) = scores([pack("<f", logit)], sigmoid=False), scores([pack("<f", logit)], sigmoid=True)
    assert raw == [logit]
    assert 0 <= probability <= 1
    assert probability == pytest.approx(1 / (1 + math.exp(-max(-700, min(700, logit)))), abs=1e-12)


# --- a gallery ---------------------------------------------------------------------------------------------------------------


async def test_many_parts_come_back_as_one_in_order(folder: Folder, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pooling, "PART_INPUTS", 4)
    folder.add("both", embeddings=True, reranking=True)
    texts = [f"word{index} x" for index in range(30)]
    together = await result(folder, embed("both", *texts))
    one_by_one = [await result(folder, embed("both", text)) for text in texts]
    assert together.vectors == tuple(single.vectors[0] for single in one_by_one)
    assert together.prompt_tokens == sum(single.prompt_tokens for single in one_by_one)
    ranked = await result(folder, PoolAsk("both", RerankRequest("word7 x", tuple(texts))))
    values = [unpack("<f", vector)[0] for vector in ranked.vectors]
    assert values == [1.0 if index == 7 else 0.5 for index in range(30)]


async def test_a_big_request_goes_through_the_wire(folder: Folder) -> None:
    """Three megabytes of text and half of vectors."""
    folder.add("vec", embeddings=True, context_size=2000)
    texts = [f"{index} " + "x" * 1500 for index in range(2048)]
    found = await result(folder, embed("vec", *texts))
    assert len(found.vectors) == 2048 and len(set(found.vectors)) > 32
    assert found.prompt_tokens == sum(map(len, texts))


async def test_others_get_their_turn_between_two_parts(folder: Folder, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pooling, "PART_INPUTS", 1)
    folder.add("vec", embeddings=True, options={"delay_ms": 20})
    async with await folder.gallery.pool(embed("vec", *["long"] * 50)) as long:
        await long.accepted()
        await result(folder, embed("vec", "short"))
        assert len(long._vectors) < 25
        assert len((await long.result()).vectors) == 50


async def test_leaving_cancels_what_runs(folder: Folder, tmp_path: Path) -> None:
    gate = tmp_path / "gate"
    folder.add("vec", embeddings=True, options={"gate": str(gate)})
    async with await folder.gallery.pool(embed("vec", "a")) as left:
        await left.accepted()
        waiting = asyncio.create_task(left.result())
        await folder.until(lambda: left._answer is not None and left._answer.is_accepted)
        answer = left._answer
        assert answer is not None and folder.state("vec").busy == 1
    with pytest.raises(asyncio.CancelledError):
        await waiting
    with pytest.raises(Cancelled):
        await answer.vectors()  # the worker itself says so: the gate is still closed
    assert folder.state("vec").busy == 0
    assert samples(folder.gallery.metrics)["llmgallery_generations_total", "vec", "cancelled"] == 1


async def test_pooled_requests_are_counted_like_generations(folder: Folder) -> None:
    folder.add("vec", embeddings=True)
    await result(folder, embed("vec", "four"))
    with pytest.raises(InvalidField):
        await result(folder, embed("vec", "x", dimensions=65))
    seen = samples(folder.gallery.metrics)
    assert seen["llmgallery_generations_total", "vec", "ok"] == 1
    assert seen["llmgallery_generations_total", "vec", "InvalidField"] == 1
    assert seen["llmgallery_generations_in_progress", "vec"] == 0
    assert seen["llmgallery_tokens_total", "prompt", "vec"] == 4


async def test_the_limit_counts_all_kinds_of_requests(folder: Folder) -> None:
    folder.add("one", embeddings=True, limits={"max_concurrent": 1, "retry_after_seconds": 7})
    async with await folder.gallery.generate(Ask("one", (chat("hi"),))) as generation:
        with pytest.raises(Overloaded, match="already answers 1 requests") as caught:
            await result(folder, embed("one", "a"))
        assert caught.value.retry_after == 7
        assert (await fold(generation))[0].text == "hi"
    assert len((await result(folder, embed("one", "a"))).vectors) == 1


# --- a dead worker -----------------------------------------------------------------------------------------------------------


async def test_what_died_with_the_worker_is_not_tried_again_and_what_waited_is(folder: Folder, tmp_path: Path) -> None:
    gate = tmp_path / "gate"
    folder.add("vec", embeddings=True, parallel=1, options={"gate": str(gate)})
    async with await folder.gallery.pool(embed("vec", "first")) as first:
        await folder.until(lambda: first._answer is not None and first._answer.is_accepted)
        async with await folder.gallery.pool(embed("vec", "second")) as second:
            await folder.until(lambda: second._answer is not None and second._answer.is_accepted)
            os.kill(folder.state("vec").pid, signal.SIGKILL)
            with pytest.raises(WorkerDied):
                await first.result()
            gate.touch()
            assert len((await second.result()).vectors) == 1
    assert folder.gallery.manager.restarts == 1


async def test_a_request_that_kills_its_worker_kills_one_only(folder: Folder) -> None:
    folder.add("vec", embeddings=True, options={"crash_on": "die"})
    with pytest.raises(WorkerDied, match="SIGSEGV"):
        await result(folder, embed("vec", "die"))
    assert len((await result(folder, embed("vec", "live"))).vectors) == 1
    assert folder.gallery.manager.restarts == 1


async def test_a_worker_that_died_between_two_parts_is_replaced(folder: Folder, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pooling, "PART_INPUTS", 1)
    folder.add("vec", embeddings=True)
    async with await folder.gallery.pool(embed("vec", "one", "two")) as entered:
        acquire, pids = entered._acquire, []

        async def killing(dead: Any) -> Any:
            handle = await acquire(dead)
            pids.append(handle.pid)
            if len(pids) == 2:
                os.kill(handle.pid, signal.SIGKILL)
                await handle.ended
            return handle

        monkeypatch.setattr(entered, "_acquire", killing)
        assert len((await entered.result()).vectors) == 2
    assert pids[0] == pids[1] != pids[2]


# --- what a model is for -----------------------------------------------------------------------------------------------------


async def refused(folder: Folder, ask: PoolAsk | Ask) -> str:
    """The refusal, which must come without a load."""
    with pytest.raises(UnsupportedField) as caught:
        await (folder.gallery.pool(ask) if isinstance(ask, PoolAsk) else folder.gallery.generate(ask))
    assert folder.gallery.manager.states() == []
    assert caught.value.field == "model"
    return caught.value.message


async def test_weights_that_lie_here_decide_before_a_load(folder: Folder) -> None:
    write(folder.path / "enc.gguf", "bert")
    write(folder.path / "rank.gguf", "bert", classifier)
    write(folder.path / "chat.gguf", "llama")
    for name in ("enc", "rank", "chat"):
        folder.add(f"my-{name}", backend="llama-cpp", parameters={"model": f"{name}.gguf"})
    asks = {
        "generate": lambda name: Ask(name, (chat("hi"),)),
        "embed": lambda name: embed(name, "a"),
        "rerank": lambda name: PoolAsk(name, RerankRequest("q", ("d",))),
    }
    made_for = {"enc": "embed", "rank": "rerank", "chat": "generate"}
    said = {
        (name, use): await refused(folder, ask(f"my-{name}"))
        for name, own in made_for.items()
        for use, ask in asks.items()
        if use != own
    }
    assert said["enc", "generate"] == (
        "model my-enc writes no text: its weights (bert) are made for embeddings; ask another model"
    )
    assert "my-chat makes no embeddings: its weights (llama)" in said["chat", "embed"]
    assert "`embeddings: true` in its YAML" in said["chat", "embed"]
    assert "`reranking: true` in its YAML" in said["enc", "rerank"]
    assert "made for reranking" in said["rank", "embed"]


async def test_a_switch_in_the_yaml_decides_over_the_weights(folder: Folder) -> None:
    write(folder.path / "enc.gguf", "bert")
    folder.add("off", backend="llama-cpp", parameters={"model": "enc.gguf"}, embeddings=False)
    assert "`embeddings: false` is set" in await refused(folder, embed("off", "a"))
    write(folder.path / "chat.gguf", "llama")
    folder.add("on", backend="llama-cpp", parameters={"model": "chat.gguf"}, embeddings=True)
    assert (await folder.gallery.pool(embed("on", "a"))).name == "on"


@pytest.mark.parametrize("keys", [{"options": {"pooling": "mean"}}, {"parameters": {"pooling": "mean"}}])
async def test_a_pooling_in_the_yaml_is_the_backends_to_judge(folder: Folder, keys: dict[str, dict[str, str]]) -> None:
    write(folder.path / "rank.gguf", "bert", classifier)
    parameters = {"model": "rank.gguf", **keys.get("parameters", {})}
    folder.add("otherwise", backend="llama-cpp", **{**keys, "parameters": parameters})
    assert (await folder.gallery.pool(embed("otherwise", "a"))).name == "otherwise"


async def test_else_the_loaded_model_decides(folder: Folder) -> None:
    folder.add("text")
    with pytest.raises(UnsupportedField, match="model text makes no embeddings: it is loaded for writing text; set `embeddings"):
        await result(folder, embed("text", "a"))
    folder.add("enc", embeddings=True, options={"encoder": True})
    assert len((await result(folder, embed("enc", "a"))).vectors) == 1
    async with await folder.gallery.generate(Ask("enc", (chat("hi"),))) as generation:
        with pytest.raises(UnsupportedField, match="model enc writes no text: it is loaded for embeddings; ask another model"):
            await generation.accepted()
