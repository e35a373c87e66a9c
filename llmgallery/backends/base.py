"""The protocol between a worker and an engine: what a backend declares, and what it does when pushed."""

from __future__ import annotations

import importlib
import importlib.util
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, Protocol, runtime_checkable

import msgspec

from llmgallery.backends.hardware import lacking
from llmgallery.config.model import ModelConfig
from llmgallery.config.outside import OptionNote
from llmgallery.core.clues import Clues
from llmgallery.core.errors import BackendMissing, GalleryError
from llmgallery.core.events import Event
from llmgallery.core.jobs import EmbedJob as EmbedJob
from llmgallery.core.jobs import Job as Job
from llmgallery.core.jobs import Output as Output
from llmgallery.core.jobs import Pooled as Pooled
from llmgallery.core.jobs import RerankJob as RerankJob
from llmgallery.core.jobs import StepStats as StepStats
from llmgallery.core.requests import EmbedRequest, Request, RerankRequest

Level = Literal["tokens", "text", "chat"]
Hardware = Literal["cuda"]

CAPABILITIES: Mapping[str, str] = {
    "generate": "chats and completions",
    "embed": "embeddings",
    "rerank": "scores of documents",
    "logprobs": "log probabilities of the answer",
    "prompt_logprobs": "log probabilities of the prompt (completions with echo)",
    "constraints": "answers bound to a grammar",
    "seed": "the same answer for the same seed, when nothing runs beside it",
    "suffix": "text filled in between prefix and suffix",
    "images": "messages with images",
    "lora": "LoRA adapters",
    "tools": "function calls of its own",
}
"""What backends can do, in words. What is not among a spec's capabilities it declares not to have."""


class NoOptions(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """For backends without YAML keys of their own."""


def _is_installed(module: str) -> bool:
    """A folder of this name that holds no package, such as a models folder called so, is none."""
    found = importlib.util.find_spec(module)
    return found is not None and found.origin is not None


def _nothing(config: ModelConfig) -> Iterable[OptionNote]:
    """Types say it all."""
    return ()


def by_name(name: str) -> Callable[[ModelConfig], Iterable[OptionNote]]:
    """`module:function` as a spec's `judge`, imported at its first call: what needs more of the backend than the spec may import,
    though nothing of its libraries."""

    def judge(config: ModelConfig) -> Iterable[OptionNote]:
        told: Iterable[OptionNote] = _named(name)(config)
        return told

    return judge


def _named(name: str) -> Any:
    module, _, attribute = name.partition(":")
    return getattr(importlib.import_module(module), attribute)


@dataclass(frozen=True)
class BackendSpec:
    """What a backend is, without importing it.

    `level`: tokens = we render, sample and mask; text = we render, it completes; chat = it takes the conversation.
    `options`: a Struct of its own keys under `options:`. `formats`: file formats it loads (catalog/formats.py's names).
    `keys`: the ModelConfig load keys it heeds; a known key that it does not heed is a warning.
    `unset`: what holds for each of them that nobody sets, as a value or in words.
    `listed`: other names of options, or of load keys, in LocalAI's lists; `listed_words`: other words for their values, by such
    a name, with - for _; any further word is a warning.
    `capabilities`: of CAPABILITIES, what some model can do with it; what one really can do comes back in `Loaded`.
    `requires`: importable modules; `requires_for`: further ones for weights of a format; `extra`: the pip extra that installs
    them; `extras_for`: the one for a format, where it is another; `hardware`: what the machine must have.
    `implementation`: "module:Class".
    `parameters`: names of its own generation parameters that requests may send; they come in `Sampling.extra`.
    `beside`: options that name a file beside the model file, or an absolute path, which is what they become.
    `judge`: what is wrong with a model file's load keys and options, beyond their types; no weights are looked at.
    `shared`: all its models share one worker, which sees the server's whole environment, and every request brings its model's
    configuration: for models that are elsewhere.
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
    requires_for: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    extra: str = ""
    extras_for: Mapping[str, str] = field(default_factory=dict)
    hardware: tuple[Hardware, ...] = ()
    parameters: frozenset[str] = frozenset()
    shared: bool = False
    needs_weights: bool = True
    unset: Mapping[str, Any] = field(default_factory=dict)
    listed: Mapping[str, str] = field(default_factory=dict)
    listed_words: Mapping[str, Mapping[str, str]] = field(default_factory=dict)
    beside: frozenset[str] = frozenset()
    judge: Callable[[ModelConfig], Iterable[OptionNote]] = _nothing

    def modules(self, format: str | None = None) -> tuple[str, ...]:
        """What must be importable to load weights of this format."""
        return (*self.requires, *self.requires_for.get(format or "", ()))

    def missing(self, format: str | None = None) -> list[str]:
        """Those of `modules` that are not installed in this interpreter; nothing is imported."""
        return [name for name in self.modules(format) if not _is_installed(name)]

    def lacks(self, format: str | None = None) -> str:
        """Why it cannot load weights of this format in this interpreter on this machine, and what to do; "" = it can."""
        if absent := list(filter(None, map(lacking, self.hardware))):
            return f"backend {self.name} needs {' and '.join(absent)}"
        if missing := self.missing(format):
            return f"backend {self.name} needs {', '.join(missing)}, not installed here: {self.remedy(missing)}"
        return ""

    def remedy(self, missing: Sequence[str]) -> str:
        """The command that installs what is missing."""
        if not self.extra:
            return f"pip install {' '.join(missing)}"
        more = {extra for format, extra in self.extras_for.items() if set(missing) & set(self.requires_for.get(format, ()))}
        return f"llmgallery backends install {self.name}{''.join(f' --with {extra}' for extra in sorted(more))}"

    def load(self) -> Callable[[], Any]:
        """Import the implementation (in the worker only): what makes a Backend, or at level chat a RemoteBackend. Raises
        BackendMissing."""
        if missing := self.missing():
            raise BackendMissing(f"backend {self.name} needs {', '.join(missing)}: {self.remedy(missing)}")
        backend: Callable[[], Any] = _named(self.implementation)
        return backend


class Loaded(msgspec.Struct, frozen=True):
    """What one model really is, told once it is loaded. Sizes in tokens, memory in bytes.

    `chat_template`: the Jinja text that came with the weights; `templates`: named ones ("tool_use"); `clues`: what tells their
    format where they bring none. `bos`/`eos`: their texts, for templates. `capabilities`: of CAPABILITIES; and "probabilities":
    the scores of rerank are such already, from 0 to 1, not logits.
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


@dataclass(frozen=True)
class Conversation:
    """A request for a backend of level chat, with the configuration of its model. `streamed`: somebody reads along; else the
    answer may come whole."""

    id: int
    request: Request
    config: ModelConfig
    streamed: bool = True


class Emit(Protocol):
    """How a backend tells what happened. Thread-safe. `step` is called once a step, in the engine's thread, and may call
    `Backend.cancel` for a job of the same step (its stop string came): the job must then decode no further."""

    def progress(self, fraction: float) -> None: ...
    def step(self, outputs: Sequence[Output], stats: StepStats) -> None: ...
    def pooled(self, result: Pooled) -> None: ...
    def fatal(self, error: BaseException) -> None: ...


class RemoteEmit(Protocol):
    """How a backend of level chat tells what happened. Thread-safe. Every Conversation gets `rejected`, or `accepted` and then
    events up to one Done; every request for vectors one Pooled, before it `accepted` where there are headers."""

    def progress(self, fraction: float) -> None: ...
    def accepted(self, id: int, headers: Mapping[str, str]) -> None: ...
    def rejected(self, id: int, error: GalleryError) -> None: ...
    def events(self, id: int, events: Sequence[Event]) -> None: ...
    def pooled(self, result: Pooled) -> None: ...
    def fatal(self, error: BaseException) -> None: ...


class RemoteBackend(Protocol):
    """Level chat: it takes whole conversations to models that are elsewhere, of many configurations at once. Calls return at
    once, from any thread; `load` is told the configuration of the model that was asked for first, and may ignore it. After
    `cancel` a Conversation ends with Done(reason "cancelled"), or a Cancelled rejection; vectors with a Cancelled error."""

    def load(self, config: ModelConfig, files: Files, emit: RemoteEmit) -> Loaded: ...
    def converse(self, conversation: Conversation) -> None: ...
    def embed(self, id: int, request: EmbedRequest, config: ModelConfig) -> None: ...
    def rerank(self, id: int, request: RerankRequest, config: ModelConfig) -> None: ...
    def cancel(self, id: int) -> None: ...
    def close(self) -> None: ...


class Backend(Protocol):
    """Levels tokens and text: an engine in its worker. Push-based: submit returns at once, what happens comes through `emit`.

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


@runtime_checkable
class SeesImages(Protocol):
    """A Backend whose prompts may hold images. `Loaded.capabilities` has "images" where the model does see."""

    def tokenize_with_images(self, text: str, images: Sequence[bytes], *, bos: bool) -> list[int]:
        """The rendered prompt, whose markers of images, in their order, become the tokens that stand for each image. The Job is
        given both. Raises InvalidField for bytes that are no image, and for another number of images than of markers."""


@runtime_checkable
class HasParameters(Protocol):
    """A Backend with generation parameters of its own, which come in `Sampling.extra`."""

    def check(self, job: Job) -> None:
        """Whether it can do what the job, which is about to be submitted, asks of them. Raises InvalidField and UnsupportedField
        naming the parameter."""
