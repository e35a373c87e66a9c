"""The engine: a batcher in a thread of its own, between those who ask and the one who is told."""

from __future__ import annotations

import threading
from collections.abc import Sequence as Items
from typing import Protocol

from llmgallery.core.jobs import Job, Output, StepStats
from llmgallery.engine.batcher import Batcher
from llmgallery.engine.growth import Finish
from llmgallery.engine.inbox import Inbox
from llmgallery.engine.pace import SLOWDOWN
from llmgallery.engine.runner import Runner


class Sink(Protocol):
    """Whom the engine tells. Called in its thread, never under its lock."""

    def step(self, outputs: Items[Output], stats: StepStats) -> None: ...
    def fatal(self, error: BaseException) -> None: ...


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
        self._inbox = Inbox()
        self._thread = threading.Thread(target=self._run, name="engine", daemon=True)

    def start(self) -> None:
        self._thread.start()

    def submit(self, job: Job) -> None:
        """Raises WorkerDied when the engine has ended."""
        self._inbox.submit(job)

    def cancel(self, id: int) -> None:
        """Nothing happens when the job has finished."""
        self._inbox.withdraw(id)

    def close(self) -> None:
        """Ends every job, then the thread; returns when it has ended."""
        self._inbox.close()
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
        if self._inbox.has_withdrawals:
            return
        if (done := self._batcher.step()) is not None:
            self._sink.step(*done)

    def _wait_for_work(self) -> bool:
        """Take in what other threads asked for; blocks while there is nothing to do. False = the engine is closed."""
        taken = self._inbox.take(self._batcher.has_work)
        if taken is None:
            return False
        jobs, withdrawn = taken
        for job in jobs:
            self._batcher.add(job)
        if withdrawn:
            self._report([output for id in withdrawn for output in self._batcher.withdraw(id)])
        return True

    def _end_all(self, finish: Finish, message: str = "") -> list[Output]:
        jobs = self._inbox.end()
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
