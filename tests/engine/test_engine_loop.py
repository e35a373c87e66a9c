"""The loop around a runner: every job ends once, cancels act before the next decode, failures reach everybody."""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from collections.abc import Sequence as Items
from contextlib import contextmanager

import pytest
from caching_runner import Steering
from hypothesis import given, settings
from hypothesis import strategies as st

from llmgallery.core.errors import GalleryError, InvalidField, WorkerDied
from llmgallery.core.events import Usage
from llmgallery.core.jobs import Job, Output, StepStats
from llmgallery.core.sampling import Sampling
from llmgallery.engine.plan import Plan, Sampled
from llmgallery.engine.sequence import Sequence
from llmgallery.engine.step import Engine

END = 0
SECONDS = 10


class Counting:
    """A runner that counts: after a prompt ending in n come the letters n-1, n-2, ..., then END."""

    can_truncate = True
    copy_cost = 0

    def __init__(self) -> None:
        self.open: dict[int, int] = {}
        self.plans: list[Plan] = []
        self.on_decode: Callable[[Plan], bool] = lambda plan: True
        self.refuse: set[int] = set()
        self.interrupted = threading.Event()

    def begin(self, sequence: Sequence) -> None:
        if sequence.id in self.refuse:
            raise InvalidField("not this one")
        assert sequence.slot is not None and sequence.slot not in self.open.values()
        self.open[sequence.id] = sequence.slot

    def keep(self, slot: int, length: int, source: int | None = None) -> int:
        return 0

    def decode(self, plan: Plan, sequences: Mapping[int, Sequence]) -> Mapping[int, Sampled] | None:
        self.plans.append(plan)
        if not self.on_decode(plan):
            return None
        return {chunk.id: Sampled((max(END, chunk.tokens[-1] - 1),)) for chunk in plan.chunks if chunk.samples}

    def accept(self, sequence: Sequence, tokens: Items[int]) -> None:
        """It has no sampler."""

    def draft(self, sequences: Items[Sequence], most: int) -> Mapping[int, tuple[int, ...]]:
        return {}

    def end(self, sequence: Sequence) -> None:
        assert self.open.pop(sequence.id) == sequence.slot

    def piece(self, token: int) -> bytes:
        return b"%c" % (96 + token) if token < 27 else b"\xc3"

    written = piece

    def is_end(self, token: int) -> bool:
        return token == END

    def interrupt(self) -> None:
        self.interrupted.set()


class Listener:
    """Everything that was told, and waiting for it."""

    def __init__(self) -> None:
        self.outputs: dict[int, list[Output]] = {}
        self.steps: list[StepStats] = []
        self.failure: BaseException | None = None
        self.on_step: Callable[[list[Output]], None] = lambda outputs: None
        self._changed = threading.Condition()

    def step(self, outputs, stats):
        with self._changed:
            self.steps.append(stats)
            for output in outputs:
                self.outputs.setdefault(output.id, []).append(output)
            self._changed.notify_all()
        self.on_step(list(outputs))

    def fatal(self, error):
        with self._changed:
            self.failure = error
            self._changed.notify_all()

    def wait(self, passed: Callable[[], bool]) -> None:
        with self._changed:
            assert self._changed.wait_for(passed, SECONDS)

    def finishes(self, id: int) -> list[str]:
        return [output.finish for output in self.outputs.get(id, []) if output.finish]

    def wait_for_end(self, *ids: int) -> None:
        self.wait(lambda: all(self.finishes(id) for id in ids))

    def text(self, id: int) -> str:
        return "".join(output.text for output in self.outputs[id])

    def last(self, id: int) -> Output:
        return self.outputs[id][-1]


@contextmanager
def engine(slots: int = 4, budget: int = 16, context_size: int = 64) -> Iterator[tuple[Engine, Counting, Listener]]:
    runner, listener = Counting(), Listener()
    made = Engine(runner, listener, slots=slots, budget=budget, context_size=context_size)
    made.start()
    try:
        yield made, runner, listener
    finally:
        made.close()


def job(id: int, *prompt: int, **sampling: int) -> Job:
    return Job(id, prompt, Sampling(**sampling))


def test_an_answer():
    with engine() as (made, runner, listener):
        made.submit(job(1, 9, 9, 4))
        listener.wait_for_end(1)
        assert listener.text(1) == "cba"
        assert listener.last(1) == Output(1, "", (), "stop", Usage(3, 4))
        assert [output.tokens for output in listener.outputs[1]] == [(3,), (2,), (1,), ()]
        assert [(stats.step, stats.sequences, stats.tokens) for stats in listener.steps] == [
            (1, 1, 3),
            (2, 1, 1),
            (3, 1, 1),
            (4, 1, 1),
        ]
        assert runner.open == {}


def test_length_by_max_tokens_and_by_the_context():
    with engine(context_size=8) as (made, _, listener):
        made.submit(job(1, 20, max_tokens=2))
        made.submit(job(2, 9, 9, 9, 9, 9, 20))
        made.submit(job(3, 5, max_tokens=0))
        made.submit(job(4, 2, max_tokens=2))
        listener.wait_for_end(1, 2, 3, 4)
        assert (listener.text(1), listener.last(1).finish, listener.last(1).usage) == ("sr", "length", Usage(1, 2))
        assert (listener.text(2), listener.last(2).finish, listener.last(2).usage) == ("sr", "length", Usage(6, 2))
        assert listener.outputs[3] == [Output(3, finish="length", usage=Usage(1, 0))]
        assert (listener.text(4), listener.last(4).finish) == ("a", "stop")


def test_one_decode_carries_many():
    with engine(slots=4) as (made, runner, listener):
        everyone_in = threading.Event()
        runner.on_decode = lambda plan: everyone_in.wait(SECONDS)
        for id in range(6):
            made.submit(job(id, 5))
        everyone_in.set()
        listener.wait_for_end(*range(6))
        assert max(stats.sequences for stats in listener.steps) == 4
        assert max(stats.waiting for stats in listener.steps) >= 1
        assert {listener.text(id) for id in range(6)} == {"dcba"}


def test_a_cancel_within_a_step_acts_before_the_next_decode():
    with engine() as (made, runner, listener):

        def stop(outputs: list[Output]) -> None:
            if any("w" in output.text for output in outputs):
                made.cancel(1)

        listener.on_step = stop
        made.submit(job(1, 26))
        listener.wait_for_end(1)
        assert listener.text(1) == "yxw" and listener.finishes(1) == ["cancelled"]
        assert len(runner.plans) == 3
        made.submit(job(2, 3))
        listener.wait_for_end(2)
        assert listener.text(2) == "ba"


def test_a_cancel_of_what_was_forced_at_the_beginning_comes_before_any_decode():
    with engine() as (made, runner, listener):
        listener.on_step = lambda outputs: made.cancel(1)
        made.submit(Job(1, (9, 5), Sampling(), constraint=Steering(1, (0,))))
        listener.wait_for_end(1)
        assert listener.text(1) == "bcdefg" and listener.finishes(1) == ["cancelled"]
        assert runner.plans == [] and runner.open == {}


def test_a_waiting_job_can_be_cancelled_and_a_finished_or_unknown_one_is_no_matter():
    with engine(slots=1) as (made, runner, listener):
        go_on = threading.Event()
        runner.on_decode = lambda plan: go_on.wait(SECONDS)
        made.submit(job(1, 3))
        listener_waits = job(2, 3)
        made.submit(listener_waits)
        made.cancel(2)
        made.cancel(77)
        go_on.set()
        listener.wait_for_end(1, 2)
        made.cancel(1)
        assert listener.finishes(2) == ["cancelled"] and listener.text(2) == ""
        assert listener.finishes(1) == ["stop"]
        assert all(chunk.id == 1 for plan in runner.plans for chunk in plan.chunks)


def test_a_broken_character_is_flushed_at_the_end():
    with engine() as (made, _, listener):
        made.submit(job(1, 30, max_tokens=2))
        listener.wait_for_end(1)
        assert listener.text(1) == "��"


def test_an_interrupted_decode_counts_for_nothing():
    with engine() as (made, runner, listener):
        answers = iter([True, False, False])
        runner.on_decode = lambda plan: next(answers, True)
        made.submit(job(1, 4))
        listener.wait_for_end(1)
        assert listener.text(1) == "cba" and listener.last(1).usage == Usage(1, 4)
        assert listener.steps[-1].step == 4 and len(runner.plans) == 6


def test_a_job_that_the_runner_refuses_ends_alone():
    with engine() as (made, runner, listener):
        runner.refuse = {1}
        made.submit(job(1, 4))
        made.submit(job(2, 4))
        listener.wait_for_end(1, 2)
        assert listener.last(1).finish == "error" and listener.last(1).message == "not this one"
        assert listener.text(2) == "cba"


def test_a_failed_step_ends_its_jobs_and_the_engine_goes_on():
    with engine() as (made, runner, listener):

        def fail(plan: Plan) -> bool:
            raise GalleryError("no room")

        runner.on_decode = fail
        made.submit(job(1, 4))
        listener.wait_for_end(1)
        assert (listener.last(1).finish, listener.last(1).message) == ("error", "no room")
        runner.on_decode = lambda plan: True
        made.submit(job(2, 4))
        listener.wait_for_end(2)
        assert listener.text(2) == "cba" and listener.failure is None and runner.open == {}


def test_a_broken_runner_ends_all_jobs_and_the_engine():
    with engine(slots=1) as (made, runner, listener):

        def break_(plan: Plan) -> bool:
            raise ZeroDivisionError("what")

        runner.on_decode = break_
        made.submit(job(1, 4))
        listener.wait(lambda: listener.failure is not None)
        assert isinstance(listener.failure, ZeroDivisionError)
        assert listener.finishes(1) == ["error"] and "ZeroDivisionError: what" in listener.last(1).message
        with pytest.raises(WorkerDied):
            made.submit(job(2, 4))


def test_a_sink_that_fails_is_told_as_fatal():
    with engine() as (made, _, listener):

        def break_(outputs: list[Output]) -> None:
            listener.on_step = lambda outputs: None
            raise RuntimeError("sink")

        listener.on_step = break_
        made.submit(job(1, 9))
        listener.wait(lambda: listener.failure is not None)
        assert listener.finishes(1) == ["error"]


def test_closing_ends_running_and_waiting_jobs():
    with engine(slots=1) as (made, runner, listener):
        started = threading.Event()

        def hold(plan: Plan) -> bool:
            started.set()
            return not runner.interrupted.wait(SECONDS)

        runner.on_decode = hold
        for id in range(3):
            made.submit(job(id, 5))
        assert started.wait(SECONDS)
        made.close()
        assert [listener.finishes(id) for id in range(3)] == [["cancelled"]] * 3
        with pytest.raises(WorkerDied):
            made.submit(job(9, 5))
        made.close()


@settings(deadline=None, max_examples=40)
@given(
    jobs=st.lists(st.tuples(st.integers(1, 26), st.integers(0, 12), st.booleans()), min_size=1, max_size=30),
    slots=st.integers(1, 6),
    budget=st.integers(1, 20),
)
def test_every_job_finishes_exactly_once(jobs, slots, budget):
    """Jobs of (letters, max_tokens, cancelled soon), submitted while others run."""
    with engine(slots, budget) as (made, runner, listener):
        for id, (letters, limit, cancelled) in enumerate(jobs):
            made.submit(job(id, 9, letters + 1, max_tokens=limit))
            if cancelled:
                made.cancel(id)
        listener.wait_for_end(*range(len(jobs)))
    counts = Counter(len(listener.finishes(id)) for id in range(len(jobs)))
    assert counts == {1: len(jobs)} and runner.open == {}
    for id, (letters, limit, cancelled) in enumerate(jobs):
        whole = "".join(chr(96 + letter) for letter in range(letters, 0, -1))[:limit]
        if not cancelled:
            assert listener.text(id) == whole
            assert listener.last(id).finish == ("length" if limit <= letters else "stop")
        assert whole.startswith(listener.text(id))
    assert all(plan.num_tokens <= max(slots, budget) for plan in runner.plans)
