"""The KV cache, and what is computed into it."""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from functools import cache
from typing import Any

import numpy as np
from llama_cpp import llama_cpp as c

from llmgallery.backends.llamacpp.api.model import Model
from llmgallery.backends.llamacpp.api.params import ContextParams


class Batch:
    """Tokens of several sequences for one decode, in arrays that llama.cpp reads in place."""

    def __init__(self, room: int) -> None:
        """`room`: most tokens; beyond it `raw` raises ValueError."""
        self._tokens: list[int] = []
        self._positions: list[int] = []
        self._sequences: list[int] = []
        self._flags: list[int] = []
        self._token = np.zeros(room, np.int32)
        self._position = np.zeros(room, np.int32)
        self._sequence = np.zeros(room, np.int32)
        self._wanted = np.zeros(room, np.int8)
        self._ones = np.ones(room, np.int32)
        self._sequence_at = self._sequence.ctypes.data + np.arange(room, dtype=np.uint64) * 4
        self._raw = c.llama_batch(
            n_tokens=0,
            token=_pointer(self._token, c.llama_token),
            embd=None,
            pos=_pointer(self._position, c.llama_pos),
            n_seq_id=_pointer(self._ones, ctypes.c_int32),
            seq_id=_pointer(self._sequence_at, ctypes.POINTER(c.llama_seq_id)),
            logits=_pointer(self._wanted, ctypes.c_int8),
        )

    @property
    def count(self) -> int:
        return len(self._tokens)

    @property
    def raw(self) -> Any:
        """llama.cpp's view of what was added."""
        count = len(self._tokens)
        self._token[:count] = self._tokens
        self._position[:count] = self._positions
        self._sequence[:count] = self._sequences
        self._wanted[:count] = self._flags
        self._raw.n_tokens = count
        return self._raw

    def clear(self) -> None:
        self._tokens.clear()
        self._positions.clear()
        self._sequences.clear()
        self._flags.clear()

    def add(self, sequence: int, position: int, tokens: Sequence[int], *, wants_logits: int) -> int:
        """Append tokens at consecutive positions; the index of the last. `wants_logits`: of how many, from the end, logits
        are computed (True: of the last one)."""
        count = len(tokens)
        self._tokens += tokens
        self._positions += range(position, position + count)
        self._sequences += [sequence] * count
        self._flags += [0] * (count - wants_logits) + [1] * wants_logits
        return len(self._tokens) - 1


def _pointer(array: Any, kind: Any) -> Any:
    return ctypes.cast(array.ctypes.data, ctypes.POINTER(kind))


class Context:
    """KV cache and compute buffers. One thread at a time, `abort` excepted."""

    def __init__(self, model: Model, params: ContextParams) -> None:
        """Raises ValueError when llama.cpp refuses; LOG says why."""
        raw = raw_params(params)
        self._context = c.llama_init_from_model(model.pointer, raw)
        if not self._context:
            raise ValueError("llama.cpp makes no context")
        self._memory = c.llama_get_memory(self._context)
        self._row: Any = ctypes.c_float * model.vocab.size
        self._outputs = int(raw.n_outputs_max) or self.batch_size
        self._separate = params.sequences > 1 and not params.extra.get("kv_unified", raw.kv_unified)
        self._abort_flag = ctypes.create_string_buffer(2)
        c.llama_set_abort_callback(self._context, _abort_callback(), ctypes.addressof(self._abort_flag))

    @property
    def pointer(self) -> Any:
        return self._context

    @property
    def num_sequences(self) -> int:
        return int(c.llama_n_seq_max(self._context))

    @property
    def tokens_per_sequence(self) -> int:
        """Cells of each sequence's cache, or of the one that all share."""
        return int(c.llama_n_ctx_seq(self._context))

    @property
    def batch_size(self) -> int:
        """Most tokens of one decode."""
        return int(c.llama_n_batch(self._context))

    @property
    def num_outputs(self) -> int:
        """Of how many tokens a decode may compute logits; more would abort the process."""
        return self._outputs

    def decode(self, batch: Batch) -> int:
        """Blocks, without the GIL. 0 = done, 1 = no room in the KV cache, 2 = aborted, -1 = invalid batch, below: failed."""
        return int(c.llama_decode(self._context, batch.raw))

    def logits(self, index: int) -> np.ndarray[tuple[int], np.dtype[np.float32]]:
        """The row of the last decode's token `index`, which must have wanted them: llama.cpp's own memory, which samplers
        read; valid until the next decode."""
        address = ctypes.cast(c.llama_get_logits_ith(self._context, index), ctypes.c_void_p).value
        if address is None:
            raise AssertionError(f"token {index} of the batch has no logits")
        row: np.ndarray[tuple[int], np.dtype[np.float32]] = np.frombuffer(self._row.from_address(address), np.float32)
        return row

    def likeliest(self, index: int) -> int:
        """The token of the highest logit after the last decode's token `index`; the first of several."""
        return int(self.logits(index).argmax())

    @property
    def copies_are_free(self) -> bool:
        """Sequences share one cache, so that a copy only marks cells."""
        return not self._separate

    def copy(self, source: int, target: int, length: int) -> None:
        """Let `target` hold what `source` holds, at least the first `length` tokens, and nothing else. Sequences of separate
        caches are copied as a whole (a part of one would abort the process), inside the next decode."""
        self.forget(target)
        end = -1 if self._separate else length
        c.llama_memory_seq_cp(self._memory, source, target, -1, end)

    def cut(self, sequence: int, length: int) -> bool:
        """Drop all but the first `length` tokens. False, and nothing changed: this kind of cache cannot."""
        return bool(c.llama_memory_seq_rm(self._memory, sequence, length, -1))

    def forget(self, sequence: int) -> None:
        """Empty the sequence's cache."""
        c.llama_memory_seq_rm(self._memory, sequence, -1, -1)

    def first_position(self, sequence: int) -> int:
        """Of its cached tokens, in the layers that keep fewest; -1 = none."""
        return int(c.llama_memory_seq_pos_min(self._memory, sequence))

    def last_position(self, sequence: int) -> int:
        """Of its cached tokens; -1 = none."""
        return int(c.llama_memory_seq_pos_max(self._memory, sequence))

    def abort(self) -> None:
        """Let the running decode, and every later one, return 2 soon. From any thread."""
        self._abort_flag[0] = b"\x01"

    def close(self) -> None:
        if self._context:
            c.llama_free(self._context)
            self._context = None


def raw_params(params: ContextParams) -> Any:
    """llama.cpp's form of them."""
    raw = c.llama_context_default_params()
    raw.n_ctx, raw.n_seq_max = params.context, params.sequences
    raw.n_batch, raw.n_ubatch = params.batch, params.ubatch
    raw.n_threads, raw.n_threads_batch = params.threads, params.threads_batch
    raw.n_outputs_max = params.outputs and max(params.outputs, params.sequences)  # fewer would abort the process
    raw.no_perf = True
    for name, value in params.extra.items():
        setattr(raw, name, value)
    return raw


@cache
def _abort_callback() -> Any:
    """bool(void *) for llama.cpp to ask at every graph node: strlen, which is 0 until a byte of the flag is set.

    A Python function would take the GIL a thousand times a decode.
    """
    strlen = ctypes.CDLL(None).strlen
    return ctypes.cast(strlen, c.ggml_abort_callback)
