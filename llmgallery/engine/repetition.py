"""DRY: what a token that prolongs a repetition loses. Source: llama_sampler_dry_apply in llama.cpp's src/llama-sampler.cpp."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence

from llmgallery.engine.chain import Dry

Heads = Mapping[int, frozenset[tuple[int, ...]]]
"""Where breakers are: their first token -> what may follow it; () = the token itself breaks."""

_LONGEST_TAIL = 20
_MOST_EXPONENT = 88.7228391  # the logarithm of the largest float32


class Words:
    """A vocabulary as texts. `pieces`: of each token, special ones included. `tokenize`: without BOS and special tokens."""

    def __init__(self, pieces: Sequence[bytes], tokenize: Callable[[bytes], Sequence[int]]) -> None:
        self._pieces = pieces
        self._tokenize = tokenize
        self._heads: dict[tuple[bytes, ...], Heads] = {}

    def heads(self, breakers: tuple[bytes, ...]) -> Heads:
        """Walks the vocabulary at the first call for these breakers."""
        found = self._heads.get(breakers)
        if found is None:
            tails: dict[int, set[tuple[int, ...]]] = {}
            for breaker in breakers:
                self._walk(breaker, tails)
            found = self._heads[breakers] = {token: frozenset(ends) for token, ends in tails.items()}
        return found

    def _walk(self, breaker: bytes, tails: dict[int, set[tuple[int, ...]]]) -> None:
        for token, piece in enumerate(self._pieces):
            if breaker in piece:
                tails.setdefault(token, set()).add(())
                continue
            for length in range(min(len(piece), len(breaker) - 1), 0, -1):
                if piece.endswith(breaker[:length]):
                    tail = tuple(self._tokenize(breaker[length:])[:_LONGEST_TAIL])
                    tails.setdefault(token, set()).add(tail)


def dry_penalties(history: Sequence[int], heads: Heads, step: Dry) -> dict[int, float]:
    """Token -> what its logit loses after these tokens."""
    newest_first = list(history)[-step.last_n :][::-1]
    limit = _limit(newest_first, heads)
    if len(newest_first) <= step.allowed_length or limit < step.allowed_length:
        return {}
    longest: dict[int, int] = {}
    for back, length in enumerate(_repeats(newest_first)):
        if back and min(length, limit) >= step.allowed_length:
            token = newest_first[back - 1]
            longest[token] = max(longest.get(token, 0), min(length, limit))
    most = int(_MOST_EXPONENT / math.log(step.base)) if step.base > 1.000001 else 0
    return {
        token: step.multiplier * step.base ** (min(length - step.allowed_length, most) if most else length - step.allowed_length)
        for token, length in longest.items()
        if () not in heads.get(token, ())
    }


def _limit(newest_first: Sequence[int], heads: Heads) -> int:
    """How long a repetition can be: it lies after the last breaker."""
    for back, token in enumerate(newest_first):
        met = [
            len(tail)
            for tail in heads.get(token, ())
            if len(tail) <= back and all(newest_first[back - 1 - at] == one for at, one in enumerate(tail))
        ]
        if met:
            return back - max(met)
    return len(newest_first)


def _repeats(tokens: Sequence[int]) -> list[int]:
    """For each place, how many tokens from there on equal those from the beginning on (the Z function); 0 at the beginning."""
    found = [0] * len(tokens)
    left = right = 0
    for place in range(1, len(tokens)):
        length = min(right - place, found[place - left]) if place < right else 0
        while place + length < len(tokens) and tokens[length] == tokens[place + length]:
            length += 1
        found[place] = length
        if place + length > right:
            left, right = place, place + length
    return found
