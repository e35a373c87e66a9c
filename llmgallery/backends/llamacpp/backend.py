"""llama-cpp's implementation: loads a GGUF, and lets the engine generate with it."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from pathlib import Path

import msgspec

from llmgallery.backends.base import EmbedJob, Emit, Files, Job, Loaded, RerankJob
from llmgallery.backends.llamacpp import api, params, pooled
from llmgallery.backends.llamacpp.adapters import Adapters, load_adapters
from llmgallery.backends.llamacpp.draft import make_drafter, most_guesses
from llmgallery.backends.llamacpp.log import ERROR, LOG
from llmgallery.backends.llamacpp.runner import LlamaRunner
from llmgallery.backends.llamacpp.spec import LlamaOptions
from llmgallery.config.model import ModelConfig
from llmgallery.core.clues import Clues, control_tokens
from llmgallery.core.errors import BadWeights, InvalidField, LoadError, UnsupportedField
from llmgallery.engine.stepped import SteppedBackend

TEMPLATE = "tokenizer.chat_template"
CAPABILITIES = frozenset({"generate", "logprobs", "constraints"})
WITHOUT_AMX = """\
llama.cpp was compiled with Intel's AMX kernels, which crash when GCC 12 compiled them: weights are not repacked, and quantised
ones compute more slowly. Build it anew without them:
    FLAGS="-mno-amx-tile -mno-amx-int8 -mno-amx-bf16"
    CFLAGS="$FLAGS" CXXFLAGS="$FLAGS" pip install --no-cache-dir --force-reinstall --no-binary llama-cpp-python llama-cpp-python
or, if your compiler is newer and they work, say so in the model's YAML: options: {repack: on}
"""
_BUFFER = re.compile(r"buffer size\s*=\s*([\d.]+) MiB")
_PREFIX = re.compile(r"^(?:\w+: |error loading model: )+")
_MEMORY = re.compile(r"alloc|out of memory|mlock", re.I)


class LlamaCppBackend(SteppedBackend):
    """One model, one context, as many sequences as slots."""

    _model: api.Model | None = None
    _context: api.Context | None = None
    _adapters: Adapters | None = None
    _runner: LlamaRunner | None = None
    _pool: pooled.LlamaPool | None = None

    def load(self, config: ModelConfig, given: Files, emit: Emit) -> Loaded:
        options = params.options_of(config)
        params.context_params(config, options, context_size=1, slots=1, weights_bytes=0)  # before the long load
        _check_files(given.weights)
        api.start(bool(config.numa))
        if (with_amx := api.has_amx()) and not params.may_repack(options, with_amx):
            LOG.say(WITHOUT_AMX)
        with LOG.kept() as log:
            model = self._load_model(config, options, given, emit)
            pool = self._pool = self._load_pool(config, options, given)
            if pool is None or not pool.is_alone:
                context_size = self._load_generator(config, options, given, emit)
            else:
                context_size = pool.context_size
        memory = _allocated(log) or model.bytes
        if pool is not None:
            pool.start(emit)
            memory += pool.later_bytes
        slots = self._context.num_sequences if self._context else 1
        return _loaded(model, given.weights[0], context_size, slots, memory, pool)

    def load_vocabulary(self, config: ModelConfig, given: Files) -> Loaded:
        """llama.cpp reads the header and stops: what the vocabulary takes is all the memory there is to it."""
        _check_files(given.weights)
        api.start()
        with LOG.kept() as log:
            try:
                wanted = api.ModelParams(gpu_layers=0, vocabulary_only=True)
                model = self._model = api.Model(given.weights, wanted, lambda fraction: None)
            except ValueError as exc:
                raise _refusal(given.weights[0], log) from exc
        context_size = config.context_size or _trained_context(model)
        loaded = _loaded(model, given.weights[0], context_size, slots=1, memory=0, pool=None)
        return msgspec.structs.replace(loaded, capabilities=frozenset())

    def _load_model(self, config: ModelConfig, options: LlamaOptions, given: Files, emit: Emit) -> api.Model:
        with LOG.kept() as log:
            try:
                model = api.Model(given.weights, params.model_params(config, options), _each_percent(emit.progress))
            except ValueError as exc:
                raise _refusal(given.weights[0], log) from exc
        self._model = model
        self._adapters = load_adapters(model, config, given.adapters)
        return model

    def _load_generator(self, config: ModelConfig, options: LlamaOptions, given: Files, emit: Emit) -> int:
        """Context, runner and engine; returns the context size."""
        model, file = self._loaded_model(), given.weights[0]
        if model.has_encoder:
            raise LoadError(f"{file.name} is an encoder with a decoder, as T5 is: such models are not served")
        context_size = config.context_size or model.context_length
        per_token = model.cache_bytes_per_token
        slots = config.parallel or params.default_slots(per_token * context_size)
        params.check_size(context_size, params.num_caches(options, slots), per_token)
        wanted = params.context_params(
            config,
            options,
            context_size=context_size,
            slots=slots,
            weights_bytes=model.bytes,
            vocab_size=model.vocab.size,
            heads=model.num_heads,
            drafts=most_guesses(config, options),
        )
        with LOG.kept() as log:
            try:
                context = self._context = api.Context(model, wanted)
            except ValueError as exc:
                raise LoadError(_no_context(file, context_size, slots, log)) from exc
        if self._adapters:
            self._adapters.apply(context)
        drafter = make_drafter(
            config,
            options,
            given.draft,
            target=model,
            can_truncate=not model.keeps_state,
            model_params=params.model_params(config, options),
            context_params=wanted,
            progress=lambda fraction: None,
        )
        self._runner = LlamaRunner(model, context, context_size=context_size, drafter=drafter)
        budget, slowdown = context.batch_size, options.stream_slowdown
        self._start(self._runner, emit, slots=slots, budget=budget, context_size=context_size, stream_slowdown=slowdown)
        return context_size

    def _load_pool(self, config: ModelConfig, options: LlamaOptions, given: Files) -> pooled.LlamaPool | None:
        model, file = self._loaded_model(), given.weights[0]
        facts = pooled.facts_of(model, given.weights)
        if (pooling := pooled.chosen_pooling(config, options, facts)) is None:
            return None
        with LOG.kept() as log:
            try:
                pool = pooled.LlamaPool(model, config, options, facts, pooling)
            except ValueError as exc:
                size = pooled.context_size_of(model, config, facts)
                raise LoadError(_no_context(file, size, 1, log)) from exc
        if self._adapters:
            self._adapters.apply(pool.context)
        return pool

    def submit(self, job: Job) -> None:
        if self._engine is None and self._model is not None:
            raise UnsupportedField("this model makes embeddings or scores, and answers nothing", field="model")
        if self._runner is not None:
            self._runner.prepare(job.sampling)
        super().submit(job)

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

    def embed(self, job: EmbedJob) -> None:
        self._loaded_model()
        if self._pool is None:
            raise pooled.no_embeddings()
        self._pool.embed(job)

    def rerank(self, job: RerankJob) -> None:
        self._loaded_model()
        if self._pool is None:
            raise pooled.no_scores()
        self._pool.rerank(job)

    def cancel(self, id: int) -> None:
        super().cancel(id)
        if self._pool is not None:
            self._pool.cancel(id)

    def _loaded_model(self) -> api.Model:
        if self._model is None:
            raise LoadError("nothing is loaded yet")
        return self._model

    def _vocab(self) -> api.Vocab:
        return self._loaded_model().vocab

    def _free(self) -> None:
        for part in (self._pool, self._runner, self._context, self._adapters, self._model):
            if part is not None:
                part.close()
        self._pool = self._runner = self._context = self._adapters = self._model = None


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


def _trained_context(model: api.Model) -> int:
    """By the metadata, which a vocabulary has as well; 0 = they do not say."""
    key = f"{_architecture(model)}.context_length"
    text = model.metadata(lambda each: each == key).get(key, "")
    return int(text) if text.isdecimal() else 0


def _allocated(log: Sequence[tuple[int, str]]) -> int:
    """Bytes of all buffers, by llama.cpp's own account: weights, KV cache, compute."""
    mebibytes = sum(float(size) for _, text in log for size in _BUFFER.findall(text))
    return int(mebibytes * 1024 * 1024)


def _clues(model: api.Model, file: Path, has_template: bool) -> Clues:
    """The vocabulary is looked through only for weights without a template, which need it."""
    keys = ("general.architecture", "general.name", "tokenizer.ggml.pre")
    said = model.metadata(lambda key: key in keys)
    tokens = () if has_template else control_tokens(model.vocab.controls())
    architecture, name, pre_tokenizer = (said.get(key, "") for key in keys)
    return Clues(str(file), architecture, name, pre_tokenizer, tokens)


def _loaded(model: api.Model, file: Path, context_size: int, slots: int, memory: int, pool: pooled.LlamaPool | None) -> Loaded:
    vocab = model.vocab
    templates = model.metadata(lambda key: key.startswith(TEMPLATE))
    return Loaded(
        context_size=context_size,
        slots=slots,
        vocab_size=vocab.size,
        chat_template=templates.get(TEMPLATE),
        templates={key[len(TEMPLATE) + 1 :]: text for key, text in templates.items() if key != TEMPLATE},
        clues=_clues(model, file, bool(templates)),
        bos=vocab.text(vocab.bos),
        eos=vocab.text(vocab.eos),
        add_bos=vocab.adds_bos,
        fim=None if api.NO_TOKEN in vocab.fill_in else vocab.fill_in,
        capabilities=(CAPABILITIES if pool is None or not pool.is_alone else frozenset())
        | (pool.capabilities if pool is not None else frozenset()),
        embedding_size=pool.embedding_size if pool is not None else 0,
        memory_bytes=memory,
        details={
            "architecture": _architecture(model),
            "description": model.description,
            "parameters": model.num_parameters,
            "weights_bytes": model.bytes,
        },
    )
