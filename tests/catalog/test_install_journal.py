"""Jobs outlive their server: killed, stopped, or beside another one on the same folders."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import AsyncIterator
from pathlib import Path

import msgspec
import pytest
from install_scene import DEADLINE, SIZE, WEIGHTS, Scene, until
from loopback_hub import LoopbackHub

from llmgallery.catalog.install.job import Asked
from llmgallery.catalog.install.journal import Journals, Record
from llmgallery.core.errors import ConfigError
from llmgallery.core.installs import Install


@pytest.fixture
async def scene(hub: LoopbackHub, tmp_path: Path) -> AsyncIterator[Scene]:
    mine = Scene(hub, tmp_path)
    yield mine
    await mine.stop()


def journals(scene: Scene) -> list[dict[str, object]]:
    return [json.loads(path.read_text()) for path in (scene.data / "jobs").glob("*.json")]


async def test_the_journal_is_there_before_the_first_byte_and_agrees_with_the_state(scene: Scene):
    plan = scene.offer("tiny", scene.on_hub("weights.gguf"))
    release = scene.hub.hold("weights.gguf", after=0)
    installer = scene.start()
    asked = Asked(reference="tiny", overrides={"context_size": 512})
    scene.plans["tiny"] = plan
    job = installer.install(asked)
    await asyncio.to_thread(scene.hub.wait_for_requests, 2)
    record = msgspec.json.decode((scene.data / "jobs" / f"{job.id}.json").read_bytes(), type=Record)
    assert (record.asked, record.plan, record.state.created, record.here) == (asked, plan, job.state.created, ())
    assert record.is_open
    release.set()
    await job.wait()
    record = msgspec.json.decode((scene.data / "jobs" / f"{job.id}.json").read_bytes(), type=Record)
    assert record.state.phase == job.state.phase == "done"


async def test_a_stopped_server_goes_on_when_it_starts_again(scene: Scene):
    scene.offer("tiny", scene.on_hub("weights.gguf"), scene.on_web("draft.gguf", WEIGHTS[::-1]))
    scene.hub.hold("weights.gguf", after=123_456)
    installer = scene.start()
    job = installer.install("tiny")
    await until(job, lambda state: [file.done for file in state.files] == [123_456, SIZE])
    await scene.stop()
    again = scene.start()
    await again.resume()
    resumed = again.find(job.id)
    assert resumed is not None and resumed.state.created == job.state.created
    assert (await resumed.wait()).phase == "done"
    assert scene.planned == ["tiny"]
    assert scene.hub.seen("GET", host="storage")[-1].headers["Range"] == "bytes=123456-"
    assert scene.hub.sent("draft.gguf") == SIZE
    assert again.install("tiny").id != job.id


async def test_jobs_that_are_over_are_listed_after_a_restart(scene: Scene):
    scene.offer("tiny", scene.on_hub("weights.gguf"))
    scene.offer("bad", scene.on_hub("bad.gguf", WEIGHTS[::-1]))
    scene.hub.fail(403, name="bad.gguf", host="hub", times=9)
    installer = scene.start()
    await asyncio.gather(installer.install("tiny").wait(), installer.install("bad").wait(), return_exceptions=True)
    before = installer.jobs()
    await scene.stop()
    again = scene.start()
    await again.resume()
    assert again.jobs() == before and [state.phase for state in before] == ["done", "failed"]
    job = again.find(before[0].id)
    assert job is not None and (await job.wait()).phase == "done"


async def test_cancel_after_a_restart_takes_away_what_the_first_server_brought(scene: Scene):
    scene.offer("tiny", scene.on_web("draft.gguf", WEIGHTS[::-1]), scene.on_hub("weights.gguf"))
    scene.hub.hold("weights.gguf", after=1000, times=2)
    job = scene.start().install("tiny")
    await until(job, lambda state: [file.done for file in state.files] == [SIZE, 1000])
    await scene.stop()
    again = scene.start()
    await again.resume()
    resumed = again.find(job.id)
    assert resumed is not None
    await until(resumed, lambda state: [file.done for file in state.files] == [SIZE, 1000])
    await again.cancel(job.id)
    assert scene.left() == []


async def test_a_cancel_that_a_kill_broke_off_is_finished(scene: Scene):
    plan = scene.offer("tiny", scene.on_web("draft.gguf", WEIGHTS[::-1]), scene.on_hub("weights.gguf"))
    scene.hub.hold("weights.gguf", after=1000)
    job = scene.start().install("tiny")
    await until(job, lambda state: [file.done for file in state.files] == [SIZE, 1000])
    await scene.stop()
    state = msgspec.structs.replace(job.state, phase="downloading")
    Journals(scene.data / "jobs").write(Record(state=state, asked=job.asked, plan=plan, cancelled=True))
    again = scene.start()
    await again.resume()
    resumed = again.find(job.id)
    assert resumed is not None
    await until(resumed, lambda state: state.phase == "cancelled")
    assert scene.left() == []


async def test_old_jobs_are_forgotten_by_number_and_by_age(scene: Scene):
    now = [1000.0]
    scene.offer("tiny", scene.on_hub("weights.gguf"))
    installer = scene.start(keep=3, keep_for=100.0, clock=lambda: now[0])
    for _ in range(5):
        now[0] += 1
        await installer.install("tiny").wait()
    assert 3 <= len(installer.jobs()) <= 4  # the last end may still be tidying up
    now[0] += 500
    await installer.install("tiny").wait()
    await scene.stop()
    assert [record["state"]["created"] for record in journals(scene)] == [1505.0]  # type: ignore[index]


async def test_journals_that_cannot_be_read_are_left_out(scene: Scene, caplog: pytest.LogCaptureFixture):
    folder = scene.data / "jobs"
    folder.mkdir(parents=True)
    (folder / f"{'0' * 32}.json").write_text("{")
    (folder / "notes.json").write_text("{}")
    (folder / f"{'1' * 32}.json").write_bytes(b'{"state": "\xff"}')
    (folder / f"{'2' * 32}.json").write_text('{"further": ' + "[" * 100_000)
    installer = scene.start()
    await installer.resume()
    assert installer.jobs() == [] and "is left out" in caplog.text


async def test_a_data_folder_that_cannot_be_written_is_an_error_before_the_first_byte(scene: Scene, tmp_path: Path):
    scene.offer("tiny", scene.on_hub("weights.gguf"))
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(ConfigError, match="LLMGALLERY_DATA_DIR"):
        await scene.start(data_dir=tmp_path / "file" / "data").install("tiny").wait()
    assert scene.hub.requests == []


def test_ids_in_a_journal_must_be_the_files(tmp_path: Path):
    kept = Journals(tmp_path)
    state = Install("a" * 32, "tiny")
    kept.write(Record(state=state, asked=Asked(reference="tiny")))
    (tmp_path / f"{'b' * 32}.json").write_bytes((tmp_path / f"{'a' * 32}.json").read_bytes())
    assert [record.state.id for record in kept.read_all()] == ["a" * 32]


# Other processes

CHILD = """
import asyncio, pathlib, sys, msgspec
from llmgallery.catalog.hub import Hub
from llmgallery.catalog.install.installer import Installer
from llmgallery.catalog.install.plan import InstallPlan
folder = pathlib.Path(sys.argv[1])
plan = msgspec.json.decode((folder / "plan.json").read_bytes(), type=InstallPlan)
async def planner(asked):
    return plan
async def changed(path):
    pass
async def main():
    hub = Hub()
    installer = Installer(planner, hub, models_dir=folder / "models", data_dir=folder / "data", on_change=changed)
    await installer.resume()
    jobs = [job for state in installer.jobs() if (job := installer.find(state.id)) and not state.is_over]
    job = jobs[0] if jobs else installer.install(plan.name)
    print(job.id, flush=True)
    print((await job.wait()).phase, flush=True)
    await installer.aclose()
    await hub.aclose()
asyncio.run(main())
"""


def start_child(scene: Scene, folder: Path) -> subprocess.Popen[str]:
    env = {**os.environ, "HF_ENDPOINT": scene.hub.url, "HF_HUB_CACHE": str(scene.cache), "HF_TOKEN": ""}
    env.pop("HF_HUB_OFFLINE", None)
    return subprocess.Popen([sys.executable, "-c", CHILD, str(folder)], env=env, stdout=subprocess.PIPE, text=True)


def wait_for_partials(scene: Scene, sizes: list[int]) -> None:
    deadline = time.monotonic() + DEADLINE
    while sorted(path.stat().st_size for path in scene.cache.rglob("*.llmgallery.part")) != sizes:
        assert time.monotonic() < deadline
        time.sleep(0.01)


def test_kill_in_mid_download_and_resume(hub: LoopbackHub, tmp_path: Path):
    scene = Scene(hub, tmp_path)
    plan = scene.offer("tiny", scene.on_hub("a.gguf"), scene.on_hub("b.gguf", WEIGHTS[::-1]))
    (tmp_path / "plan.json").write_bytes(msgspec.json.encode(plan))
    hub.hold("a.gguf", after=70_000)
    hub.hold("b.gguf", after=90_000)
    with start_child(scene, tmp_path) as child:
        wait_for_partials(scene, [70_000, 90_000])
        child.send_signal(signal.SIGKILL)
        first = child.communicate(timeout=DEADLINE)[0].split()
    with start_child(scene, tmp_path) as child:
        second = child.communicate(timeout=DEADLINE)[0].split()
    assert second == [*first, "done"]
    resumed = {seen.name.rpartition("/")[2]: seen.headers["Range"] for seen in hub.seen("GET", host="storage")[2:]}
    assert resumed == {"a.gguf": "bytes=70000-", "b.gguf": "bytes=90000-"}
    assert scene.yaml("tiny").read_text() == plan.yaml
    assert not list(scene.cache.rglob("*.llmgallery.*"))


def test_two_servers_on_one_folder_install_once(hub: LoopbackHub, tmp_path: Path):
    scene = Scene(hub, tmp_path)
    plan = scene.offer("tiny", scene.on_hub("a.gguf"))
    (tmp_path / "plan.json").write_bytes(msgspec.json.encode(plan))
    release = hub.hold("a.gguf", after=70_000)
    with start_child(scene, tmp_path) as one:
        wait_for_partials(scene, [70_000])
        with start_child(scene, tmp_path) as other:
            assert other.stdout is not None
            id = other.stdout.readline().strip()
            release.set()
            assert other.communicate(timeout=DEADLINE)[0].split() == ["done"]
        assert one.communicate(timeout=DEADLINE)[0].split()[1:] == ["done"]
    assert hub.sent("a.gguf") == SIZE and len(hub.seen("HEAD")) == 1
    assert len(list((tmp_path / "data" / "jobs").glob("*.json"))) == 2 and (tmp_path / "data" / "jobs" / f"{id}.json").exists()
    assert not list((tmp_path / "data" / "jobs").glob("*.lock"))
