"""The few tokens that can still be left after a chain's first cut, found without sorting the vocabulary."""

from __future__ import annotations

import math
from collections.abc import Collection, Iterable

import numpy as np
from numpy.typing import NDArray

COLUMNS = 4096
"""Of which the maxima are taken. 2048 to 8192 cost about the same, fewer more where many tokens are touched."""
MOST_CANDIDATES = 4096


class Shortlist:
    """Of one chain that keeps its `kept` highest candidates before anything depends on the others, having changed no logits
    but those of `biased` tokens and of the last `last_n` accepted ones, whatever it did to these ("touched"), and otherwise
    kept their order.

    A token that was not touched and that `kept` + len(touched) others exceed is then exceeded by `kept` that were not
    touched either. So the highest that many, with the touched ones, contain all that the chain can keep.
    """

    def __init__(self, vocab_size: int, kept: int, biased: Collection[int] = (), last_n: int = 0) -> None:
        self._kept, self._last_n = kept, last_n
        self._columns = max(1, min(COLUMNS, vocab_size // 8))
        self._rows = vocab_size // self._columns
        self._most = self._columns // 4
        self._largest = min(vocab_size // 4, MOST_CANDIDATES)
        self._num_biased = len(biased)
        room = max(0, self._most - kept - len(biased))
        self._touched = np.zeros(len(biased) + min(last_n, room), np.int64)
        self._touched[: len(biased)] = list(biased)
        self._num_accepted = 0

    @property
    def largest(self) -> int:
        """More tokens `find` never gives."""
        return self._largest

    def accept(self, token: int) -> None:
        if self._last_n:
            place = self._num_biased + self._num_accepted % self._last_n
            # Where there is no place, there are too many to be worth it, from now on.
            if place < len(self._touched):
                self._touched[place] = token
            self._num_accepted += 1

    def accept_all(self, tokens: Iterable[int]) -> None:
        for token in tokens:
            self.accept(token)

    def find(self, row: NDArray[np.float32]) -> NDArray[np.int64] | None:
        """Ascending tokens, at least `kept` of them, of one logit for each of the vocabulary, which is only read. None = the
        whole vocabulary: they would be too many, or a logit is not a number."""
        num_touched = self._num_biased + min(self._num_accepted, self._last_n)
        enough = self._kept + num_touched
        if enough > self._most:
            return None
        maxima = self._column_maxima(row)
        # That many logits reach it. NaN sorts as the highest, so the minimum of the highest shows it.
        bound = float(np.minimum.reduce(np.partition(maxima, -enough)[-enough:]))
        if math.isnan(bound):
            return None
        tokens = self._above(row, maxima, bound) if bound > -math.inf else _possible(row, enough)
        if num_touched:
            tokens = _union(tokens, self._touched[:num_touched])
        return tokens if len(tokens) <= self._largest else None

    def _column_maxima(self, row: NDArray[np.float32]) -> NDArray[np.float32]:
        whole = self._rows * self._columns
        maxima: NDArray[np.float32] = np.maximum.reduce(row[:whole].reshape(self._rows, -1), axis=0)
        if rest := len(row) - whole:
            np.maximum(maxima[:rest], row[whole:], out=maxima[:rest])
        return maxima

    def _above(self, row: NDArray[np.float32], maxima: NDArray[np.float32], bound: float) -> NDArray[np.int64]:
        """Where a logit reaches the bound: only columns whose maximum does are looked at."""
        whole = self._rows * self._columns
        columns = (maxima >= bound).nonzero()[0]
        rows, places = (row[:whole].reshape(self._rows, -1).take(columns, 1) >= bound).nonzero()
        found = rows * self._columns + columns[places]
        if whole == len(row):
            return found
        return np.concatenate((found, whole + np.flatnonzero(row[whole:] >= bound)))


def _possible(row: NDArray[np.float32], least: int) -> NDArray[np.int64]:
    """All tokens that can come, and, for a chain that counts them, some that cannot."""
    wanted = row > -np.inf
    wanted[:least] = True
    return np.flatnonzero(wanted)


def _union(tokens: NDArray[np.int64], others: NDArray[np.int64]) -> NDArray[np.int64]:
    """Ascending; a third of np.union1d's time."""
    both = np.concatenate((tokens, others))
    both.sort()
    new = np.ones(len(both), np.bool_)
    np.not_equal(both[1:], both[:-1], out=new[1:])
    return both[new]
