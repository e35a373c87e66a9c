"""The gallery without HTTP: names, merged requests, one generation of many answers, resubmission."""

from __future__ import annotations

import asyncio
import json
import os
import signal
from collections.abc import AsyncIterator, Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import msgspec
import pytest

from llmgallery.backends.echo import vocab
from llmgallery.cli.stack import Stack, build
from llmgallery.config.settings import Settings
from llmgallery.core.errors import InvalidField, ModelBroken, ModelNotFound, Overloaded, WorkerDied
from llmgallery.core.events import Done, TextDelta, Usage
from llmgallery.core.messages import say
from llmgallery.core.requests import ChatRequest, CompletionRequest
from llmgallery.core.sampling import Sampling
from llmgallery.service.gallery import Ask, Gallery
from llmgallery.service.generation import Generation, fold
from llmgallery.service.spread import MOST_ANSWERS, spread

DEADLINE = 20.0


class Folder:
    """A gallery over one folder; `add` writes a model of echo's."""

    def __init__(self, path: Path, stack: Stack) -> None:
        self.path = path
        self.stack = stack
        self.gallery: Gallery = stack.gallery

    def add(self, name: str, **config: Any) -> str:
        (self.path / f"{name}.yaml").write_text(json.dumps({"backend": "echo", **config}))
        self.stack.registry.refresh()
        return name

    async def until(self, holds: Callable[[], Any]) -> None:
        never = asyncio.Event()
        async with asyncio.timeout(DEADLINE):
            while not holds():
                with suppress(TimeoutError):
                    await asyncio.wait_for(never.wait(), 0.005)

    def state(self, name: str) -> Any:
        return next((state for state in self.gallery.manager.states() if state.name == name), None)


@pytest.fixture
async def folder(tmp_path: Path) -> AsyncIterator[Folder]:
    path = tmp_path / "models"
    path.mkdir()
    stack = build(Settings(models_dir=path, watch="off"))
    await stack.gallery.start()
    await stack.gallery.snapshot()
    yield Folder(path, stack)
    await stack.close()


def chat(text: str, **sampling: Any) -> ChatRequest:
    return ChatRequest((say("user", text),), Sampling(**sampling))


def counted(usage: Usage) -> Usage:
    """Without what depends on the order of the requests."""
    return msgspec.structs.replace(usage, cached_tokens=0)


async def test_a_generation_is_events_and_its_fold_is_the_answer(folder: Folder) -> None:
    folder.add("echo")
    async with await folder.gallery.generate(Ask("echo", (chat("one"), chat("four!")), copies=2)) as generation:
        await generation.accepted()
        texts = ["", "", "", ""]
        ends: list[int] = []
        async for index, event in generation:
            if isinstance(event, TextDelta):
                texts[index] += event.text
            else:
                ends.append(index)
        assert texts == ["one", "one", "four!", "four!"]
        assert sorted(ends) == [0, 1, 2, 3]
        assert counted(generation.usage) == Usage(prompt_tokens=6 + 8, completion_tokens=4 + 4 + 6 + 6)
    async with await folder.gallery.generate(Ask("echo", (chat("one"), chat("four!")), copies=2)) as generation:
        assert [choice.text for choice in await fold(generation)] == texts


async def test_leaving_early_cancels_what_still_runs(folder: Folder, tmp_path: Path) -> None:
    folder.add("echo", options={"gate": str(tmp_path / "gate"), "gate_after": 1})
    async with await folder.gallery.generate(Ask("echo", (chat("hello"),), copies=3, stream=True)) as generation:
        await anext(generation)
        assert folder.state("echo").busy == 1
    assert folder.state("echo").busy == 0
    async with await folder.gallery.generate(Ask("echo", (chat("x", max_tokens=1),))) as generation:
        assert [choice.text for choice in await fold(generation)] == ["x"]


async def test_names_are_resolved_and_broken_files_told_apart(folder: Folder) -> None:
    folder.add("echo", aliases=["parrot"])
    folder.add("wrong", parameters={"temprature": 1})
    assert (await folder.gallery.model("parrot")).name == "echo"
    assert [info.name for info in await folder.gallery.models()] == ["echo", "pocket"]
    with pytest.raises(ModelBroken):
        await folder.gallery.generate(Ask("wrong", (chat("x"),)))
    with pytest.raises(ModelNotFound):
        await folder.gallery.generate(Ask("nobody", (chat("x"),)))


async def test_more_answers_than_a_request_may_ask_for(folder: Folder) -> None:
    folder.add("echo")
    prompts = tuple(CompletionRequest("x") for _ in range(MOST_ANSWERS // 2 + 1))
    with pytest.raises(InvalidField):
        await folder.gallery.generate(Ask("echo", prompts, copies=2))


async def test_the_model_s_settings_lie_under_the_request_s(folder: Folder) -> None:
    folder.add("echo", stopwords=["END"], parameters={"temperature": 0.1, "top_k": 3, "seed": 5})
    request = ChatRequest((say("user", "x"),), Sampling(temperature=0.9), ("stop",))
    entry = await folder.gallery.entry("echo")
    first, second = spread(Ask("echo", (request,), copies=2), entry).requests
    assert (first.sampling.temperature, first.sampling.top_k, first.sampling.top_p) == (0.9, 3, 0.95)
    assert first.stop == ("stop", "END")
    assert (first.sampling.seed, second.sampling.seed) == (5, 6)
    random, again = spread(Ask("echo", (chat("x", seed=-1),), copies=2), entry).requests
    assert random.sampling.seed == again.sampling.seed == -1


async def test_one_failed_answer_fails_all(folder: Folder) -> None:
    folder.add("echo", options={"crash_on": "die"})
    generation = await folder.gallery.generate(Ask("echo", (chat("fine"), chat("die"))))
    with pytest.raises(WorkerDied, match="SIGSEGV"):
        async with generation:
            await fold(generation)
    assert folder.state("echo").busy == 0


async def test_only_what_never_ran_is_submitted_again(folder: Folder, tmp_path: Path) -> None:
    gate = tmp_path / "gate"
    folder.add("echo", parallel=1, options={"gate": str(gate), "gate_after": 1})
    running = await folder.gallery.generate(Ask("echo", (chat("first"),), stream=True))
    waiting = await folder.gallery.generate(Ask("echo", (chat("second"),)))
    async with running, waiting:
        await anext(running)
        await waiting.accepted()
        os.kill(folder.state("echo").pid, signal.SIGKILL)
        with pytest.raises(WorkerDied):
            await _drain(running)
        gate.touch()
        assert [choice.text for choice in await fold(waiting)] == ["second"]
    assert folder.gallery.manager.restarts == 1


async def test_a_request_is_submitted_again_only_once(folder: Folder, tmp_path: Path) -> None:
    """Both workers die with it waiting behind another."""
    gate = tmp_path / "gate"
    folder.add("echo", parallel=1, options={"gate": str(gate), "gate_after": 1})

    async def occupy() -> Generation:
        generation = await folder.gallery.generate(Ask("echo", (chat("first"),), stream=True))
        await generation.__aenter__()
        await anext(generation)
        return generation

    first = await occupy()
    async with await folder.gallery.generate(Ask("echo", (chat("second"),))) as waiting:
        await waiting.accepted()
        before = folder.state("echo").pid
        os.kill(before, signal.SIGKILL)
        await folder.until(lambda: (state := folder.state("echo")).pid not in (None, before) and state.stats)
        os.kill(folder.state("echo").pid, signal.SIGKILL)
        with pytest.raises(WorkerDied):
            await fold(waiting)
    await first.__aexit__(None, None, None)


async def test_text_may_be_waited_for_with_a_timeout_and_none_is_lost(folder: Folder) -> None:
    folder.add("echo", options={"delay_ms": 3})
    text = "a longer answer, letter by letter"
    async with await folder.gallery.generate(Ask("echo", (chat(text),), stream=True)) as generation:
        seen = ""
        while True:
            try:
                async with asyncio.timeout(0.001):
                    _, event = await anext(generation)
            except TimeoutError:
                continue
            if isinstance(event, Done):
                break
            seen += event.text
    assert seen == text


async def test_the_best_of_copies_are_given_and_all_are_counted(folder: Folder) -> None:
    folder.add("echo")
    ask = Ask("echo", (CompletionRequest("one", Sampling(seed=1)), CompletionRequest("four!", Sampling(seed=1))), 2, best_of=3)
    async with await folder.gallery.generate(ask) as generation:
        best = await fold(generation)
        assert counted(generation.usage) == Usage(prompt_tokens=3 + 5, completion_tokens=3 * 4 + 3 * 6)
    assert [choice.text for choice in best] == ["one", "one", "four!", "four!"]
    assert all(choice.logprobs == () for choice in best)  # nobody asked to see them
    seen = tuple(msgspec.structs.replace(request, logprobs=0) for request in ask.prompts)
    async with await folder.gallery.generate(msgspec.structs.replace(ask, prompts=seen)) as generation:
        sure = [choice.logprobs[0].logprob for choice in await fold(generation)]
    # echo is the surer, the greater the seed's last two bits: of 1, 2 and 3 the last is best, and comes first
    assert sure == [vocab.logprob(ord("o"), 0, 3).logprob, vocab.logprob(ord("o"), 0, 2).logprob] * 2


async def _drain(generation: Generation) -> None:
    async for _ in generation:
        pass


async def test_two_that_come_at_once_do_not_both_pass_a_limit_of_one(folder: Folder) -> None:
    folder.add("one", limits={"max_concurrent": 1})
    first, second = [await folder.gallery.generate(Ask("one", (chat("hi"),))) for _ in range(2)]
    async with first:
        with pytest.raises(Overloaded, match="already answers 1 requests"):
            await second.__aenter__()
        assert (await fold(first))[0].text == "hi"
    async with await folder.gallery.generate(Ask("one", (chat("next"),))) as third:
        assert (await fold(third))[0].text == "next"


@pytest.fixture
async def unwatched(tmp_path: Path) -> AsyncIterator[Folder]:
    """A gallery whose watcher is on but has not told anything yet: as in the moment after a file was written."""
    stack = build(Settings(models_dir=tmp_path))
    await stack.gallery.start()
    await stack.gallery.snapshot()
    yield Folder(tmp_path, stack)
    await stack.close()


async def test_a_new_file_counts_at_the_next_request_before_the_watcher_tells(unwatched: Folder) -> None:
    (unwatched.path / "fresh.yaml").write_text("backend: echo\n")
    assert (await unwatched.gallery.entry("fresh")).backend == "echo"


async def test_an_edited_file_counts_at_the_next_request_before_the_watcher_tells(
    unwatched: Folder, caplog: pytest.LogCaptureFixture
) -> None:
    file = unwatched.path / "edited.yaml"
    file.write_text("backend: echo\nsystem_prompt: before\n")
    assert (await unwatched.gallery.entry("edited")).config.system_prompt == "before"
    file.write_text("backend: echo\nsystem_prompt: and after\n")
    assert (await unwatched.gallery.entry("edited")).config.system_prompt == "and after"
    file.write_text("backend: [\n")
    with pytest.raises(ModelBroken):
        await unwatched.gallery.entry("edited")
    assert [record.message for record in caplog.records if "not served" in record.message] != []


async def test_a_deleted_file_counts_at_the_next_request(unwatched: Folder) -> None:
    file = unwatched.path / "gone.yaml"
    file.write_text("backend: echo\n")
    await unwatched.gallery.entry("gone")
    file.unlink()
    with pytest.raises(ModelNotFound):
        await unwatched.gallery.entry("gone")


async def test_unknown_names_do_not_make_it_read_the_folder_all_the_time(unwatched: Folder) -> None:
    os.utime(unwatched.path, (1, 1))  # it has not changed for long
    unwatched.stack.registry.refresh()
    snapshot = unwatched.stack.registry.snapshot
    for _ in range(5):
        with pytest.raises(ModelNotFound):
            await unwatched.gallery.entry("nobody")
    assert unwatched.stack.registry.snapshot is snapshot


async def test_a_new_file_is_found_right_after_a_name_that_was_unknown(unwatched: Folder) -> None:
    for name in ("one", "two", "three"):
        with pytest.raises(ModelNotFound):
            await unwatched.gallery.entry(name)
        (unwatched.path / f"{name}.yaml").write_text("backend: echo\n")
        assert (await unwatched.gallery.entry(name)).name == name


async def test_a_broken_file_that_is_mended_counts_at_the_next_request(unwatched: Folder) -> None:
    file = unwatched.path / "mended.yaml"
    file.write_text("backend: [\n")
    with pytest.raises(ModelBroken):
        await unwatched.gallery.entry("mended")
    file.write_text("backend: echo\n")
    assert (await unwatched.gallery.entry("mended")).backend == "echo"


async def test_a_folder_that_is_not_watched_is_read_once(folder: Folder) -> None:
    (folder.path / "late.yaml").write_text("backend: echo\n")
    with pytest.raises(ModelNotFound):
        await folder.gallery.entry("late")
