"""Which prompts are sent: text whose words cost about one token each, other text in every wave, as servers cache."""

from __future__ import annotations

import math
import random
import string
from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Workload:
    """Waves of `concurrency` requests that are sent at once; the next wave begins when the last answer has ended.

    `shared_tokens`: how many of the `prompt_tokens` all prompts of a wave have in common, at the beginning.
    """

    concurrency: int
    waves: int
    prompt_tokens: int
    max_tokens: int
    shared_tokens: int = 0

    @property
    def requests(self) -> int:
        return self.concurrency * self.waves


def waves_for(requests: int, concurrency: int) -> int:
    """Whole waves for at least so many requests."""
    return max(1, math.ceil(requests / concurrency))


def words(count: int, rng: random.Random) -> str:
    """`count` words of two letters."""
    letters = rng.choices(string.ascii_lowercase, k=2 * count)
    return " ".join(map("".join, zip(letters[::2], letters[1::2], strict=True)))


def prompts(workload: Workload, wave: int, salt: str, tokens_per_word: float = 1.0) -> list[str]:
    """The prompts of one wave: the same for the same arguments, and with nothing in common with any other wave's."""
    rng = random.Random(f"{salt}/{workload}/{wave}")
    shared = _count(workload.shared_tokens, tokens_per_word) if workload.shared_tokens else 0
    own = max(1, _count(workload.prompt_tokens, tokens_per_word) - shared)
    head = [words(shared, rng)] if shared else []
    return [" ".join([*head, words(own, rng)]) for _ in range(workload.concurrency)]


def _count(tokens: int, tokens_per_word: float) -> int:
    return max(1, round(tokens / tokens_per_word))


def sweep(concurrency: Sequence[int], requests: int, prompt_tokens: int, max_tokens: int) -> list[Workload]:
    """A workload for each number of streams."""
    return [Workload(streams, waves_for(requests, streams), prompt_tokens, max_tokens) for streams in concurrency]
