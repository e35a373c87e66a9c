"""What a folder of weights will take, and what tells its worker from another."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest
from weight_folders import LLAMA, llama_files, safetensors, write_folder

from llmgallery.backends.base import Files
from llmgallery.config.model import ModelConfig, Parameters
from llmgallery.runtime import folder_needs, memory
from llmgallery.runtime.keys import load_key

NUMBERS = 256 * 64 * 2 + 64
CACHE = 2 * 2 * 2 * 16
ROOM = 8 << 30


@pytest.fixture(autouse=True)
def no_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(folder_needs, "DEVICES", "no-such-device")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return write_folder(tmp_path / "m", llama_files())


def plan(folder: Path, free: int = ROOM, **keys: Any) -> memory.Plan:
    return memory.plan(ModelConfig(**keys), Files((folder,)), free, free)


def total(weights: int, cache: int) -> int:
    return int((folder_needs.PROCESS_BYTES + weights) * memory.WEIGHTS_FACTOR) + cache


def test_weights_count_in_the_type_that_is_computed_in(folder: Path) -> None:
    for keys, width in (
        ({}, 4),
        ({"dtype": "bfloat16"}, 2),
        ({"dtype": "auto"}, 2),
        ({"options": {"torch_dtype": "torch.float16"}}, 2),
        ({"options": {"model_params": {"torch_dtype": "torch.bfloat16"}}}, 2),
        ({"f16": True}, 2),
        ({"dtype": "float64"}, 8),
    ):
        found = plan(folder, context_size=100, parallel=3, **keys)
        assert found.bytes == total(NUMBERS * width, 100 * 3 * CACHE * width), keys


def test_quantised_weights_stay_as_they_are(folder: Path) -> None:
    (folder / "config.json").write_text(json.dumps({**LLAMA, "quantization_config": {"quant_method": "gptq", "bits": 4}}))
    size = sum(path.stat().st_size for path in folder.glob("*.safetensors"))
    assert plan(folder, context_size=1, parallel=1, dtype="float16").bytes == total(size, CACHE * 2)


def test_packing_while_loading_makes_them_smaller(folder: Path) -> None:
    found = plan(folder, context_size=1, parallel=1, dtype="bfloat16", quantization="bnb_4bit")
    assert found.bytes == total(int(NUMBERS * 2 * 4.5 / 16), CACHE * 2)


def test_what_nobody_set_is_decided_by_the_model_and_the_memory(folder: Path) -> None:
    config = plan(folder).config
    assert (config.context_size, config.parallel) == (512, 8)
    (folder / "config.json").write_text(json.dumps({**LLAMA, "max_position_embeddings": 1 << 20}))
    found = plan(folder, 900 << 20)
    assert found.shrunk_from == 1 << 20
    assert found.config.context_size is not None and found.config.context_size % 256 == 0
    assert found.bytes <= 900 << 20
    assert plan(folder, max_model_len=4096).config.context_size == 4096


def test_files_that_are_still_on_the_hub_count_by_their_size(folder: Path) -> None:
    """As they are while an install is planned: sparse, without headers."""
    sizes = {path: path.stat().st_size for path in folder.glob("*.safetensors")}
    for path, size in sizes.items():
        path.write_bytes(b"")
        os.truncate(path, size)
    assert plan(folder, context_size=1, parallel=1).bytes == total(sum(size * 4 // 2 for size in sizes.values()), CACHE * 4)


def test_readers_keep_no_cache_but_compute_an_input_at_once(folder: Path) -> None:
    (folder / "config.json").write_text(json.dumps({**LLAMA, "architectures": ["BertModel"]}))
    short, long = plan(folder, context_size=128), plan(folder, context_size=512)
    assert short.cache_bytes == 0
    assert (short.config.parallel, plan(folder).config.context_size) == (8, 512)
    assert long.bytes > 4 * (short.bytes - total(NUMBERS * 4, 0)) + total(NUMBERS * 4, 0)


def test_adapters_and_draft_models_count(folder: Path) -> None:
    alone = memory.plan(ModelConfig(context_size=64, parallel=1), Files((folder,)), ROOM, ROOM)
    adapter = write_folder(folder.parent / "lora", {"adapter_model.safetensors": safetensors({"a": ("F32", (1000,))})})
    with_it = memory.plan(ModelConfig(context_size=64, parallel=1), Files((folder,), (adapter,), (folder,)), ROOM, ROOM)
    assert with_it.bytes > alone.bytes + NUMBERS * 4 + 4000 + 64 * CACHE * 4


def test_a_folder_that_says_nothing_counts_by_its_files(tmp_path: Path) -> None:
    found = plan(write_folder(tmp_path / "m", {"model.safetensors": safetensors({"a": ("F16", (500,))})}))
    assert found.bytes > folder_needs.PROCESS_BYTES
    assert (found.config.context_size, found.cache_bytes) == (memory.DEFAULT_CONTEXT, 0)


def test_two_weights_files_of_one_folder_are_two_workers(folder: Path) -> None:
    names = ("a.safetensors", "b.safetensors", "", "c")
    configs = [ModelConfig(parameters=Parameters(model=f"m/{name}")) for name in names]
    keys = {load_key("transformers", config, Files((folder,))) for config in configs}
    assert len(keys) == 3


def test_a_worker_is_told_from_others_by_the_files_in_its_folder(folder: Path) -> None:
    config = ModelConfig(parameters=Parameters(model="m"))
    before = load_key("transformers", config, Files((folder,)))
    (folder / ".hidden").write_text("x")
    assert load_key("transformers", config, Files((folder,))) == before
    template = folder / "chat_template.jinja"
    stat = folder.stat()
    template.write_bytes(b"{{ other }}")
    os.utime(folder, ns=(stat.st_atime_ns, stat.st_mtime_ns))
    changed = load_key("transformers", config, Files((folder,)))
    assert changed != before
    write_folder(folder / "1_Pooling", {"config.json": b"{}"})
    assert load_key("transformers", config, Files((folder,))) != changed
