"""Contexts that make one vector of each sequence, and what a model says about its vectors."""

from __future__ import annotations

import ctypes
from collections.abc import Collection
from functools import cache
from pathlib import Path
from typing import Any

from llama_cpp import _ggml
from llama_cpp import llama_cpp as c

from llmgallery.backends.llamacpp.api.context import Batch, Context
from llmgallery.backends.llamacpp.api.model import Model
from llmgallery.backends.llamacpp.api.params import NO_TOKEN, ContextParams

POOLINGS: dict[str, int] = {
    name: getattr(c, f"LLAMA_POOLING_TYPE_{name.upper()}") for name in ("none", "mean", "cls", "last", "rank")
}


class PooledContext(Context):
    """A context whose decodes make embeddings: of each sequence, pooled; with pooling "none" of each token."""

    def __init__(self, model: Model, params: ContextParams, pooling: str) -> None:
        """Raises ValueError when llama.cpp refuses; LOG says why."""
        super().__init__(model, _with_embeddings(params, pooling))
        self._encodes = bool(c.llama_model_has_encoder(model.pointer)) and not model.can_decode
        self._width = vector_size(model) if pooling != "rank" else int(c.llama_model_n_cls_out(model.pointer))

    @property
    def pooling(self) -> int:
        """One of POOLINGS' values."""
        return int(c.llama_pooling_type(self._context))

    @property
    def is_causal(self) -> bool:
        """Each token sees only those before it."""
        return bool(c.llama_get_causal_attn(self._context))

    @property
    def has_memory(self) -> bool:
        """Sequences may be computed in several decodes. False: each decode stands for itself, and holds whole inputs."""
        return bool(self._memory)

    def compute(self, batch: Batch) -> int:
        """Every token must be wanted. Returns what `decode` returns. More tokens than the context's ubatch abort the process
        when there is no memory, or no causal attention."""
        if self._encodes or not self.has_memory:
            return int(c.llama_encode(self._context, batch.raw))
        return self.decode(batch)

    def vector(self, sequence: int) -> bytes:
        """Of the sequence, float32 in the machine's order; of a classifier one for each label."""
        return self._read(c.llama_get_embeddings_seq(self._context, sequence), 1)

    def vectors(self, count: int) -> bytes:
        """Of the last decode's `count` tokens, one after the other; for pooling "none"."""
        return self._read(c.llama_get_embeddings(self._context), count)

    def _read(self, pointer: Any, count: int) -> bytes:
        if not pointer:
            raise AssertionError("this sequence was not in the last decode")
        return ctypes.string_at(pointer, 4 * self._width * count)


def _with_embeddings(params: ContextParams, pooling: str) -> ContextParams:
    extra = {**params.extra, "embeddings": True, "pooling_type": POOLINGS[pooling]}
    return ContextParams(**{**vars(params), "extra": extra})


def vector_size(model: Model) -> int:
    """Numbers of an embedding."""
    return int(c.llama_model_n_embd_out(model.pointer))


def is_wordpiece(model: Model) -> bool:
    """The vocabulary is BERT's kind."""
    return int(c.llama_vocab_type(c.llama_model_get_vocab(model.pointer))) == int(c.LLAMA_VOCAB_TYPE_WPM)


def special_tokens(model: Model) -> tuple[list[int], list[int], list[int]]:
    """What belongs before a query, between it and a document, and behind the document, as llama-server has it; WordPiece
    vocabularies end the document with SEP as their models were trained, which llama-server does by metadata only."""
    vocab = c.llama_model_get_vocab(model.pointer)
    bos, eos, sep = (int(token(vocab)) for token in (c.llama_vocab_bos, c.llama_vocab_eos, c.llama_vocab_sep))
    if is_wordpiece(model):
        return _known(bos), _known(sep), _known(sep)
    end = _known(eos if eos != NO_TOKEN else sep) if c.llama_vocab_get_add_eos(vocab) else []
    between = end + (_known(sep) if c.llama_vocab_get_add_sep(vocab) else [])
    return (_known(bos) if c.llama_vocab_get_add_bos(vocab) else []), between, end


def _known(token: int) -> list[int]:
    return [token] if token != NO_TOKEN else []


def rerank_template(model: Model) -> str | None:
    """The text around {query} and {document} that came with the weights."""
    text = c.llama_model_chat_template(model.pointer, b"rerank")
    return text.decode(errors="replace") if text else None


def tokenize_whole(model: Model, text: bytes) -> list[int]:
    """With what the model wants around a text (BOS, EOS, SEP); special tokens in it are read as such. Raises OverflowError."""
    vocab = c.llama_model_get_vocab(model.pointer)
    room = len(text) + 8
    while True:
        tokens = (c.llama_token * room)()
        count = int(c.llama_tokenize(vocab, text, len(text), tokens, room, True, True))
        if count >= 0:
            return list(tokens[:count])
        if count == -(1 << 31):
            raise OverflowError("the text is too long")
        room = -count


class _InitParams(ctypes.Structure):
    """struct gguf_init_params"""

    _fields_ = (("no_alloc", ctypes.c_bool), ("ctx", ctypes.c_void_p))


@cache
def _gguf() -> ctypes.CDLL:
    library: ctypes.CDLL = _ggml.libggml  # finds libggml-base, which it is linked with
    library.gguf_init_from_file.argtypes = [ctypes.c_char_p, _InitParams]
    library.gguf_init_from_file.restype = ctypes.c_void_p
    library.gguf_find_tensor.argtypes = [ctypes.c_void_p, ctypes.c_char_p]
    library.gguf_find_tensor.restype = ctypes.c_int64
    library.gguf_free.argtypes = [ctypes.c_void_p]
    library.gguf_free.restype = None
    return library


def has_tensor(file: Path, names: Collection[str]) -> bool:
    """The GGUF file holds a tensor of one of the names: llama.h does not tell of a loaded model."""
    library = _gguf()
    opened = library.gguf_init_from_file(bytes(file), _InitParams(True, None))
    if not opened:
        return False
    try:
        return any(library.gguf_find_tensor(opened, name.encode()) >= 0 for name in names)
    finally:
        library.gguf_free(opened)
