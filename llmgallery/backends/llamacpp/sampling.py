"""From sampling parameters to llama.cpp's samplers."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Collection, Sequence
from threading import Lock

from llmgallery.backends.llamacpp.api import RANDOM_SEED, DrySampler, Sampler, Shortlist, Vocab
from llmgallery.core.sampling import Sampling
from llmgallery.engine.chain import (
    Chain,
    Cut,
    Dry,
    MinP,
    Penalties,
    Step,
    Temperature,
    TopK,
    TopNSigma,
    TopP,
    Typical,
    Xtc,
    plan_chain,
)

MOST_DRYS = 16
LEAST_VOCAB = 65_536
"""In a smaller vocabulary looking for a shortlist takes Python as long as llama.cpp's plain top_k takes, or longer: in a server
with 16 streams 300 us a token, of cold memory, beside 150."""
LEAST_DEAR_VOCAB = 8192
"""The same where llama.cpp looks each token up among penalties, or sorts by buckets."""
MOST_HEAPED = 128
"""llama.cpp's greatest top_k without buckets."""


class DrySamplers:
    """DRY samplers ready to be cloned: one costs a walk over the vocabulary for each breaker (8 ms at 150,000 tokens), a clone
    microseconds. The last MOST_DRYS kinds are kept. Thread-safe."""

    def __init__(self, vocab: Vocab | None = None) -> None:
        """Without a vocabulary there can be no breakers."""
        self._vocab = vocab
        self._made: OrderedDict[Dry, DrySampler] = OrderedDict()
        self._lock = Lock()

    def add_to(self, sampler: Sampler, step: Dry) -> None:
        while True:
            with self._lock:
                if made := self._made.get(step):
                    self._made.move_to_end(step)
                    sampler.add_dry(made)
                    return
            self._make(step)

    def prepare(self, sampling: Sampling, context_size: int) -> None:
        """Make what `sampling` will need, in this thread instead of the engine's."""
        for step in plan_chain(sampling, vocab_size=0, ends=(), context_size=context_size).steps:
            if isinstance(step, Dry):
                self._make(step)

    def _make(self, step: Dry) -> None:
        """Once; outside of the lock, so that nobody waits for a walk that is not for him."""
        with self._lock:
            if step in self._made:
                self._made.move_to_end(step)
                return
        made = DrySampler(self._vocab, step.multiplier, step.base, step.allowed_length, step.last_n, step.breakers)
        with self._lock:
            if step in self._made:
                made.close()
                return
            self._made[step] = made
            if len(self._made) > MOST_DRYS:
                self._made.popitem(last=False)[1].close()

    def close(self) -> None:
        with self._lock:
            for made in self._made.values():
                made.close()
            self._made.clear()


def make_sampler(
    sampling: Sampling,
    prompt: Sequence[int],
    *,
    vocab_size: int,
    ends: Collection[int],
    context_size: int,
    drys: DrySamplers,
    suppressed: Collection[int] = (),
) -> Sampler:
    """A sampler for one answer; as in llama-server, penalties and DRY see the prompt's tail too.

    The same seed draws the same numbers. The text is the same only where the logits are: what else is in the batch may change
    their last bits, and then, rarely, a token.
    """
    chain = plan_chain(sampling, vocab_size=vocab_size, ends=ends, context_size=context_size, suppressed=suppressed)
    seed = seed_of(sampling.seed)
    sampler = Sampler()
    if chain.biases:
        sampler.add_logit_bias(vocab_size, chain.biases)
    for step in chain.steps:
        _add(sampler, step, vocab_size, seed, drys)
    _add_choice(sampler, chain, vocab_size, seed)
    cut = chain.cut
    if cut and vocab_size >= _least_vocab(cut):
        sampler.narrow(Shortlist(vocab_size, cut.kept, chain.biases, cut.last_n))
    if chain.last_n:
        sampler.accept_all(prompt[-chain.last_n :])
    return sampler


def _least_vocab(cut: Cut) -> int:
    return LEAST_DEAR_VOCAB if cut.last_n > 0 or cut.kept > MOST_HEAPED else LEAST_VOCAB


def seed_of(seed: int | None) -> int:
    """llama.cpp's 32 bits of any int; never by chance the one that means random."""
    return RANDOM_SEED if seed is None or seed == -1 else seed % RANDOM_SEED


def _add(sampler: Sampler, step: Step, vocab_size: int, seed: int, drys: DrySamplers) -> None:
    match step:
        case Penalties(last_n, repeat, frequency, presence):
            sampler.add_penalties(vocab_size, last_n, repeat, frequency, presence)
        case Dry():
            drys.add_to(sampler, step)
        case TopNSigma(n):
            sampler.add_top_n_sigma(n)
        case TopK(k):
            sampler.add_top_k(k)
        case Typical(p):
            sampler.add_typical(p)
        case TopP(p):
            sampler.add_top_p(p)
        case MinP(p):
            sampler.add_min_p(p)
        case Xtc(probability, threshold):
            sampler.add_xtc(probability, threshold, seed)
        case Temperature(value, spread, exponent):
            sampler.add_temperature(value, spread, exponent)


def _add_choice(sampler: Sampler, chain: Chain, vocab_size: int, seed: int) -> None:
    mirostat = chain.mirostat
    if chain.likeliest:
        sampler.add_likeliest()
    elif mirostat is None:
        sampler.add_choice(seed)
    elif mirostat.version == 1:
        sampler.add_mirostat(vocab_size, mirostat.tau, mirostat.eta, seed)
    else:
        sampler.add_mirostat_v2(mirostat.tau, mirostat.eta, seed)
