"""From sampling parameters to llama.cpp's samplers, in llama.cpp's own order."""

from __future__ import annotations

import math
from collections.abc import Collection, Sequence

from llmgallery.backends.llamacpp.api import RANDOM_SEED, Sampler
from llmgallery.core.sampling import DEFAULTS, Sampling


def make_sampler(
    sampling: Sampling, prompt: Sequence[int], *, vocab_size: int, ends: Collection[int], context_size: int
) -> Sampler:
    """A sampler for one answer; as in llama-server, the penalties see the prompt's tail too."""
    wanted = sampling.over(DEFAULTS)
    sampler = Sampler()
    if biases := _biases(wanted, vocab_size, ends):
        sampler.add_logit_bias(vocab_size, biases)
    if last_n := _penalised(wanted, context_size):
        sampler.add_penalties(
            vocab_size,
            last_n,
            wanted.repeat_penalty or 1.0,
            wanted.frequency_penalty or 0.0,
            wanted.presence_penalty or 0.0,
        )
    if not wanted.temperature or wanted.temperature <= 0:
        sampler.add_likeliest()
    else:
        _add_drawing(sampler, wanted, wanted.temperature)
    for token in prompt[-last_n:] if last_n else ():
        sampler.accept(token)
    return sampler


def seed_of(seed: int | None) -> int:
    """llama.cpp's 32 bits of any int; never by chance the one that means random."""
    return RANDOM_SEED if seed is None or seed == -1 else seed % RANDOM_SEED


def _add_drawing(sampler: Sampler, wanted: Sampling, temperature: float) -> None:
    if wanted.top_k:
        sampler.add_top_k(wanted.top_k)
    if wanted.typical_p is not None and wanted.typical_p < 1:
        sampler.add_typical(wanted.typical_p)
    if wanted.top_p is not None and wanted.top_p < 1:
        sampler.add_top_p(wanted.top_p)
    if wanted.min_p:
        sampler.add_min_p(wanted.min_p)
    sampler.add_temperature(temperature)
    sampler.add_choice(seed_of(wanted.seed))


def _biases(wanted: Sampling, vocab_size: int, ends: Collection[int]) -> dict[int, float]:
    biases = {token: bias for token, bias in (wanted.logit_bias or {}).items() if 0 <= token < vocab_size}
    if wanted.ignore_eos:
        biases |= dict.fromkeys(ends, -math.inf)
    return biases


def _penalised(wanted: Sampling, context_size: int) -> int:
    """How many last tokens the penalties look at; 0 = there are none."""
    neutral = wanted.repeat_penalty in (None, 0, 1.0) and not wanted.frequency_penalty and not wanted.presence_penalty
    last_n = wanted.repeat_last_n or 0
    return 0 if neutral else context_size if last_n < 0 else last_n
