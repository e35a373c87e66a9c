"""The installer's promises: one job for all, its outcome for everybody, nothing left after a cancel."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from install_scene import DEADLINE, REPO, SIZE, WEIGHTS, Scene, downloading, sha256, until
from loopback_hub import LoopbackHub

from llmgallery.catalog.install.job import Asked
from llmgallery.catalog.install.plan import InstallPlan
from llmgallery.catalog.lock import LockFile
from llmgallery.core.errors import Cancelled, ConfigError, GalleryError, HubUnavailable, ModelNotFound, NoSpace
from llmgallery.core.installs import Install


@pytest.fixture
async def scene(hub: LoopbackHub, tmp_path: Path) -> AsyncIterator[Scene]:
    mine = Scene(hub, tmp_path)
    yield mine
    await mine.stop()


# One job for all


async def test_an_install_brings_the_files_the_yaml_and_the_lock(scene: Scene):
    hub_file, web_file = scene.on_hub("sub/weights.gguf"), scene.on_web("draft.gguf", WEIGHTS[::-1])
    plan = scene.offer("tiny", hub_file, web_file)
    state = await scene.start().install("tiny").wait()
    assert (state.phase, state.name, state.source, state.error) == ("done", "tiny", "test@tiny", None)
    assert state.done_bytes == state.total_bytes == 2 * SIZE and state.fraction == 1.0
    assert scene.yaml("tiny").read_text() == plan.yaml
    assert web_file.path is not None and (scene.models / web_file.path).read_bytes() == WEIGHTS[::-1]
    locked = LockFile.of(scene.models).read().models["tiny"]
    assert {(file.uri, file.sha256, file.size, file.path) for file in locked.files} == {
        (hub_file.uri, sha256(WEIGHTS), SIZE, None),
        (web_file.uri, sha256(WEIGHTS[::-1]), SIZE, web_file.path),
    }
    assert scene.refreshed == ["tiny.yaml"]


async def test_twenty_callers_make_one_job(scene: Scene):
    scene.offer("tiny", scene.on_hub("weights.gguf"))
    installer = scene.start()
    jobs = [installer.install("tiny") for _ in range(20)]
    states = await asyncio.gather(*(job.wait() for job in jobs))
    assert len({job.id for job in jobs}) == 1 and all(state.phase == "done" for state in states)
    assert scene.planned == ["tiny"]
    assert scene.hub.sent("weights.gguf") == SIZE


async def test_two_names_of_one_model_download_once(scene: Scene):
    file = scene.on_hub("weights.gguf")
    scene.offer("tiny", file)
    scene.offer("test@tiny", file, name="tiny")
    release = scene.hub.hold("weights.gguf", after=1000)
    installer = scene.start()
    one, other = installer.install("tiny"), installer.install("test@tiny")
    assert one.id != other.id
    await asyncio.gather(until(one, downloading), until(other, downloading))
    release.set()
    states = await asyncio.gather(one.wait(), other.wait())
    assert [state.phase for state in states] == ["done", "done"]
    assert scene.hub.sent("weights.gguf") == SIZE and scene.refreshed == ["tiny.yaml"]


async def test_two_models_of_one_file_download_it_once_and_both_see_it_come(scene: Scene):
    file = scene.on_hub("weights.gguf")
    scene.offer("one", file)
    scene.offer("two", file)
    release = scene.hub.hold("weights.gguf", after=100_000)
    installer = scene.start()
    jobs = [installer.install("one"), installer.install("two")]
    await asyncio.gather(*(until(job, lambda state: state.done_bytes == 100_000) for job in jobs))
    release.set()
    await asyncio.gather(*(job.wait() for job in jobs))
    assert scene.hub.sent("weights.gguf") == SIZE


async def test_who_asks_for_other_settings_gets_a_job_of_their_own(scene: Scene):
    scene.offer("tiny", scene.on_hub("weights.gguf"))
    installer = scene.start()
    jobs = [installer.install(Asked(reference="tiny", overrides={"context_size": size})) for size in (1, 2, 1)]
    assert len({job.id for job in jobs}) == 2
    await asyncio.gather(*(job.wait() for job in jobs))


async def test_waiters_leave_freely(scene: Scene):
    scene.offer("tiny", scene.on_hub("weights.gguf"))
    release = scene.hub.hold("weights.gguf", after=1000)
    installer = scene.start()
    job = installer.install("tiny")
    waiters = [asyncio.create_task(job.wait()) for _ in range(3)]
    planned = asyncio.ensure_future(job.planned)
    planned.cancel()
    await until(job, downloading)
    for waiter in waiters[:2]:
        waiter.cancel()
    release.set()
    assert (await waiters[2]).phase == "done"
    assert (await job.planned).name == "tiny"


async def test_planned_is_known_before_the_first_byte_and_tells_what_forbids_it(scene: Scene):
    scene.offer("tiny", scene.on_hub("weights.gguf"))

    async def refuse(plan: InstallPlan) -> None:
        raise ConfigError(f"{plan.name} may not be installed: install_size_limit")

    installer = scene.start(checks=[refuse])
    job = installer.install("tiny")
    with pytest.raises(ConfigError, match="install_size_limit"):
        await job.planned
    with pytest.raises(ConfigError, match="install_size_limit"):
        await job.wait()
    assert job.state.error is not None and job.state.error.kind == "ConfigError"
    assert scene.hub.seen("GET") == [] and not scene.yaml("tiny").exists()


# Failures


async def test_a_name_that_nobody_knows_fails_for_all_and_leaves_no_journal(scene: Scene):
    installer = scene.start()
    job = installer.install("nowhere")
    outcomes = await asyncio.gather(job.wait(), job.wait(), return_exceptions=True)
    assert all(isinstance(outcome, ModelNotFound) for outcome in outcomes)
    assert installer.jobs()[0].phase == "failed" and scene.left() == []


async def test_a_failed_job_is_listed_and_the_next_starts_at_once_where_it_ended(scene: Scene):
    scene.offer("tiny", scene.on_hub("weights.gguf"))
    scene.hub.cut("weights.gguf", after=60_000)
    scene.hub.cut("weights.gguf", after=0, times=5)
    installer = scene.start(hub={"attempts": 3})
    failed = installer.install("tiny")
    with pytest.raises(HubUnavailable, match=r"60,000 of 200,000 bytes"):
        await failed.wait()
    again = installer.install("tiny")
    assert again.id != failed.id
    await asyncio.gather(again.wait(), return_exceptions=True)
    scene.hub.cut("weights.gguf", after=0, times=0)
    last = installer.install("tiny")
    await last.wait()
    assert scene.hub.sent("weights.gguf") == SIZE
    assert [state.phase for state in installer.jobs()] == ["failed", "failed" if again.state.error else "done", "done"]


async def test_a_fault_of_ours_ends_the_job_too(scene: Scene, caplog: pytest.LogCaptureFixture):
    scene.offer("tiny", scene.on_hub("weights.gguf"))

    async def breaks(path: Path) -> None:
        raise ZeroDivisionError("registry")

    job = scene.start(on_change=breaks).install("tiny")
    with pytest.raises(GalleryError, match="ZeroDivisionError"):
        await job.wait()
    assert "a fault of ours" in caplog.text


async def test_disk_space_is_checked_for_all_files_and_running_jobs_before_the_first_byte(scene: Scene):
    scene.offer("big", scene.on_hub("a.gguf"), scene.on_hub("b.gguf", WEIGHTS[::-1]), scene.on_web("c.gguf", WEIGHTS[4:]))
    scene.offer("other", scene.on_hub("d.gguf", WEIGHTS[8:]))
    margin = 64 << 20
    scene.free = margin + 3 * SIZE - 5
    with pytest.raises(NoSpace) as caught:
        await scene.start().install("big").wait()
    assert f"{margin + 3 * SIZE - 4:,} bytes are needed" in caught.value.message
    assert scene.hub.seen("GET") == []
    scene.free = margin + 3 * SIZE
    release = scene.hub.hold("a.gguf", after=0)
    installer = scene.start()
    big = installer.install("big")
    await big.planned
    scene.free = margin + SIZE  # what is left once the files are here that nobody holds up
    with pytest.raises(NoSpace):
        await installer.install("other").wait()
    release.set()
    await big.wait()


# Cancelling


async def test_cancel_leaves_nothing_behind(scene: Scene):
    scene.offer(
        "tiny", scene.on_hub("sub/weights.gguf"), scene.on_web("draft.gguf", WEIGHTS[::-1]), scene.on_hub("small.json", b"{}")
    )
    scene.hub.hold("sub/weights.gguf", after=1000)
    installer = scene.start()
    job = installer.install("tiny")
    waiter = asyncio.create_task(job.wait())
    await until(job, lambda state: [file.done for file in state.files] == [1000, SIZE, 2])
    assert any(name.endswith(".part") for name in scene.left())
    state = await installer.cancel(job.id)
    assert state is not None and state.phase == "cancelled"
    with pytest.raises(Cancelled):
        await waiter
    assert scene.left() == [] and list(scene.cache.glob("models--*")) == []


async def test_what_was_here_before_stays_after_a_cancel(scene: Scene):
    shared = scene.on_hub("shared.gguf", WEIGHTS[::-1])
    scene.offer("first", shared)
    scene.offer("second", shared, scene.on_hub("weights.gguf"))
    installer = scene.start()
    await installer.install("first").wait()
    before = scene.left()
    scene.hub.hold("weights.gguf", after=1000)
    job = installer.install("second")
    await until(job, lambda state: state.phase == "downloading" and state.done_bytes > SIZE)
    await installer.cancel(job.id)
    assert scene.left() == before


async def test_a_cancel_keeps_what_another_job_needs(scene: Scene):
    shared = scene.on_hub("shared.gguf")
    scene.offer("one", shared)
    scene.offer("two", shared)
    release = scene.hub.hold("shared.gguf", after=1000)
    installer = scene.start()
    one, two = installer.install("one"), installer.install("two")
    await asyncio.gather(until(one, downloading), until(two, downloading))
    await installer.cancel(one.id)
    release.set()
    await two.wait()
    assert scene.hub.sent("shared.gguf") == SIZE


async def test_the_other_name_of_a_cancelled_job_goes_on_alone(scene: Scene):
    file = scene.on_hub("weights.gguf")
    scene.offer("tiny", file)
    scene.offer("alias", file, name="tiny")
    release = scene.hub.hold("weights.gguf", after=1000)
    installer = scene.start()
    one = installer.install("tiny")
    await until(one, downloading)
    other = installer.install("alias")
    await until(other, downloading)
    await installer.cancel(one.id)
    release.set()
    assert (await other.wait()).phase == "done"
    assert [seen.headers["Range"] for seen in scene.hub.seen("GET", host="storage")] == [None, "bytes=1000-"]


async def test_who_asks_while_it_is_cancelled_gets_a_new_job(scene: Scene):
    scene.offer("tiny", scene.on_hub("weights.gguf"))
    scene.hub.hold("weights.gguf", after=1000)
    installer = scene.start()
    job = installer.install("tiny")
    await until(job, downloading)
    cancelling = asyncio.create_task(installer.cancel(job.id))
    await asyncio.sleep(0)
    again = installer.install("tiny")
    assert again.id != job.id
    assert (await again.wait()).phase == "done"
    assert (await cancelling) is not None and job.state.phase == "cancelled"


async def test_cancelling_a_failed_job_deletes_what_it_left(scene: Scene):
    scene.offer("tiny", scene.on_hub("weights.gguf"))
    scene.hub.cut("weights.gguf", after=60_000)
    scene.hub.cut("weights.gguf", after=0, times=9)
    installer = scene.start(hub={"attempts": 2})
    job = installer.install("tiny")
    await asyncio.gather(job.wait(), return_exceptions=True)
    assert scene.left() != []
    await installer.cancel(job.id)
    assert scene.left() == [] and installer.jobs() == []


async def test_cancel_of_what_is_over_or_unknown(scene: Scene):
    scene.offer("tiny", scene.on_hub("weights.gguf"))
    installer = scene.start()
    job = installer.install("tiny")
    await job.wait()
    state = await installer.cancel(job.id)
    assert state is not None and state.phase == "done" and scene.yaml("tiny").exists()
    assert await installer.cancel("nothing") is None


# States


async def test_states_come_in_order_and_not_too_often(scene: Scene):
    scene.offer("tiny", scene.on_hub("weights.gguf", WEIGHTS * 20))
    told: list[Install] = []
    job = scene.start(on_state=told.append).install("tiny")
    await job.wait()
    phases = list(dict.fromkeys(state.phase for state in told))
    assert phases == ["planning", "downloading", "writing", "done"]
    counts = [state.done_bytes for state in told if state.phase == "downloading"]
    assert counts == sorted(counts)
    moving = [state.updated for state in told if state.phase == "downloading"][1:]
    assert len(moving) <= 2 + 11 * (told[-1].updated - told[0].updated)


async def test_sizes_that_nobody_said_become_known(scene: Scene):
    hub_file, web_file = scene.on_hub("w.gguf", said=False), scene.on_web("d.gguf", WEIGHTS[::-1], said=False)
    scene.offer("tiny", hub_file, web_file, scene.on_hub("config.json", b"{}", said=False, lfs=False))
    release = scene.hub.hold("w.gguf", after=1000)
    job = scene.start().install("tiny")
    state = await until(job, lambda state: state.total_bytes is not None)
    assert state.total_bytes == 2 * SIZE + 2
    release.set()
    await job.wait()
    files = LockFile.of(scene.models).read().models["tiny"].files
    assert {file.sha256 for file in files} == {sha256(WEIGHTS), sha256(WEIGHTS[::-1]), sha256(b"{}")}


# Where things go


async def test_a_users_yaml_is_never_written_over(scene: Scene):
    scene.offer("tiny", scene.on_hub("weights.gguf"))
    scene.models.mkdir()
    scene.yaml("tiny").write_text("name: tiny\n# mine\n")
    with pytest.raises(ConfigError, match=r"tiny\.yaml is there already and was not written by an install"):
        await scene.start().install("tiny").wait()
    assert scene.yaml("tiny").read_text() == "name: tiny\n# mine\n" and scene.hub.seen("GET") == []


async def test_an_installed_yaml_that_was_edited_is_kept_beside_the_new_one(scene: Scene):
    plan = scene.offer("tiny", scene.on_hub("weights.gguf"))
    installer = scene.start()
    await installer.install("tiny").wait()
    scene.yaml("tiny").write_text("edited")
    await installer.install("tiny").wait()
    assert scene.yaml("tiny").read_text() == plan.yaml
    assert (scene.models / "tiny.yaml.bak").read_text() == "edited"


async def test_a_name_with_slashes_and_a_colon(scene: Scene):
    scene.offer(f"{REPO}:Q4_K_M", scene.on_hub("weights.gguf"))
    await scene.start().install(f"{REPO}:Q4_K_M").wait()
    assert (scene.models / "someone__model-GGUF-Q4_K_M.yaml").exists()


@pytest.mark.parametrize("name", ["../evil", ".hidden", "a\\b", "x" * 201])
async def test_names_that_can_be_no_file(scene: Scene, name: str):
    scene.offer("asked", scene.on_hub("weights.gguf"), name=name)
    with pytest.raises(ConfigError):
        await scene.start().install("asked").wait()
    assert scene.left() == []


async def test_a_models_folder_that_cannot_be_written(scene: Scene, tmp_path: Path):
    scene.offer("tiny", scene.on_web("weights.gguf"))
    (tmp_path / "file").write_text("in the way")
    installer = scene.start(models_dir=tmp_path / "file" / "models")
    await installer.install("tiny").wait()
    assert installer.folder == scene.data / "models"
    assert all((installer.folder / name).exists() for name in (".files", "gallery.lock", "tiny.yaml"))


async def test_closing_tells_the_waiters_and_a_closed_installer_begins_nothing(scene: Scene):
    scene.offer("tiny", scene.on_hub("weights.gguf"))
    scene.hub.hold("weights.gguf", after=1000)
    installer = scene.start()
    job = installer.install("tiny")
    waiter = asyncio.create_task(job.wait())
    await until(job, downloading)
    async with asyncio.timeout(DEADLINE):
        await installer.aclose()
    with pytest.raises(Cancelled, match="goes on when it starts again"):
        await waiter
    with pytest.raises(Cancelled):
        installer.install("tiny")


async def test_closing_right_after_the_beginning_and_in_a_cancel(scene: Scene):
    scene.offer("tiny", scene.on_hub("weights.gguf"))
    scene.offer("other", scene.on_hub("other.gguf", WEIGHTS[::-1]))
    scene.hub.hold("weights.gguf", after=1000)
    installer = scene.start()
    job = installer.install("tiny")
    await until(job, downloading)
    cancelling = asyncio.create_task(installer.cancel(job.id))
    await asyncio.sleep(0)
    late = installer.install("other")
    async with asyncio.timeout(DEADLINE):
        await installer.aclose()
        await cancelling
    assert job.state.phase == "cancelled" and not late.state.is_over
    assert scene.hub.seen("GET", "other.gguf") == []
    assert not any("weights" in name or name.endswith((".part", ".lock")) for name in scene.left())


async def test_jobs_that_wait_for_one_another_leave_threads_to_those_that_work(scene: Scene):
    """Ten at a time used to take seconds: each that waited for a lock held a thread, which its holder needed."""
    asyncio.get_running_loop().set_default_executor(ThreadPoolExecutor(2))
    file = scene.on_hub("weights.gguf")
    names = [f"model-{index}" for index in range(12)]
    for name in names:
        scene.offer(name, file)
    installer = scene.start()
    async with asyncio.timeout(4):
        await asyncio.gather(*(installer.install(name).wait() for name in names))
    assert sorted(path.stem for path in scene.models.glob("*.yaml")) == sorted(names)


async def test_a_name_that_is_no_text_is_refused(scene: Scene):
    """As bytes of a command line come that are not UTF-8."""
    installer = scene.start()
    for asked in ("\udcff", Asked(reference="tiny", name="\udcff")):
        with pytest.raises(ConfigError, match="is not UTF-8"):
            installer.install(asked)
    with pytest.raises(ConfigError, match="is not UTF-8"):
        await installer.remove("\udcff.yaml")


async def test_two_names_of_one_file(scene: Scene):
    file = scene.on_hub("weights.gguf")
    scene.offer("a/b", file)
    scene.offer("a__b", file)
    installer = scene.start()
    await installer.install("a/b").wait()
    with pytest.raises(ConfigError, match=r"a__b\.yaml is there already and is of the model a/b"):
        await installer.install("a__b").wait()
    assert scene.yaml("a__b").read_text().splitlines()[1] == "name: a/b"
