"""The protocol between a worker and an engine: what a backend declares, and what it does when pushed."""

from __future__ import annotations

import importlib
import importlib.util
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, Protocol, runtime_checkable

import msgspec

from llmgallery.config.model import ModelConfig
from llmgallery.core.clues import Clues
from llmgallery.core.errors import BackendMissing
from llmgallery.core.jobs import EmbedJob as EmbedJob
from llmgallery.core.jobs import Job as Job
from llmgallery.core.jobs import Output as Output
from llmgallery.core.jobs import Pooled as Pooled
from llmgallery.core.jobs import RerankJob as RerankJob
from llmgallery.core.jobs import StepStats as StepStats

Level = Literal["tokens", "text", "chat"]


class NoOptions(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """For backends without YAML keys of their own."""


@dataclass(frozen=True)
class BackendSpec:
    """What a backend is, without importing it.

    `level`: tokens = we render, sample and mask; text = we render, it completes; chat = it takes the conversation.
    `options`: a Struct of its own keys under `options:`. `formats`: file formats it loads (catalog/formats.py's names).
    `keys`: the ModelConfig load keys it heeds; a known key that it does not heed is a warning.
    `unset`: what holds for each of them that nobody sets, as a value or in words.
    `listed`: other names of options, or of load keys, in LocalAI's lists; `listed_words`: other words for their values, by such
    a name, with - for _; any further word is a warning.
    `requires`: importable modules; `extra`: the pip extra that installs them. `implementation`: "module:Class".
    """

    name: str
    implementation: str
    aliases: tuple[str, ...] = ()
    level: Level = "tokens"
    options: type[msgspec.Struct] = NoOptions
    formats: tuple[str, ...] = ()
    capabilities: frozenset[str] = frozenset()
    keys: frozenset[str] = frozenset()
    requires: tuple[str, ...] = ()
    extra: str = ""
    needs_weights: bool = True
    unset: Mapping[str, Any] = field(default_factory=dict)
    listed: Mapping[str, str] = field(default_factory=dict)
    listed_words: Mapping[str, Mapping[str, str]] = field(default_factory=dict)

    def missing(self) -> list[str]:
        """Modules of `requires` that are not installed; nothing is imported."""
        return [name for name in self.requires if importlib.util.find_spec(name) is None]

    def load(self) -> Callable[[], Backend]:
        """Import the implementation (in the worker only). Raises BackendMissing."""
        if missing := self.missing():
            command = f"pip install 'llmgallery[{self.extra}]'" if self.extra else f"pip install {' '.join(missing)}"
            raise BackendMissing(f"backend {self.name} needs {', '.join(missing)}: {command}")
        module, _, attribute = self.implementation.partition(":")
        backend: Callable[[], Backend] = getattr(importlib.import_module(module), attribute)
        return backend


class Loaded(msgspec.Struct, frozen=True):
    """What one model really is, told once it is loaded. Sizes in tokens, memory in bytes.

    `chat_template`: the Jinja text that came with the weights; `templates`: named ones ("tool_use"); `clues`: what tells their
    format where they bring none. `bos`/`eos`: their texts, for templates. `capabilities`: of "generate", "embed", "rerank",
    "logprobs", "constraints"; "probabilities": the scores of rerank are such already, from 0 to 1, not logits.
    `fim`: the tokens (prefix, suffix, middle) around what is to be filled in, for models that have them.
    `embedding_size`: numbers in a vector; 0 = it makes none.
    """

    context_size: int
    slots: int = 1
    vocab_size: int = 0
    capabilities: frozenset[str] = frozenset()
    chat_template: str | None = None
    templates: dict[str, str] = {}
    clues: Clues = Clues()
    bos: str = ""
    eos: str = ""
    memory_bytes: int = 0
    add_bos: bool = False
    fim: tuple[int, int, int] | None = None
    embedding_size: int = 0
    details: dict[str, Any] = {}


@dataclass(frozen=True)
class Files:
    """What a model is loaded from. `weights`: all parts, the first first. `adapters`: LoRA files in the order of
    `lora_adapters`. `draft`: the weights of the model that drafts, all parts."""

    weights: tuple[Path, ...] = ()
    adapters: tuple[Path, ...] = ()
    draft: tuple[Path, ...] = ()


class Emit(Protocol):
    """How a backend tells what happened. Thread-safe. `step` is called once a step, in the engine's thread, and may call
    `Backend.cancel` for a job of the same step (its stop string came): the job must then decode no further."""

    def progress(self, fraction: float) -> None: ...
    def step(self, outputs: Sequence[Output], stats: StepStats) -> None: ...
    def pooled(self, result: Pooled) -> None: ...
    def fatal(self, error: BaseException) -> None: ...


class Backend(Protocol):
    """An engine in its worker. Push-based: submit returns at once, what happens comes through `emit`.

    Every submitted job gets exactly one Output with `finish`, every EmbedJob and RerankJob exactly one Pooled, also after
    cancel (ids are shared by all kinds). load blocks; all others are quick and may be called from any thread. embed and
    rerank raise what is wrong with the job at once (UnsupportedField, InvalidField, ContextExceeded); then no Pooled comes.
    """

    def load(self, config: ModelConfig, files: Files, emit: Emit) -> Loaded: ...
    def submit(self, job: Job) -> None: ...
    def embed(self, job: EmbedJob) -> None: ...
    def rerank(self, job: RerankJob) -> None: ...
    def cancel(self, id: int) -> None: ...
    def tokenize(self, text: str, *, special: bool, bos: bool) -> list[int]: ...
    def detokenize(self, tokens: Sequence[int]) -> str: ...
    def close(self) -> None: ...


@runtime_checkable
class HasVocabulary(Protocol):
    """A backend that can also load what prompts need and nothing else, in place of `load`: quickly, and with little memory.
    `Loaded.context_size`: the YAML's, else the model's own, else 0; then tokenize, detokenize and close work."""

    def load_vocabulary(self, config: ModelConfig, files: Files) -> Loaded: ...
