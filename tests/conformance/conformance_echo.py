"""echo: what it says can be told beforehand."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from conformance_cases import Case, Greedy, Model, Scored

from llmgallery.backends.echo import pooled, vocab

CAPABLE = {"embed": {"embeddings": True}, "rerank": {"reranking": True}, "suffix": {"options": {"fills_in": True}}}


class EchoCase(Case):
    wanders = False
    echoes = True

    def model(self, capability: str, folder: Path) -> Model:
        return Model(keys={"context_size": 256, "parallel": 4, **CAPABLE.get(capability, {})})

    def greedy(self, model: Model, prompt: Sequence[int], count: int) -> Greedy:
        """The last user's bytes, or where nobody is told to have spoken, all of them."""
        said = list(prompt)
        if vocab.USER in said:
            said = said[len(said) - said[::-1].index(vocab.USER) :]
            said = list(itertools.takewhile(lambda token: token < 256, said))
        said = [token for token in said if token < 256]
        return Greedy(tuple(said[:count]), ended=len(said) < count)

    def scores(self, model: Model, tokens: Sequence[int], top: int) -> list[Scored]:
        """Of each token one half, of those behind it half of what is left."""
        chances = [0.5 ** (place + 1) for place in range(top)]
        return [
            Scored(float(np.log(0.5)), tuple(((token + place) % vocab.SIZE, float(np.log(p))) for place, p in enumerate(chances)))
            for token in tokens[1:]
        ]

    def embed(self, model: Model, texts: Sequence[str]) -> np.ndarray:
        return np.stack([np.frombuffer(pooled.vector(text), "<f4") for text in texts])

    def rerank(self, model: Model, query: str, documents: Sequence[str]) -> list[float]:
        return [pooled.score(query, document) for document in documents]


CASE = EchoCase("echo")
