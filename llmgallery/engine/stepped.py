"""What every backend shares whose library computes step by step: the engine between its jobs and its runner."""

from __future__ import annotations

from llmgallery.core.errors import LoadError
from llmgallery.core.jobs import Job
from llmgallery.engine.pace import SLOWDOWN
from llmgallery.engine.runner import Runner
from llmgallery.engine.step import Engine, Sink


class SteppedBackend:
    """The jobs' half of backends.base.Backend. A subclass loads, calls `_start` last in `load`, and frees in `_free`."""

    _engine: Engine | None = None

    def _start(
        self, runner: Runner, sink: Sink, *, slots: int, budget: int, context_size: int, stream_slowdown: float = SLOWDOWN
    ) -> None:
        self._engine = Engine(runner, sink, slots=slots, budget=budget, context_size=context_size, slowdown=stream_slowdown)
        self._engine.start()

    def submit(self, job: Job) -> None:
        """Raises LoadError before `load`, WorkerDied after `close`."""
        if self._engine is None:
            raise LoadError("nothing is loaded yet")
        self._engine.submit(job)

    def cancel(self, id: int) -> None:
        if self._engine is not None:
            self._engine.cancel(id)

    def close(self) -> None:
        """Ends all jobs, then frees the model; a second call does nothing."""
        if self._engine is not None:
            self._engine.close()
        self._free()

    def _free(self) -> None:
        """Give back what `load` took; the engine has ended. May be called twice."""
