"""The engine: a batcher in a thread of its own, between those who ask and the one who is told."""

from __future__ import annotations

import threading
from collections.abc import Sequence as Items
from dataclasses import dataclass, field
from typing import Protocol

from llmgallery.core.errors import WorkerDied
from llmgallery.core.jobs import Job, Output, StepStats
from llmgallery.engine.batcher import Batcher
from llmgallery.engine.growth import Finish
from llmgallery.engine.pace import SLOWDOWN
from llmgallery.engine.runner import Runner


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

    `slots`: how many sequences run at once. `budget`: most tokens of one decode. `slowdown`: how many times longer than
    without prompts a step may take, while answers are streamed, for prompts to be computed beside them.
    """

    def __init__(
        self, runner: Runner, sink: Sink, *, slots: int, budget: int, context_size: int, slowdown: float = SLOWDOWN
    ) -> None:
        self._runner = runner
        self._sink = sink
        self._batcher = Batcher(runner, slots=slots, budget=budget, context_size=context_size, slowdown=slowdown)
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
        """What was told before the decode may have made somebody cancel: that acts before it, too."""
        self._report(self._batcher.schedule())
        if self._inbox.withdrawn:
            return
        if (done := self._batcher.step()) is not None:
            self._sink.step(*done)

    def _wait_for_work(self) -> bool:
        """Take in what other threads asked for; blocks while there is nothing to do. False = the engine is closed."""
        with self._changed:
            while not (self._inbox.closed or self._inbox.jobs or self._batcher.has_work()):
                self._inbox.withdrawn.clear()
                self._changed.wait()
            if self._inbox.closed:
                return False
            jobs, self._inbox.jobs = self._inbox.jobs, []
            withdrawn, self._inbox.withdrawn = self._inbox.withdrawn, set()
        for job in jobs:
            self._batcher.add(job)
        if withdrawn:
            self._report([output for id in sorted(withdrawn) for output in self._batcher.withdraw(id)])
        return True

    def _end_all(self, finish: Finish, message: str = "") -> list[Output]:
        with self._changed:
            self._inbox.closed = True
            jobs, self._inbox.jobs = self._inbox.jobs, []
        return self._batcher.drop_all(finish, message) + [Output(job.id, finish=finish, message=message) for job in jobs]

    def _break(self, error: Exception) -> None:
        try:
            self._report(self._end_all("error", f"the engine failed: {type(error).__name__}: {error}"))
        finally:
            self._sink.fatal(error)

    def _report(self, outputs: list[Output]) -> None:
        """Outputs that no decode made."""
        if outputs:
            self._sink.step(outputs, self._batcher.stats())
