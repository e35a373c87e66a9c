"""A Listener that keeps vectors too, and asks for them."""

from __future__ import annotations

import itertools
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import numpy as np
from listening import SECONDS, Listener

from llmgallery.backends.base import EmbedJob, Files, Loaded, Pooled, RerankJob
from llmgallery.backends.llamacpp.backend import LlamaCppBackend
from llmgallery.config.model import ModelConfig


class PooledListener(Listener):
    def __init__(self) -> None:
        super().__init__()
        self.results: list[Pooled] = []
        self._came = threading.Condition()

    def pooled(self, result: Pooled) -> None:
        with self._came:
            self.results.append(result)
            self._came.notify_all()

    def result(self, id: int) -> Pooled:
        """Waits for it."""
        with self._came:
            assert self._came.wait_for(lambda: any(result.id == id for result in self.results), SECONDS), self.failure
            return next(result for result in self.results if result.id == id)


def numbers(vector: bytes) -> np.ndarray:
    return np.frombuffer(vector, "<f4")


class Started:
    """A loaded model, and its answers waited for. One thread: beside other tests, two wait for each other most of the time."""

    def __init__(self, file: Path, **keys: object) -> None:
        self.listener = PooledListener()
        self.backend = LlamaCppBackend()
        self.loaded: Loaded = self.backend.load(ModelConfig(**{"threads": 1, **keys}), Files((file,)), self.listener)
        self.ids = itertools.count(1)

    def embed(self, *inputs: str | Sequence[int], **settings: object) -> list[np.ndarray]:
        return [numbers(vector) for vector in self.embedded(*inputs, **settings).vectors]

    def embedded(self, *inputs: str | Sequence[int], **settings: object) -> Pooled:
        id = next(self.ids)
        self.backend.embed(EmbedJob(id, inputs, **settings))
        return self._good(id)

    def rerank(self, query: str, *documents: str, truncate: bool = False) -> list[float]:
        id = next(self.ids)
        self.backend.rerank(RerankJob(id, query, documents, truncate))
        return [float(numbers(vector)[0]) for vector in self._good(id).vectors]

    def _good(self, id: int) -> Pooled:
        result = self.listener.result(id)
        assert result.error is None, result.error
        return result


@contextmanager
def started(file: Path, **keys: object) -> Iterator[Started]:
    model = Started(file, **keys)
    try:
        yield model
    finally:
        model.backend.close()
