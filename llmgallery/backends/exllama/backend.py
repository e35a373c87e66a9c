"""exllamav2's implementation: reads the folder, loads it with the library that its format takes, and lets our loop drive it."""

from __future__ import annotations

import functools
import json
from collections.abc import Callable, Sequence
from pathlib import Path

from llmgallery.backends.base import EmbedJob, Emit, Files, Job, Loaded, RerankJob
from llmgallery.backends.exllama.library import Library, Plan
from llmgallery.backends.exllama.loop import Loop
from llmgallery.backends.exllama.params import make_plan, options_of
from llmgallery.backends.exllama.vocabulary import FolderVocabulary
from llmgallery.backends.hardware import cuda_compiler
from llmgallery.config.model import ModelConfig
from llmgallery.core.clues import Clues, control_tokens
from llmgallery.core.errors import BackendMissing, BadWeights, GalleryError, LoadError, UnsupportedField
from llmgallery.engine.choosing import Chooser

CAPABILITIES = frozenset({"generate", "logprobs", "constraints", "seed"})


class ExllamaBackend:
    """One model on one or more GPUs."""

    _vocabulary: FolderVocabulary | None = None
    _library: Library | None = None
    _loop: Loop | None = None

    def load(self, config: ModelConfig, files: Files, emit: Emit) -> Loaded:
        vocabulary, folder = self._read(config, files)
        plan = make_plan(config, files, trained_context=vocabulary.trained_context, ends=vocabulary.ends)
        library = self._library = _open(plan, is_exl3(folder), emit.progress)
        size = min(vocabulary.size, library.vocab_size)
        make = functools.partial(
            _chooser, vocabulary=vocabulary, vocab_size=size, context_size=plan.context_size, ends=vocabulary.ends
        )
        self._loop = Loop(library, make, emit)
        self._loop.start()
        return _loaded(vocabulary, folder, plan.context_size, library)

    def load_vocabulary(self, config: ModelConfig, files: Files) -> Loaded:
        """No GPU is needed for it."""
        vocabulary, folder = self._read(config, files)
        context_size = config.context_size or config.max_model_len or vocabulary.trained_context
        return _loaded(vocabulary, folder, context_size, None)

    def _read(self, config: ModelConfig, files: Files) -> tuple[FolderVocabulary, Path]:
        if not files.weights or not files.weights[0].is_dir():
            raise BadWeights("no weights: name a folder with config.json and tokenizer.json in parameters.model")
        folder = files.weights[0]
        other = options_of(config).tokenizer
        self._vocabulary = FolderVocabulary(folder, Path(other).expanduser() if other else None)
        return self._vocabulary, folder

    def submit(self, job: Job) -> None:
        if self._loop is None:
            raise LoadError("nothing is loaded yet")
        if job.prompt_logprobs:
            raise UnsupportedField("this model tells no log probabilities of prompts", field="logprobs")
        if job.sampling.dry_multiplier:
            self._known().words()  # in the caller's thread: it takes a while, once
        self._loop.submit(job)

    def cancel(self, id: int) -> None:
        if self._loop is not None:
            self._loop.cancel(id)

    def embed(self, job: EmbedJob) -> None:
        raise UnsupportedField("this model makes no embeddings: its backend only writes text", field="model")

    def rerank(self, job: RerankJob) -> None:
        raise UnsupportedField("this model scores no documents: its backend only writes text", field="model")

    def tokenize(self, text: str, *, special: bool, bos: bool) -> list[int]:
        return self._known().tokenize(text, special=special, bos=bos)

    def detokenize(self, tokens: Sequence[int]) -> str:
        return self._known().detokenize(tokens)

    def close(self) -> None:
        """Ends all jobs, then frees the GPUs; a second call does nothing."""
        if self._loop is not None:
            self._loop.close()
        if self._library is not None:
            self._library.close()
            self._library = None

    def _known(self) -> FolderVocabulary:
        if self._vocabulary is None:
            raise LoadError("nothing is loaded yet")
        return self._vocabulary


def is_exl3(folder: Path) -> bool:
    """config.json names the quantisation."""
    try:
        said = json.loads((folder / "config.json").read_bytes()).get("quantization_config")
    except (OSError, ValueError, AttributeError):
        return False
    return isinstance(said, dict) and said.get("quant_method") == "exl3"


def _open(plan: Plan, exl3: bool, progress: Callable[[float], None]) -> Library:
    """Raises BackendMissing when the library cannot be imported, LoadError for what it refuses to load."""
    name = "exllamav3" if exl3 else "exllamav2"
    try:
        make = _v3() if exl3 else _v2()
    except (ImportError, OSError, RuntimeError) as exc:  # it compiles its kernels when it is imported
        raise BackendMissing(_why_not(name, exc)) from exc
    try:
        return make(plan, progress)
    except GalleryError:
        raise
    except Exception as exc:
        raise LoadError(f"{plan.folder.name} does not load: {name} says: {type(exc).__name__}: {exc}") from exc


def _v2() -> Callable[[Plan, Callable[[float], None]], Library]:
    from llmgallery.backends.exllama.v2 import V2

    return V2


def _v3() -> Callable[[Plan, Callable[[float], None]], Library]:
    from llmgallery.backends.exllama.v3 import V3

    return V3


def _why_not(name: str, error: BaseException) -> str:
    advice = "llmgallery backends install exllamav2"
    if isinstance(error, OSError) and cuda_compiler() is None:
        advice = "install the CUDA toolkit of torch's version and set CUDA_HOME, or install a wheel of it with compiled kernels"
    return f"{name} does not import: {type(error).__name__}: {error}; {advice}"


def _chooser(job: Job, vocabulary: FolderVocabulary, vocab_size: int, context_size: int, ends: tuple[int, ...]) -> Chooser:
    words = vocabulary.words() if job.sampling.dry_multiplier else None
    return Chooser(job, vocabulary, vocab_size=vocab_size, ends=ends, context_size=context_size, words=words)


def _loaded(vocabulary: FolderVocabulary, folder: Path, context_size: int, library: Library | None) -> Loaded:
    templates = dict(vocabulary.templates)
    plain = templates.pop("", None)
    tokens = () if vocabulary.templates else control_tokens(vocabulary.controls())
    return Loaded(
        context_size=context_size,
        slots=library.slots if library is not None else 1,
        vocab_size=vocabulary.size,
        capabilities=CAPABILITIES if library is not None else frozenset(),
        chat_template=plain,
        templates=templates,
        clues=Clues(str(folder), vocabulary.architecture, folder.name, "", tokens),
        bos=vocabulary.bos,
        eos=vocabulary.eos,
        add_bos=vocabulary.adds_bos,
        memory_bytes=library.memory_bytes if library is not None else 0,
        details={"architecture": vocabulary.architecture},
    )
