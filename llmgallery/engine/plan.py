"""What a step computes and what came of it: plain data between scheduler, engine and runner."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from llmgallery.core.errors import GalleryError
from llmgallery.core.events import TokenLogprob


@dataclass(frozen=True)
class Chunk:
    """Tokens of one sequence to compute: the first at `position` of `slot`.

    `samples`: the next token is wanted. `drafts`: how many tokens at the end of `tokens` are guesses; then `samples` holds, and
    the runner samples after the token before the first guess, goes on while what it sampled is the next guess, and takes the
    guesses that were not met out of its cache. `scores`: the log probabilities of the tokens are wanted (prompt tokens only).
    """

    id: int
    slot: int
    position: int
    tokens: tuple[int, ...]
    samples: bool
    drafts: int = 0
    scores: bool = False


@dataclass(frozen=True)
class Plan:
    """One step: all chunks go into one decode. For the pace: `streams` of them decode, `prefill` tokens are of prompts."""

    chunks: tuple[Chunk, ...] = ()
    streams: int = 0
    prefill: int = 0

    @property
    def num_tokens(self) -> int:
        return sum(len(chunk.tokens) for chunk in self.chunks)


@dataclass(frozen=True)
class Sampled:
    """What came of a chunk. `tokens`: sampled ones in order; 1 + the guesses that were met, fewer when one of them ends the
    answer; none when the chunk does not sample. As many guesses as tokens but one are in the cache then, and no others.
    `logprobs`: one for each of them, if the sequence wants any. `scores`: of a chunk that scores, one for each token *after*
    each of its positions that belongs to the prompt: the log probability of prompt[position + 1 + i] (one fewer at the
    prompt's end). `error`: this sequence cannot go on (its constraint broke); it ends with what came before, the plan's
    others go on."""

    tokens: tuple[int, ...] = ()
    logprobs: tuple[TokenLogprob, ...] = ()
    scores: tuple[TokenLogprob, ...] = ()
    error: GalleryError | None = None


NOTHING = Sampled()


def followed(tokens: Iterable[int], drafts: Iterable[int]) -> int:
    """How many of the guesses were met by what was sampled, from the first on."""
    met = 0
    for token, draft in zip(tokens, drafts, strict=False):
        if token != draft:
            break
        met += 1
    return met
