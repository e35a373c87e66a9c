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
from llmgallery.backends.llamacpp.api.shortlist import Shortlist

_CANDIDATE = np.dtype([("token", np.int32), ("logit", np.float32), ("probability", np.float32)])


class Candidates(NamedTuple):
    """What a chain leaves of some logits, and which token it chose; None without a last sampler that chooses."""

    tokens: NDArray[np.int32]
    logits: NDArray[np.float32]
    chosen: int | None


class _Few:
    """A candidate array that is filled again for each token."""

    def __init__(self, room: int) -> None:
        data = np.zeros(room, _CANDIDATE)
        self._tokens, self._logits = data["token"], data["logit"]
        self._first = ctypes.cast(data.ctypes.data, c.llama_token_data_p)
        self._array = c.llama_token_data_array()
        self._reference = ctypes.byref(self._array)

    def choose(self, chain: Any, tokens: NDArray[np.int64], row: NDArray[np.float32]) -> int:
        count = len(tokens)
        self._tokens[:count] = tokens
        self._logits[:count] = row.take(tokens)
        array = self._array
        array.data, array.size, array.selected, array.sorted = self._first, count, -1, 0
        c.llama_sampler_apply(chain, self._reference)
        if array.selected < 0:
            raise AssertionError("the chain's last sampler does not choose")
        return int(array.data[array.selected].id)


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
        self._shortlist: Shortlist | None = None
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

    def narrow(self, shortlist: Shortlist) -> None:
        """From now on `sample` offers the chain, whose promise the shortlist was made by, no other tokens. Its choices stay
        the same, but for which of equal logits are cut, and their order."""
        self._shortlist = shortlist
        self._few = _Few(shortlist.largest)

    def accept(self, token: int) -> None:
        """The token counts for the penalties, as if it had been sampled."""
        c.llama_sampler_accept(self._chain, token)
        if self._shortlist:
            self._shortlist.accept(token)

    def accept_all(self, tokens: Iterable[int]) -> None:
        accept, chain = c.llama_sampler_accept, self._chain
        tokens = list(tokens)
        for token in tokens:
            accept(chain, token)
        if self._shortlist:
            self._shortlist.accept_all(tokens)

    def sample(self, context: Context, index: int) -> int:
        """The next token after the batch's token `index`; it is accepted."""
        if self._is_argmax:
            # The chain would first write a candidate for each token of the vocabulary: ten times the work.
            return context.likeliest(index)
        if self._shortlist is None:
            return int(c.llama_sampler_sample(self._chain, context.pointer, index))
        token = self.choose(context.logits(index))
        if token is None:
            token = int(c.llama_sampler_sample(self._chain, context.pointer, index))
            self._shortlist.accept(token)
        else:
            self.accept(token)
        return token

    def choose(self, row: NDArray[np.float32]) -> int | None:
        """The next token by these logits, not accepted; None, and nothing drawn: there is no shortlist of them."""
        tokens = None if self._shortlist is None else self._shortlist.find(row)
        return None if tokens is None else self._few.choose(self._chain, tokens, row)

    def apply(self, logits: NDArray[np.float32], tokens: NDArray[np.int64] | None = None) -> Candidates:
        """What the chain makes of one logit for each token of the vocabulary; `tokens`: of these only, ascending. Nothing is
        accepted."""
        tokens = np.arange(len(logits)) if tokens is None else tokens
        data = np.zeros(len(tokens), _CANDIDATE)
        data["token"], data["logit"] = tokens, logits[tokens]
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
