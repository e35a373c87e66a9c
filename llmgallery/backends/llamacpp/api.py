"""llama.cpp's C API with types: the only file that names its symbols. Pointers stay inside; freed by `close`."""

from __future__ import annotations

import ctypes
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache, partial
from pathlib import Path
from typing import Any

import numpy as np

# How long llama.cpp's threads spin (about 50 us) before they sleep, when they wait for each other at every graph node.
# By default they spin for milliseconds: beside one busy process that made a decode of two threads 20 times slower.
# libgomp reads it once, when llama_cpp loads it.
os.environ.setdefault("GOMP_SPINCOUNT", "1000")

from llama_cpp import llama_cpp as c

from llmgallery.backends.llamacpp.log import LOG

NO_TOKEN = -1
RANDOM_SEED: int = c.LLAMA_DEFAULT_SEED
CACHE_TYPES: dict[str, int] = {
    name: getattr(c, f"GGML_TYPE_{name.upper()}") for name in ("f32", "f16", "q8_0", "q5_1", "q5_0", "q4_1", "q4_0", "iq4_nl")
} | {"bf16": 30}  # ggml.h's number, which llama-cpp-python does not name
ROPE_SCALINGS: dict[str, int] = {
    name: getattr(c, f"LLAMA_ROPE_SCALING_TYPE_{name.upper()}") for name in ("none", "linear", "yarn", "longrope")
}
FLASH_ATTENTION: dict[str, int] = {
    "auto": c.LLAMA_FLASH_ATTN_TYPE_AUTO,
    "on": c.LLAMA_FLASH_ATTN_TYPE_ENABLED,
    "off": c.LLAMA_FLASH_ATTN_TYPE_DISABLED,
}
LOAD_MODES: dict[tuple[bool, bool], int] = {  # (mmap, mlock)
    (False, False): c.LLAMA_LOAD_MODE_NONE,
    (True, False): c.LLAMA_LOAD_MODE_MMAP,
    (False, True): c.LLAMA_LOAD_MODE_MLOCK,
    (True, True): c.LLAMA_LOAD_MODE_MMAP_MLOCK,
}


@dataclass(frozen=True)
class ModelParams:
    """None = llama.cpp's default. `tensor_split`: share of each GPU."""

    gpu_layers: int | None = None
    mmap: bool | None = None
    mlock: bool | None = None
    main_gpu: int | None = None
    tensor_split: Sequence[float] = ()
    check_tensors: bool = False


@dataclass(frozen=True)
class ContextParams:
    """`context`: tokens of all sequences together. `extra`: more fields of llama_context_params by their C names."""

    context: int
    sequences: int
    batch: int
    ubatch: int
    threads: int
    threads_batch: int
    extra: Mapping[str, int | float | bool] = field(default_factory=dict)


_LOG_CALLBACK = c.llama_log_callback(LOG.hear)  # llama.cpp keeps the pointer: it must outlive every model


@cache
def start(numa: bool = False) -> None:
    """Once a process, before all else."""
    c.llama_log_set(_LOG_CALLBACK, ctypes.c_void_p(0))
    c.llama_backend_init()
    if numa:
        c.llama_numa_init(c.GGML_NUMA_STRATEGY_DISTRIBUTE)


class Vocab:
    """Text to tokens and back. Thread-safe; valid as long as its model."""

    def __init__(self, model: Any) -> None:
        self._vocab = c.llama_model_get_vocab(model)
        self.size = int(c.llama_vocab_n_tokens(self._vocab))
        self.bos = int(c.llama_vocab_bos(self._vocab))
        self.eos = int(c.llama_vocab_eos(self._vocab))
        self.adds_bos = bool(c.llama_vocab_get_add_bos(self._vocab))

    def tokenize(self, text: bytes, *, special: bool) -> list[int]:
        """No BOS or EOS is added. Raises OverflowError for texts beyond what llama.cpp counts."""
        room = len(text) + 8
        while True:
            tokens = (c.llama_token * room)()
            count = int(c.llama_tokenize(self._vocab, text, len(text), tokens, room, False, special))
            if count >= 0:
                return list(tokens[:count])
            if count == -(1 << 31):
                raise OverflowError("the text is too long")
            room = -count

    def piece(self, token: int, *, special: bool = False) -> bytes:
        """The token's bytes; none for control tokens unless `special`."""
        room = 64
        while True:
            buffer = ctypes.create_string_buffer(room)
            length = int(c.llama_token_to_piece(self._vocab, token, buffer, room, 0, special))
            if length >= 0:
                return buffer.raw[:length]
            room = -length

    def detokenize(self, tokens: Sequence[int]) -> bytes:
        """Control tokens included, BOS and EOS too."""
        array = (c.llama_token * len(tokens))(*tokens)
        room = 16 * len(tokens) + 16
        while True:
            buffer = ctypes.create_string_buffer(room)
            length = int(c.llama_detokenize(self._vocab, array, len(tokens), buffer, room, False, True))
            if length >= 0:
                return buffer.raw[:length]
            room = -length

    def text(self, token: int) -> str:
        """How the vocabulary writes the token; nothing for NO_TOKEN."""
        return "" if token == NO_TOKEN else (c.llama_vocab_get_text(self._vocab, token) or b"").decode(errors="replace")

    def is_end(self, token: int) -> bool:
        """It ends an answer (EOS, EOT and their like)."""
        return bool(c.llama_vocab_is_eog(self._vocab, token))


class Model:
    """Weights in memory."""

    def __init__(self, files: Sequence[Path], params: ModelParams, progress: Callable[[float], None]) -> None:
        """Blocks; `progress` gets 0 to 1. Raises ValueError when llama.cpp refuses; LOG says why."""
        raw = c.llama_model_default_params()
        if params.gpu_layers is not None:
            raw.n_gpu_layers = params.gpu_layers
        if params.mmap is not None or params.mlock is not None:
            raw.load_mode = LOAD_MODES[params.mmap is not False, bool(params.mlock)]
        if params.main_gpu is not None:
            raw.main_gpu = params.main_gpu
        if params.tensor_split:
            # llama.cpp reads one share per possible device, and only while it loads.
            shares = (ctypes.c_float * c.llama_max_devices())(*params.tensor_split[: c.llama_max_devices()])
            raw.tensor_split = shares
        raw.check_tensors = params.check_tensors
        # llama.cpp holds the pointer while it loads, so `callback` must live until then.
        callback = c.llama_progress_callback(partial(_go_on, progress))
        raw.progress_callback = callback
        self._model = _load(files, raw)
        if not self._model:
            raise ValueError(f"llama.cpp does not load {files[0]}")
        self.vocab = Vocab(self._model)

    @property
    def pointer(self) -> Any:
        return self._model

    @property
    def context_length(self) -> int:
        """Tokens that it was trained on."""
        return int(c.llama_model_n_ctx_train(self._model))

    @property
    def bytes(self) -> int:
        return int(c.llama_model_size(self._model))

    @property
    def num_parameters(self) -> int:
        return int(c.llama_model_n_params(self._model))

    @property
    def cache_bytes_per_token(self) -> int:
        """KV cache in f16; an estimate for models whose layers differ or whose heads have a size of their own."""
        heads = int(c.llama_model_n_head(self._model))
        width = int(c.llama_model_n_embd(self._model)) // heads if heads else 0
        return 4 * int(c.llama_model_n_layer(self._model)) * int(c.llama_model_n_head_kv(self._model)) * width

    @property
    def can_decode(self) -> bool:
        """False for models that only encode."""
        return bool(c.llama_model_has_decoder(self._model))

    @property
    def description(self) -> str:
        return _text(partial(c.llama_model_desc, self._model))

    def metadata(self, wanted: Callable[[str], bool] = lambda key: True) -> dict[str, str]:
        """The file's metadata as text, arrays left out by llama.cpp."""
        found = {}
        for index in range(c.llama_model_meta_count(self._model)):
            key = _text(partial(c.llama_model_meta_key_by_index, self._model, index))
            if wanted(key):
                found[key] = _text(partial(c.llama_model_meta_val_str_by_index, self._model, index))
        return found

    def close(self) -> None:
        """After its contexts."""
        if self._model:
            c.llama_model_free(self._model)
            self._model = None


def _load(files: Sequence[Path], raw: Any) -> Any:
    paths = [bytes(file) for file in files]
    if len(paths) == 1:
        return c.llama_model_load_from_file(paths[0], raw)
    return c.llama_model_load_from_splits((ctypes.c_char_p * len(paths))(*paths), len(paths), raw)


def _go_on(progress: Callable[[float], None], fraction: float, _data: object) -> bool:
    progress(fraction)
    return True


def _text(write: Callable[[Any, int], int], room: int = 256) -> str:
    """What a function of snprintf's manner writes."""
    buffer = ctypes.create_string_buffer(room)
    length = write(buffer, room)
    if length >= room:
        return _text(write, length + 1)
    return buffer.value.decode(errors="replace")


class Batch:
    """Tokens of several sequences for one decode, in arrays that llama.cpp reads in place."""

    def __init__(self, room: int) -> None:
        self.count = 0
        self._token = np.zeros(room, np.int32)
        self._position = np.zeros(room, np.int32)
        self._sequence = np.zeros(room, np.int32)
        self._wanted = np.zeros(room, np.int8)
        self._ones = np.ones(room, np.int32)
        self._sequence_at = self._sequence.ctypes.data + np.arange(room, dtype=np.uint64) * 4
        self.raw = c.llama_batch(
            n_tokens=0,
            token=_pointer(self._token, c.llama_token),
            embd=None,
            pos=_pointer(self._position, c.llama_pos),
            n_seq_id=_pointer(self._ones, ctypes.c_int32),
            seq_id=_pointer(self._sequence_at, ctypes.POINTER(c.llama_seq_id)),
            logits=_pointer(self._wanted, ctypes.c_int8),
        )

    def clear(self) -> None:
        self.count = self.raw.n_tokens = 0

    def add(self, sequence: int, position: int, tokens: Sequence[int], *, wants_logits: bool) -> int:
        """Append tokens at consecutive positions; the index of the last, whose logits are computed if wanted."""
        first, end = self.count, self.count + len(tokens)
        self._token[first:end] = tokens
        self._position[first:end] = range(position, position + len(tokens))
        self._sequence[first:end] = sequence
        self._wanted[first:end] = 0
        self._wanted[end - 1] = wants_logits
        self.count = self.raw.n_tokens = end
        return end - 1


def _pointer(array: Any, kind: Any) -> Any:
    return ctypes.cast(array.ctypes.data, ctypes.POINTER(kind))


class Context:
    """KV cache and compute buffers. One thread at a time, `abort` excepted."""

    def __init__(self, model: Model, params: ContextParams) -> None:
        """Raises ValueError when llama.cpp refuses; LOG says why."""
        raw = c.llama_context_default_params()
        raw.n_ctx, raw.n_seq_max = params.context, params.sequences
        raw.n_batch, raw.n_ubatch = params.batch, params.ubatch
        raw.n_threads, raw.n_threads_batch = params.threads, params.threads_batch
        raw.no_perf = True
        for name, value in params.extra.items():
            setattr(raw, name, value)
        self._context = c.llama_init_from_model(model.pointer, raw)
        if not self._context:
            raise ValueError("llama.cpp makes no context")
        self._memory = c.llama_get_memory(self._context)
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
        return int(c.llama_n_ctx_seq(self._context))

    @property
    def batch_size(self) -> int:
        return int(c.llama_n_batch(self._context))

    def decode(self, batch: Batch) -> int:
        """Blocks, without the GIL. 0 = done, 1 = no room in the KV cache, 2 = aborted, -1 = invalid batch, below: failed."""
        return int(c.llama_decode(self._context, batch.raw))

    def forget(self, sequence: int) -> None:
        """Empty the sequence's cache."""
        c.llama_memory_seq_rm(self._memory, sequence, -1, -1)

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


@cache
def _abort_callback() -> Any:
    """bool(void *) for llama.cpp to ask at every graph node: strlen, which is 0 until a byte of the flag is set.

    A Python function would take the GIL a thousand times a decode.
    """
    strlen = ctypes.CDLL(None).strlen
    return ctypes.cast(strlen, c.ggml_abort_callback)


class Sampler:
    """A chain of llama.cpp's samplers, applied in the order of adding. Of one sequence."""

    def __init__(self) -> None:
        params = c.llama_sampler_chain_default_params()
        params.no_perf = True
        self._chain = c.llama_sampler_chain_init(params)

    def __len__(self) -> int:
        return int(c.llama_sampler_chain_n(self._chain))

    def _add(self, sampler: Any) -> None:
        c.llama_sampler_chain_add(self._chain, sampler)

    def add_logit_bias(self, vocab_size: int, biases: Mapping[int, float]) -> None:
        array = (c.llama_logit_bias * len(biases))(*((token, bias) for token, bias in biases.items()))
        self._add(c.llama_sampler_init_logit_bias(vocab_size, len(biases), array))

    def add_penalties(self, vocab_size: int, last_n: int, repeat: float, frequency: float, presence: float) -> None:
        self._add(c.llama_sampler_init_penalties(vocab_size, last_n, repeat, frequency, presence))

    def add_top_k(self, k: int) -> None:
        self._add(c.llama_sampler_init_top_k(k))

    def add_typical(self, p: float) -> None:
        self._add(c.llama_sampler_init_typical(p, 1))

    def add_top_p(self, p: float) -> None:
        self._add(c.llama_sampler_init_top_p(p, 1))

    def add_min_p(self, p: float) -> None:
        self._add(c.llama_sampler_init_min_p(p, 1))

    def add_temperature(self, temperature: float) -> None:
        self._add(c.llama_sampler_init_temp(temperature))

    def add_choice(self, seed: int) -> None:
        """Draw by probability. RANDOM_SEED = another each time."""
        self._add(c.llama_sampler_init_dist(seed))

    def add_likeliest(self) -> None:
        self._add(c.llama_sampler_init_greedy())

    def accept(self, token: int) -> None:
        """The token counts for the penalties, as if it had been sampled."""
        c.llama_sampler_accept(self._chain, token)

    def sample(self, context: Context, index: int) -> int:
        """The next token after the batch's token `index`; it is accepted."""
        return int(c.llama_sampler_sample(self._chain, context.pointer, index))

    def close(self) -> None:
        if self._chain:
            c.llama_sampler_free(self._chain)
            self._chain = None
