"""Gallery entries and Hub ids of models that are folders, from the planner to the files."""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping
from dataclasses import replace
from pathlib import Path

import pytest
from loopback_hub import LoopbackHub
from weight_folders import llama_files, safetensors

from llmgallery.backends.base import BackendSpec
from llmgallery.backends.loader import specs
from llmgallery.catalog.gallery.library import Library
from llmgallery.catalog.gallery.sources import GallerySource
from llmgallery.catalog.hub import Hub
from llmgallery.catalog.hub_settings import HubSettings
from llmgallery.catalog.install.job import Asked
from llmgallery.catalog.install.plan import InstallPlan
from llmgallery.cli.stack import outside
from llmgallery.config.load import parse_model
from llmgallery.core.errors import BackendMissing, LoadError
from llmgallery.service.install.planning import Planner

REPO, LORA = "tiny/llama", "tiny/lora"
ROOM = 8 << 30
HERE = {**specs(), "transformers": replace(specs()["transformers"], requires=())}
ENTRY = f"""
- name: tiny-transformers
  license: mit
  overrides:
    backend: huggingface
    parameters: {{model: {REPO}}}
    lora_adapters: [{LORA}]
    template: {{use_tokenizer_template: true, preset: chatml}}
"""


@pytest.fixture
async def mine(hub: LoopbackHub, tmp_path: Path) -> AsyncIterator[Hub]:
    adapter = {"adapter_config.json": b'{"peft_type": "LORA"}', "adapter_model.safetensors": safetensors({})}
    for repo, files in ((REPO, {**llama_files(), "other-Q8_0.gguf": b"GGUF"}), (LORA, adapter)):
        for name, data in files.items():
            hub.add(repo, name, data, lfs=name.endswith((".safetensors", ".gguf")))
    (tmp_path / "gallery").mkdir()
    (tmp_path / "gallery" / "index.yaml").write_text(ENTRY)
    found = Hub(HubSettings(hub.url, tmp_path / "cache"))
    yield found
    await found.aclose()


async def planned(
    asked: str, mine: Hub, folder: Path, known: Mapping[str, BackendSpec] = HERE, room: int = 8 << 30
) -> InstallPlan:
    library = Library([GallerySource("mine", str(folder / "gallery"))], folder / "data", hub=mine)
    await library.start()
    try:
        planner = Planner(library, mine, lambda: (room, room), known, folder / "models", outside())
        return await planner.plan(Asked(reference=asked))
    finally:
        await library.aclose()


async def test_an_entry_names_a_folder_and_an_adapter(mine: Hub, hub: LoopbackHub, tmp_path: Path) -> None:
    plan = await planned("tiny-transformers", mine, tmp_path)
    assert sorted(file.name for file in plan.files) == sorted(
        [*llama_files(), "adapter_config.json", "adapter_model.safetensors"]
    )
    loaded = parse_model(plan.yaml.encode(), tmp_path / "models" / "x.yaml", HERE, outside())
    assert loaded.config is not None, loaded.problems
    assert loaded.backend == "transformers"
    assert loaded.config.parameters.model == f"{REPO}@{hub.commit(REPO)}"
    assert loaded.config.lora_adapters == [f"{LORA}@{hub.commit(LORA)}"]
    assert plan.memory_bytes is not None and plan.memory_bytes > 400 << 20
    assert not [seen for seen in hub.seen("GET") if seen.name.endswith((".safetensors", ".gguf"))]


async def test_a_machine_that_is_too_small_is_told_at_once(mine: Hub, hub: LoopbackHub, tmp_path: Path) -> None:
    with pytest.raises(LoadError, match="is not installed: it needs about"):
        await planned("tiny-transformers", mine, tmp_path, room=100 << 20)
    assert not [seen for seen in hub.seen("GET") if seen.name.endswith(".safetensors")]


async def test_without_the_library_nothing_is_asked(mine: Hub, hub: LoopbackHub, tmp_path: Path) -> None:
    lacking = {**specs(), "transformers": replace(specs()["transformers"], requires=("no_such_library",))}
    with pytest.raises(BackendMissing, match=r"mine@tiny-transformers.*no_such_library.*backends install transformers"):
        await planned("tiny-transformers", mine, tmp_path, lacking)
    assert not hub.requests


async def test_a_hub_id_with_both_is_the_gguf(mine: Hub, tmp_path: Path) -> None:
    with pytest.raises(LoadError, match=r"other-Q8_0\.gguf"):  # no real one
        await planned(REPO, mine, tmp_path)
