"""Real workers on the echo backend: who starts, shares, waits, dies and goes."""

import asyncio
import os
import signal
import subprocess
import sys
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from llmgallery.backends.base import Files
from llmgallery.catalog.index import Entry
from llmgallery.config.model import ModelConfig
from llmgallery.core.errors import BackendMissing, ContextExceeded, InvalidField, LoadError, Overloaded, WorkerDied
from llmgallery.core.events import Done, Progress, TextDelta
from llmgallery.core.messages import say
from llmgallery.core.requests import ChatRequest
from llmgallery.core.sampling import Sampling
from llmgallery.runtime.manager import Manager

DEADLINE = 20


def entry(name: str = "m", backend: str = "echo", **config) -> Entry:
    model = ModelConfig(name=name, **config)
    return Entry(
        name=name, path=Path(f"{name}.yaml"), folder=Path(), config=model, backend=backend, aliases=(), warnings=(), created=0
    )


class LocalFiles:
    """The seam where weights come from: files of given sizes, by model name."""

    def __init__(self, folder: Path, sizes: dict[str, int] | None = None) -> None:
        self.calls: list[str] = []
        self.files = {}
        for name, size in (sizes or {}).items():
            self.files[name] = folder / f"{name}.weights"
            self.files[name].write_bytes(b"\0" * size)

    async def ensure(self, entry: Entry, on_bytes) -> Files:
        self.calls.append(entry.name)
        on_bytes(1, 2)
        return Files((self.files[entry.name],)) if entry.name in self.files else Files()


@asynccontextmanager
async def running(tmp_path: Path, sizes: dict[str, int] | None = None, **options):
    manager = Manager(LocalFiles(tmp_path, sizes), **options)
    await manager.start()
    try:
        async with asyncio.timeout(DEADLINE):
            yield manager
    finally:
        await manager.stop()


def chat(text: str, **sampling) -> ChatRequest:
    return ChatRequest((say("user", text),), Sampling(**sampling))


async def ask(manager: Manager, who: Entry, text: str, **sampling) -> tuple[str, Done]:
    async with manager.lease(who) as lease:
        answer = (await lease.handle()).submit(chat(text, **sampling), who.config)
        await answer.accepted()
        events = [event async for event in answer]
    assert all(isinstance(event, TextDelta) for event in events[:-1])
    return "".join(event.text for event in events[:-1]), events[-1]


def is_alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True


async def until(manager: Manager, condition) -> None:
    """Waits on the manager's own news."""
    while not condition():
        await manager._next_change()


async def test_a_model_answers(tmp_path) -> None:
    async with running(tmp_path) as manager:
        text, done = await ask(manager, entry(), "hello é😀")
    assert text == "hello é😀"
    assert done.reason == "stop"
    assert done.usage.completion_tokens >= len("hello é😀".encode())


async def test_ten_first_requests_start_one_process(tmp_path) -> None:
    async with running(tmp_path) as manager:
        answers = await asyncio.gather(*(ask(manager, entry(), f"text {i}") for i in range(10)))
        assert [text for text, _ in answers] == [f"text {i}" for i in range(10)]
        (state,) = manager.states()
    assert (state.state, state.busy) == ("ready", 0)
    assert state.stats is not None


async def test_requests_share_decodes(tmp_path) -> None:
    gate = tmp_path / "gate"
    who = entry(options={"gate": str(gate)}, parallel=4)
    async with running(tmp_path) as manager, manager.lease(who) as lease:
        handle = await lease.handle()
        answers = [handle.submit(chat(f"number {i}"), who.config) for i in range(4)]
        await asyncio.gather(*(answer.accepted() for answer in answers))
        gate.touch()
        for i, answer in enumerate(answers):
            events = [event async for event in answer]
            assert "".join(event.text for event in events[:-1]) == f"number {i}"
        assert handle.stats is not None
        assert handle.stats.most_sequences == 4


async def test_yamls_over_the_same_files_share_a_process(tmp_path) -> None:
    first, second, third = entry("a", system_prompt="x"), entry("b"), entry("c", context_size=512)
    async with running(tmp_path) as manager:
        for who in (first, second, third):
            await ask(manager, who, "hi")
        pids = {state.name: state.pid for state in manager.states()}
    assert pids["a"] == pids["b"] != pids["c"]


async def test_a_context_that_is_too_small_refuses_before_anything_is_queued(tmp_path) -> None:
    who = entry(context_size=64)
    async with running(tmp_path) as manager:
        with pytest.raises(ContextExceeded, match="context holds 64"):
            await ask(manager, who, "x" * 100)
        assert (await ask(manager, who, "fits"))[0] == "fits"


async def test_stop_strings_never_show(tmp_path) -> None:
    who = entry()
    async with running(tmp_path) as manager, manager.lease(who) as lease:
        handle = await lease.handle()
        answer = handle.submit(ChatRequest((say("user", "one STOP two"),), stop=("STOP",)), who.config)
        *deltas, done = [event async for event in answer]
    assert "".join(delta.text for delta in deltas) == "one "
    assert (done.reason, done.stop) == ("stop", "STOP")


@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGSEGV])
async def test_a_crash_inside_a_decode_costs_only_its_own_requests(tmp_path, how) -> None:
    who = entry(options={"crash_on": "boom", "crash_signal": how.name})
    other = entry("other")
    async with running(tmp_path) as manager:
        await ask(manager, other, "before")
        with pytest.raises(WorkerDied, match=how.name) as caught:
            await ask(manager, who, "boom")
        if how is signal.SIGSEGV:  # the stack of the crash is in the log
            assert "Fatal Python error: Segmentation fault" in str(caught.value)
            assert any("decode" in line for line in caught.value.hints)
        assert (await ask(manager, who, "again"))[0] == "again"
        assert (await ask(manager, other, "after"))[0] == "after"
        assert manager.restarts == 1


async def test_a_killed_worker_tells_its_requests_and_comes_back(tmp_path) -> None:
    gate = tmp_path / "gate"
    who = entry(options={"gate": str(gate)}, parallel=2)
    async with running(tmp_path) as manager:
        async with manager.lease(who) as lease:
            handle = await lease.handle()
            answers = [handle.submit(chat(f"{i}"), who.config) for i in range(3)]
            await asyncio.gather(*(answer.accepted() for answer in answers))
            os.kill(handle.pid, signal.SIGKILL)
            for answer in answers:
                with pytest.raises(WorkerDied, match=r"signal 9 \(SIGKILL\)"):
                    await anext(answer)
            assert [answer.started for answer in answers] == [True, True, False]
            gate.touch()
            assert (await lease.handle()).pid != handle.pid
        assert (await ask(manager, who, "works"))[0] == "works"


async def test_cancel_frees_the_slot_at_once(tmp_path) -> None:
    gate = tmp_path / "gate"
    who = entry(options={"gate": str(gate)}, parallel=1)
    async with running(tmp_path) as manager, manager.lease(who) as lease:
        handle = await lease.handle()
        first = handle.submit(chat("first"), who.config)
        second = handle.submit(chat("second"), who.config)
        await asyncio.gather(first.accepted(), second.accepted())
        first.cancel()
        first.cancel()
        *_, done = [event async for event in first]
        assert done.reason == "cancelled"
        gate.touch()
        *deltas, done = [event async for event in second]
        assert "".join(delta.text for delta in deltas) == "second"
        assert handle.open_answers == 0


async def test_a_request_that_is_withdrawn_before_it_is_rendered_ends_as_cancelled(tmp_path) -> None:
    who = entry(options={"gate": str(tmp_path / "never")})
    async with running(tmp_path) as manager, manager.lease(who) as lease:
        handle = await lease.handle()
        answers = [handle.submit(chat(f"{i}"), who.config) for i in range(20)]
        for answer in answers:
            answer.cancel()
        for answer in answers:
            assert [event.reason async for event in answer] == ["cancelled"]
        assert handle.open_answers == 0


async def test_a_worker_renders_and_tokenises_without_generating(tmp_path) -> None:
    who = entry(system_prompt="be brief")
    async with running(tmp_path) as manager, manager.lease(who) as lease:
        handle = await lease.handle()
        rendering = await handle.render(chat("hé"), who.config)
        assert "be brief" in rendering.prompt and "hé" in rendering.prompt
        assert await handle.tokenize(rendering.prompt, special=True) == rendering.tokens
        assert await handle.detokenize(await handle.tokenize("hé😀")) == "hé😀"
        with pytest.raises(InvalidField, match="vocabulary"):
            await handle.detokenize([1 << 20])
    with pytest.raises(Overloaded, match="shutting down"):
        await handle.tokenize("too late")


async def test_a_load_that_fails_says_why_and_is_tried_again_later_and_later(tmp_path) -> None:
    who = entry(options={"fail_load": "the weights are sour"})
    async with running(tmp_path) as manager:
        seen = set()
        for _ in range(6):
            with pytest.raises((LoadError, Overloaded), match="the weights are sour") as caught:
                await ask(manager, who, "x")
            seen.add(type(caught.value))
            if isinstance(caught.value, Overloaded):
                assert caught.value.retry_after is not None
                break
        assert Overloaded in seen
        (state,) = manager.states()
        assert (state.state, state.busy) == ("failed", 0)


async def test_an_unknown_backend_is_a_load_error(tmp_path) -> None:
    async with running(tmp_path) as manager:
        with pytest.raises((LoadError, BackendMissing), match="no backend nosuch"):
            await ask(manager, entry(backend="nosuch"), "x")


async def test_weights_that_vanish_are_a_load_error(tmp_path) -> None:
    async with running(tmp_path, {"a": 10}) as manager:
        (tmp_path / "a.weights").unlink()
        with pytest.raises(LoadError, match=r"a\.weights cannot be read"):
            await ask(manager, entry("a"), "x")


async def test_progress_is_told_while_a_model_loads(tmp_path) -> None:
    who = entry(options={"load_steps": 4})
    async with running(tmp_path) as manager, manager.lease(who) as lease:
        seen: list[Progress] = []
        assert lease.progress == Progress("queued")

        async def follow() -> None:
            while lease.progress is not None:
                seen.append(lease.progress)
                await lease.changed()

        following = asyncio.create_task(follow())
        await lease.handle()
        await following
    assert {progress.phase for progress in seen} >= {"downloading", "queued", "loading"}
    fractions = [progress.fraction for progress in seen if progress.phase == "loading"]
    assert fractions == sorted(fractions)


async def test_a_waiter_that_leaves_does_not_stop_the_load(tmp_path) -> None:
    who = entry(options={"load_steps": 4})
    async with running(tmp_path) as manager:
        leaver = asyncio.create_task(ask(manager, who, "first"))
        others = [asyncio.create_task(ask(manager, who, f"{i}")) for i in range(9)]
        await manager._next_change()
        leaver.cancel()
        assert [text for text, _ in await asyncio.gather(*others)] == [str(i) for i in range(9)]
        assert leaver.cancelled()
        assert manager.states()[0].busy == 0


BUDGET = 3_000_000
SIZES = {"a": 2_000_000, "b": 2_000_000, "c": 500_000}


async def test_an_idle_model_makes_room_for_the_next(tmp_path) -> None:
    a, b, c = (entry(name) for name in SIZES)
    async with running(tmp_path, SIZES, memory_budget=BUDGET) as manager:
        await ask(manager, a, "hi")
        await ask(manager, c, "hi")
        pid_of_a = next(state.pid for state in manager.states() if state.name == "a")
        assert (await ask(manager, b, "made it"))[0] == "made it"
        states = {state.name: state.state for state in manager.states()}
        assert states == {"a": "unloaded", "b": "ready", "c": "ready"}
        assert not is_alive(pid_of_a)
        assert manager.evictions == 1


async def test_a_busy_model_is_waited_for(tmp_path) -> None:
    a, b, _ = (entry(name) for name in SIZES)
    async with running(tmp_path, SIZES, memory_budget=BUDGET) as manager:
        async with manager.lease(a) as lease:
            await lease.handle()
            waiting = asyncio.create_task(ask(manager, b, "late"))
            await until(manager, lambda: any(state.name == "b" and state.state == "loading" for state in manager.states()))
            assert not waiting.done()
        assert (await waiting)[0] == "late"


async def test_who_waits_too_long_is_told_to_come_again(tmp_path) -> None:
    a, b, _ = (entry(name) for name in SIZES)
    async with running(tmp_path, SIZES, memory_budget=BUDGET, queue_wait=0.05) as manager, manager.lease(a) as lease:
        await lease.handle()
        with pytest.raises(Overloaded, match="while a answer other requests") as caught:
            await ask(manager, b, "never")
        assert caught.value.retry_after == 10


async def test_a_pinned_model_stays_and_what_can_never_fit_is_refused(tmp_path) -> None:
    a, b = entry("a", pinned=True), entry("b")
    async with running(tmp_path, SIZES, memory_budget=BUDGET) as manager:
        await ask(manager, a, "hi")
        with pytest.raises(LoadError, match="memory_budget"):
            await ask(manager, b, "no")
        assert (await ask(manager, a, "still here"))[0] == "still here"


async def test_idle_models_go_when_their_time_is_up(tmp_path) -> None:
    who = entry(keep_alive="10ms")
    async with running(tmp_path) as manager:
        await ask(manager, who, "hi")
        pid = next((state.pid for state in manager.states()), None)
        await until(manager, lambda: manager.states()[0].state == "unloaded")
        assert pid is None or not is_alive(pid)
        assert (await ask(manager, who, "back"))[0] == "back"


async def test_a_worker_whose_end_goes_wrong_does_not_keep_the_others(tmp_path) -> None:
    broken, sound = entry("broken", keep_alive="10ms"), entry("sound", keep_alive="10ms", context_size=512)
    async with running(tmp_path) as manager:
        async with manager.lease(broken) as lease:
            (await lease.handle())._reader.cancel()
        await until(manager, lambda: manager.states()[0].state == "unloaded")
        await ask(manager, sound, "hi")
        await until(manager, lambda: manager.states()[1].state == "unloaded")


async def test_a_model_that_no_yaml_wants_goes_after_its_last_request(tmp_path) -> None:
    who, other = entry("gone"), entry("kept", context_size=512)
    async with running(tmp_path) as manager:
        await ask(manager, other, "hi")
        async with manager.lease(who) as lease:
            handle = await lease.handle()
            manager.retain({"kept": other})
            assert not handle.ended.done()
        await handle.ended
        await until(manager, lambda: [state.name for state in manager.states()] == ["kept"])
        assert manager.states()[0].state == "ready"


async def test_an_edited_load_key_starts_a_new_worker_and_the_old_one_finishes(tmp_path) -> None:
    gate = tmp_path / "gate"
    old, new = entry(options={"gate": str(gate)}), entry(context_size=512)
    async with running(tmp_path) as manager, manager.lease(old) as lease:
        handle = await lease.handle()
        answer = handle.submit(chat("slow"), old.config)
        await answer.accepted()
        manager.retain({"m": new})
        assert (await ask(manager, new, "fast"))[0] == "fast"
        gate.touch()
        *deltas, _ = [event async for event in answer]
        assert "".join(delta.text for delta in deltas) == "slow"


async def test_unload_by_name(tmp_path) -> None:
    async with running(tmp_path) as manager:
        await ask(manager, entry(), "hi")
        assert await manager.unload("m")
        assert not await manager.unload("m")
        assert manager.states()[0].state == "unloaded"


async def test_stop_lets_running_requests_finish_and_takes_no_new_ones(tmp_path) -> None:
    gate = tmp_path / "gate"
    who = entry(options={"gate": str(gate)})
    manager = Manager(LocalFiles(tmp_path))
    await manager.start()
    running_request = asyncio.create_task(ask(manager, who, "last"))
    await until(manager, lambda: any(state.state == "ready" for state in manager.states()))
    pid = manager.states()[0].pid
    stopping = asyncio.create_task(manager.stop(drain=DEADLINE))
    await manager._next_change()
    with pytest.raises(Overloaded, match="shutting down"):
        await ask(manager, who, "too late")
    gate.touch()
    assert (await running_request)[0] == "last"
    await stopping
    assert not is_alive(pid)


ORPHAN = """
import asyncio, sys
from llmgallery.backends.base import Files
from llmgallery.config.model import ModelConfig
from llmgallery.runtime.handle import Handle

async def main():
    handle = await Handle.start("m", "echo", ModelConfig(options={"gate": sys.argv[1]}), Files(), lambda fraction: None)
    from llmgallery.core.messages import say
    from llmgallery.core.requests import ChatRequest
    await handle.submit(ChatRequest((say("user", "x"),)), ModelConfig()).accepted()
    print(handle.pid, flush=True)
    await asyncio.Event().wait()

asyncio.run(main())
"""


@pytest.mark.skipif(not hasattr(os, "pidfd_open"), reason="waits on a process that is no child: Linux")
def test_a_worker_never_outlives_a_killed_server(tmp_path) -> None:
    import select

    command = [sys.executable, "-c", ORPHAN, str(tmp_path / "gate")]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as server:
        worker = int(server.stdout.readline())
        gone = os.pidfd_open(worker)
        server.kill()
    ready, _, _ = select.select([gone], [], [], DEADLINE)
    os.close(gone)
    assert ready, "the worker outlived its server"


async def test_a_client_that_does_not_read_holds_only_its_own_answer(tmp_path, monkeypatch) -> None:
    monkeypatch.setattr("llmgallery.runtime.answer.MAILBOX_BYTES", 6000)
    who = entry(options={"reply": "x" * 8000}, context_size=10_000)
    async with running(tmp_path) as manager, manager.lease(who) as lease:
        handle = await lease.handle()
        lazy = handle.submit(chat("a"), who.config)
        *deltas, done = [event async for event in handle.submit(chat("b"), who.config)]
        assert (sum(len(delta.text) for delta in deltas), done.reason) == (8000, "stop")
        with pytest.raises(Overloaded, match="did not read"):
            _ = [event async for event in lazy]


async def test_the_worker_starts_light(tmp_path) -> None:
    heavy = ["litestar", "huggingface_hub", "transformers", "torch", "llama_cpp", "httpx", "yaml"]
    probe = f"import sys, llmgallery.worker.child; print([name for name in {heavy} if name in sys.modules])"
    result = await asyncio.to_thread(subprocess.run, [sys.executable, "-c", probe], capture_output=True, text=True)
    assert result.stdout.strip() == "[]", result.stderr
