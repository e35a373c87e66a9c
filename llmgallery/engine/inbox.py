"""What other threads ask of an engine's thread: jobs to begin, and jobs to give up."""

from __future__ import annotations

import threading
from collections.abc import Callable

from llmgallery.core.errors import WorkerDied
from llmgallery.core.jobs import Job


class Inbox:
    """`take`, `has_withdrawals` and `end` are for the engine's thread, the others for any."""

    def __init__(self) -> None:
        self._jobs: list[Job] = []
        self._withdrawn: set[int] = set()
        self._closed = False
        self._changed = threading.Condition()

    def submit(self, job: Job) -> None:
        """Raises WorkerDied when the engine has ended, or is about to."""
        with self._changed:
            if self._closed:
                raise WorkerDied("the engine has stopped and takes no more requests")
            self._jobs.append(job)
            self._changed.notify()

    def withdraw(self, id: int) -> None:
        with self._changed:
            self._withdrawn.add(id)
            self._changed.notify()

    def close(self) -> None:
        """`take` gives nothing more."""
        with self._changed:
            self._closed = True
            self._changed.notify()

    @property
    def has_withdrawals(self) -> bool:
        return bool(self._withdrawn)

    def take(self, is_busy: Callable[[], bool]) -> tuple[list[Job], list[int]] | None:
        """The new jobs, and the ids of those that are withdrawn, finished ones too. Blocks until there is a job, unless the
        engine is busy. None = closed."""
        with self._changed:
            while not (self._closed or self._jobs or is_busy()):
                self._withdrawn.clear()
                self._changed.wait()
            if self._closed:
                return None
            jobs, self._jobs = self._jobs, []
            withdrawn, self._withdrawn = self._withdrawn, set()
        return jobs, sorted(withdrawn)

    def end(self) -> list[Job]:
        """Closed from now on. The jobs that nobody has taken."""
        with self._changed:
            self._closed = True
            jobs, self._jobs = self._jobs, []
        return jobs
