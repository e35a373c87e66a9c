"""Vectors and scores: which class of transformers makes them, and the texts as the model wants them."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import transformers

from llmgallery.backends.base import EmbedJob, RerankJob
from llmgallery.backends.transformers.pools import pooling_files as files
from llmgallery.backends.transformers.pools.batches import BatchRunner
from llmgallery.backends.transformers.pools.pooling import Pooling
from llmgallery.backends.transformers.pools.pooling_files import Declared, Purpose
from llmgallery.backends.transformers.pools.scoring import Scorer, make_scorer
from llmgallery.backends.transformers.pools.texts import Texts
from llmgallery.config.model import ModelConfig
from llmgallery.core.errors import BadWeights, GalleryError, InvalidField, LoadError, UnsupportedField
from llmgallery.engine.pooling import Pool, PoolSink, Shape

SEQUENCES = 128
ROOM_ON_GPU = 8192
MOST_ROOM, LEAST_ROOM = 1024, 128
WORK = 5e10  # parameters times tokens of a batch on the CPU: about a second, in which a cancel and other jobs wait
ENDLESS = 10**9  # tokenizers without a limit say 10**30


@dataclass(frozen=True)
class PoolSettings:
    """Of the YAML's options. `pooling`: in place of the repo's. `prompt_name`: which of the repo's prompts leads every text,
    None = its default one. `rerank_template`: text around {query} and {document}, for models that answer yes or no.
    `unpickle`: weights of modules may be pickles."""

    pooling: str | None = None
    prompt_name: str | None = None
    rerank_template: str | None = None
    unpickle: bool = False


def model_class(declared: Declared, purpose: Purpose) -> Any:
    """The class of transformers to load; None = whatever generates."""
    if purpose == "rerank":
        return transformers.AutoModelForSequenceClassification if declared.classifies else transformers.AutoModelForCausalLM
    if purpose != "embed":
        return None
    if declared.config.get("is_encoder_decoder"):
        name = files.ENCODER_DECODERS.get(declared.model_type)
        if name is None:
            raise LoadError(f"embeddings: an encoder with a decoder, as {declared.model_type} is, makes none here")
        return getattr(transformers, name)
    return transformers.AutoModel


def no_embeddings() -> UnsupportedField:
    return UnsupportedField("this model makes no embeddings: set embeddings: true in its YAML, or ask another one", field="model")


def no_scores() -> UnsupportedField:
    return UnsupportedField(
        "this model scores no documents: that takes a reranking model, or reranking: true in its YAML", field="model"
    )


class TransformersPool:
    """Makes vectors, or scores pairs. Unless it `is_alone` it shares the weights of a model that generates: their modules exist
    twice, as a generation sets its own ways of attention."""

    def __init__(
        self,
        model: Any,
        tokenizer: Any,
        config: ModelConfig,
        declared: Declared,
        purpose: Purpose,
        settings: PoolSettings,
        *,
        turn: AbstractContextManager[object] | None = None,
    ) -> None:
        """`model`: of `model_class`, or one that generates; its threads and devices are the loader's. `turn`: held while
        computing. Raises LoadError, BadWeights."""
        self.is_alone = purpose != "both"
        model = model.get_base_model() if hasattr(model, "get_base_model") else model  # from around LoRA adapters, which stay
        body = model if self.is_alone else _twin(model)
        body.eval()
        self.context_size = context_size_of(body, tokenizer, config, declared)
        self._vocab_size = max(len(tokenizer), tokenizer.vocab_size)
        self._scorer: Scorer | None = None
        compute: Any
        if purpose == "rerank":
            template, name = settings.rerank_template, settings.prompt_name
            compute = self._scorer = make_scorer(body, tokenizer, declared, self.context_size, template, name)
        else:
            modes = files.chosen_modes(declared, config, settings.pooling)
            prompt = files.chosen_prompt(declared, settings.prompt_name)
            types = "token_type_ids" in tokenizer.model_input_names
            compute = Pooling(body, modes, declared.steps, types=types, unpickle=settings.unpickle)
            self._texts = Texts(tokenizer, self.context_size, declared, prompt)
        self._runner = BatchRunner(
            compute, pad=_pad(body, tokenizer, scores=self._scorer is not None), device=_device(body), turn=turn
        )
        self.embedding_size = 0 if self._scorer else self._tried()
        self._pool: Pool | None = None
        self._room = _room(body)

    def _tried(self) -> int:
        """Numbers in a vector; what cannot be computed is told now."""
        try:
            (vector,) = self._runner.vectors([self._texts.encode("a", "input", truncate=True)])
        except GalleryError:
            raise
        except Exception as exc:
            raise BadWeights(f"this model makes no vectors of text: {type(exc).__name__}: {exc}") from exc
        return len(vector) // 4

    def start(self, sink: PoolSink) -> None:
        """From here on `sink` hears of every job."""
        self._pool = Pool(self._runner, sink, room=self._room, sequences=SEQUENCES, splits=False)
        self._pool.start()

    @property
    def capabilities(self) -> frozenset[str]:
        if self._scorer is None:
            return frozenset({"embed"})
        return frozenset({"rerank", "probabilities"} if self._scorer.gives_probabilities else {"rerank"})

    def embed(self, job: EmbedJob) -> None:
        """Raises UnsupportedField, InvalidField, ContextExceeded."""
        if self._scorer is not None:
            raise UnsupportedField("this model scores documents, and makes no embeddings", field="model")
        if job.dimensions is not None and not 1 <= job.dimensions <= self.embedding_size:
            raise InvalidField(f"dimensions: 1 to {self.embedding_size}, not {job.dimensions}", field="dimensions")
        inputs = [self._input(item, f"input[{index}]", job.truncate) for index, item in enumerate(job.inputs)]
        self._submit(job.id, inputs, _embedding(job.dimensions, normalize=job.normalize))

    def _input(self, item: str | Sequence[int], field: str, truncate: bool) -> list[int]:
        if isinstance(item, str):
            return self._texts.encode(item, field, truncate=truncate)
        if strange := [token for token in item if not 0 <= token < self._vocab_size]:
            raise InvalidField(f"{field}: token {strange[0]} is not in the vocabulary of {self._vocab_size} tokens", field=field)
        return self._texts.fitted(item, field, truncate=truncate)

    def rerank(self, job: RerankJob) -> None:
        """Raises UnsupportedField, InvalidField, ContextExceeded."""
        if self._scorer is None:
            raise no_scores()
        self._submit(job.id, self._scorer.pairs(job.query, job.documents, truncate=job.truncate), _as_it_is)

    def _submit(self, id: int, inputs: Sequence[Sequence[int]], shape: Shape) -> None:
        if self._pool is None:
            raise LoadError("nothing is loaded yet")
        self._pool.submit(id, inputs, shape)

    def cancel(self, id: int) -> None:
        if self._pool is not None:
            self._pool.cancel(id)

    def close(self) -> None:
        """Ends its jobs; a second call does nothing."""
        if self._pool is not None:
            self._pool.close()


def context_size_of(model: Any, tokenizer: Any, config: ModelConfig, declared: Declared) -> int:
    """Tokens of the longest input: the YAML's, else the repo's own limit, never beyond a table of positions."""
    text_config = model.config.get_text_config()
    trained = getattr(text_config, "max_position_embeddings", None) or getattr(text_config, "n_positions", None)
    table = _positions(model)
    limits = [size for size in (table, tokenizer.model_max_length) if size and size < ENDLESS]
    if not limits and isinstance(trained, int) and trained > 0:
        limits = [trained]
    own = declared.max_tokens or min(limits, default=512)
    wanted = config.context_size or config.max_model_len or own
    return min(wanted, table) if table else wanted


def _positions(model: Any) -> int | None:
    """Tokens that a learned table of positions has room for; RoBERTa's begin behind that of the padding."""
    for module in model.modules():
        for name in ("position_embeddings", "wpe", "embed_positions"):
            table = getattr(module, name, None)
            if isinstance(table, torch.nn.Embedding):
                padding = getattr(module, "padding_idx", None)
                count: int = table.num_embeddings - (padding + 1 if isinstance(padding, int) else 0)
                return count
    return None


def _twin(model: Any) -> Any:
    """The body of a model that generates, with modules and configuration of its own and the same weights."""
    body = model.base_model
    shared = {id(each): each for each in (*body.parameters(), *body.buffers())}
    twin = copy.deepcopy(body, shared)
    if twin.config._attn_implementation not in ("sdpa", "eager", None):
        twin.set_attn_implementation("sdpa")
    return twin


def _pad(model: Any, tokenizer: Any, *, scores: bool) -> int | None:
    """Which token fills rows up. The classifiers of decoders look for the last token that is not it."""
    own = getattr(model.config.get_text_config(), "pad_token_id", None)
    if own is not None:
        return int(own)
    if scores and "ForSequenceClassification" in type(model).__name__:
        return None
    pad: int = tokenizer.pad_token_id or 0
    return pad


def _device(model: Any) -> torch.device:
    """Where its inputs go: to the first of its layers."""
    embeddings = model.get_input_embeddings()
    found = next(iter(embeddings.parameters()), None) if embeddings is not None else None
    return torch.device(model.device if found is None or found.device.type == "meta" else found.device)


def _room(model: Any) -> int:
    """Tokens of a batch."""
    if _device(model).type != "cpu":
        return ROOM_ON_GPU
    count = sum(each.numel() for each in model.parameters())
    return max(LEAST_ROOM, min(MOST_ROOM, int(WORK / max(1, count))))


def _embedding(dimensions: int | None, *, normalize: bool) -> Shape:
    def shape(vector: bytes) -> bytes:
        numbers = np.frombuffer(vector, "<f4")[:dimensions]
        length = float(np.linalg.norm(numbers.astype(np.float64))) if normalize else 0.0
        return (numbers / np.float32(length) if length > 0 else numbers).astype("<f4").tobytes()

    return shape


def _as_it_is(vector: bytes) -> bytes:
    return vector
