"""What every engine must do when it is told to stop, to go, or to load what cannot be loaded."""

from __future__ import annotations

import gc
import os
import subprocess
import threading
from collections.abc import Callable
from pathlib import Path

import pytest
from conformance_cases import Case, Model
from conformance_checks import check, lack
from conformance_driving import PROMPTS, Driven, Hearing, request
from conformance_worker import SECONDS, Worker, text_of

from llmgallery.backends.base import Files, Output
from llmgallery.config.model import ModelConfig
from llmgallery.core.errors import GalleryError, LoadError, WorkerDied
from llmgallery.core.sampling import Sampling

ENDLESS = Sampling(temperature=0, ignore_eos=True)
LOADS = 3
NOISE = 24 * 2**20
"""Bytes by which a process grows and shrinks by itself."""


@check("cancel")
def test_a_cancelled_answer_ends_at_once_and_its_place_is_free(drive: Callable[..., Driven]) -> None:
    driven = drive(parallel=1)
    assert driven.loaded.slots == 1
    running, waiting, withdrawn = driven.chat(PROMPTS[0], ENDLESS), driven.chat(PROMPTS[1]), driven.chat(PROMPTS[2])
    begun, go_on = threading.Event(), threading.Event()

    def hold(output: Output) -> None:
        if output.id == running.id and output.tokens and not begun.is_set():
            begun.set()
            go_on.wait(SECONDS)

    driven.listener.on_output = hold
    driven.backend.submit(running)
    assert begun.wait(SECONDS)
    for job in (waiting, withdrawn):
        driven.backend.submit(job)
    driven.backend.cancel(withdrawn.id)
    driven.backend.cancel(running.id)
    go_on.set()
    ended = driven.listener.answer(running.id)
    (expected,) = driven.ask(PROMPTS[1])
    assert ended.finish == "cancelled" and ended.usage.completion_tokens < driven.loaded.context_size - len(running.prompt)
    assert driven.listener.answer(waiting.id).tokens == expected.tokens
    assert driven.listener.answer(withdrawn.id).finish == "cancelled"
    assert driven.listener.answer(withdrawn.id).tokens == ()


@check("cancel")
def test_a_cancel_in_the_step_that_brought_a_token_is_the_end(drive: Callable[..., Driven]) -> None:
    """So stop strings work: what has been said is not decoded further."""
    driven = drive(parallel=1)
    job = driven.chat(PROMPTS[0], ENDLESS)
    counts: list[int] = []

    def cancel(output: Output) -> None:
        if output.id == job.id and output.tokens and not counts:
            counts.append(output.usage.completion_tokens)
            driven.backend.cancel(job.id)

    driven.listener.on_output = cancel
    driven.backend.submit(job)
    answer = driven.listener.answer(job.id)
    driven.listener.on_output = lambda output: None
    assert answer.finish == "cancelled"
    assert answer.usage.completion_tokens <= counts[0] + driven.case.overrun
    driven.backend.cancel(job.id)
    assert len(driven.ask(PROMPTS[1])) == 1 and driven.listener.finishes(job.id) == ["cancelled"], "a second cancel is nothing"


@check("bad_files")
def test_bad_files_give_errors_that_name_them(case: Case, model: Callable[..., Model], tmp_path: Path) -> None:
    good = model()
    for bad in case.bad(tmp_path):
        backend = case.spec.load()()
        with pytest.raises(GalleryError, match=bad.says) as caught:
            backend.load(ModelConfig(name=case.name, **good.keys), bad.files, Hearing())
        backend.close()
        assert isinstance(caught.value, LoadError), (bad.label, caught.value)
    working = Driven(case, good)
    assert working.ask(PROMPTS[0])[0].tokens, "failures leave nothing behind"
    working.close()


@lack("bad_files")
def test_it_needs_no_files(case: Case, model: Callable[..., Model]) -> None:
    assert model().files == Files() and not case.spec.needs_weights and not case.spec.formats
    Driven(case, model()).close()


@check("unload")
def test_closing_frees_the_memory(case: Case, model: Callable[..., Model]) -> None:
    """The library's own account of it, and the system's: loading again and again does not add up."""
    weights = sum(
        file.stat().st_size for path in model().files.weights for file in ([path] if path.is_file() else path.iterdir())
    )
    held, sizes = case.held(), []
    for _ in range(LOADS):
        driven = Driven(case, model())
        job = driven.chat(PROMPTS[0])
        assert driven.run(job)[0].tokens
        assert case.held() >= held + weights * case.told
        driven.close()
        driven.close()
        with pytest.raises((WorkerDied, LoadError)):
            driven.backend.submit(job)
        del driven
        gc.collect()
        sizes.append(_resident(os.getpid()))
        assert case.held() <= held
    assert sizes[-1] - sizes[0] < NOISE, sizes


@check("unload")
def test_running_answers_end_when_the_model_is_closed(case: Case, model: Callable[..., Model]) -> None:
    driven = Driven(case, model())
    jobs = [driven.chat(text, ENDLESS) for text in PROMPTS]
    begun = threading.Event()
    driven.listener.on_output = lambda output: begun.set()
    for job in jobs:
        driven.backend.submit(job)
    assert begun.wait(SECONDS)
    driven.close()
    assert all(driven.listener.answer(job.id).finish in ("cancelled", "error", "length") for job in jobs)


@check("unload")
def test_stopping_its_worker_leaves_no_process_and_no_memory(case: Case, model: Callable[..., Model]) -> None:
    before = _resident(os.getpid())
    with Worker(case, model()) as worker:
        pid = worker.handle.pid
        assert text_of(worker.ask(request(PROMPTS[0])))
        assert _resident(pid) > 0
    assert _resident(pid) == 0, "its process is there still"
    assert _resident(os.getpid()) - before < NOISE, "what the worker loads is the worker's"


def _resident(pid: int) -> int:
    """Bytes of memory that the process has; 0 = there is none."""
    told = subprocess.run(["ps", "-o", "rss=", "-p", str(pid)], capture_output=True, text=True, check=False).stdout.strip()
    return int(told) * 1024 if told else 0
