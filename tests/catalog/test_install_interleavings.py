"""Whatever order installs, cancels, removals, faults and restarts come in, everybody is answered once and the folders agree."""

from __future__ import annotations

import asyncio
import tempfile
from pathlib import Path

import msgspec
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from install_scene import DEADLINE, Scene
from loopback_hub import LoopbackHub

from llmgallery.catalog.install.installer import Installer
from llmgallery.catalog.install.journal import Record
from llmgallery.catalog.install.store import Store, planned
from llmgallery.catalog.lock import LockFile
from llmgallery.core.errors import Cancelled, GalleryError
from llmgallery.core.installs import Install

FILES = {name: bytes([number]) * 150_000 for number, name in enumerate(("own.gguf", "shared.gguf", "web.gguf"), 1)}
ASKED = ("one", "two", "alias-of-two", "unknown")

step = st.one_of(
    st.tuples(st.just("install"), st.sampled_from(ASKED)),
    st.tuples(st.just("install"), st.sampled_from(ASKED)),
    st.tuples(st.just("leave"), st.integers(0, 9)),
    st.tuples(st.just("cancel"), st.integers(0, 9)),
    st.tuples(st.just("remove"), st.sampled_from(("one", "two"))),
    st.tuples(st.just("fault"), st.sampled_from(list(FILES))),
    st.tuples(st.just("restart"), st.just(0)),
    st.tuples(st.just("turns"), st.integers(1, 40)),
    st.tuples(st.just("change"), st.integers(0, 9)),
)


class Play:
    """One example: does the steps and keeps what each waiter heard."""

    def __init__(self, scene: Scene) -> None:
        self.scene = scene
        self.installer: Installer = scene.start(hub={"attempts": 2})
        self.waiters: list[asyncio.Task[Install]] = []
        self.disturbances = 0
        own, shared = scene.on_hub("own.gguf", FILES["own.gguf"]), scene.on_hub("shared.gguf", FILES["shared.gguf"])
        web = scene.on_web("web.gguf", FILES["web.gguf"], said=False)
        scene.offer("one", own, shared)
        scene.offer("two", shared, web)
        scene.offer("alias-of-two", shared, web, name="two")

    async def do(self, what: str, argument: object) -> None:
        states = self.installer.jobs()
        if what == "install":
            self.wait_for(self.installer.install(str(argument)).wait())
        elif what == "remove":
            self.disturbances += 1
            self.wait_for((await self.installer.remove(str(argument))).wait())
        elif what == "leave" and self.waiters:
            self.waiters.pop(int(str(argument)) % len(self.waiters)).cancel()
        elif what == "cancel" and states:
            self.disturbances += 1
            self.wait_for(self.cancelled(states[int(str(argument)) % len(states)].id))
        elif what == "fault":
            self.disturbances += 1
            self.scene.hub.cut(str(argument), after=50_000)
        elif what == "restart":
            self.disturbances += 1
            await self.restart()
        elif what == "turns":
            for _ in range(int(str(argument))):
                await asyncio.sleep(0)
        elif what == "change" and (running := [state for state in states if not state.is_over]):
            job = self.installer.find(running[int(str(argument)) % len(running)].id)
            assert job is not None
            await job.changed(job.state)

    def wait_for(self, waiting: object) -> None:
        self.waiters.append(asyncio.ensure_future(waiting))  # type: ignore[arg-type]

    async def cancelled(self, id: str) -> Install:
        return await self.installer.cancel(id) or Install(id, "")

    async def restart(self) -> None:
        await self.scene.stop()
        self.installer = self.scene.start(hub={"attempts": 2})
        await self.installer.resume()

    async def settle(self) -> None:
        outcomes = await asyncio.gather(*self.waiters, return_exceptions=True)
        assert all(isinstance(outcome, Install | GalleryError) for outcome in outcomes), outcomes
        for state in self.installer.jobs():
            job = self.installer.find(state.id)
            if job is not None and not job.state.is_over:
                try:
                    await job.wait()
                except GalleryError:
                    assert job.state.is_over

    # What must hold when nothing runs

    def check(self) -> None:
        states = {state.id: state for state in self.installer.jobs()}
        assert all(state.is_over for state in states.values())
        on_disk = [path for path in (self.scene.data / "jobs").glob("*") if not path.name.startswith(".")]
        records = {path.stem: msgspec.json.decode(path.read_bytes(), type=Record) for path in on_disk if path.suffix == ".json"}
        assert {path.name for path in on_disk} == {f"{id}.json" for id in records}
        assert all(record.state == states[id] for id, record in records.items())
        assert {id for id, state in states.items() if state.phase == "done"} <= records.keys()
        assert not any(record.state.phase == "cancelled" for record in records.values())
        self.check_folders()

    def check_folders(self) -> None:
        models, store = LockFile.of(self.scene.models).read().models, Store(self.scene.models, self.scene.cache)
        assert {path.stem for path in self.scene.models.glob("*.yaml")} == models.keys()
        for model in models.values():
            for file in model.files:
                assert store.final(planned(file)).read_bytes() in FILES.values()
        for name in FILES:
            gets = self.scene.hub.seen("GET", name, host="storage")
            assert len(gets) <= 1 + self.disturbances, (name, gets)

    async def sweep(self) -> None:
        """Everything goes: models are removed, failed jobs dismissed."""
        for name in LockFile.of(self.scene.models).read().models:
            await (await self.installer.remove(name)).wait()
        for state in self.installer.jobs():
            if state.phase == "failed":
                await self.installer.cancel(state.id)
        left = [name for name in self.scene.left() if not name.startswith("data/jobs/")]
        assert left == [] and not list((self.scene.models / ".files").glob("*"))


async def play(steps: list[tuple[str, object]]) -> None:
    with tempfile.TemporaryDirectory() as folder, LoopbackHub() as hub:
        scene = Scene(hub, Path(folder))
        game = Play(scene)
        try:
            async with asyncio.timeout(DEADLINE):
                for what, argument in steps:
                    await game.do(what, argument)
                await game.settle()
                await game.restart()  # whatever was noted a moment late is now
                await game.settle()
                game.check()
                await game.sweep()
        finally:
            await scene.stop()


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(st.lists(step, min_size=2, max_size=14))
def test_any_order_of_events(steps: list[tuple[str, object]]):
    asyncio.run(play(steps))


def test_a_waiter_of_a_cancelled_job_hears_it_once():
    async def scenario() -> None:
        with tempfile.TemporaryDirectory() as folder, LoopbackHub() as hub:
            scene = Scene(hub, Path(folder))
            game = Play(scene)
            hub.hold("own.gguf", after=1000)
            job = game.installer.install("one")
            waiters = [asyncio.create_task(job.wait()) for _ in range(10)]
            while job.state.done_bytes < 1000:
                await job.changed(job.state)
            await asyncio.gather(*(game.installer.cancel(job.id) for _ in range(5)))
            outcomes = await asyncio.gather(*waiters, return_exceptions=True)
            assert [type(outcome) for outcome in outcomes] == [Cancelled] * 10
            await scene.stop()

    asyncio.run(scenario())
