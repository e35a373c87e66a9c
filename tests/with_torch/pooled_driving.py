"""Vectors and scores of a loaded transformers backend, asked for and waited for."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from driving_transformers import Driven, driven

from llmgallery.backends.base import EmbedJob, Pooled, RerankJob

_IDS = itertools.count(1000)


class PooledDriven:
    def __init__(self, driven: Driven) -> None:
        self.driven = driven
        self.backend = driven.backend
        self.loaded = driven.loaded

    def embedded(self, *inputs: str | Sequence[int], **asked: Any) -> Pooled:
        id = next(_IDS)
        self.backend.embed(EmbedJob(id, inputs, **asked))
        return self.good(id)

    def embed(self, *inputs: str | Sequence[int], **asked: Any) -> np.ndarray:
        """One row for each."""
        return np.array([np.frombuffer(vector, "<f4") for vector in self.embedded(*inputs, **asked).vectors])

    def rerank(self, query: str, *documents: str, truncate: bool = False) -> np.ndarray:
        id = next(_IDS)
        self.backend.rerank(RerankJob(id, query, documents, truncate))
        return np.array([np.frombuffer(vector, "<f4")[0] for vector in self.good(id).vectors])

    def result(self, id: int) -> Pooled:
        self.driven.told.wait(lambda: id in self.driven.told.pools)
        return self.driven.told.pools[id]

    def good(self, id: int) -> Pooled:
        result = self.result(id)
        assert result.error is None, result.error
        return result


@contextmanager
def pooling(folder: Path, **config: Any) -> Iterator[PooledDriven]:
    """`config`: the YAML's keys; the context is the model's own unless it says."""
    with driven(folder, **{"context_size": None, **config}) as made:
        yield PooledDriven(made)
