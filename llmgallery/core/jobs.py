"""What an engine is given and what it tells: one sequence to generate, and what each step made of it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Literal, Protocol

from llmgallery.core.errors import ErrorInfo
from llmgallery.core.events import TokenLogprob, Usage
from llmgallery.core.sampling import Sampling


class Constraint(Protocol):
    """What one answer may say, token by token. Has a state of its own; called from the engine's thread only."""

    def mask(self) -> bytes | None:
        """Which tokens may come next: little-endian 32-bit words, bit `t % 32` of word `t // 32` set = token `t` may come
        (llguidance's layout), end tokens among them when the answer may end here. None = any token may come."""

    def accept(self, token: int) -> None:
        """The token has come; it was allowed, or forced."""

    def forced(self) -> Sequence[int]:
        """Tokens that must come now, one after the other, because nothing else may: the engine takes them without
        sampling and accepts each. Empty = the model is asked."""


@dataclass(frozen=True)
class Job:
    """One sequence to generate. The prompt is rendered and tokenised, fits the context, and is not empty.

    `sampling.max_tokens` is set or None = until the context is full; 0 = only the prompt is computed.
    `logprobs`: None = none are wanted; k = each sampled token's, with the k likeliest of its place.
    `prompt_logprobs`: the prompt's tokens' as well, in the first Output. `images`: the files that the prompt's image tokens stand
    for, in their order.
    """

    id: int
    prompt: Sequence[int]
    sampling: Sampling
    logprobs: int | None = None
    prompt_logprobs: bool = False
    constraint: Constraint | None = None
    images: tuple[bytes, ...] = ()


@dataclass(frozen=True)
class Output:
    """What one step made for one job: whole characters of text and the tokens behind them; `finish` ends the job.

    finish: "stop" = end token, "length" = max_tokens or context full, "cancelled", "error" (with `message`, and `error` where it
    is another than the engine's own fault).
    `usage` counts every token that was sampled or forced, the end token too. `logprobs`: one for each of `tokens` when the
    job asked for them; `prompt_logprobs`: one for each of the prompt's tokens, once.
    """

    id: int
    text: str = ""
    tokens: tuple[int, ...] = ()
    finish: Literal["stop", "length", "cancelled", "error"] | None = None
    usage: Usage = field(default_factory=Usage)
    message: str = ""
    logprobs: tuple[TokenLogprob, ...] = ()
    prompt_logprobs: tuple[TokenLogprob, ...] = ()
    error: ErrorInfo | None = None


@dataclass(frozen=True)
class EmbedJob:
    """Texts, or token ids as they are, to turn into one vector each. `normalize`: to length 1 (Euclidean).
    `dimensions`: keep the first ones only, before normalising. `truncate`: cut inputs that are too long instead of refusing."""

    id: int
    inputs: Sequence[str | Sequence[int]]
    dimensions: int | None = None
    normalize: bool = True
    truncate: bool = False


@dataclass(frozen=True)
class RerankJob:
    """Documents to score against a query. `truncate`: cut documents that are too long instead of refusing."""

    id: int
    query: str
    documents: Sequence[str]
    truncate: bool = False


@dataclass(frozen=True)
class Pooled:
    """The end of an EmbedJob or RerankJob. `vectors`: one for each input, little-endian float32; a score is a vector of one.
    `error`: why there are none; a withdrawn job's is Cancelled."""

    id: int
    vectors: tuple[bytes, ...] = ()
    prompt_tokens: int = 0
    error: Exception | None = None


@dataclass(frozen=True)
class StepStats:
    """One step: its number, how many sequences shared its decode, tokens computed, and who waits; how many of the tokens were
    guesses of speculative decoding, and how many of these were met.

    A report without a decode (a job was withdrawn) repeats the last step's number, with no sequences.
    """

    step: int
    sequences: int
    tokens: int
    waiting: int
    guessed: int = 0
    met: int = 0
