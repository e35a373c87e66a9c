"""What the two ways of generating have in common: what they are made with, what they must do, and who may use the model now."""

from __future__ import annotations

import itertools
import threading
from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass, field
from types import TracebackType
from typing import Any, Protocol

from llmgallery.backends.base import Emit, Job
from llmgallery.engine.choosing import Chooser
from llmgallery.engine.growth import Vocabulary


class Turns:
    """Who computes with the model: one thread at a time, in the order in which they asked, so that nobody starves. Held for one
    step, and while its outputs are told; never twice by one thread."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._queue: deque[threading.Event] = deque()
        self._taken = False

    def __enter__(self) -> None:
        with self._lock:
            if not self._taken:
                self._taken = True
                return
            mine = threading.Event()
            self._queue.append(mine)
        mine.wait()

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        with self._lock:
            if self._queue:
                self._queue.popleft().set()
            else:
                self._taken = False

    def pass_on(self) -> None:
        """Between two steps: whoever waits comes first."""
        self.__exit__(None, None, None)
        self.__enter__()


class Steps:
    """Numbers of steps, of all engines of a model together. Thread-safe."""

    def __init__(self) -> None:
        self._numbers = itertools.count(1)
        self._lock = threading.Lock()
        self.last = 0

    def next(self) -> int:
        with self._lock:
            self.last = next(self._numbers)
            return self.last


class Choose(Protocol):
    """Makes the Chooser of a job. `forces` as in Chooser. Raises InvalidField."""

    def __call__(self, job: Job, *, forces: bool = False) -> Chooser: ...


@dataclass(frozen=True)
class Setting:
    """What an engine is made with.

    `model`: the transformers model, in eval mode. `ends`: tokens that end an answer. `slots`: how many jobs run at once.
    `context_size`: tokens of prompt and answer. `batch`: most tokens of one step. `page_size`: tokens of a block of the cache.
    `generate`: arguments of generate() from the YAML. `emit.step` is called while the turn is held.
    """

    model: Any
    vocabulary: Vocabulary
    emit: Emit
    choose: Choose
    slots: int
    context_size: int
    ends: frozenset[int] = frozenset()
    batch: int = 512
    page_size: int = 32
    generate: Mapping[str, Any] = field(default_factory=dict)
    turns: Turns = field(default_factory=Turns)
    steps: Steps = field(default_factory=Steps)


class GeneratingEngine(Protocol):
    """Generates for many jobs at once, in a thread of its own that begins with the first job at the latest.

    Every submitted job gets exactly one Output with `finish`, also after `cancel` and `close`, which ends them as cancelled.
    `submit` and `cancel` return at once, from any thread, and never take a turn: `emit.step` may call `cancel` for a job of the
    same step. `submit` raises WorkerDied after `close`. When the engine breaks, its jobs end as errors, and `emit.fatal` is told.
    """

    def submit(self, job: Job) -> None: ...
    def cancel(self, id: int) -> None: ...
    def close(self) -> None:
        """Blocks until the thread has ended; a second call does nothing."""

    @property
    def cache_bytes(self) -> int:
        """Memory that it holds beside the model's parameters."""
