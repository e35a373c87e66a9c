"""Everything that a model is loaded from is brought, counted as one, and decides who shares a worker."""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from gguf_files import lora
from loopback_hub import LoopbackHub

from llmgallery import paths
from llmgallery.backends.base import Files
from llmgallery.backends.loader import specs
from llmgallery.catalog.hub import Hub
from llmgallery.catalog.hub_settings import HubSettings
from llmgallery.catalog.index import Entry
from llmgallery.config.model import ModelConfig, Parameters
from llmgallery.core.errors import BackendMissing, BadWeights, HubNotFound, HubOffline, LoadError
from llmgallery.core.events import Done
from llmgallery.core.requests import CompletionRequest
from llmgallery.core.sampling import Sampling
from llmgallery.runtime.files import WeightFiles
from llmgallery.runtime.keys import load_key
from llmgallery.runtime.manager import Manager

POCKET = paths.builtin("models") / "pocket-f16.gguf"
REPO = "someone/model"
PIECES = {"model.gguf": b"w" * 300_000, "lora.gguf": b"a" * 20_000, "draft.gguf": b"d" * 50_000}
REMOTE = {"lora_adapters": [f"{REPO}/lora.gguf"], "draft_model": f"{REPO}/draft.gguf"}


def entry(folder: Path, model: str | None, backend: str | None = "llama-cpp", **keys) -> Entry:
    config = ModelConfig(name="m", parameters=Parameters(model=model), **keys)
    return Entry("m", folder / "m.yaml", folder, config, backend)


@pytest.fixture
async def mine(hub: LoopbackHub, tmp_path: Path) -> AsyncIterator[Hub]:
    for name, data in PIECES.items():
        hub.add(REPO, name, data)
    made = Hub(HubSettings(hub.url, tmp_path / "cache"), sleep=lambda seconds: asyncio.sleep(0))
    yield made
    await made.aclose()


async def test_all_files_are_downloaded_and_counted_together(mine: Hub, tmp_path: Path) -> None:
    wanted = entry(tmp_path, f"{REPO}/model.gguf", **REMOTE)
    files, told = WeightFiles(mine), []
    assert not files.present(wanted)
    brought = await files.ensure(wanted, lambda done, total: told.append((done, total)))
    assert [file.read_bytes() for group in (brought.weights, brought.adapters, brought.draft) for file in group] == [
        *PIECES.values()
    ]
    assert told[-1] == (370_000, 370_000)
    assert all(done <= total for done, total in told)
    assert files.present(wanted)


async def test_one_missing_companion_is_enough(mine: Hub, tmp_path: Path) -> None:
    files = WeightFiles(mine)
    await files.ensure(entry(tmp_path, f"{REPO}/model.gguf"), lambda done, total: None)
    assert files.present(entry(tmp_path, f"{REPO}/model.gguf"))
    assert not files.present(entry(tmp_path, f"{REPO}/model.gguf", **REMOTE))
    with pytest.raises(HubNotFound):
        await files.ensure(entry(tmp_path, f"{REPO}/model.gguf", draft_model=f"{REPO}/gone.gguf"), lambda done, total: None)


async def test_offline_names_what_is_missing(hub: LoopbackHub, mine: Hub, tmp_path: Path) -> None:
    await WeightFiles(mine).ensure(entry(tmp_path, f"{REPO}/model.gguf"), lambda done, total: None)
    offline = Hub(HubSettings(hub.url, tmp_path / "cache", offline=True))
    with pytest.raises(HubOffline, match=r"lora\.gguf is not in"):
        await WeightFiles(offline).ensure(
            entry(tmp_path, f"{REPO}/model.gguf", lora_adapters=[f"{REPO}/lora.gguf"]), lambda done, total: None
        )
    await offline.aclose()


async def test_local_files_and_downloads_mix(mine: Hub, tmp_path: Path) -> None:
    (tmp_path / "near.gguf").write_bytes(b"near")
    wanted = entry(tmp_path, str(POCKET), lora_adapters=["near.gguf", f"{REPO}/lora.gguf", "near.gguf"])
    brought = await WeightFiles(mine).ensure(wanted, lambda done, total: None)
    assert brought.weights == (POCKET,)
    assert [file.read_bytes()[:1] for file in brought.adapters] == [b"n", b"a", b"n"]


async def test_backends_that_use_none_get_none(mine: Hub, tmp_path: Path) -> None:
    assert await WeightFiles(mine).ensure(entry(tmp_path, None, "echo", **REMOTE), lambda done, total: None) == Files()
    assert WeightFiles(mine).present(entry(tmp_path, None, "echo", **REMOTE))


async def test_a_backend_that_cannot_run_here_gets_none(mine: Hub, tmp_path: Path) -> None:
    """Neither what would have to be fetched, nor what lies here: no worker is started only to find that out."""
    (tmp_path / "folder").mkdir()
    nowhere = replace(specs()["exllamav2"], hardware=(), requires=("no_such_library",))
    files = WeightFiles(mine, lambda: {nowhere.name: nowhere})
    for model, what in (("folder", "loaded"), (f"{REPO}/model.gguf", "fetched")):
        with pytest.raises(BackendMissing, match=f"^model m is not {what}: backend exllamav2 needs no_such_library"):
            await files.ensure(entry(tmp_path, model, "exllamav2"), lambda done, total: None)
    assert not files.present(entry(tmp_path, f"{REPO}/model.gguf"))


# --- who shares a worker -------------------------------------------------------------------------------------------------------


def test_the_load_key_knows_files_not_their_names(tmp_path: Path) -> None:
    files = {name: tmp_path / name for name in ("w", "a", "b", "d")}
    for file in files.values():
        file.write_bytes(b"12345")
    w, a, b, d = files.values()

    def key(*groups: tuple[Path, ...], **keys) -> str:
        return load_key("llama-cpp", ModelConfig(**keys), Files(*groups))

    plain = key((w,))
    assert len({plain, key((w,), (a,)), key((w,), (), (a,)), key((w,), (a, b)), key((w,), (b, a)), key((w,), (a,), (d,))}) == 6
    assert key((w,), (a,), lora_adapters=["a"]) == key((w,), (a,), lora_adapters=["./a"]) == key((w,), (a,), lora_adapter="a")
    assert key((w,), (), (d,), draft_model="d") == key((w,), (), (d,), draft_model="./d")
    assert key((w,), (a,), lora_scales=[0.5]) != key((w,), (a,))
    assert key((w,), (), (d,), n_draft=2) != key((w,), (), (d,))
    before = key((w,), (a,))
    os.utime(a, ns=(1, 1))
    assert key((w,), (a,)) != before
    a.unlink()
    with pytest.raises(LoadError, match="cannot be read"):
        key((w,), (a,))


# --- with a real worker --------------------------------------------------------------------------------------------------------


async def answer(who: Entry, hub: Hub) -> tuple[str, int]:
    """What the worker of this model says to a fixed prompt, and how many guesses were met."""
    manager = Manager(WeightFiles(hub))
    await manager.start()
    try:
        async with asyncio.timeout(60), manager.lease(who) as lease:
            handle = await lease.handle()
            given = handle.submit(
                CompletionRequest(prompt="The capital of Qatar is", sampling=Sampling(temperature=0, max_tokens=12)), who.config
            )
            await given.accepted()
            text = "".join([event.text async for event in given if not isinstance(event, Done)])
            assert handle.stats is not None
            return text, handle.stats.met
    finally:
        await manager.stop()


async def test_a_worker_gets_adapters_and_draft_model(mine: Hub, tmp_path: Path) -> None:
    random = np.random.default_rng(0)
    pair = (random.normal(0, 1, (4, 192)), random.normal(0, 1, (192, 4)))
    lora(tmp_path / "loud.gguf", {"blk.0.attn_output.weight": pair, "blk.3.attn_output.weight": pair})
    small = {"context_size": 256, "parallel": 1}
    plain, _ = await answer(entry(tmp_path, str(POCKET), **small), mine)
    drafted, met = await answer(entry(tmp_path, str(POCKET), **small, draft_model=str(POCKET)), mine)
    changed, _ = await answer(entry(tmp_path, str(POCKET), **small, lora_adapters=["loud.gguf"], lora_scales=[3.0]), mine)
    assert drafted == plain and met > 0
    assert changed != plain


async def test_a_wrong_adapter_starts_no_worker(mine: Hub, tmp_path: Path) -> None:
    lora(tmp_path / "other.gguf", {}, architecture="qwen2")
    with pytest.raises(BadWeights, match="is for the architecture qwen2, this model is llama"):
        await answer(entry(tmp_path, str(POCKET), lora_adapters=["other.gguf"]), mine)
