"""The engine's loop, in a thread of its own: schedule, decode, postprocess."""

from __future__ import annotations

import threading
from collections.abc import Iterable, Mapping
from collections.abc import Sequence as Items
from dataclasses import dataclass, field
from typing import Literal, Protocol

from llmgallery.core.errors import GalleryError, WorkerDied
from llmgallery.core.jobs import Job, Output, StepStats
from llmgallery.core.sampling import DEFAULTS
from llmgallery.engine.detok import Utf8Stream
from llmgallery.engine.runner import Runner
from llmgallery.engine.scheduler import Plan, Scheduler
from llmgallery.engine.sequence import Sequence

Finish = Literal["stop", "length", "cancelled", "error"]


class Sink(Protocol):
    """Whom the engine tells. Called in its thread, never under its lock."""

    def step(self, outputs: Items[Output], stats: StepStats) -> None: ...
    def fatal(self, error: BaseException) -> None: ...


@dataclass
class _Inbox:
    """What other threads ask for; guarded by the engine's condition."""

    jobs: list[Job] = field(default_factory=list)
    withdrawn: set[int] = field(default_factory=set)
    closed: bool = False


class Engine:
    """Generates for many jobs at once. `submit` and `cancel` return at once, from any thread; all else is told to `sink`.

    Every submitted job gets exactly one Output with `finish`. A cancel acts before the next decode. Jobs that are open
    when the engine closes end as cancelled; when the runner breaks, as errors, and then `fatal` is told.
    """

    def __init__(self, runner: Runner, sink: Sink, *, slots: int, budget: int, context_size: int) -> None:
        self._runner = runner
        self._sink = sink
        self._context_size = context_size
        self._scheduler = Scheduler(slots, budget)
        self._texts: dict[int, Utf8Stream] = {}
        self._steps = 0
        self._inbox = _Inbox()
        self._changed = threading.Condition()
        self._thread = threading.Thread(target=self._run, name="engine", daemon=True)

    def start(self) -> None:
        self._thread.start()

    def submit(self, job: Job) -> None:
        """Raises WorkerDied when the engine has ended."""
        with self._changed:
            if self._inbox.closed:
                raise WorkerDied("the engine has stopped and takes no more requests")
            self._inbox.jobs.append(job)
            self._changed.notify()

    def cancel(self, id: int) -> None:
        """Nothing happens when the job has finished."""
        with self._changed:
            self._inbox.withdrawn.add(id)
            self._changed.notify()

    def close(self) -> None:
        """Ends every job, then the thread; returns when it has ended."""
        with self._changed:
            self._inbox.closed = True
            self._changed.notify()
        self._runner.interrupt()
        if self._thread.is_alive() and self._thread is not threading.current_thread():
            self._thread.join()

    def _run(self) -> None:
        try:
            while self._wait_for_work():
                self._step()
        except Exception as exc:  # noqa: BLE001 - the thread's border: whatever broke, every job must hear of it
            self._break(exc)
        else:
            self._report(self._end_all("cancelled"))

    def _step(self) -> None:
        self._report([*self._end_withdrawn(), *self._begin_admitted()])
        plan = self._scheduler.plan()
        if not plan.chunks:
            return
        try:
            sampled = self._runner.decode(plan)
        except GalleryError as exc:
            self._report([self._end(chunk.id, "error", exc.message) for chunk in plan.chunks])
            return
        if sampled is None:
            return
        self._steps += 1
        outputs = self._postprocess(plan, sampled)
        self._sink.step(outputs, self._stats(len(plan.chunks), plan.num_tokens))

    def _wait_for_work(self) -> bool:
        """Take in what other threads asked for; blocks while there is nothing to do. False = the engine is closed."""
        with self._changed:
            while not (self._inbox.closed or self._inbox.jobs or self._scheduler.has_work()):
                self._inbox.withdrawn.clear()
                self._changed.wait()
            if self._inbox.closed:
                return False
            jobs, self._inbox.jobs = self._inbox.jobs, []
        for job in jobs:
            self._scheduler.add(self._sequence(job))
            self._texts[job.id] = Utf8Stream()
        return True

    def _sequence(self, job: Job) -> Sequence:
        sampling = job.sampling.over(DEFAULTS)
        room = self._context_size - len(job.prompt)
        limit = room if sampling.max_tokens is None else min(room, sampling.max_tokens)
        return Sequence(job.id, tuple(job.prompt), limit, sampling)

    def _end_withdrawn(self) -> list[Output]:
        with self._changed:
            withdrawn, self._inbox.withdrawn = self._inbox.withdrawn, set()
            # A job may have been submitted and withdrawn since _wait_for_work.
            late = {job.id for job in self._inbox.jobs} & withdrawn
            self._inbox.withdrawn |= late
        return [self._end(id, "cancelled") for id in sorted(withdrawn - late) if self._scheduler.find(id)]

    def _begin_admitted(self) -> list[Output]:
        """Those who got a slot, and cannot go on: nothing may be generated, or the runner refuses."""
        outputs = []
        for sequence in self._scheduler.admit():
            if sequence.is_full:
                outputs.append(self._finished(sequence, "length"))
                continue
            try:
                self._runner.begin(sequence)
            except GalleryError as exc:
                outputs.append(self._finished(sequence, "error", exc.message))
        return outputs

    def _postprocess(self, plan: Plan, sampled: Mapping[int, int]) -> list[Output]:
        self._scheduler.advance(plan)
        return [self._grow(chunk.id, sampled[chunk.id]) for chunk in plan.chunks if chunk.samples]

    def _grow(self, id: int, token: int) -> Output:
        sequence = self._found(id)
        sequence.generated.append(token)
        if self._runner.is_end(token):
            return self._end(id, "stop")
        text = self._texts[id].feed(self._runner.piece(token))
        if sequence.is_full:
            return self._end(id, "length", text=text, tokens=(token,))
        return Output(id, text, (token,), usage=sequence.usage)

    def _end(self, id: int, finish: Finish, message: str = "", text: str = "", tokens: tuple[int, ...] = ()) -> Output:
        sequence = self._found(id)
        if sequence.slot is not None:
            self._runner.end(sequence)
        return self._finished(sequence, finish, message, text, tokens)

    def _finished(
        self, sequence: Sequence, finish: Finish, message: str = "", text: str = "", tokens: tuple[int, ...] = ()
    ) -> Output:
        self._scheduler.finish(sequence)
        text += self._texts.pop(sequence.id).flush()
        return Output(sequence.id, text, tokens, finish, sequence.usage, message)

    def _found(self, id: int) -> Sequence:
        sequence = self._scheduler.find(id)
        if sequence is None:
            raise AssertionError(f"no sequence {id}")
        return sequence

    def _end_all(self, finish: Finish, message: str = "") -> list[Output]:
        with self._changed:
            self._inbox.closed = True
            jobs, self._inbox.jobs = self._inbox.jobs, []
        open_ = [self._found(id) for id in list(self._texts)]
        outputs = [self._finished(sequence, finish, message) for sequence in open_]
        return outputs + [Output(job.id, finish=finish, message=message) for job in jobs]

    def _break(self, error: Exception) -> None:
        try:
            self._report(self._end_all("error", f"the engine failed: {type(error).__name__}: {error}"))
        finally:
            self._sink.fatal(error)

    def _report(self, outputs: Iterable[Output]) -> None:
        """Outputs that no decode made."""
        if listed := list(outputs):
            self._sink.step(listed, self._stats(0, 0))

    def _stats(self, sequences: int, tokens: int) -> StepStats:
        return StepStats(self._steps, sequences, tokens, self._scheduler.num_waiting)
