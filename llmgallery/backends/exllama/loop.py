"""The thread that drives a library's generator: jobs in, what was chosen in each round out."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from llmgallery.backends.exllama.library import Library
from llmgallery.core.errors import GalleryError
from llmgallery.core.jobs import Job, Output, StepStats
from llmgallery.engine.choosing import Chooser, Chosen
from llmgallery.engine.growth import Finish
from llmgallery.engine.inbox import Inbox
from llmgallery.engine.step import Sink


@dataclass
class _Running:
    chooser: Chooser
    ticket: object


class Loop:
    """Every submitted job gets exactly one Output with `finish`. `make`: a job's chooser.

    `submit` and `cancel` return at once, from any thread; all else is told to `sink`.
    """

    def __init__(self, library: Library, make: Callable[[Job], Chooser], sink: Sink) -> None:
        self._library = library
        self._make = make
        self._sink = sink
        self._inbox = Inbox()
        self._running: dict[int, _Running] = {}
        self._fresh: list[tuple[Chooser, Chosen]] = []
        self._step = 0
        self._thread = threading.Thread(target=self._run, name="engine", daemon=True)

    def start(self) -> None:
        self._thread.start()

    def _told(self, chooser: Chooser, chosen: Chosen) -> None:
        """From the library's threads, each with choosers of its own."""
        self._fresh.append((chooser, chosen))

    def submit(self, job: Job) -> None:
        """Raises WorkerDied when the loop has ended."""
        self._inbox.submit(job)

    def cancel(self, id: int) -> None:
        """Acts before the next round. Nothing happens when the job has finished."""
        self._inbox.withdraw(id)

    def close(self) -> None:
        """Ends every job as cancelled; returns when the thread has ended."""
        self._inbox.close()
        if self._thread.ident is not None and self._thread is not threading.current_thread():
            self._thread.join()

    def _run(self) -> None:
        try:
            while self._take_in():
                if self._running:
                    self._round()
        except Exception as exc:  # noqa: BLE001 - the thread's border: whatever broke, every job must hear of it
            try:
                self._report(self._end_all("error", f"the engine failed: {type(exc).__name__}: {exc}"))
            finally:
                self._sink.fatal(exc)
        else:
            self._report(self._end_all("cancelled", ""))

    def _take_in(self) -> bool:
        """Jobs and withdrawals; blocks while there is nothing to do. False = closed."""
        taken = self._inbox.take(lambda: bool(self._running))
        if taken is None:
            return False
        jobs, withdrawn = taken
        outputs = [output for job in jobs if (output := self._begin(job)) is not None]
        outputs += [self._end(self._running[id], "cancelled") for id in withdrawn if id in self._running]
        self._report(outputs)
        return True

    def _begin(self, job: Job) -> Output | None:
        """Its end when it cannot begin, or wants no token."""
        try:
            chooser = self._make(job)
            if not chooser.limit:
                return chooser.end("length")
            self._running[job.id] = _Running(chooser, self._library.enqueue(chooser, self._told))
        except GalleryError as exc:
            return Output(job.id, finish="error", message=exc.message)
        return None

    def _round(self) -> None:
        ended = self._library.iterate()
        fresh, self._fresh = self._fresh, []
        self._step += 1
        outputs: list[Output] = []
        for chooser, chosen in fresh:
            running = self._running.get(chooser.job.id)
            if running is None or running.chooser is not chooser:
                continue
            outputs.append(chosen.output)
            if chosen.output.finish is not None:
                del self._running[chooser.job.id]
                self._library.cancel(running.ticket)  # it may not know why the answer ends
        for ticket, message in ended:
            left = [each for each in self._running.values() if each.ticket is ticket]
            outputs += [self._end(each, "error" if message else "length", message) for each in left]
        sequences = len({chooser.job.id for chooser, _ in fresh})
        self._sink.step(outputs, StepStats(self._step, sequences, len(fresh), self._waiting()))

    def _waiting(self) -> int:
        """Jobs that have no place yet: more than the library computes at once."""
        return max(0, len(self._running) - self._library.slots)

    def _end(self, running: _Running, finish: Finish, message: str = "") -> Output:
        del self._running[running.chooser.job.id]
        self._library.cancel(running.ticket)
        return running.chooser.end(finish, message)

    def _end_all(self, finish: Finish, message: str) -> list[Output]:
        jobs = self._inbox.end()
        running, self._running = list(self._running.values()), {}
        ended = [each.chooser.end(finish, message) for each in running]
        return ended + [Output(job.id, finish=finish, message=message) for job in jobs]

    def _report(self, outputs: Sequence[Output]) -> None:
        """Outputs that no round made."""
        if outputs:
            self._sink.step(outputs, StepStats(self._step, 0, 0, self._waiting()))
