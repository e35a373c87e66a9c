"""What happens when two things meet: an eviction and a request, a stop and a load, a death and the next request."""

import asyncio
import os
import signal

import pytest
from test_manager import BUDGET, DEADLINE, SIZES, LocalFiles, ask, chat, entry, is_alive, running, until

from llmgallery.backends.base import Files
from llmgallery.core.errors import ErrorInfo, GalleryError, LoadError, Overloaded
from llmgallery.runtime.handle import Handle
from llmgallery.runtime.manager import Manager
from llmgallery.runtime.resident import STABLE_SECONDS, Resident
from llmgallery.wire.frames import Fatal


async def test_a_model_that_is_asked_for_while_another_is_unloaded_answers(tmp_path) -> None:
    first, second = entry("first"), entry("second", context_size=512)
    async with running(tmp_path) as manager:
        async with manager.lease(first) as lease, manager.lease(second) as other:
            going, _ = await lease.handle(), await other.handle()
            manager.retain({})  # both are unloaded as soon as they are idle
        while going.failure is None:  # noqa: ASYNC110 - nobody tells of it
            await asyncio.sleep(0)
        async with manager.lease(second) as lease:
            handle = await lease.handle()
            await going.ended
            await handle.tokenize("the unloading has gone on")
            answer = handle.submit(chat("still here"), second.config)
            *deltas, done = [event async for event in answer]
            assert ("".join(delta.text for delta in deltas), done.reason) == ("still here", "stop")


async def test_nobody_gets_a_worker_that_was_chosen_to_go(tmp_path) -> None:
    a, b, _ = (entry(name) for name in SIZES)
    async with running(tmp_path, SIZES, memory_budget=BUDGET) as manager:
        await ask(manager, a, "hi")
        loading = asyncio.create_task(ask(manager, b, "made it"))

        async def visit() -> None:
            """Comes and goes, so that `a` is idle at every other step of the event loop."""
            while not any(state.name == "a" and state.state != "ready" for state in manager.states()):
                async with manager.lease(a) as lease:
                    handle = await lease.handle()
                    await asyncio.sleep(0)
                    assert handle.failure is None
                await asyncio.sleep(0)

        await visit()
        assert (await loading)[0] == "made it"


async def test_a_worker_that_has_given_up_gets_no_more_requests(tmp_path) -> None:
    who = entry()
    async with running(tmp_path) as manager:
        async with manager.lease(who) as lease:
            handle = await lease.handle()
        handle._dispatch(Fatal(ErrorInfo("WorkerDied", "the engine failed")))  # what it says before it ends
        os.kill(handle.pid, signal.SIGKILL)
        assert (await ask(manager, who, "works"))[0] == "works"
        assert not is_alive(handle.pid)


async def test_who_waits_for_a_load_when_the_server_stops_is_told(tmp_path) -> None:
    who = entry(options={"load_gate": str(tmp_path / "gate")})
    manager = Manager(LocalFiles(tmp_path))
    await manager.start()
    waiting = asyncio.create_task(ask(manager, who, "never"))
    await until(manager, lambda: any(state.state == "loading" for state in manager.states()))
    await manager.stop()
    with pytest.raises(Overloaded, match="shutting down"):
        await waiting


async def test_files_that_come_after_the_stop_start_nothing(tmp_path) -> None:
    arrived = asyncio.Event()

    class SlowFiles(LocalFiles):
        async def ensure(self, entry, on_bytes) -> Files:
            await arrived.wait()
            return await super().ensure(entry, on_bytes)

    manager = Manager(SlowFiles(tmp_path))
    await manager.start()
    waiting = asyncio.create_task(ask(manager, entry(), "never"))
    await asyncio.sleep(0)
    await manager.stop()
    arrived.set()
    with pytest.raises(Overloaded, match="shutting down"):
        await waiting
    assert manager.states() == []


async def test_a_reader_that_breaks_ends_its_worker(tmp_path) -> None:
    def broken(fraction: float) -> None:
        raise ValueError("nobody foresaw this")

    who = entry(options={"load_steps": 2})
    async with asyncio.timeout(DEADLINE):
        with pytest.raises(GalleryError, match="nobody foresaw this"):
            await Handle.start("m", "echo", who.config, Files(), broken)


async def test_settings_of_unloading_act_at_once(tmp_path) -> None:
    async with running(tmp_path) as manager:
        await ask(manager, entry(), "hi")
        manager.retain({"m": entry(keep_alive="0s")})
        await until(manager, lambda: manager.states()[0].state == "unloaded")


def test_loads_that_fail_after_a_long_life_wait_longer_and_longer() -> None:
    resident = Resident("key", "m", "echo", Files(), 900.0)
    resident._loaded_at = 1.0
    for _ in range(3):
        resident.failed("it broke", 1.0 + 2 * STABLE_SECONDS)
    assert resident.failures == 3


async def test_a_system_that_starts_no_process_is_a_load_error(tmp_path, monkeypatch) -> None:
    monkeypatch.setattr("sys.executable", str(tmp_path / "no-such-python"))
    async with running(tmp_path) as manager:
        with pytest.raises(LoadError, match="no-such-python"):
            await ask(manager, entry(), "x")
