"""transformers' implementation: loads a folder, and lets the engines generate, or the pool make vectors, with it."""

from __future__ import annotations

import dataclasses
import gc
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import msgspec

from llmgallery.backends.base import EmbedJob, Emit, Files, Job, Loaded, RerankJob
from llmgallery.backends.transformers.generation import generate_arguments
from llmgallery.backends.transformers.generation.engines import GeneratingEngine, Setting, Turns
from llmgallery.backends.transformers.pools import pooling_files
from llmgallery.backends.transformers.spec import TransformersOptions
from llmgallery.backends.transformers.weights import loading, params, sizes
from llmgallery.backends.transformers.weights.adapters import apply_adapters
from llmgallery.backends.transformers.weights.params import Arguments
from llmgallery.backends.transformers.weights.quantisation import quantisation_of
from llmgallery.backends.transformers.weights.vocabulary import HubVocabulary
from llmgallery.config.model import ModelConfig
from llmgallery.core.clues import Clues
from llmgallery.core.errors import LoadError, RequestError, UnsupportedField
from llmgallery.engine.choosing import Chooser

GENERATES = frozenset({"generate", "logprobs", "prompt_logprobs", "constraints", "seed"})
TRIAL = "The quick brown fox jumps over the lazy dog."
IMPLIED: Mapping[str, Mapping[str, bool]] = {params.PLAIN: {"embeddings": True}, params.CLASSIFIER: {"reranking": True}}
"""What a `type:` says of the purpose of a model whose YAML says nothing else of it."""


class TransformersBackend:
    """One model. Requests that need generate() run in an engine of their own, beside those in the continuous batch."""

    _model: Any = None
    _vocabulary: HubVocabulary | None = None
    _setting: Setting | None = None
    _continuous: GeneratingEngine | None = None
    _batched: GeneratingEngine | None = None
    _pool: Any = None
    _sight: Any = None
    _options = TransformersOptions()
    _why_batched = ""
    _closed = False

    def __init__(self) -> None:
        self._turns = Turns()

    def load(self, config: ModelConfig, given: Files, emit: Emit) -> Loaded:
        options = self._options = params.options_of(config)
        loading.prepare(threads=config.threads, visible_devices=options.cuda_visible_devices)
        arguments = params.arguments(config, options, _folder(given), loading.devices())
        config = _implied(config, arguments)
        declared = _declared(arguments)
        purpose = pooling_files.purpose(declared, config, options.pooling)
        _check_generate(options)
        arguments = dataclasses.replace(arguments, folder=declared.folder)
        own = loading.load_config(arguments)
        self._load_model(config, options, arguments, given, own, purpose, declared, emit)
        vocabulary = self._load_vocabulary(arguments, own)
        if purpose != "generate":
            self._load_pool(config, options, declared, purpose)
        if self._pool is not None and self._pool.is_alone:
            context_size, slots = self._pool.context_size, 1
        else:
            context_size, slots = sizes.sizes(config, own, sizes.number_bytes(self._model), sizes.memory(self._model))
            self._start(config, options, arguments, declared, vocabulary, emit, context_size, slots)
        if self._pool is not None:
            self._pool.start(emit)
        emit.progress(1.0)
        return self._loaded(arguments, own, vocabulary, context_size, slots)

    def load_vocabulary(self, config: ModelConfig, given: Files) -> Loaded:
        """Tokenizer, processor of images and configuration alone."""
        options = self._options = params.options_of(config)
        loading.quieten()
        arguments = params.arguments(_without_devices(config), _anywhere(options), _folder(given), params.Devices())
        declared = _declared(arguments)
        arguments = dataclasses.replace(arguments, folder=declared.folder)
        own = loading.load_config(arguments)
        vocabulary = self._load_vocabulary(arguments, own)
        self._load_sight(config, arguments, declared)
        loaded = self._loaded(arguments, own, vocabulary, config.context_size or sizes.own_context(own), 1)
        return msgspec.structs.replace(loaded, capabilities=loaded.capabilities & {"images"})

    def _load_model(
        self,
        config: ModelConfig,
        options: TransformersOptions,
        arguments: Arguments,
        given: Files,
        own: Any,
        purpose: pooling_files.Purpose,
        declared: pooling_files.Declared,
        emit: Emit,
    ) -> None:
        from llmgallery.backends.transformers.pools.pooled import model_class

        loader = model_class(declared, purpose) or _generating_class(arguments, declared)
        quantisation = quantisation_of(arguments.folder, config, options)
        quantisation.check()
        for name, value in quantisation.attributes.items():
            setattr(own, name, value)
        model = loading.load_model(loader, arguments, own, further=quantisation.from_pretrained, progress=emit.progress)
        self._model = apply_adapters(model, config, given.adapters) if given.adapters else model

    def _load_vocabulary(self, arguments: Arguments, own: Any) -> HubVocabulary:
        said = loading.load_generation_config(arguments)
        text = own.get_text_config()
        ends = [*_ids(said.get("eos_token_id")), *_ids(getattr(text, "eos_token_id", None))]
        suppressed = _ids(said.get("suppress_tokens"))
        rows = getattr(text, "vocab_size", 0) or 0
        tokenizer = loading.load_tokenizer(arguments)
        self._vocabulary = HubVocabulary(tokenizer, ends=ends, suppressed=suppressed, size=rows)
        return self._vocabulary

    def _load_sight(self, config: ModelConfig, arguments: Arguments, declared: pooling_files.Declared) -> None:
        if "vision_config" not in declared.config:
            return
        from llmgallery.backends.transformers.sight import vision

        if vision.sees(declared.config):
            self._sight = vision.Sight(arguments.folder, config, arguments.trust_remote_code)

    def _load_pool(
        self,
        config: ModelConfig,
        options: TransformersOptions,
        declared: pooling_files.Declared,
        purpose: pooling_files.Purpose,
    ) -> None:
        from llmgallery.backends.transformers.pools.pooled import PoolSettings, TransformersPool

        settings = PoolSettings(
            pooling=options.pooling,
            prompt_name=options.prompt_name,
            rerank_template=options.rerank_template,
            unpickle=not options.safetensors_only,
        )
        tokenizer = self._vocab().tokenizer
        self._pool = TransformersPool(self._model, tokenizer, config, declared, purpose, settings, turn=self._turns)

    def _start(
        self,
        config: ModelConfig,
        options: TransformersOptions,
        arguments: Arguments,
        declared: pooling_files.Declared,
        vocabulary: HubVocabulary,
        emit: Emit,
        context_size: int,
        slots: int,
    ) -> None:
        from llmgallery.backends.transformers.generation.continuous import CannotBatch, ContinuousEngine

        def choose(job: Job, *, forces: bool = False) -> Chooser:
            return Chooser(
                job,
                vocabulary,
                vocab_size=vocabulary.size,
                ends=vocabulary.ends,
                context_size=context_size,
                suppressed=vocabulary.suppressed,
                words=vocabulary.words if job.sampling.dry_multiplier else None,
                forces=forces,
            )

        self._load_sight(config, arguments, declared)
        self._setting = setting = Setting(
            model=self._model,
            vocabulary=vocabulary,
            emit=emit,
            choose=choose,
            slots=slots,
            context_size=context_size,
            ends=vocabulary.ends,
            batch=config.parameters.batch or (sizes.BATCH_ON_GPU if arguments.on_gpu else sizes.BATCH),
            page_size=options.page_size,
            generate=options.generate,
            turns=self._turns,
        )
        self._why_batched = "continuous_batching: off" if options.continuous_batching == "off" else ""
        trial = vocabulary.tokenize(TRIAL, special=False, bos=True)[:context_size]
        if self._why_batched:
            loading.try_out(self._model, trial)
            return
        try:
            self._continuous = ContinuousEngine(setting, trial)
        except CannotBatch as exc:
            if options.continuous_batching == "on":
                what = f"continuous_batching: on: transformers cannot do it with this model: {exc}"
                raise LoadError(what, field="options.continuous_batching") from exc
            self._why_batched = str(exc)
            loading.try_out(self._model, trial)

    def submit(self, job: Job) -> None:
        setting = self._setting
        if setting is None:
            if self._model is not None:
                raise UnsupportedField("this model makes embeddings or scores, and answers nothing", field="model")
            raise LoadError("nothing is loaded yet")
        if job.sampling.dry_multiplier:
            _ = self._vocab().words  # takes time, which is this thread's then
        divided = self._divided(job)
        if self._continuous is not None and divided.is_plain and not job.images:
            self._continuous.submit(dataclasses.replace(job, sampling=divided.sampling))
        else:
            self._generate_engine(setting).submit(job)

    def _generate_engine(self, setting: Setting) -> GeneratingEngine:
        """Made for the first job that needs it. Submits come from one thread."""
        if self._batched is None:
            from llmgallery.backends.transformers.generation.batched import BatchedEngine

            inputs = self._inputs if self._sight is not None else None
            self._batched = BatchedEngine(setting, inputs=inputs)
        return self._batched

    def _inputs(self, job: Job) -> Mapping[str, Any]:
        told: Mapping[str, Any] = self._sight.inputs(job.prompt, job.images)
        return told

    def check(self, job: Job) -> None:
        """HasParameters."""
        self._divided(job)

    def _divided(self, job: Job) -> generate_arguments.Divided:
        """What our sampler does of the job, and what generate() is for. Raises InvalidField, UnsupportedField."""
        more = "logprobs" if job.logprobs is not None else "response_format" if job.constraint is not None else ""
        size = self._vocab().size
        return generate_arguments.divide(job.sampling, self._options.generate, len(job.prompt), asks_more=more, vocab_size=size)

    def cancel(self, id: int) -> None:
        for part in (self._continuous, self._batched, self._pool):
            if part is not None:
                part.cancel(id)

    def tokenize(self, text: str, *, special: bool, bos: bool) -> list[int]:
        return self._vocab().tokenize(text, special=special, bos=bos)

    def tokenize_with_images(self, text: str, images: Sequence[bytes], *, bos: bool) -> list[int]:
        """SeesImages."""
        if self._sight is None:
            raise UnsupportedField("this model sees no images", field="messages")
        tokens: list[int] = self._sight.tokenize_with_images(text, images, bos=bos)
        return tokens

    def detokenize(self, tokens: Sequence[int]) -> str:
        return self._vocab().detokenize(tokens)

    def embed(self, job: EmbedJob) -> None:
        if self._pool is None:
            from llmgallery.backends.transformers.pools.pooled import no_embeddings

            raise no_embeddings()
        self._pool.embed(job)

    def rerank(self, job: RerankJob) -> None:
        if self._pool is None:
            from llmgallery.backends.transformers.pools.pooled import no_scores

            raise no_scores()
        self._pool.rerank(job)

    def close(self) -> None:
        for part in (self._continuous, self._batched, self._pool):
            if part is not None:
                part.close()
        self._continuous = self._batched = self._pool = self._setting = self._model = self._sight = None
        gc.collect()
        if not self._closed:
            loading.free_memory()
        self._closed = True

    def _vocab(self) -> HubVocabulary:
        if self._vocabulary is None:
            raise LoadError("nothing is loaded yet")
        return self._vocabulary

    def _loaded(self, arguments: Arguments, own: Any, vocabulary: HubVocabulary, context_size: int, slots: int) -> Loaded:
        model, pool = self._model, self._pool
        template = vocabulary.chat_template or (self._sight.chat_template if self._sight is not None else None)
        tokens = () if template is not None else vocabulary.controls()
        capabilities = GENERATES if pool is None or not pool.is_alone else frozenset()
        fill_in = vocabulary.fill_in
        if capabilities:
            capabilities |= {name for name, has in (("suffix", fill_in), ("images", self._sight)) if has}
        return Loaded(
            context_size=context_size,
            slots=slots,
            vocab_size=vocabulary.size,
            capabilities=capabilities | (pool.capabilities if pool is not None else frozenset()),
            chat_template=template,
            templates=vocabulary.templates,
            clues=Clues(str(arguments.folder), str(own.model_type), _name(own), "", tokens),
            bos=vocabulary.bos,
            eos=vocabulary.eos,
            memory_bytes=0 if model is None else sizes.model_bytes(model) + self._cache_bytes(),
            add_bos=vocabulary.adds_bos,
            fim=fill_in,
            embedding_size=pool.embedding_size if pool is not None else 0,
            details={} if model is None else self._details(model),
        )

    def _cache_bytes(self) -> int:
        return 0 if self._continuous is None else self._continuous.cache_bytes

    def _details(self, model: Any) -> dict[str, Any]:
        details = {
            "architecture": type(model).__name__,
            "parameters": sum(each.numel() for each in model.parameters()),
            "weights_bytes": sizes.model_bytes(model),
            "dtype": str(model.dtype).removeprefix("torch."),
            "device": str(model.device),
            "attention": str(model.config.get_text_config()._attn_implementation),
        }
        if self._setting is not None:
            details["batching"] = "continuous" if self._continuous is not None else f"generate(): {self._why_batched}"
        return details


def _folder(given: Files) -> Path:
    if not given.weights:
        raise LoadError("no weights: name a repo of the Hub, or a folder, in parameters.model")
    return given.weights[0]


def _declared(arguments: Arguments) -> pooling_files.Declared:
    if not (arguments.folder / "modules.json").is_file():
        loading.check_folder(arguments.folder)
    return pooling_files.read(arguments.folder)


def _implied(config: ModelConfig, arguments: Arguments) -> ModelConfig:
    implied = IMPLIED.get(arguments.auto_class or "", {})
    if config.embeddings is None and config.reranking is None:
        return msgspec.structs.replace(config, **implied)
    return config


def _generating_class(arguments: Arguments, declared: pooling_files.Declared) -> Any:
    import transformers

    from llmgallery.backends.transformers.sight import vision

    if declared.config.get("is_encoder_decoder"):
        raise LoadError(f"{arguments.folder.name} is an encoder with a decoder, as T5 is: such models are not served")
    name = arguments.auto_class or (params.VISION if vision.sees(declared.config) else params.CAUSAL)
    return getattr(transformers, name)


def _check_generate(options: TransformersOptions) -> None:
    try:
        generate_arguments.check(options.generate)
    except RequestError as exc:
        raise LoadError(f"options.generate: {exc.message}", field="options.generate") from exc


def _without_devices(config: ModelConfig) -> ModelConfig:
    """A vocabulary needs none."""
    return msgspec.structs.replace(config, main_gpu=None, flash_attention=None)


def _anywhere(options: TransformersOptions) -> TransformersOptions:
    return msgspec.structs.replace(options, device=None, device_map=None)


def _ids(told: Any) -> list[int]:
    """One token id, or several, or none."""
    ids = told if isinstance(told, list) else [told]
    return [each for each in ids if isinstance(each, int) and not isinstance(each, bool)]


def _name(own: Any) -> str:
    return str(getattr(own, "_name_or_path", "") or "")
