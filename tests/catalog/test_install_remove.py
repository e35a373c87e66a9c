"""Removing a model takes its YAML, its lock entry and the files that only it needs - and nothing else."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncIterator
from pathlib import Path

import msgspec
import pytest
from install_scene import REPO, SIZE, WEIGHTS, Scene, downloading, until
from loopback_hub import LoopbackHub

from llmgallery.catalog.hub_cache import RepoCache
from llmgallery.catalog.install.installer import Installer
from llmgallery.catalog.install.job import Asked
from llmgallery.catalog.install.journal import Journals, Record
from llmgallery.catalog.install.work import Work
from llmgallery.catalog.lock import LockFile
from llmgallery.core.errors import Cancelled, ConfigError, ModelNotFound
from llmgallery.core.installs import Install


@pytest.fixture
async def scene(hub: LoopbackHub, tmp_path: Path) -> AsyncIterator[Scene]:
    mine = Scene(hub, tmp_path)
    yield mine
    await mine.stop()


async def removed(installer: Installer, name: str) -> Install:
    return await (await installer.remove(name)).wait()


def weights(scene: Scene) -> list[str]:
    return [name for name in scene.left() if ".gguf" in name]


async def test_remove_takes_everything_that_the_install_brought(scene: Scene):
    scene.offer("tiny", scene.on_hub("sub/weights.gguf"), scene.on_web("draft.gguf", WEIGHTS[::-1]))
    installer = scene.start(keep=0)
    await installer.install("tiny").wait()
    (scene.models / "tiny.yaml.bak").write_text("an older one")
    state = await removed(installer, "tiny")
    assert (state.phase, state.deletion, state.name) == ("done", True, "tiny")
    assert scene.refreshed == ["tiny.yaml", "tiny.yaml"]
    await scene.stop()
    assert scene.left() == [] and LockFile.of(scene.models).read().models == {}
    assert list(scene.cache.glob("models--*")) == []


async def test_what_another_installed_model_needs_stays(scene: Scene):
    shared = scene.on_web("shared.gguf")
    scene.offer("one", shared, scene.on_hub("one.gguf", WEIGHTS[4:]))
    scene.offer("two", shared)
    installer = scene.start()
    await asyncio.gather(installer.install("one").wait(), installer.install("two").wait())
    await removed(installer, "one")
    assert weights(scene) == [f"models/{shared.path}"]
    await removed(installer, "two")
    assert weights(scene) == []


async def test_a_blob_under_another_commit_stays(scene: Scene):
    old = scene.on_hub("weights.gguf")
    scene.hub.add(REPO, "README.md", b"# new", lfs=False)
    new = scene.on_hub("weights.gguf")
    assert old.uri != new.uri
    scene.offer("old", old)
    scene.offer("new", new)
    installer = scene.start()
    await asyncio.gather(installer.install("old").wait(), installer.install("new").wait())
    await removed(installer, "old")
    (pointer,) = scene.cache.rglob("weights.gguf")
    assert pointer.read_bytes() == WEIGHTS and scene.hub.sent("weights.gguf") == SIZE
    await removed(installer, "new")
    assert weights(scene) == [] and not list(scene.cache.glob("models--*/blobs/*"))


@pytest.mark.parametrize(
    ("text", "stays"),
    [
        ("parameters: {model: %REPO%/weights.gguf@%COMMIT%}", True),
        ("parameters:\n  model: %REPO%:Q4_K_M", True),
        ("model: '%REPO%'", True),
        ("model: https://huggingface.co/%REPO%/resolve/main/weights.gguf", True),
        ("parameters: {model: %REPO%/other.gguf}", False),
        ("parameters: {model: %REPO%-other/weights.gguf}", False),
        ("# like %REPO%/weights.gguf\nmodel: other.gguf", False),
        ("model: other.gguf\nurls: [https://huggingface.co/%REPO%]", False),
        ("parameters: [%REPO%/weights.gguf", True),
        ("name: '%REPO%:Q8_0'\naliases: ['%REPO%']\nparameters: {model: %REPO%/other.gguf@%COMMIT%}", False),
        ("name: '%REPO%:Q8_0'\ndraft_model: %REPO%", True),
    ],
)
async def test_what_a_yaml_of_the_users_refers_to_stays(scene: Scene, text: str, stays: bool):
    file = scene.on_hub("weights.gguf")
    scene.offer("tiny", file)
    installer = scene.start()
    await installer.install("tiny").wait()
    mine = scene.models / "mine.yaml"
    mine.write_text(text.replace("%REPO%", REPO).replace("%COMMIT%", file.uri.rpartition("@")[2]))
    await removed(installer, "tiny")
    assert bool(weights(scene)) is stays and mine.exists()


async def test_a_file_of_the_store_that_a_yaml_names_stays(scene: Scene):
    file = scene.on_web("draft.gguf")
    scene.offer("tiny", file)
    installer = scene.start()
    await installer.install("tiny").wait()
    (scene.models / "mine.yml").write_text(f"model: {file.path}")
    await removed(installer, "tiny")
    assert weights(scene) == [f"models/{file.path}"]


async def test_a_running_install_of_the_name_is_cancelled_first(scene: Scene):
    scene.offer("tiny", scene.on_hub("weights.gguf"))
    installer = scene.start()
    await installer.install("tiny").wait()
    scene.offer("tiny", scene.on_hub("other.gguf", WEIGHTS[::-1]))
    scene.hub.hold("other.gguf", after=1000)
    job = installer.install("tiny")
    await until(job, lambda state: downloading(state) and state.files[0].done == 1000)
    await removed(installer, "tiny")
    with pytest.raises(Cancelled):
        await job.wait()
    assert weights(scene) == []


async def test_an_install_that_replaces_another_deletes_what_only_the_old_one_needed(scene: Scene):
    scene.offer("tiny", scene.on_hub("old.gguf"))
    installer = scene.start()
    await installer.install("tiny").wait()
    scene.offer("tiny", scene.on_hub("new.gguf", WEIGHTS[::-1]))
    await installer.install("tiny").wait()
    assert [Path(name).name for name in weights(scene)] == ["new.gguf"]


async def test_only_what_was_installed_is_removed_by_its_models_name(scene: Scene):
    scene.offer("tiny", scene.on_hub("weights.gguf"))
    installer = scene.start()
    await installer.install("tiny").wait()
    (scene.models / "mine.yaml").write_text("name: mine\n")
    with pytest.raises(ConfigError, match=r"mine\.yaml is yours; delete it, or ask for 'mine\.yaml' to be removed"):
        await removed(installer, "mine")
    with pytest.raises(ModelNotFound, match="did you mean 'tiny'") as caught:
        await removed(installer, "tinny")
    assert caught.value.hints == ("tiny",)
    assert (await removed(installer, "mine.yaml")).phase == "done"
    assert not (scene.models / "mine.yaml").exists() and scene.yaml("tiny").exists()
    await removed(installer, "tiny.yaml")
    assert weights(scene) == [] and LockFile.of(scene.models).read().models == {}


@pytest.mark.parametrize("name", ["../secret.yaml", "/etc/secret.yaml", "sub/secret.yaml"])
async def test_no_name_leads_out_of_the_folder(scene: Scene, name: str, tmp_path: Path):
    (tmp_path / "secret.yaml").write_text("mine")
    (scene.models / "sub").mkdir(parents=True)
    (scene.models / "sub" / "secret.yaml").write_text("mine")
    with pytest.raises((ModelNotFound, ConfigError)):
        await removed(scene.start(), name)
    assert (tmp_path / "secret.yaml").exists() and (scene.models / "sub" / "secret.yaml").exists()


async def test_a_removal_that_a_kill_broke_off_is_finished(scene: Scene):
    scene.offer("tiny", scene.on_hub("weights.gguf"))
    installer = scene.start()
    await installer.install("tiny").wait()
    scene.yaml("tiny").unlink()  # as far as it came
    state = Install("d" * 32, "tiny", "removing", "tiny", deletion=True)
    Journals(scene.data / "jobs").write(Record(state=state, asked=Asked(reference="tiny")))
    await scene.stop()
    again = scene.start()
    await again.resume()
    job = again.find("d" * 32)
    assert job is not None and (await job.wait()).phase == "done"
    assert weights(scene) == [] and LockFile.of(scene.models).read().models == {}


async def test_files_that_an_unfinished_job_of_another_server_needs_stay(scene: Scene):
    file = scene.on_hub("weights.gguf")
    plan = scene.offer("tiny", file)
    installer = scene.start()
    await installer.install("tiny").wait()
    theirs = msgspec.structs.replace(plan, name="theirs")
    state = Install("e" * 32, "theirs", "downloading", "theirs")
    Journals(scene.data / "jobs").write(Record(state=state, asked=Asked(reference="theirs"), plan=theirs))
    await removed(installer, "tiny")
    assert len(weights(scene)) == 1


async def test_a_link_in_the_cache_that_leads_elsewhere_is_not_followed(scene: Scene, tmp_path: Path):
    file = scene.on_hub("weights.gguf")
    scene.offer("tiny", file)
    precious = tmp_path / "precious.gguf"
    precious.write_bytes(WEIGHTS)
    pointer = RepoCache(scene.cache, REPO).pointer(file.uri.rpartition("@")[2], "weights.gguf")
    pointer.parent.mkdir(parents=True)
    pointer.symlink_to(precious)
    installer = scene.start()
    await installer.install("tiny").wait()
    await removed(installer, "tiny")
    assert precious.read_bytes() == WEIGHTS and not pointer.is_symlink()


async def test_two_names_of_one_removal(scene: Scene):
    scene.offer("tiny", scene.on_hub("weights.gguf"))
    installer = scene.start()
    await installer.install("tiny").wait()
    jobs = [await installer.remove(name) for name in ("tiny", "tiny", "tiny.yaml")]
    assert jobs[0] is jobs[1]
    states = await asyncio.gather(*(job.wait() for job in jobs))
    assert [state.phase for state in states] == ["done"] * 3
    assert weights(scene) == [] and not scene.yaml("tiny").exists()


@pytest.mark.parametrize(("first", "second"), [("tiny", "tiny.yaml"), ("tiny.yaml", "tiny")])
async def test_a_removal_finds_that_another_of_its_names_was_quicker(scene: Scene, first: str, second: str, monkeypatch):
    scene.offer("tiny", scene.on_hub("weights.gguf"))
    installer = scene.start()
    await installer.install("tiny").wait()
    quicker = await installer.remove(first)
    gone = threading.Event()
    look = Work.removable

    def late(work: Work, reference: str) -> str:
        if reference == second:
            assert gone.wait(30)
        return look(work, reference)

    monkeypatch.setattr(Work, "removable", late)
    slower = await installer.remove(second)
    await quicker.wait()
    gone.set()
    assert (await slower.wait()).phase == "done"
    with pytest.raises(ModelNotFound):  # who asks now is told that there is none
        await (await installer.remove(second)).wait()
