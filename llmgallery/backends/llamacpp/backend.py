"""llama-cpp's implementation: loads a GGUF, and lets the engine generate with it."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from pathlib import Path

from llmgallery.backends.base import Emit, Loaded
from llmgallery.backends.llamacpp import api, params
from llmgallery.backends.llamacpp.log import ERROR, LOG
from llmgallery.backends.llamacpp.runner import LlamaRunner
from llmgallery.config.model import ModelConfig
from llmgallery.core.errors import BadWeights, InvalidField, LoadError
from llmgallery.engine.stepped import SteppedBackend

TEMPLATE = "tokenizer.chat_template"
_BUFFER = re.compile(r"buffer size\s*=\s*([\d.]+) MiB")
_PREFIX = re.compile(r"^(?:\w+: |error loading model: )+")
_MEMORY = re.compile(r"alloc|out of memory|mlock", re.I)


class LlamaCppBackend(SteppedBackend):
    """One model, one context, as many sequences as slots."""

    _model: api.Model | None = None
    _context: api.Context | None = None
    _runner: LlamaRunner | None = None

    def load(self, config: ModelConfig, files: Sequence[Path], emit: Emit) -> Loaded:
        options = params.options_of(config)
        params.context_params(config, options, context_size=1, slots=1, weights_bytes=0)  # before the long load
        _check_files(files)
        api.start(bool(config.numa))
        with LOG.kept() as log:
            try:
                model = self._load_model(files, params.model_params(config, options), emit)
            except ValueError as exc:
                raise _refusal(files[0], log) from exc
            if not model.can_decode:
                raise LoadError(f"{files[0].name} is an encoder: it makes embeddings, and answers nothing")
            context_size = config.context_size or model.context_length
            slots = config.parallel or params.default_slots(model.cache_bytes_per_token * context_size)
            params.check_size(context_size, slots, model.cache_bytes_per_token)
            wanted = params.context_params(config, options, context_size=context_size, slots=slots, weights_bytes=model.bytes)
            try:
                self._context = api.Context(model, wanted)
            except ValueError as exc:
                raise LoadError(_no_context(files[0], context_size, slots, log)) from exc
        self._runner = LlamaRunner(model, self._context, context_size=context_size)
        self._start(self._runner, emit, slots=slots, budget=self._context.batch_size, context_size=context_size)
        return _loaded(model, context_size, slots, _allocated(log) or model.bytes)

    def _load_model(self, files: Sequence[Path], wanted: api.ModelParams, emit: Emit) -> api.Model:
        self._model = api.Model(files, wanted, _each_percent(emit.progress))
        return self._model

    def tokenize(self, text: str, *, special: bool, bos: bool) -> list[int]:
        """`bos`: put BOS before it, if the vocabulary has one."""
        vocab = self._vocab()
        head = [vocab.bos] if bos and vocab.bos != api.NO_TOKEN else []
        try:
            return head + vocab.tokenize(text.encode(errors="replace"), special=special)
        except OverflowError as exc:
            raise InvalidField(str(exc), field="prompt") from exc

    def detokenize(self, tokens: Sequence[int]) -> str:
        vocab = self._vocab()
        if strange := [token for token in tokens if not 0 <= token < vocab.size]:
            raise InvalidField(f"token {strange[0]} is not in the vocabulary of {vocab.size} tokens", field="tokens")
        return vocab.detokenize(tokens).decode(errors="replace")

    def _vocab(self) -> api.Vocab:
        if self._model is None:
            raise LoadError("nothing is loaded yet")
        return self._model.vocab

    def _free(self) -> None:
        for part in (self._runner, self._context, self._model):
            if part is not None:
                part.close()
        self._runner = self._context = self._model = None


def _check_files(files: Sequence[Path]) -> None:
    if not files:
        raise LoadError("no weights: name a GGUF file in parameters.model")
    for file in files:
        if not file.is_file():
            raise BadWeights(f"{file}: no such file")


def _each_percent(tell: Callable[[float], None]) -> Callable[[float], None]:
    """llama.cpp reports each tensor; a hundred reports are enough."""
    told = -1

    def progress(fraction: float) -> None:
        nonlocal told
        if (percent := int(fraction * 100)) > told:
            told = percent
            tell(min(1.0, fraction))

    return progress


def _errors(log: Sequence[tuple[int, str]]) -> str:
    """llama.cpp's error messages, without its function names and repetitions."""
    lines = [text.strip() for level, text in log if level == ERROR and text.strip()]
    stripped = [_PREFIX.sub("", line) for line in lines]
    return "; ".join(dict.fromkeys(line for line in stripped if not line.startswith("failed to load model")))


def _refusal(file: Path, log: Sequence[tuple[int, str]]) -> LoadError:
    reason = _errors(log) or "llama.cpp gives no reason"
    kind = LoadError if _MEMORY.search(reason) else BadWeights
    return kind(f"{file.name} does not load: {reason}")


def _no_context(file: Path, context_size: int, slots: int, log: Sequence[tuple[int, str]]) -> str:
    reason = _errors(log) or "llama.cpp gives no reason"
    return f"{file.name}: no context of {slots} x {context_size} tokens: {reason}; try a smaller context_size or parallel"


def _architecture(model: api.Model) -> str:
    return model.metadata(lambda key: key == "general.architecture").get("general.architecture", "")


def _allocated(log: Sequence[tuple[int, str]]) -> int:
    """Bytes of all buffers, by llama.cpp's own account: weights, KV cache, compute."""
    mebibytes = sum(float(size) for _, text in log for size in _BUFFER.findall(text))
    return int(mebibytes * 1024 * 1024)


def _loaded(model: api.Model, context_size: int, slots: int, memory: int) -> Loaded:
    vocab = model.vocab
    templates = model.metadata(lambda key: key.startswith(TEMPLATE))
    return Loaded(
        context_size=context_size,
        slots=slots,
        vocab_size=vocab.size,
        chat_template=templates.get(TEMPLATE),
        templates={key[len(TEMPLATE) + 1 :]: text for key, text in templates.items() if key != TEMPLATE},
        bos=vocab.text(vocab.bos),
        eos=vocab.text(vocab.eos),
        add_bos=vocab.adds_bos,
        memory_bytes=memory,
        details={
            "architecture": _architecture(model),
            "description": model.description,
            "parameters": model.num_parameters,
            "weights_bytes": model.bytes,
        },
    )
