"""The loop around ExLlama's generators, with a library of ours in their place: what it promises whatever the library does."""

import threading
from collections.abc import Callable

import numpy as np
import pytest

from llmgallery.backends.exllama.library import Told
from llmgallery.backends.exllama.loop import Loop
from llmgallery.core.errors import ContextExceeded, WorkerDied
from llmgallery.core.jobs import Job, Output, StepStats
from llmgallery.core.sampling import Sampling
from llmgallery.engine.choosing import Chooser

END = 256
SIZE = 257
DEADLINE = 10


class Bytes:
    def piece(self, token: int) -> bytes:
        return bytes([token]) if token != END else b""

    def written(self, token: int) -> bytes:
        return self.piece(token)

    def is_end(self, token: int) -> bool:
        return token == END


class Echoing:
    """A library that says each prompt once more, `per_round` tokens a round, `slots` jobs at a time."""

    vocab_size = SIZE
    memory_bytes = 0

    def __init__(self, slots: int = 4, per_round: int = 1) -> None:
        self.slots = slots
        self.per_round = per_round
        self.jobs: list[tuple[Chooser, Told, list[int]]] = []
        self.cancelled: list[object] = []
        self.gate = threading.Event()
        self.gate.set()
        self.fault: Exception | None = None
        self.gives_up: dict[int, str] = {}
        self.room = 10**6

    def enqueue(self, chooser: Chooser, told: Told) -> object:
        if len(chooser.job.prompt) > 50:
            raise ContextExceeded("the request does not fit the cache")
        self.jobs.append((chooser, told, [*chooser.job.prompt, END]))
        return chooser

    def cancel(self, ticket: object) -> None:
        self.cancelled.append(ticket)
        self.jobs = [job for job in self.jobs if job[0] is not ticket]

    def iterate(self) -> list[tuple[object, str]]:
        assert self.gate.wait(DEADLINE)
        if self.fault is not None:
            raise self.fault
        ended: list[tuple[object, str]] = []
        for chooser, told, left in self.jobs[: self.slots]:
            if (why := self.gives_up.get(chooser.job.id)) is not None:
                ended.append((chooser, why))
                continue
            for _ in range(self.per_round):
                if not left:
                    break
                row = np.zeros(SIZE, np.float32)
                row[left.pop(0)] = 9
                told(chooser, chooser.choose(row))
            if len(chooser.sequence.generated) >= self.room:
                ended.append((chooser, ""))
        return ended

    def close(self) -> None:
        pass


class Heard:
    """A Sink that waits for ends."""

    def __init__(self) -> None:
        self.outputs: dict[int, list[Output]] = {}
        self.stats: list[StepStats] = []
        self.fault: BaseException | None = None
        self._changed = threading.Condition()
        self.on_step: Callable[[list[Output]], None] = lambda outputs: None

    def step(self, outputs, stats: StepStats) -> None:
        with self._changed:
            self.stats.append(stats)
            for output in outputs:
                self.outputs.setdefault(output.id, []).append(output)
            self._changed.notify_all()
        self.on_step(outputs)

    def fatal(self, error: BaseException) -> None:
        with self._changed:
            self.fault = error
            self._changed.notify_all()

    def end(self, id: int) -> Output:
        with self._changed:
            assert self._changed.wait_for(lambda: any(output.finish for output in self.outputs.get(id, [])), DEADLINE)
            return next(output for output in self.outputs[id] if output.finish)

    def text(self, id: int) -> str:
        self.end(id)
        return "".join(output.text for output in self.outputs[id])

    def broken(self) -> BaseException:
        with self._changed:
            assert self._changed.wait_for(lambda: self.fault is not None, DEADLINE)
            assert self.fault is not None
            return self.fault


def job(id: int, text: str, **sampling) -> Job:
    return Job(id, tuple(text.encode()), Sampling(temperature=0.0, **sampling))


def make(each: Job) -> Chooser:
    return Chooser(each, Bytes(), vocab_size=SIZE, ends=(END,), context_size=100)


@pytest.fixture
def heard() -> Heard:
    return Heard()


@pytest.fixture
def library() -> Echoing:
    return Echoing()


@pytest.fixture
def loop(library: Echoing, heard: Heard):
    made = Loop(library, make, heard)
    made.start()
    yield made
    library.gate.set()
    made.close()


def test_each_job_is_answered_and_ends_once(loop: Loop, heard: Heard) -> None:
    for id, text in enumerate(["abc", "häßlich", "x"]):
        loop.submit(job(id, text))
    assert [heard.text(id) for id in range(3)] == ["abc", "häßlich", "x"]
    assert all(sum(output.finish is not None for output in outputs) == 1 for outputs in heard.outputs.values())
    assert heard.end(0).finish == "stop" and heard.end(0).usage.completion_tokens == 4


def test_jobs_share_rounds(loop: Loop, library: Echoing, heard: Heard) -> None:
    library.gate.clear()
    for id in range(6):
        loop.submit(job(id, "abcdef"))
    library.gate.set()
    for id in range(6):
        heard.end(id)
    assert max(stats.sequences for stats in heard.stats) == library.slots
    assert any(stats.waiting == 2 for stats in heard.stats)


def test_drafted_tokens_come_in_one_round(heard: Heard) -> None:
    loop = Loop(Echoing(per_round=3), make, heard)
    loop.start()
    loop.submit(job(1, "abcdefgh"))
    assert heard.text(1) == "abcdefgh"
    assert max(stats.tokens for stats in heard.stats) == 3 and max(stats.sequences for stats in heard.stats) == 1
    loop.close()


def test_what_is_drafted_beyond_the_end_does_not_count(heard: Heard) -> None:
    library = Echoing(per_round=5)
    loop = Loop(library, make, heard)
    loop.start()
    loop.submit(job(1, "abcdefgh", max_tokens=2))
    assert heard.text(1) == "ab" and heard.end(1).finish == "length" and not library.jobs
    loop.close()


def test_a_cancelled_job_frees_its_place(heard: Heard) -> None:
    library = Echoing(slots=1)
    library.gate.clear()
    loop = Loop(library, make, heard)
    loop.start()
    loop.submit(job(1, "a" * 40))
    loop.submit(job(2, "b"))
    loop.cancel(1)
    library.gate.set()
    assert heard.end(1).finish == "cancelled" and heard.text(2) == "b"
    assert any(ticket.job.id == 1 for ticket in library.cancelled)
    loop.close()


def test_a_cancel_from_the_step_itself_acts_before_the_next_round(heard: Heard) -> None:
    loop = Loop(Echoing(), make, heard)
    heard.on_step = lambda outputs: [loop.cancel(output.id) for output in outputs if "c" in output.text] and None
    loop.start()
    loop.submit(job(1, "abcdefgh"))
    assert heard.text(1) == "abc" and heard.end(1).finish == "cancelled"
    loop.close()


def test_no_tokens_are_an_answer_of_none(loop: Loop, heard: Heard) -> None:
    loop.submit(job(1, "abc", max_tokens=0))
    assert heard.end(1).finish == "length" and heard.text(1) == ""


def test_what_cannot_run_ends_alone(loop: Loop, heard: Heard) -> None:
    loop.submit(job(1, "x" * 60))
    loop.submit(job(2, "fine"))
    assert heard.end(1).finish == "error" and "does not fit" in heard.end(1).message
    assert heard.text(2) == "fine"


def test_a_job_that_the_library_gives_up_ends_as_an_error(loop: Loop, library: Echoing, heard: Heard) -> None:
    library.gives_up[1] = "its logits are no numbers"
    loop.submit(job(1, "abc"))
    loop.submit(job(2, "fine"))
    assert (heard.end(1).finish, heard.end(1).message) == ("error", "its logits are no numbers")
    assert heard.text(2) == "fine"


def test_a_job_that_the_library_ends_early_is_full(loop: Loop, library: Echoing, heard: Heard) -> None:
    library.room = 2
    loop.submit(job(1, "abcdef"))
    assert heard.end(1).finish == "length" and heard.text(1) == "ab"


def test_a_library_that_breaks_ends_all(loop: Loop, library: Echoing, heard: Heard) -> None:
    library.gate.clear()
    loop.submit(job(1, "abc"))
    loop.submit(job(2, "abc"))
    library.fault = RuntimeError("CUDA error")
    library.gate.set()
    assert "CUDA error" in str(heard.broken())
    assert heard.end(1).finish == heard.end(2).finish == "error"
    with pytest.raises(WorkerDied):
        loop.submit(job(3, "abc"))


def test_closing_ends_what_runs(library: Echoing, heard: Heard) -> None:
    library.gate.clear()
    loop = Loop(library, make, heard)
    loop.start()
    loop.submit(job(1, "a" * 40))
    loop.submit(job(2, "b" * 40))
    closing = threading.Thread(target=loop.close)
    closing.start()
    library.gate.set()
    closing.join(DEADLINE)
    assert heard.end(1).finish == "cancelled" and heard.end(2).finish == "cancelled"
