"""Models that are folders of the Hub: which files come, and when a snapshot counts as whole."""

from __future__ import annotations

import asyncio
import json
import logging
import threading
from itertools import pairwise
from pathlib import Path

import pytest
from loopback_hub import LoopbackHub
from weight_folders import llama_files, safetensors, write_folder

from llmgallery.catalog.hub import Hub
from llmgallery.catalog.hub_cache import RepoCache, cached_files
from llmgallery.catalog.hub_settings import HubSettings
from llmgallery.catalog.reference import HubReference, Whole
from llmgallery.core.errors import BadWeights, HubNotFound, HubOffline, HubUnavailable

REPO = "someone/tiny"
NOT_NEEDED = {
    "README.md": b"# Tiny",
    ".gitattributes": b"",
    "pytorch_model.bin": b"PK",
    "tf_model.h5": b"h5",
    "flax_model.msgpack": b"",
    "onnx/model.onnx": b"onnx",
    "onnx/config.json": b"{}",
    "original/consolidated.00.pth": b"PK",
    "openvino/openvino_model.xml": b"<net />",
    "openvino/openvino_model.bin": b"bin",
    "modeling_tiny.py": b"raise SystemExit",
    "training_args.bin": b"PK",
}


def fill(hub: LoopbackHub, files: dict[str, bytes], repo: str = REPO) -> str:
    for name, data in files.items():
        commit = hub.add(repo, name, data, lfs=name.endswith((".safetensors", ".bin", ".onnx")))
    return commit


def files_in(folder: Path) -> set[str]:
    return {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}


def wait_for_partial(folder: Path, size: int) -> None:
    """Until that much of a file is on the disk."""
    done = threading.Event()
    for _ in range(4000):
        if any(file.stat().st_size >= size for file in folder.rglob("*.part")):
            return
        done.wait(0.005)
    raise AssertionError("nothing arrived on the disk")


async def test_everything_that_is_needed_comes_and_nothing_else(hub: LoopbackHub, ours: Hub, cache: Path) -> None:
    commit = fill(hub, {**llama_files(), **NOT_NEEDED})
    told: list[tuple[int, int]] = []
    (folder,) = await ours.ensure(HubReference(REPO), lambda done, total: told.append((done, total)))
    assert folder == cache / "models--someone--tiny" / "snapshots" / commit
    assert files_in(folder) == set(llama_files())
    for name, data in llama_files().items():
        assert (folder / name).read_bytes() == data
    size = sum(map(len, llama_files().values()))
    assert told[-1] == (size, size)
    assert all(before[0] <= after[0] for before, after in pairwise(told))
    assert ours.cached(HubReference(REPO)) == [folder]
    assert set(cached_files(cache, HubReference(REPO)) or ()) == {folder / name for name in llama_files()}


async def test_a_commit_that_is_whole_needs_no_request(hub: LoopbackHub, ours: Hub) -> None:
    commit = fill(hub, llama_files())
    for reference in (HubReference(REPO, revision=commit), HubReference(REPO, revision=commit, whole=Whole())):
        (folder,) = await ours.ensure(reference)
        before = len(hub.requests)
        assert await ours.ensure(reference) == [folder]
        assert len(hub.requests) == before


async def test_a_branch_that_has_not_moved_costs_two_requests_and_no_bytes(hub: LoopbackHub, ours: Hub) -> None:
    fill(hub, llama_files())
    (folder,) = await ours.ensure(HubReference(REPO))
    before = len(hub.requests)
    assert await ours.ensure(HubReference(REPO)) == [folder]
    assert len(hub.requests) == before + 2


async def test_a_snapshot_is_half_until_its_last_file(hub: LoopbackHub, ours: Hub, cache: Path) -> None:
    """At no moment does anybody take it for a model."""
    commit = fill(hub, llama_files())
    reference = HubReference(REPO, revision=commit)
    last = "model-00002-of-00002.safetensors"
    hold = hub.hold(last, 100)
    task = asyncio.create_task(ours.ensure(reference))
    await asyncio.to_thread(hub.wait_for_bytes, last, 1)
    folder = RepoCache(cache, REPO).snapshot(commit)
    assert (folder / "config.json").is_file()
    assert ours.cached(reference) is None
    offline = Hub(HubSettings(hub.url, cache, offline=True))
    with pytest.raises(HubOffline, match=f"{REPO}@{commit} is not in"):
        await offline.ensure(reference)
    hold.set()
    assert await task == [folder]
    assert await offline.ensure(reference) == [folder]
    (folder / "tokenizer.json").unlink()
    assert offline.cached(reference) is None
    await offline.aclose()


async def test_what_was_broken_off_goes_on_where_it_was(hub: LoopbackHub, ours: Hub, cache: Path) -> None:
    big = safetensors({"a": ("F32", (64, 1024))})
    commit = fill(hub, {"config.json": b"{}", "tokenizer.json": b"{1}", "model.safetensors": big})
    hold = hub.hold("model.safetensors", len(big) // 2)
    first = Hub(HubSettings(hub.url, cache))
    task = asyncio.create_task(first.ensure(HubReference(REPO)))
    await asyncio.to_thread(hub.wait_for_bytes, "model.safetensors", len(big) // 2)
    await asyncio.to_thread(wait_for_partial, cache, len(big) // 4)
    await first.aclose()
    await asyncio.gather(task, return_exceptions=True)
    hold.set()
    (folder,) = await ours.ensure(HubReference(REPO))
    assert (folder / "model.safetensors").read_bytes() == big
    ranges = [seen.headers.get("Range", "") for seen in hub.seen("GET", "model.safetensors", "storage")]
    assert int(ranges[-1].removeprefix("bytes=").partition("-")[0]) >= len(big) // 4
    assert hub.sent("tokenizer.json") == 3
    assert folder.name == commit


async def test_a_file_that_is_cut_comes_again(hub: LoopbackHub, ours: Hub, caplog: pytest.LogCaptureFixture) -> None:
    commit = fill(hub, llama_files())
    reference = HubReference(REPO, revision=commit)
    (folder,) = await ours.ensure(reference)
    shard = folder / "model-00001-of-00002.safetensors"
    blob = shard.resolve()
    blob.write_bytes(blob.read_bytes()[:-1])
    assert ours.cached(reference) is None
    with caplog.at_level(logging.WARNING):
        assert await ours.ensure(reference) == [folder]
    assert shard.read_bytes() == llama_files()[shard.name]
    assert "is cut, and fetched again" in caplog.text


async def test_a_wrong_checksum_is_no_model(hub: LoopbackHub, ours: Hub) -> None:
    fill(hub, llama_files())
    hub.corrupt("model-00001-of-00002.safetensors", times=1)
    (folder,) = await ours.ensure(HubReference(REPO))
    assert (folder / "model-00001-of-00002.safetensors").read_bytes() == llama_files()["model-00001-of-00002.safetensors"]


async def test_the_modules_of_sentence_transformers_come(hub: LoopbackHub, ours: Hub) -> None:
    wanted = {
        "config.json": b"{}",
        "model.safetensors": safetensors({"a": ("F32", (1,))}),
        "modules.json": b"[]",
        "sentence_bert_config.json": b"{}",
        "config_sentence_transformers.json": b"{}",
        "vocab.txt": b"a",
        "1_Pooling/config.json": b"{}",
        "2_Dense/config.json": b"{}",
        "2_Dense/model.safetensors": safetensors({}),
        "additional_chat_templates/tool_use.jinja": b"{{ tools }}",
    }
    fill(hub, {**wanted, **NOT_NEEDED, "2_Dense/pytorch_model.bin": b"PK"})
    (folder,) = await ours.ensure(HubReference(REPO))
    assert files_in(folder) == set(wanted)


async def test_a_snapshot_of_huggingface_hub_is_judged_by_its_shards(hub: LoopbackHub, ours: Hub, cache: Path) -> None:
    """It keeps no listing beside it."""
    commit = fill(hub, llama_files())
    repo = RepoCache(cache, REPO)
    folder = write_folder(repo.snapshot(commit), llama_files())
    repo.write_ref("main", commit)
    offline = Hub(HubSettings(hub.url, cache, offline=True))
    assert await offline.ensure(HubReference(REPO)) == [folder]
    (folder / "model-00002-of-00002.safetensors").unlink()
    with pytest.raises(HubOffline):
        await offline.ensure(HubReference(REPO))
    await offline.aclose()
    assert await ours.ensure(HubReference(REPO, revision=commit)) == [folder]
    assert hub.sent("model-00001-of-00002.safetensors") == 0
    assert files_in(folder) == set(llama_files())


async def test_pickles_come_only_where_they_are_allowed_and_are_all_there_is(hub: LoopbackHub, ours: Hub) -> None:
    fill(hub, {"config.json": b"{}", "pytorch_model.bin": b"PK", "tokenizer.json": b"{}"})
    with pytest.raises(BadWeights, match=r"pickle only \(pytorch_model\.bin\).*options: \{safetensors_only: false\}"):
        await ours.ensure(HubReference(REPO))
    assert hub.sent("pytorch_model.bin") == 0
    (folder,) = await ours.ensure(HubReference(REPO, whole=Whole(pickles=True)))
    assert files_in(folder) == {"config.json", "pytorch_model.bin", "tokenizer.json"}
    fill(hub, llama_files())
    (folder,) = await ours.ensure(HubReference(REPO, whole=Whole(pickles=True)))
    assert files_in(folder) == set(llama_files())


async def test_program_text_comes_only_where_it_may_run(hub: LoopbackHub, ours: Hub) -> None:
    fill(hub, {**llama_files(), "modeling_tiny.py": b"1"})
    (folder,) = await ours.ensure(HubReference(REPO))
    assert "modeling_tiny.py" not in files_in(folder)
    (folder,) = await ours.ensure(HubReference(REPO, whole=Whole(code=True)))
    assert "modeling_tiny.py" in files_in(folder)


async def test_a_subfolder_comes_with_what_lies_around_it(hub: LoopbackHub, ours: Hub) -> None:
    inner = {f"fp16/{name}": data for name, data in llama_files().items()}
    fill(hub, {**inner, "tokenizer.json": b"{}", "model.safetensors": b"other", "config.json": b"{}"})
    (folder,) = await ours.ensure(HubReference(REPO, whole=Whole(subfolder="fp16")))
    assert files_in(folder) == {*inner, "tokenizer.json", "config.json"}
    with pytest.raises(HubNotFound, match="has no folder fp8"):
        await ours.ensure(HubReference(REPO, whole=Whole(subfolder="fp8")))


async def test_one_of_several_weights_files_may_be_named(hub: LoopbackHub, ours: Hub) -> None:
    weights = {f"gptq-{bits}bit.safetensors": safetensors({"a": ("I32", (bits,))}) for bits in (3, 4, 8)}
    commit = fill(hub, {"config.json": b"{}", "quantize_config.json": b"{}", **weights})
    for reference in (HubReference(REPO, "gptq-4bit.safetensors"), HubReference(REPO, quant="gptq-4bit", revision=commit)):
        (folder,) = await ours.ensure(reference)
        assert files_in(folder) == {"config.json", "quantize_config.json", "gptq-4bit.safetensors"}
    with pytest.raises(HubNotFound, match=r"has no weights file gptq-5bit\.safetensors; it has gptq-3bit"):
        await ours.ensure(HubReference(REPO, "gptq-5bit.safetensors"))


async def test_gguf_comes_first_unless_the_folder_is_meant(hub: LoopbackHub, ours: Hub) -> None:
    commit = fill(hub, {**llama_files(), "tiny-Q8_0.gguf": b"GGUF"})
    (file,) = await ours.ensure(HubReference(REPO))
    assert file.name == "tiny-Q8_0.gguf"
    (folder,) = await ours.ensure(HubReference(REPO, whole=Whole()))
    assert folder.name == commit
    assert files_in(folder) == {*llama_files(), "tiny-Q8_0.gguf"}
    assert ours.cached(HubReference(REPO)) == [folder / "tiny-Q8_0.gguf"]
    fill(hub, {"tiny-Q8_0.gguf": b"GGUF"}, "someone/gguf")
    with pytest.raises(HubNotFound, match="holds GGUF files and no folder of weights: backend llama-cpp loads those"):
        await ours.ensure(HubReference("someone/gguf", whole=Whole()))


async def test_an_adapter_is_a_folder(hub: LoopbackHub, ours: Hub) -> None:
    wanted = {"adapter_config.json": json.dumps({"peft_type": "LORA"}).encode(), "adapter_model.safetensors": safetensors({})}
    fill(hub, {**wanted, "README.md": b"#"})
    (folder,) = await ours.ensure(HubReference(REPO, whole=Whole()))
    assert files_in(folder) == set(wanted)


async def test_a_hub_that_is_down_serves_what_is_whole(hub: LoopbackHub, ours: Hub, cache: Path) -> None:
    fill(hub, llama_files())
    (folder,) = await ours.ensure(HubReference(REPO))
    hub.fail(503, times=50)
    assert await ours.ensure(HubReference(REPO)) == [folder]
    (folder / "tokenizer.json").unlink()
    with pytest.raises(HubUnavailable):
        await ours.ensure(HubReference(REPO))
