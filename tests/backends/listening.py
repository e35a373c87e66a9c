"""An Emit that keeps everything it is told, and can wait for it."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence

from llmgallery.backends.base import Output, StepStats

SECONDS = 30


class Listener:
    def __init__(self) -> None:
        self.outputs: dict[int, list[Output]] = {}
        self.steps: list[StepStats] = []
        self.fractions: list[float] = []
        self.failure: BaseException | None = None
        self.on_output: Callable[[Output], None] = lambda output: None
        self._changed = threading.Condition()

    def progress(self, fraction: float) -> None:
        with self._changed:
            self.fractions.append(fraction)
            self._changed.notify_all()

    def step(self, outputs: Sequence[Output], stats: StepStats) -> None:
        with self._changed:
            self.steps.append(stats)
            for output in outputs:
                self.outputs.setdefault(output.id, []).append(output)
            self._changed.notify_all()
        for output in outputs:
            self.on_output(output)

    def fatal(self, error: BaseException) -> None:
        with self._changed:
            self.failure = error
            self._changed.notify_all()

    def wait(self, passed: Callable[[], bool]) -> None:
        with self._changed:
            assert self._changed.wait_for(passed, SECONDS), (self.outputs, self.failure)

    def finishes(self, id: int) -> list[str]:
        return [output.finish for output in self.outputs.get(id, []) if output.finish]

    def wait_for_end(self, *ids: int) -> None:
        self.wait(lambda: all(self.finishes(id) for id in ids))

    def text(self, id: int) -> str:
        return "".join(output.text for output in self.outputs[id])

    def last(self, id: int) -> Output:
        return self.outputs[id][-1]
