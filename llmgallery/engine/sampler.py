"""The twin of llama.cpp's sampler chains, for backends that hand over logits: the same distributions, other random numbers."""

from __future__ import annotations

import math
from collections import Counter, deque
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from llmgallery.core.sampling import Sampling
from llmgallery.engine.chain import (
    Dry,
    MinP,
    Mirostat,
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
from llmgallery.engine.repetition import Words, dry_penalties

Floats = NDArray[np.float32]
_MIROSTAT_TOKENS = 100
_BLOCK = 256


@dataclass
class Candidates:
    """Tokens that may still come, at least one, with their logits. `ranked`: the highest logit first. `whole`: all tokens of the
    vocabulary, each at the place of its number."""

    tokens: NDArray[np.int64]
    logits: Floats
    ranked: bool = False
    whole: bool = False

    def keep(self, places: Any) -> None:
        """Only those at the places: a slice, a mask, or indices in their new order."""
        self.tokens, self.logits, self.whole = self.tokens[places], self.logits[places], False

    def rank(self) -> None:
        if not self.ranked:
            self.keep(np.argsort(-self.logits))
            self.ranked = True

    def find(self, tokens: Iterable[int]) -> NDArray[np.int64]:
        """The places of those that are candidates."""
        if self.whole:
            return np.array(sorted(token for token in set(tokens) if 0 <= token < len(self.tokens)), np.int64)
        return np.flatnonzero(np.isin(self.tokens, list(tokens)))

    def probabilities(self) -> Floats:
        weights = np.exp(self.logits - self.logits.max())
        probabilities: Floats = weights / weights.sum(dtype=np.float32)
        return probabilities


class Sampler:
    """Chooses the tokens of one answer. Of one thread.

    `ends` and `suppressed` as in plan_chain. `words`: the vocabulary's texts, where the breakers of DRY are looked for;
    None = there are no breakers. The same seed and the same logits give the same tokens, though not those that llama.cpp draws.
    """

    def __init__(
        self,
        sampling: Sampling,
        prompt: Sequence[int],
        *,
        vocab_size: int,
        ends: Collection[int],
        context_size: int,
        suppressed: Collection[int] = (),
        words: Words | None = None,
    ) -> None:
        self._chain = plan_chain(sampling, vocab_size=vocab_size, ends=ends, context_size=context_size, suppressed=suppressed)
        self._words = words
        seed = sampling.seed
        self._random = np.random.default_rng(None if seed is None or seed == -1 else seed % 2**64)
        last_n = self._chain.last_n
        self._history = deque(prompt[-last_n:] if last_n else (), maxlen=last_n)
        self.mu = 2 * self._chain.mirostat.tau if self._chain.mirostat else 0.0
        """Mirostat's bound of surprise, in bits."""

    def apply(self, logits: Floats) -> Floats:
        """The probability of each token of the vocabulary, from one logit each. XTC draws whether it acts."""
        tokens, probabilities = self._distribution(logits)
        spread = np.zeros(len(logits), np.float32)
        spread[tokens] = probabilities
        return spread

    def sample(self, logits: Floats) -> int:
        """The next token; it is accepted."""
        tokens, probabilities = self._distribution(logits)
        place = self._draw(probabilities)
        if mirostat := self._chain.mirostat:
            self.mu -= mirostat.eta * (-math.log2(probabilities[place]) - mirostat.tau)
        self.accept(int(tokens[place]))
        return int(tokens[place])

    def accept(self, token: int) -> None:
        """The token counts for penalties and DRY, as if it had been sampled."""
        self._history.append(token)

    def _draw(self, probabilities: Floats) -> int:
        if len(probabilities) == 1:
            return 0
        sums = np.cumsum(probabilities, dtype=np.float64)
        return min(int(np.searchsorted(sums, self._random.random() * sums[-1], side="right")), len(sums) - 1)

    def _distribution(self, logits: Floats) -> tuple[NDArray[np.int64], Floats]:
        left = Candidates(np.arange(len(logits)), np.array(logits, np.float32), whole=True)
        with np.errstate(divide="ignore", over="ignore", under="ignore", invalid="ignore"):
            for token, bias in self._chain.biases.items():
                left.logits[token] += np.float32(bias)
            for step in self._chain.steps:
                self._take(step, left)
            if self._chain.likeliest:
                left.keep([int(left.logits.argmax())])
            elif self._chain.mirostat:
                _cut_by_surprise(left, self._chain.mirostat, self.mu, len(logits))
            return left.tokens, left.probabilities()

    def _take(self, step: Step, left: Candidates) -> None:
        match step:
            case Penalties():
                self._penalise(step, left)
            case Dry():
                self._dry(step, left)
            case TopNSigma(n):
                _top_n_sigma(n, left)
            case TopK(k):
                if not left.ranked and k < len(left.tokens):
                    left.keep(_highest(left.logits, k))
                left.rank()
                left.keep(slice(k))
            case Typical(p):
                _typical(p, left)
            case TopP(p):
                left.rank()
                left.keep(slice(1 + int(np.searchsorted(np.cumsum(left.probabilities()), np.float32(p)))))
            case MinP(p):
                left.keep(left.logits >= left.logits.max() + np.log(np.float32(p)))
            case Xtc():
                self._xtc(step, left)
            case Temperature():
                left.logits /= _heat(step, left)

    def _penalise(self, step: Penalties, left: Candidates) -> None:
        counts = Counter(list(self._history)[-step.last_n :])
        places = left.find(counts)
        logits, repeat = left.logits[places], np.float32(step.repeat)
        times = np.array([counts[token] for token in left.tokens[places].tolist()], np.float32)
        lost = times * np.float32(step.frequency) + np.float32(step.presence)
        left.logits[places] = np.where(logits <= 0, logits * repeat, logits / repeat) - lost
        left.ranked = False

    def _dry(self, step: Dry, left: Candidates) -> None:
        heads = self._words.heads(step.breakers) if self._words else {}
        penalties = dry_penalties(self._history, heads, step)
        for place in left.find(penalties):
            left.logits[place] -= np.float32(penalties[int(left.tokens[place])])
        left.ranked = False

    def _xtc(self, step: Xtc, left: Candidates) -> None:
        if len(left.tokens) < 2 or self._random.random() >= step.probability:
            return
        left.rank()
        reaching = int((left.probabilities() >= np.float32(step.threshold)).sum())
        left.keep(slice(max(0, reaching - 1), None))


def _highest(logits: Floats, k: int) -> NDArray[np.int64]:
    """The places of the k highest logits, in no order. The k-th highest of the maxima of blocks is a bound that k logits reach at
    least, and few others: of a large vocabulary only these are looked at closely."""
    blocks = len(logits) // _BLOCK
    if blocks < 4 * k:
        return np.argpartition(-logits, k)[:k]
    maxima = logits[: blocks * _BLOCK].reshape(blocks, _BLOCK).max(axis=1)
    reaching = np.flatnonzero(logits >= np.partition(maxima, blocks - k)[blocks - k])
    if len(reaching) == k:
        return reaching
    chosen: NDArray[np.int64] = reaching[np.argpartition(-logits[reaching], k)[:k]]
    return chosen


def _top_n_sigma(n: float, left: Candidates) -> None:
    """Source: Tang et al. 2024, arXiv 2411.07641. What is dropped stays among the candidates, with the probability 0."""
    finite = left.logits[left.logits != -np.inf]
    if len(left.logits) > 1 and len(finite):
        left.logits[left.logits < finite.max() - np.float32(n) * finite.std()] = -np.inf


def _typical(p: float, left: Candidates) -> None:
    """Source: Meister et al. 2022, arXiv 2202.00666."""
    left.rank()
    probabilities = left.probabilities()
    surprise = -np.log(probabilities)
    order = np.argsort(np.abs(surprise - (probabilities * surprise).sum()), kind="stable")
    enough = np.cumsum(probabilities[order]) > np.float32(p)
    left.keep(order[: 1 + int(enough.argmax())] if enough.any() else order)
    left.ranked = False


def _heat(step: Temperature, left: Candidates) -> np.float32:
    if step.spread <= 0 or len(left.tokens) <= 1:
        return np.float32(1 if step.spread > 0 else step.value)
    probabilities = left.probabilities()
    some = probabilities[probabilities > 0]
    share = -(some * np.log(some)).sum() / math.log(len(probabilities))
    low, high = step.value - step.spread, step.value + step.spread
    return np.float32(low + (high - low) * max(0.0, share) ** step.exponent)


def _cut_by_surprise(left: Candidates, step: Mirostat, mu: float, vocab_size: int) -> None:
    """Source: Basu et al. 2020, arXiv 2007.14966: version 1 estimates Zipf's exponent and keeps the k tokens that give mu;
    version 2 drops what is more surprising than mu."""
    left.rank()
    probabilities = left.probabilities()
    if step.version == 2:
        left.keep(slice(max(1, int((-np.log2(probabilities) <= mu).sum()))))
        return
    head = probabilities[:_MIROSTAT_TOKENS].astype(np.float64)
    ranks = np.arange(1, len(head))
    steps, falls = np.log((ranks + 1) / ranks), np.log(head[:-1] / head[1:])
    exponent = (steps * falls).sum() / (steps * steps).sum()
    over = exponent - 1
    k = float((over * np.float64(2) ** mu / (1 - vocab_size**-over)) ** (1 / exponent))
    left.keep(slice(1 if math.isnan(k) else max(1, int(min(k, len(left.tokens))))))
