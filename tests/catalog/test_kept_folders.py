"""A folder of weights from its Hub id to the disk, and from there: checked, packed, taken away."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path

import pytest
from install_scene import Scene
from loopback_hub import LoopbackHub
from weight_folders import llama_files

from llmgallery.backends.base import BackendSpec
from llmgallery.backends.loader import specs
from llmgallery.catalog.hub import Hub
from llmgallery.catalog.hub_cache import RepoCache
from llmgallery.catalog.hub_settings import HubSettings
from llmgallery.catalog.index import Snapshot
from llmgallery.catalog.install.hub_plan import plan_hub
from llmgallery.catalog.install.plan import InstallPlan
from llmgallery.catalog.keep.bundle import bundle
from llmgallery.catalog.keep.gc import collect, sweep
from llmgallery.catalog.keep.places import Folders
from llmgallery.catalog.keep.unbundle import Target, unbundle
from llmgallery.catalog.keep.verify import verify
from llmgallery.catalog.lock import LockFile
from llmgallery.catalog.reference import HubReference, Whole
from llmgallery.catalog.registry import Registry
from llmgallery.core.errors import BackendMissing

REPO = "someone/tiny"
HERE = {"transformers": BackendSpec("transformers", "none:None", formats=specs()["transformers"].formats)}
WHOLE = Whole()


@pytest.fixture
async def scene(hub: LoopbackHub, tmp_path: Path) -> AsyncIterator[Scene]:
    for name, data in {**llama_files(), "README.md": b"#", "pytorch_model.bin": b"PK"}.items():
        hub.add(REPO, name, data, lfs=name.endswith((".safetensors", ".bin")))
    hub.describe(REPO, {"license": "mit"}, "text-generation")
    mine = Scene(hub, tmp_path)
    yield mine
    await mine.stop()


async def planned(scene: Scene, known: dict[str, BackendSpec] | None = None, text: str = REPO) -> InstallPlan:
    hub = Hub(HubSettings(scene.hub.url, scene.cache))
    try:
        return await plan_hub(hub, HubReference(text), specs=known or HERE, folder=scene.models)
    finally:
        await hub.aclose()


async def installed(scene: Scene) -> InstallPlan:
    plan = scene.plans[REPO] = await planned(scene)
    job = scene.start().install(REPO)
    await job.wait()
    return plan


def snapshot(models: Path) -> Snapshot:
    return Registry([models], specs()).read()


async def test_the_plan_says_everything_and_fetches_config_only(scene: Scene) -> None:
    plan = await planned(scene)
    assert {file.name for file in plan.files} == set(llama_files())
    assert plan.size == sum(map(len, llama_files().values()))
    assert (plan.backend, plan.licence, plan.source) == ("transformers", "mit", f"{REPO}@{scene.hub.commit(REPO)}")
    fetched = [seen.name for seen in scene.hub.seen("GET") if "/resolve/" in seen.path and seen.status < 300]
    assert fetched == [f"{REPO}/config.json"]


async def test_nothing_is_planned_for_a_library_that_is_not_here(scene: Scene) -> None:
    lacking = replace(HERE["transformers"], requires=("no_such_library",), extra="x")
    told = "needs no_such_library, not installed here: llmgallery backends install transformers"
    with pytest.raises(BackendMissing, match=told):
        await planned(scene, {"transformers": lacking})
    cuda = {"exllamav2": BackendSpec("exllamav2", "none:None", formats=("safetensors",), hardware=("cuda",))}
    if cuda["exllamav2"].lacks():
        with pytest.raises(BackendMissing, match="exllamav2 needs an NVIDIA GPU"):
            await planned(scene, cuda)


async def test_an_installed_folder_is_whole_without_asking(scene: Scene) -> None:
    plan = await installed(scene)
    entry = snapshot(scene.models).entries[REPO]
    assert entry.config.weights == f"{REPO}@{scene.hub.commit(REPO)}"
    locked = LockFile.of(scene.models).read()
    assert {file.uri for file in locked.models[REPO].files} == {file.uri for file in plan.files}
    before = len(scene.hub.requests)
    hub = Hub(HubSettings(scene.hub.url, scene.cache))
    (folder,) = await hub.ensure(HubReference(REPO, revision=scene.hub.commit(REPO), whole=WHOLE))
    assert len(scene.hub.requests) == before
    assert {path.name for path in folder.iterdir()} == set(llama_files())
    found = verify(locked, Folders(scene.models, scene.cache), [REPO])
    assert (found.differences, found.files) == ((), len(plan.files))
    await hub.aclose()


async def test_what_was_changed_in_a_folder_is_found(scene: Scene) -> None:
    await installed(scene)
    path = RepoCache(scene.cache, REPO).pointer(scene.hub.commit(REPO), "tokenizer.json")
    path.resolve().write_bytes(b'{"version": "1.1"}')
    (different,) = verify(LockFile.of(scene.models).read(), Folders(scene.models, scene.cache), [REPO]).differences
    assert different.path == path.resolve()


async def test_a_removal_leaves_nothing(scene: Scene) -> None:
    await installed(scene)
    await (await scene.start().remove(REPO)).wait()
    assert [name for name in scene.left() if not name.startswith("data/jobs/")] == []


async def test_gc_takes_a_folder_that_nobody_serves_and_no_other(scene: Scene) -> None:
    await installed(scene)
    garbage = collect([scene.models], {scene.models: snapshot(scene.models)}, scene.cache, scene.data)
    assert garbage == []
    yaml = scene.yaml("someone__tiny")
    other = scene.models / "other.yaml"
    other.write_text(f"backend: transformers\nparameters: {{model: {REPO}@{scene.hub.commit(REPO)}}}\n")
    yaml.unlink()
    garbage = collect([scene.models], {scene.models: snapshot(scene.models)}, scene.cache, scene.data)
    assert [item.name for item in garbage if item.path is None] == [REPO]
    assert not [item for item in garbage if item.path is not None]
    other.unlink()
    assert sweep(collect([scene.models], {scene.models: snapshot(scene.models)}, scene.cache, scene.data)) == []
    assert [name for name in scene.left() if name.startswith("cache/")] == []


@pytest.mark.parametrize("locked", [True, False])
async def test_a_folder_goes_to_a_machine_without_a_network(scene: Scene, tmp_path: Path, locked: bool) -> None:
    """Also one that a YAML of the user's own has brought, which no lock knows."""
    commit = scene.hub.commit(REPO)
    if locked:
        await installed(scene)
    else:
        hub = Hub(HubSettings(scene.hub.url, scene.cache))
        await hub.ensure(HubReference(REPO, revision=commit, whole=WHOLE))
        await hub.aclose()
        scene.models.mkdir(exist_ok=True)
        (scene.models / "someone__tiny.yaml").write_text(
            f"name: {REPO}\nbackend: transformers\nparameters: {{model: {REPO}@{commit}}}\n"
        )
    out = tmp_path / "models.tar"
    bundle([snapshot(scene.models).entries[REPO]], scene.cache, specs(), out)
    away = Folders(tmp_path / "away" / "models", tmp_path / "away" / "cache")
    unbundle(out, Target(away, specs(), taken={}))
    offline = Hub(HubSettings(scene.hub.url, away.cache, offline=True))
    (folder,) = await offline.ensure(HubReference(REPO, revision=commit, whole=WHOLE))
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == llama_files()
    assert json.loads((folder / "config.json").read_bytes())["model_type"] == "llama"
    await offline.aclose()
    assert snapshot(away.models).entries[REPO].backend == "transformers"


async def test_one_of_several_weights_files_is_planned(scene: Scene) -> None:
    repo = "someone/gptq"
    for name in ("config.json", "quantize_config.json", "gptq-3bit.safetensors", "gptq-4bit.safetensors"):
        commit = scene.hub.add(repo, name, b"{}" if name.endswith(".json") else b"\x02" + bytes(7) + b"{}" + name.encode())
    hub = Hub(HubSettings(scene.hub.url, scene.cache))
    plan = await plan_hub(hub, HubReference(repo, "gptq-4bit.safetensors"), specs=HERE)
    await hub.aclose()
    assert [file.name for file in plan.files] == ["config.json", "gptq-4bit.safetensors", "quantize_config.json"]
    assert f"  model: {repo}/gptq-4bit.safetensors@{commit}\n" in plan.yaml
