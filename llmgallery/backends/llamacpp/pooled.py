"""Vectors and scores from a GGUF: which of them a model makes, its own context for them, and the texts as it wants them."""

from __future__ import annotations

import dataclasses
import re
import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypeAlias, cast

import numpy as np

from llmgallery.backends.base import EmbedJob, RerankJob
from llmgallery.backends.llamacpp import params
from llmgallery.backends.llamacpp.api import Batch, Context, ContextParams, Model, can_offload
from llmgallery.backends.llamacpp.api import pooled as api
from llmgallery.backends.llamacpp.runner import FAILURES
from llmgallery.backends.llamacpp.spec import LlamaOptions
from llmgallery.config.model import ModelConfig
from llmgallery.core.errors import ContextExceeded, GalleryError, InvalidField, LoadError, UnsupportedField
from llmgallery.engine.pooling import Piece, Pool, PoolSink, Shape

ENCODERS = frozenset({
    "bert", "nomic-bert", "nomic-bert-moe", "jina-bert-v2", "jina-bert-v3", "neo-bert", "eurobert", "modern-bert",
    "gemma-embedding", "llama-embed", "t5encoder",
})  # fmt: skip
TABLES = frozenset({"bert"})
HEAD = ("cls.weight", "cls.output.weight")
SOFTMAXED = frozenset({"qwen3", "qwen3vl"})  # llama.cpp gives the share of "yes"; of other heads the logit
ROOM, ROOM_ON_GPU = 256, 512  # tokens of a decode: more are no faster, and let a cancel and other jobs wait
OUTPUT_BYTES = 128 << 20  # llama.cpp sets the logits of a decode aside, also where none are computed
SEQUENCES = 64
RECURRENT_SEQUENCES = 4  # each has a state of its own, which can be large
STEP = 256  # llama.cpp rounds a context up to this; SEQUENCES must divide a ubatch, or it aborts the process
ABORTED = 2
Vector: TypeAlias = np.ndarray[tuple[int], np.dtype[np.float32]]
Rows: TypeAlias = np.ndarray[tuple[int, int], np.dtype[np.float32]]


@dataclass(frozen=True)
class Facts:
    """What a file says. `pooling`: by its metadata; None = it says nothing. `has_head`: it brings a classifier."""

    architecture: str
    is_encoder: bool
    pooling: str | None
    has_head: bool


def facts_of(model: Model, files: Sequence[Path]) -> Facts:
    told = model.metadata(lambda key: key.endswith((".pooling_type", ".attention.causal")) or key == "general.architecture")
    architecture = told.get("general.architecture", "")
    names = {str(number): name for name, number in api.POOLINGS.items() if name != "none"}
    causal = told.get(f"{architecture}.attention.causal") != "false"
    return Facts(
        architecture=architecture,
        is_encoder=architecture in ENCODERS or not model.can_decode or not causal,
        pooling=names.get(told.get(f"{architecture}.pooling_type", "")),
        has_head=any(api.has_tensor(file, HEAD) for file in files),
    )


def chosen_pooling(config: ModelConfig, options: LlamaOptions, facts: Facts) -> str | None:
    """How the model pools; "rank" = it scores pairs instead of making embeddings; None = it does neither. Raises LoadError."""
    wanted = options.pooling or config.parameters.pooling
    if wanted == "none":
        raise LoadError("pooling: none would give a vector of each token, which no API asks for yet", field="options.pooling")
    if config.embeddings and config.reranking:
        raise LoadError("embeddings and reranking: a model is loaded for one of the two; make two files", field="reranking")
    by_itself = not config.embeddings and wanted is None and (facts.pooling == "rank" or facts.has_head)
    if config.reranking or wanted == "rank" or by_itself:
        if not facts.has_head:
            raise LoadError("reranking: this model has no classifier that could score a document", field="reranking")
        return "rank"
    if config.embeddings or facts.is_encoder:
        own = facts.pooling if facts.pooling != "rank" else None
        return wanted or own or ("mean" if facts.is_encoder else "last")
    if wanted:
        raise LoadError("pooling: only for models with embeddings: true or reranking: true", field="options.pooling")
    return None


def no_embeddings() -> UnsupportedField:
    return UnsupportedField("this model makes no embeddings: set embeddings: true in its YAML, or ask another one", field="model")


def no_scores() -> UnsupportedField:
    return UnsupportedField(
        "this model scores no documents: that takes a reranking model, or reranking: true in its YAML", field="model"
    )


class LlamaPool:
    """A context for vectors beside the one that generates, unless it `is_alone`; both use the same weights."""

    def __init__(self, model: Model, config: ModelConfig, options: LlamaOptions, facts: Facts, pooling: str) -> None:
        """Raises ValueError when llama.cpp refuses, LoadError for impossible settings."""
        self._model = model
        self._scores = pooling == "rank"
        self._softmaxed = facts.architecture in SOFTMAXED
        self.is_alone = facts.is_encoder or self._scores
        self._room = _room(model.vocab.size, on_gpu=can_offload() and config.gpu_layers != 0)
        self.context_size = context_size_of(model, config, facts)
        self.embedding_size = 0 if self._scores else api.vector_size(model)
        plain = plain_params(model, config, options, self.context_size)
        self._runner = PoolRunner(model, plain, facts, pooling, self.context_size, self._room)
        self._before, self._between, self._behind = api.special_tokens(model)
        self._tail = api.tokenize_whole(model, b"")[len(self._before) :]
        self._template = api.rerank_template(model)
        self._decomposes = api.is_wordpiece(model) and _strips_accents(model)
        self._pool: Pool | None = None

    def start(self, sink: PoolSink) -> None:
        """From here on `sink` hears of every job."""
        runner = self._runner
        self._pool = Pool(runner, sink, room=self._room, sequences=runner.num_sequences, splits=runner.splits)
        self._pool.start()

    @property
    def context(self) -> Context:
        return self._runner.context

    @property
    def later_bytes(self) -> int:
        """What the first full decode will take, beside what llama.cpp has told."""
        return 4 * self._room * self._model.vocab.size

    @property
    def capabilities(self) -> frozenset[str]:
        own = {"rerank", *(("probabilities",) if self._softmaxed else ())} if self._scores else {"embed"}
        return frozenset(own)

    def embed(self, job: EmbedJob) -> None:
        """Raises UnsupportedField, InvalidField, ContextExceeded."""
        if self._scores:
            raise UnsupportedField("this model scores documents, and makes no embeddings", field="model")
        if job.dimensions is not None and not 1 <= job.dimensions <= self.embedding_size:
            raise InvalidField(f"dimensions: 1 to {self.embedding_size}, not {job.dimensions}", field="dimensions")
        inputs = [self._input(item, f"input[{index}]", job.truncate) for index, item in enumerate(job.inputs)]
        self._submit(job.id, inputs, _embedding(job.dimensions, normalize=job.normalize))

    def rerank(self, job: RerankJob) -> None:
        """Raises UnsupportedField, InvalidField, ContextExceeded."""
        if not self._scores:
            raise no_scores()
        self._submit(job.id, self._joined(job) if self._template is None else self._templated(job), _score)

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
        self._runner.close()

    def _input(self, item: str | Sequence[int], field: str, truncate: bool) -> list[int]:
        if isinstance(item, str):
            tokens, tail = self._whole(item, field), self._tail
        else:
            tokens, tail = self._checked(item, field), []
        if not tokens:
            raise InvalidField(f"{field} is empty", field=field)
        if truncate and len(tokens) > self.context_size:
            return tokens[: max(0, self.context_size - len(tail))] + tail[: self.context_size]
        self._check_length(len(tokens), field)
        return tokens

    def _joined(self, job: RerankJob) -> list[list[int]]:
        """Query and document with the special tokens that belong there."""
        head = [*self._before, *self._plain(job.query, "query"), *self._between]
        left = self.context_size - len(head) - len(self._behind)
        self._check_length(self.context_size - left, "query")
        pairs = []
        for index, document in enumerate(job.documents):
            tokens = self._plain(document, f"documents[{index}]")
            pairs.append([*head, *(tokens[:left] if job.truncate else tokens), *self._behind])
            self._check_length(len(pairs[-1]), f"documents[{index}]")
        return pairs

    def _templated(self, job: RerankJob) -> list[list[int]]:
        """The model's own text around both; what is cut is cut from the document."""
        self._check_length(len(self._filled(job.query, "", "query")), "query")
        pairs = []
        for index, document in enumerate(job.documents):
            field = f"documents[{index}]"
            tokens = self._filled(job.query, document, field)
            if job.truncate:
                tokens = self._cut(job.query, document, tokens, field)
            self._check_length(len(tokens), field)
            pairs.append(tokens)
        return pairs

    def _cut(self, query: str, document: str, tokens: list[int], field: str) -> list[int]:
        """The pair with as much of the document as fits: where texts meet, their tokens change."""
        own = self._plain(document, field)
        while own and len(tokens) > self.context_size:
            own = own[: max(0, len(own) - (len(tokens) - self.context_size))]
            tokens = self._filled(query, self._model.vocab.detokenize(own).decode(errors="ignore") if own else "", field)
        return tokens

    def _filled(self, query: str, document: str, field: str) -> list[int]:
        texts = {"{query}": query, "{document}": document}
        whole = re.sub(r"\{query\}|\{document\}", lambda found: texts[found[0]], self._template or "")
        return self._tokens(whole, field, special=True)

    def _plain(self, text: str, field: str) -> list[int]:
        return self._tokens(text, field, special=False)

    def _tokens(self, text: str, field: str, *, special: bool) -> list[int]:
        try:
            return self._model.vocab.tokenize(self._encoded(text), special=special)
        except OverflowError as exc:
            raise ContextExceeded(f"{field}: {exc}", field=field) from exc

    def _whole(self, text: str, field: str) -> list[int]:
        try:
            return api.tokenize_whole(self._model, self._encoded(text))
        except OverflowError as exc:
            raise ContextExceeded(f"{field}: {exc}", field=field) from exc

    def _encoded(self, text: str) -> bytes:
        """llama.cpp's own decomposition, with which WordPiece strips accents, leaves Korean syllables whole."""
        return (unicodedata.normalize("NFD", text) if self._decomposes else text).encode(errors="replace")

    def _checked(self, tokens: Sequence[int], field: str) -> list[int]:
        size = self._model.vocab.size
        if strange := [token for token in tokens if not 0 <= token < size]:
            raise InvalidField(f"{field}: token {strange[0]} is not in the vocabulary of {size} tokens", field=field)
        return list(tokens)

    def _check_length(self, length: int, field: str) -> None:
        if length > self.context_size:
            what = f"{field} has {length} tokens, but this model takes {self.context_size}"
            raise ContextExceeded(f"{what}: shorten it, or ask to have it cut (truncate)", field=field)


class PoolRunner:
    """One decode a pack. Causal models keep what they have computed, so that an input may take several decodes; then llama.cpp
    tells the embeddings of tokens, and they are pooled here: its own pooling sees one decode only."""

    def __init__(self, model: Model, plain: ContextParams, facts: Facts, pooling: str, context_size: int, room: int) -> None:
        self.splits = not facts.is_encoder
        self.num_sequences = RECURRENT_SEQUENCES if model.keeps_state else SEQUENCES
        self._pooling = pooling
        self._by_token = self.splits and pooling != "rank"
        batch = room if self.splits else _rounded(max(context_size, room))
        wanted = ContextParams(
            context=_rounded(context_size + room) if self.splits else batch,
            sequences=self.num_sequences,
            batch=batch,
            ubatch=batch,
            threads=plain.threads,
            threads_batch=plain.threads_batch,
            extra={**plain.extra, "kv_unified": True},
        )
        self.context = api.PooledContext(model, wanted, "none" if self._by_token else pooling)
        self._batch = Batch(batch)
        self._size = api.vector_size(model)
        self._sums: dict[int, Vector] = {}

    def pool(self, pack: Sequence[Piece]) -> list[bytes] | None:
        self._batch.clear()
        for piece in pack:
            if piece.position == 0:
                self._forget(piece.sequence)
            self._batch.add(piece.sequence, piece.position, piece.tokens, wants_logits=len(piece.tokens))
        result = self.context.compute(self._batch)
        if result == ABORTED:
            return None
        if result != 0:
            for piece in pack:
                self._forget(piece.sequence)
            raise GalleryError(FAILURES.get(result, f"llama.cpp could not compute these inputs (it gave {result})"))
        return self._pooled(pack) if self._by_token else self._read(pack)

    def _read(self, pack: Sequence[Piece]) -> list[bytes]:
        vectors = [self.context.vector(piece.sequence) for piece in pack if piece.last]
        for piece in pack:
            if piece.last:
                self._forget(piece.sequence)
        return vectors

    def _pooled(self, pack: Sequence[Piece]) -> list[bytes]:
        rows = np.frombuffer(self.context.vectors(self._batch.count), np.float32).reshape(-1, self._size)
        vectors, first = [], 0
        for piece in pack:
            end = first + len(piece.tokens)
            vector = self._add(piece, rows[first:end])
            first = end
            if piece.last:
                vectors.append(vector.astype(np.float32).tobytes())
                self._forget(piece.sequence)
        return vectors

    def _add(self, piece: Piece, rows: Rows) -> Vector:
        """What the sequence's tokens up to here are pooled to."""
        if self._pooling == "last":
            return cast(Vector, rows[-1])
        if self._pooling == "cls":
            return self._sums.setdefault(piece.sequence, cast(Vector, rows[0].copy()))
        total = self._sums.get(piece.sequence, np.zeros(self._size, np.float32)) + rows.sum(axis=0)
        self._sums[piece.sequence] = total
        return cast(Vector, total / np.float32(piece.position + len(piece.tokens)))

    def _forget(self, sequence: int) -> None:
        self._sums.pop(sequence, None)
        if self.context.has_memory:
            self.context.forget(sequence)

    def interrupt(self) -> None:
        self.context.abort()

    def close(self) -> None:
        self.context.close()


def context_size_of(model: Model, config: ModelConfig, facts: Facts) -> int:
    """Tokens of the longest input. BERT's positions are a table: beyond its end llama.cpp would abort the process."""
    own = model.context_length
    wanted = config.context_size or own
    return min(wanted, own) if facts.architecture in TABLES else wanted


def plain_params(model: Model, config: ModelConfig, options: LlamaOptions, context_size: int) -> ContextParams:
    """As for a context that generates, but flash attention is llama.cpp's choice: without it, what a long input takes grows
    with its square times the heads."""
    plain = params.context_params(config, options, context_size=context_size, slots=1, weights_bytes=model.bytes)
    asked = config.flash_attention if config.flash_attention is not None else options.flash_attention
    extra = {key: value for key, value in plain.extra.items() if asked not in (None, "auto") or key != "flash_attn_type"}
    return dataclasses.replace(plain, extra=extra)


def _strips_accents(model: Model) -> bool:
    """By metadata; else as it lowers letters, which is the default."""
    told = model.metadata(lambda key: key.startswith("tokenizer.ggml.normalizer."))
    lowers = told.get("tokenizer.ggml.normalizer.lowercase", "true")
    return told.get("tokenizer.ggml.normalizer.strip_accents", lowers) == "true"


def _room(vocab_size: int, *, on_gpu: bool) -> int:
    """Tokens of a decode."""
    return max(SEQUENCES, min(ROOM_ON_GPU if on_gpu else ROOM, OUTPUT_BYTES // (4 * max(1, vocab_size)) // SEQUENCES * SEQUENCES))


def _rounded(size: int) -> int:
    return -(-size // STEP) * STEP


def _embedding(dimensions: int | None, *, normalize: bool) -> Shape:
    def shape(vector: bytes) -> bytes:
        numbers = np.frombuffer(vector, np.float32)[:dimensions]
        length = float(np.linalg.norm(numbers.astype(np.float64))) if normalize else 0.0
        return (numbers / np.float32(length) if length > 0 else numbers).astype("<f4").tobytes()

    return shape


def _score(vector: bytes) -> bytes:
    """The first label's, as llama-server has it."""
    return np.frombuffer(vector, np.float32)[:1].astype("<f4").tobytes()
