"""Weights and vocabulary."""

from __future__ import annotations

import ctypes
from collections.abc import Callable, Iterator, Sequence
from functools import cache, partial
from pathlib import Path
from typing import Any

from llama_cpp import llama_cpp as c

from llmgallery.backends.llamacpp.api.params import LOAD_MODES, NO_TOKEN, ModelParams
from llmgallery.backends.llamacpp.log import LOG

_LOG_CALLBACK = c.llama_log_callback(LOG.hear)  # llama.cpp keeps the pointer: it must outlive every model


@cache
def start(numa: bool = False) -> None:
    """Once a process, before all else."""
    c.llama_log_set(_LOG_CALLBACK, ctypes.c_void_p(0))
    c.llama_backend_init()
    if numa:
        c.llama_numa_init(c.GGML_NUMA_STRATEGY_DISTRIBUTE)


def has_amx() -> bool:
    """The library was compiled with Intel's AMX kernels for this machine."""
    return "AMX_INT8 = 1" in c.llama_print_system_info().decode()


def can_offload() -> bool:
    """The library was compiled with kernels for a GPU."""
    return bool(c.llama_supports_gpu_offload())


class Vocab:
    """Text to tokens and back. Thread-safe; valid as long as its model."""

    def __init__(self, model: Any) -> None:
        self._vocab = c.llama_model_get_vocab(model)
        self.size = int(c.llama_vocab_n_tokens(self._vocab))
        self.bos = int(c.llama_vocab_bos(self._vocab))
        self.eos = int(c.llama_vocab_eos(self._vocab))
        self.fill_in = (
            int(c.llama_vocab_fim_pre(self._vocab)),
            int(c.llama_vocab_fim_suf(self._vocab)),
            int(c.llama_vocab_fim_mid(self._vocab)),
        )
        """The tokens before prefix, suffix and middle of a text to be filled in; NO_TOKEN each that there is none."""
        self.adds_bos = bool(c.llama_vocab_get_add_bos(self._vocab))
        count = ctypes.c_int32(0)
        suppressed = c.llama_vocab_get_suppress_tokens(self._vocab, ctypes.byref(count))
        self.suppressed: tuple[int, ...] = tuple(suppressed[: count.value]) if count.value else ()
        """Tokens that the model's file says must never be chosen."""

    @property
    def pointer(self) -> Any:
        return self._vocab

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

    def controls(self) -> Iterator[str]:
        """The texts of tokens that are no words: control tokens, and those that whoever made the file put in."""
        kinds = c.LLAMA_TOKEN_ATTR_CONTROL | c.LLAMA_TOKEN_ATTR_USER_DEFINED
        return (self.text(token) for token in range(self.size) if c.llama_vocab_get_attr(self._vocab, token) & kinds)

    def is_end(self, token: int) -> bool:
        """It ends an answer (EOS, EOT and their like)."""
        return bool(c.llama_vocab_is_eog(self._vocab, token))


class Model:
    """Weights in memory; of a vocabulary only no sizes are known."""

    def __init__(self, files: Sequence[Path], params: ModelParams, progress: Callable[[float], None]) -> None:
        """Blocks; `progress` gets 0 to 1. Raises ValueError when llama.cpp refuses; LOG says why."""
        raw = raw_params(params)
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
    def num_heads(self) -> int:
        """Of the attention, in the first layer."""
        return int(c.llama_model_n_head(self._model))

    @property
    def cache_bytes_per_token(self) -> int:
        """KV cache in f16; an estimate for models whose layers differ or whose heads have a size of their own."""
        heads = self.num_heads
        width = int(c.llama_model_n_embd(self._model)) // heads if heads else 0
        return 4 * int(c.llama_model_n_layer(self._model)) * int(c.llama_model_n_head_kv(self._model)) * width

    @property
    def can_decode(self) -> bool:
        """False for models that only encode."""
        return bool(c.llama_model_has_decoder(self._model))

    @property
    def has_encoder(self) -> bool:
        """It reads with an encoder; with a decoder beside it (T5), which looks at what that made."""
        return bool(c.llama_model_has_encoder(self._model))

    @property
    def keeps_state(self) -> bool:
        """Some layers keep a state instead of every token (recurrent and hybrid models): it cannot go back."""
        return bool(c.llama_model_is_recurrent(self._model) or c.llama_model_is_hybrid(self._model))

    @property
    def window(self) -> int:
        """How many tokens back the layers with a sliding window see; 0 = there are none."""
        return int(c.llama_model_n_swa(self._model))

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


def raw_params(params: ModelParams) -> Any:
    """llama.cpp's form of them."""
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
    raw.use_extra_bufts = params.repack
    raw.vocab_only = params.vocabulary_only
    return raw


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
