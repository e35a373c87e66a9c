"""Chains of llama.cpp's samplers."""

from __future__ import annotations

import ctypes
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from llama_cpp import llama_cpp as c
from numpy.typing import NDArray

from llmgallery.backends.llamacpp.api.context import Context
from llmgallery.backends.llamacpp.api.model import Vocab

_CANDIDATE = np.dtype([("token", np.int32), ("logit", np.float32), ("probability", np.float32)])


class Candidates(NamedTuple):
    """What a chain leaves of some logits, and which token it chose; None without a last sampler that chooses."""

    tokens: NDArray[np.int32]
    logits: NDArray[np.float32]
    chosen: int | None


class DrySampler:
    """DRY without a history yet, to be cloned into chains: making one walks the vocabulary once for each breaker."""

    def __init__(
        self, vocab: Vocab | None, multiplier: float, base: float, allowed_length: int, last_n: int, breakers: Sequence[bytes]
    ) -> None:
        """Only without breakers can the vocabulary be None. `last_n` tokens of memory are taken."""
        if breakers and vocab is None:
            raise ValueError("breakers need a vocabulary")
        texts = (ctypes.c_char_p * len(breakers))(*breakers)
        where = vocab.pointer if vocab else None
        self.pointer = c.llama_sampler_init_dry(where, multiplier, base, allowed_length, last_n, texts, len(breakers))

    def close(self) -> None:
        if self.pointer:
            c.llama_sampler_free(self.pointer)
            self.pointer = None


class Sampler:
    """A chain of llama.cpp's samplers, applied in the order of adding. Of one sequence."""

    def __init__(self) -> None:
        self._is_argmax = False
        params = c.llama_sampler_chain_default_params()
        params.no_perf = True
        self._chain = c.llama_sampler_chain_init(params)

    def __len__(self) -> int:
        return int(c.llama_sampler_chain_n(self._chain))

    def _add(self, sampler: Any) -> None:
        c.llama_sampler_chain_add(self._chain, sampler)

    def add_logit_bias(self, vocab_size: int, biases: Mapping[int, float]) -> None:
        array = (c.llama_logit_bias * len(biases))(*biases.items())
        self._add(c.llama_sampler_init_logit_bias(vocab_size, len(biases), array))

    def add_penalties(self, vocab_size: int, last_n: int, repeat: float, frequency: float, presence: float) -> None:
        """`last_n` tokens of memory are taken."""
        self._add(c.llama_sampler_init_penalties(vocab_size, last_n, repeat, frequency, presence))

    def add_dry(self, prototype: DrySampler) -> None:
        self._add(c.llama_sampler_clone(prototype.pointer))

    def add_top_n_sigma(self, n: float) -> None:
        self._add(c.llama_sampler_init_top_n_sigma(n))

    def add_top_k(self, k: int) -> None:
        self._add(c.llama_sampler_init_top_k(k))

    def add_typical(self, p: float) -> None:
        self._add(c.llama_sampler_init_typical(p, 1))

    def add_top_p(self, p: float) -> None:
        self._add(c.llama_sampler_init_top_p(p, 1))

    def add_min_p(self, p: float) -> None:
        self._add(c.llama_sampler_init_min_p(p, 1))

    def add_xtc(self, probability: float, threshold: float, seed: int) -> None:
        self._add(c.llama_sampler_init_xtc(probability, threshold, 1, seed))

    def add_temperature(self, temperature: float, spread: float = 0.0, exponent: float = 1.0) -> None:
        """`spread`: how far it moves up and down with the entropy."""
        self._add(c.llama_sampler_init_temp_ext(temperature, spread, exponent))

    def add_mirostat(self, vocab_size: int, tau: float, eta: float, seed: int) -> None:
        """Chooses, so it comes last."""
        self._add(c.llama_sampler_init_mirostat(vocab_size, seed, tau, eta, 100))

    def add_mirostat_v2(self, tau: float, eta: float, seed: int) -> None:
        """Chooses, so it comes last."""
        self._add(c.llama_sampler_init_mirostat_v2(seed, tau, eta))

    def add_choice(self, seed: int) -> None:
        """Draw by probability. RANDOM_SEED = another each time."""
        self._add(c.llama_sampler_init_dist(seed))

    def add_likeliest(self) -> None:
        self._is_argmax = len(self) == 0
        self._add(c.llama_sampler_init_greedy())

    def accept(self, token: int) -> None:
        """The token counts for the penalties, as if it had been sampled."""
        c.llama_sampler_accept(self._chain, token)

    def accept_all(self, tokens: Iterable[int]) -> None:
        accept, chain = c.llama_sampler_accept, self._chain
        for token in tokens:
            accept(chain, token)

    def sample(self, context: Context, index: int) -> int:
        """The next token after the batch's token `index`; it is accepted."""
        if self._is_argmax:
            # The chain would first write a candidate for each token of the vocabulary: ten times the work.
            return context.likeliest(index)
        return int(c.llama_sampler_sample(self._chain, context.pointer, index))

    def apply(self, logits: NDArray[np.float32]) -> Candidates:
        """What the chain makes of one logit for each token of the vocabulary. Nothing is accepted."""
        data = np.empty(len(logits), _CANDIDATE)
        data["token"], data["logit"], data["probability"] = np.arange(len(logits)), logits, 0
        pointer = ctypes.cast(data.ctypes.data, c.llama_token_data_p)
        array = c.llama_token_data_array(data=pointer, size=len(data), selected=-1, sorted=False)
        c.llama_sampler_apply(self._chain, ctypes.byref(array))
        # XTC moves the pointer.
        skipped = (ctypes.addressof(array.data.contents) - data.ctypes.data) // _CANDIDATE.itemsize
        left = data[skipped : skipped + array.size]
        chosen = int(left["token"][array.selected]) if array.selected >= 0 else None
        return Candidates(left["token"].copy(), left["logit"].copy(), chosen)

    def close(self) -> None:
        if self._chain:
            c.llama_sampler_free(self._chain)
            self._chain = None
