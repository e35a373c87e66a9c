"""Log probabilities from a row of logits, and masks into one."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from llmgallery.core.events import Alternative, TokenLogprob

Row = np.ndarray[tuple[int], np.dtype[np.float32]]

LOWEST = -9999.0
"""What stands for a probability of zero, as in OpenAI's answers: JSON has no infinity."""


class Place:
    """What the model said of one place: the log-softmax of its logits over the whole vocabulary.

    Made before anything changes the row. `piece`: a token's bytes, as the vocabulary writes it.
    """

    def __init__(self, row: Row, count: int, piece: Callable[[int], bytes]) -> None:
        """`count`: how many of the likeliest tokens are wanted."""
        self._row = row
        self._piece = piece
        peak = row.max()
        self._normaliser = float(peak) + float(np.log(np.exp(row - peak).sum(dtype=np.float64)))
        self._top = tuple(Alternative(token, piece(token), self._logprob(token)) for token in likeliest(row, count))

    def of(self, token: int) -> TokenLogprob:
        """The token came. Its logit must be in the row still."""
        return TokenLogprob(token, self._piece(token), self._logprob(token), self._top)

    def _logprob(self, token: int) -> float:
        return max(LOWEST, float(self._row[token]) - self._normaliser)


def likeliest(row: Row, count: int) -> list[int]:
    """The `count` tokens of the highest logits, best first; of equal ones the lower number."""
    count = min(count, len(row))
    if not count:
        return []
    edge = row[np.argpartition(row, -count)[-count:]].min()
    tokens = np.flatnonzero(row >= edge)
    chosen: list[int] = tokens[np.argsort(-row[tokens], kind="stable")][:count].tolist()
    return chosen


def forbid(row: Row, mask: bytes) -> bool:
    """Put -inf on every token whose bit is not set (Constraint.mask's layout). False, and nothing changed: no bit is set."""
    allowed = np.unpackbits(np.frombuffer(mask, np.uint8), count=len(row), bitorder="little").view(bool)
    if not allowed.any():
        return False
    np.putmask(row, ~allowed, -np.inf)
    return True
