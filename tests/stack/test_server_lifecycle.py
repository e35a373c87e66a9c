"""The server as a process: what a signal, a crash and a small memory do to it."""

from __future__ import annotations

import os
import select
import shutil
import signal
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import openai
import pytest
from server_process import DEADLINE, ServerProcess

from llmgallery import paths

pytestmark = pytest.mark.skipif(not sys.platform.startswith("linux"), reason="finds worker processes through /proc")

QUESTION = [{"role": "user", "content": "one two three"}]


def echo_model(folder: Path, name: str, **options: object) -> None:
    lines = [f"name: {name}", "backend: echo", "options:", *(f"  {key}: {value}" for key, value in options.items())]
    (folder / f"{name}.yaml").write_text("\n".join(lines if options else lines[:-1]) + "\n")


def workers(server: ServerProcess) -> list[int]:
    """Process ids of the server's children."""
    tasks = Path(f"/proc/{server.process.pid}/task")
    children = [child for task in tasks.iterdir() for child in (task / "children").read_text().split()]
    return sorted(int(child) for child in children)


def gone(process: int) -> bool:
    """Waits until a process that is not our child has ended."""
    try:
        handle = os.pidfd_open(process)
    except ProcessLookupError:
        return True
    try:
        return bool(select.select([handle], [], [], DEADLINE)[0])
    finally:
        os.close(handle)


def ask(server: ServerProcess, model: str) -> str:
    reply = server.client.chat.completions.create(model=model, messages=QUESTION)
    return reply.choices[0].message.content or ""


def test_a_killed_worker_fails_its_own_requests_and_the_next_one_works(tmp_path: Path) -> None:
    gate = tmp_path / "gate"
    echo_model(tmp_path, "victim", gate=gate, gate_after=1)
    echo_model(tmp_path, "bystander")
    with ServerProcess(tmp_path) as server, ThreadPoolExecutor(1) as pool:
        assert ask(server, "bystander") == "one two three"
        (other,) = workers(server)
        stream = server.client.chat.completions.create(model="victim", messages=QUESTION, stream=True)
        assert next(stream).choices[0].delta.role == "assistant"
        (victim,) = set(workers(server)) - {other}
        whole = pool.submit(ask, server, "victim")
        os.kill(victim, signal.SIGKILL)
        with pytest.raises(openai.APIError, match="SIGKILL"):
            list(stream)
        gate.touch()
        # Whether it had a part in the crash depends on when it came: then it fails with the reason, else it is tried again.
        try:
            assert whole.result() == "one two three"
        except openai.APIStatusError as error:
            assert "SIGKILL" in error.message
        assert ask(server, "victim") == "one two three"
        assert ask(server, "bystander") == "one two three"
        assert other in workers(server)


def test_sigterm_lets_a_stream_finish_and_leaves_nothing_behind(tmp_path: Path) -> None:
    gate = tmp_path / "gate"
    echo_model(tmp_path, "slow", gate=gate, gate_after=1)
    with ServerProcess(tmp_path) as server:
        stream = server.client.chat.completions.create(model="slow", messages=QUESTION, stream=True)
        first = next(stream)
        (worker,) = workers(server)
        server.process.send_signal(signal.SIGTERM)
        gate.touch()
        text = "".join(chunk.choices[0].delta.content or "" for chunk in [first, *stream])
        assert text == "one two three"
        assert server.stop() == 0, server.output
    assert gone(worker)


def test_kill_minus_nine_leaves_no_orphan(tmp_path: Path) -> None:
    echo_model(tmp_path, "slow", gate=tmp_path / "never", gate_after=1)
    with ServerProcess(tmp_path) as server:
        stream = server.client.chat.completions.create(model="slow", messages=QUESTION, stream=True)
        next(stream)
        (worker,) = workers(server)
        server.kill()
        with pytest.raises(openai.APIConnectionError):
            list(stream)
    assert gone(worker)


def test_a_small_budget_unloads_the_idle_model_for_the_next(tmp_path: Path) -> None:
    weights = paths.builtin("models") / "pocket-f16.gguf"
    for name in ("first", "second"):
        shutil.copy(weights, tmp_path / f"{name}.gguf")
        (tmp_path / f"{name}.yaml").write_text(
            f"name: {name}\nparallel: 1\nparameters:\n  model: {name}.gguf\n  temperature: 0\n"
        )
    budget = {"LLMGALLERY_MEMORY_BUDGET": "12MB"}  # one of them takes about 9 MB
    capital = [{"role": "user", "content": "What is the capital of Italy?"}]
    with ServerProcess(tmp_path, environment=budget) as server:
        pids = []
        for name in ("first", "second", "first"):
            reply = server.client.chat.completions.create(model=name, messages=capital)
            assert reply.choices[0].message.content == "The capital of Italy is Rome."
            (pid,) = workers(server)
            pids.append(pid)
        assert len(set(pids)) == 3
        assert gone(pids[0])


def test_an_edited_file_acts_at_the_next_request_and_a_broken_one_harms_nobody(tmp_path: Path) -> None:
    echo_model(tmp_path, "edited", reply="before")
    echo_model(tmp_path, "other")
    with ServerProcess(tmp_path) as server:
        assert ask(server, "edited") == "before"
        assert ask(server, "other") == "one two three"
        untouched = workers(server)
        (tmp_path / "broken.yaml").write_text("name: [\n")
        echo_model(tmp_path, "edited", reply="after")
        echo_model(tmp_path, "new", reply="fresh")
        names = until(server, {"new"})
        assert {"edited", "other", "new", "pocket"} <= names
        assert ask(server, "edited") == "after"
        assert ask(server, "new") == "fresh"
        assert ask(server, "other") == "one two three"
        assert set(untouched) & set(workers(server)), "the worker of the file that nobody edited went on"
        (tmp_path / "new.yaml").unlink()
        until(server, set(), without={"new"})
        with pytest.raises(openai.NotFoundError):
            ask(server, "new")


def test_an_edited_preset_file_acts_at_the_next_request_and_reloads_nothing(tmp_path: Path) -> None:
    (tmp_path / "presets").mkdir()
    preset = tmp_path / "presets" / "mine.yaml"
    preset.write_text("stopwords: [two]\n")
    for name in ("a", "b"):
        (tmp_path / f"{name}.yaml").write_text("backend: echo\ntemplate: {preset: mine}\n")
    with ServerProcess(tmp_path) as server:
        assert (ask(server, "a").strip(), ask(server, "b").strip()) == ("one", "one")
        before = workers(server)
        preset.write_text("stopwords: [three]\n")
        assert (ask(server, "a").strip(), ask(server, "b").strip()) == ("one two", "one two")
        assert workers(server) == before
        preset.write_text("stopwords: three\n")
        with pytest.raises(openai.APIStatusError, match=r"mine\.yaml:1:12: stopwords: expected a list"):
            ask(server, "a")
        preset.write_text("parameters: {max_tokens: 100}\n")
        assert ask(server, "a") == "one two three"


def until(server: ServerProcess, there: set[str], without: set[str] = frozenset()) -> set[str]:
    """The names served, once the watcher has seen what was changed."""
    for _ in range(2000):
        names = {model.id for model in server.client.models.list().data}
        if there <= names and not names & without:
            return names
    raise AssertionError(f"the folder's change was not seen: {sorted(names)}")
