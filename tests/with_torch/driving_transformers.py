"""A loaded transformers backend, and what it tells, for tests that ask it directly."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import msgspec

from llmgallery.backends.base import Files, Job, Output, Pooled, StepStats
from llmgallery.backends.transformers.backend import TransformersBackend
from llmgallery.config.model import ModelConfig
from llmgallery.core.sampling import Sampling

SECONDS = 60
SIZES = {"context_size": 128, "parallel": 8}


class Told:
    """An Emit that keeps everything, and can wait for it."""

    def __init__(self) -> None:
        self.outputs: dict[int, list[Output]] = {}
        self.steps: list[StepStats] = []
        self.fractions: list[float] = []
        self.pools: dict[int, Pooled] = {}
        self.failure: BaseException | None = None
        self.on_output: Callable[[Output], None] = lambda output: None
        self._changed = threading.Condition()

    def progress(self, fraction: float) -> None:
        self.fractions.append(fraction)

    def step(self, outputs: Sequence[Output], stats: StepStats) -> None:
        with self._changed:
            self.steps.append(stats)
            for output in outputs:
                self.outputs.setdefault(output.id, []).append(output)
            self._changed.notify_all()
        for output in outputs:
            self.on_output(output)

    def pooled(self, result: Pooled) -> None:
        with self._changed:
            self.pools[result.id] = result
            self._changed.notify_all()

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

    def tokens(self, id: int) -> list[int]:
        return [token for output in self.outputs[id] for token in output.tokens]

    def last(self, id: int) -> Output:
        return self.outputs[id][-1]


class Driven:
    """`config`: the YAML's keys. Ids count up."""

    def __init__(self, folder: Path, **config: Any) -> None:
        self.told = Told()
        self.backend = TransformersBackend()
        self.loaded = self.backend.load(msgspec.convert({**SIZES, **config}, ModelConfig), Files((folder,)), self.told)
        self._id = 0

    @property
    def model(self) -> Any:
        return self.backend._model

    def tokens_of(self, text: str) -> list[int]:
        return self.backend.tokenize(text, special=True, bos=True)

    def submit(self, prompt: str | Sequence[int], sampling: Sampling, **more: Any) -> int:
        self._id += 1
        tokens = self.tokens_of(prompt) if isinstance(prompt, str) else list(prompt)
        self.backend.submit(Job(self._id, tokens, sampling, **more))
        return self._id

    def run(self, prompt: str | Sequence[int], sampling: Sampling, **more: Any) -> int:
        """Returns when it has ended."""
        id = self.submit(prompt, sampling, **more)
        self.told.wait_for_end(id)
        return id


@contextmanager
def driven(folder: Path, **config: Any) -> Iterator[Driven]:
    made = Driven(folder, **config)
    try:
        yield made
    finally:
        made.backend.close()
    assert made.told.failure is None
