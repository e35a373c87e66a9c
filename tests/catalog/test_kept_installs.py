"""What the installer brings is what verify, gc and bundle know: the same lock, the same places, the same journals."""

from __future__ import annotations

import time
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from install_scene import WEIGHTS, Scene, downloading, sha256, until
from loopback_hub import LoopbackHub

from llmgallery.backends.loader import specs
from llmgallery.catalog.index import Snapshot
from llmgallery.catalog.keep.bundle import bundle
from llmgallery.catalog.keep.gc import DAY, Garbage, collect, sweep
from llmgallery.catalog.keep.places import Folders
from llmgallery.catalog.keep.unbundle import Target, unbundle
from llmgallery.catalog.keep.verify import Verified, verify
from llmgallery.catalog.lock import LockFile
from llmgallery.catalog.registry import Registry

OTHER = WEIGHTS[::-1]


@pytest.fixture
async def scene(hub: LoopbackHub, tmp_path: Path) -> AsyncIterator[Scene]:
    scene = Scene(hub, tmp_path)
    scene.models.mkdir()
    yield scene
    await scene.stop()


def snapshot(folder: Path) -> Snapshot:
    return Registry([folder], specs()).read()


def checked(models: Path, cache: Path) -> Verified:
    return verify(LockFile.of(models).read(), Folders(models, cache), set(snapshot(models).entries))


def garbage(scene: Scene) -> list[Garbage]:
    return collect([scene.models], {scene.models: snapshot(scene.models)}, scene.cache, scene.data, time.time() + 2 * DAY)


async def installed(scene: Scene) -> None:
    """A model of the Hub with a small file, and one from elsewhere of which nobody had said the digest."""
    scene.offer("big", scene.on_hub("m.gguf"), scene.on_hub("config.json", b"{}", lfs=False))
    scene.offer("web", scene.on_web("w.gguf", OTHER, said=False))
    installer = scene.start()
    for name in ("big", "web"):
        await installer.install(name).wait()


async def test_an_install_verifies(scene: Scene) -> None:
    await installed(scene)
    assert checked(scene.models, scene.cache) == Verified((), (), 3, 2 * len(WEIGHTS) + 2)


async def test_a_yaml_that_is_deleted_by_hand_leaves_what_gc_deletes(scene: Scene) -> None:
    await installed(scene)
    assert garbage(scene) == []
    for name in ("big", "web"):
        scene.yaml(name).unlink()
    found = garbage(scene)
    assert sum(item.size for item in found) == 2 * len(WEIGHTS) + 2
    assert sweep(found) == [] and garbage(scene) == []
    left = [path for path in scene.left() if not path.startswith("data/jobs/")]
    assert left == []


async def test_a_removal_leaves_gc_nothing(scene: Scene) -> None:
    await installed(scene)
    for name in ("big", "web"):
        await (await scene.start().remove(name)).wait()
    assert garbage(scene) == [] and LockFile.of(scene.models).read().models == {}


async def test_gc_keeps_away_from_an_install_that_runs(scene: Scene) -> None:
    first, second = scene.on_web("first.gguf", OTHER), scene.on_web("second.gguf")
    scene.offer("web", first, second)
    free = scene.hub.hold("second.gguf", 100_000)
    job = scene.start().install("web")
    await until(job, lambda state: downloading(state) and any(file.done == file.total for file in state.files))
    store = [path for path in scene.models.rglob("*") if path.is_file()]
    assert any(path.name == "first.gguf" for path in store) and any(path.name.endswith(".part") for path in store)
    assert garbage(scene) == []
    free.set()
    await job.wait()
    assert not checked(scene.models, scene.cache).differences


async def test_what_an_install_that_was_killed_left_goes_when_its_journal_is_gone(scene: Scene) -> None:
    scene.offer("web", scene.on_web("w.gguf"))
    scene.offer("big", scene.on_hub("m.gguf", OTHER))
    free = [scene.hub.hold(name, 100_000) for name in ("w.gguf", "m.gguf")]
    installer = scene.start()
    for name in ("web", "big"):
        await until(installer.install(name), downloading)
    await scene.stop()
    for event in free:
        event.set()
    assert garbage(scene) == [], "they will be gone on with"
    for path in (scene.data / "jobs").glob("*.json"):
        path.unlink()
    found = garbage(scene)
    assert {item.reason for item in found} == {"a download that nobody goes on with"}
    assert sweep(found) == []
    assert [path for path in scene.left() if not path.startswith("data/jobs/")] == []


async def test_what_was_unbundled_is_removed_like_an_install(scene: Scene, tmp_path: Path) -> None:
    await installed(scene)
    (scene.models / "own.gguf").write_bytes(b"GGUF")
    (scene.models / "mine.yaml").write_text("backend: llama-cpp\nparameters: {model: own.gguf}\n")
    out = tmp_path / "all.tar"
    bundle(list(snapshot(scene.models).entries.values()), scene.cache, specs(), out)
    installer = scene.start()
    for turn in range(2):
        for name in ("big", "web"):
            assert (await (await installer.remove(name)).wait()).phase == "done"
        assert [path for path in scene.left() if not path.startswith("data/jobs/")] == ["models/mine.yaml", "models/own.gguf"]
        if turn == 0:
            taken = {name: entry.path for name, entry in snapshot(scene.models).entries.items()}
            assert len(unbundle(out, Target(Folders(scene.models, scene.cache), specs(), taken=taken)).written) == 3


async def test_an_install_moves_to_another_machine(scene: Scene, tmp_path: Path) -> None:
    await installed(scene)
    out, away = tmp_path / "all.tar", Folders(tmp_path / "away", tmp_path / "away-cache")
    bundle(list(snapshot(scene.models).entries.values()), scene.cache, specs(), out)
    assert out.stat().st_size < 2 * len(WEIGHTS) + 20_000
    unbundle(out, Target(away, specs()))
    assert LockFile.of(away.models).path.read_bytes() == LockFile.of(scene.models).path.read_bytes()
    assert not checked(away.models, away.cache).differences
    assert {file.sha256 for model in LockFile.of(away.models).read().models.values() for file in model.files} == {
        sha256(WEIGHTS),
        sha256(OTHER),
        sha256(b"{}"),
    }
