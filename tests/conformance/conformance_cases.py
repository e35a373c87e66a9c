"""A case for each backend: its tiny models, and what its library itself makes of them."""

from __future__ import annotations

import copy
import importlib
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np

from llmgallery.backends.base import BackendSpec, Files
from llmgallery.backends.loader import specs

MODULES = {
    "echo": "conformance_echo",
    "exllamav2": "conformance_exllama",
    "llama-cpp": "conformance_llamacpp",
    "openai": "conformance_openai",
    "transformers": "conformance_transformers",
}
"""Where the case of each backend is, as `CASE`. A module is imported only where its backend's libraries are installed."""


FORMATS = {"exllamav2": "safetensors", "llama-cpp": "gguf", "transformers": "safetensors"}
"""Of the cases' models."""

VARIANTS: Mapping[str, Mapping[str, Mapping[str, Any]]] = {
    "llama-cpp": {"speculative": {"options": {"speculative": "prompt-lookup"}}, "unified": {"options": {"kv_unified": True}}},
    "transformers": {"loop": {"options": {"continuous_batching": "off"}}},
}
"""Other ways in which backends make the same answers, each with its keys: what holds for answers must hold for these, too."""


@dataclass(frozen=True)
class Model:
    """What a backend loads, and the YAML's keys for it."""

    files: Files = field(default_factory=Files)
    keys: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Greedy:
    """What the library says. `ended`: the end token came, which is not among the tokens."""

    tokens: tuple[int, ...]
    ended: bool


@dataclass(frozen=True)
class Scored:
    """A token's log probability, and the likeliest tokens of its place with theirs, best first."""

    logprob: float
    top: tuple[tuple[int, float], ...]


@dataclass(frozen=True)
class Bad:
    """Files that do not load. The error's message matches `says`."""

    label: str
    files: Files
    says: str


class Case(ABC):
    """`tolerance`: of log probabilities, `vector_tolerance`: of vectors and scores, between the backend and its library.
    `told`: the share of the weights that `held` tells of while a model is loaded; `overrun`: tokens that may still be counted
    after a cancel. `wanders`: other seeds give other answers. `echoes`: it says what it was told, so that it can be made to
    say a text."""

    tolerance = 2e-3
    vector_tolerance = 2e-3
    told = 0.0
    overrun = 0
    wanders = True
    echoes = False

    def __init__(self, name: str) -> None:
        self.name = name
        self.variant = ""

    def of_variant(self, variant: str) -> Case:
        """The same backend with the keys of one of VARIANTS."""
        other = copy.copy(self)
        other.variant = variant
        return other

    @property
    def keys(self) -> Mapping[str, Any]:
        """What the variant adds to the model file."""
        return VARIANTS[self.name][self.variant] if self.variant else {}

    @property
    def spec(self) -> BackendSpec:
        return specs()[self.name]

    @abstractmethod
    def model(self, capability: str, folder: Path) -> Model:
        """A tiny model that has the capability, made in the folder unless it is there already. Greedy answers are compared, so
        its weights are F32 or F16."""

    @abstractmethod
    def greedy(self, model: Model, prompt: Sequence[int], count: int) -> Greedy:
        """The library's own greedy answer, of so many tokens at most."""

    @abstractmethod
    def scores(self, model: Model, tokens: Sequence[int], top: int) -> list[Scored]:
        """The library's own log probabilities of each token but the first."""

    def embed(self, model: Model, texts: Sequence[str]) -> np.ndarray:
        """The library's own vectors, of length 1: texts x numbers."""
        raise NotImplementedError

    def rerank(self, model: Model, query: str, documents: Sequence[str]) -> list[float]:
        """The library's own scores."""
        raise NotImplementedError

    def see(self, model: Model, text: str, image: bytes, count: int) -> Greedy:
        """The library's own greedy answer to a user's message with an image before the text."""
        raise NotImplementedError

    def tokenizer(self, model: Model) -> Any:
        """llguidance's LLTokenizer of the model's vocabulary."""
        raise NotImplementedError

    def bad(self, folder: Path) -> list[Bad]:
        """Files that a user might have: cut short, of another kind, not there."""
        raise NotImplementedError

    def device(self) -> str:
        """What it computed on."""
        return "cpu"

    def held(self) -> int:
        """Bytes that the library holds in this process for models, as far as it can tell."""
        return 0


@cache
def case_of(name: str) -> Case:
    made: Case = importlib.import_module(MODULES[name]).CASE
    assert made.name == name
    return made


def why_not_here(name: str) -> str:
    """Why a backend cannot load its case's models in this interpreter on this machine; "" = it can."""
    return specs()[name].lacks(FORMATS.get(name))


def here() -> list[str]:
    """The names of the backends that can run here."""
    return [name for name in specs() if not why_not_here(name)]
