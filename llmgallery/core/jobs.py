"""What an engine is given and what it tells: one sequence to generate, and what each step made of it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Literal

from llmgallery.core.events import Usage
from llmgallery.core.sampling import Sampling


@dataclass(frozen=True)
class Job:
    """One sequence to generate. The prompt is rendered and tokenised, fits the context, and is not empty.

    `sampling.max_tokens` is set or None = until the context is full.
    """

    id: int
    prompt: Sequence[int]
    sampling: Sampling


@dataclass(frozen=True)
class Output:
    """What one step made for one job: whole characters of text and the tokens behind them; `finish` ends the job.

    finish: "stop" = end token, "length" = max_tokens or context full, "cancelled", "error" (with `message`).
    `usage` counts every token that was sampled, the end token too.
    """

    id: int
    text: str = ""
    tokens: tuple[int, ...] = ()
    finish: Literal["stop", "length", "cancelled", "error"] | None = None
    usage: Usage = field(default_factory=Usage)
    message: str = ""


@dataclass(frozen=True)
class StepStats:
    """One step: its number, how many sequences shared its decode, tokens computed, and who waits.

    A report without a decode (a job was withdrawn) repeats the last step's number, with no sequences.
    """

    step: int
    sequences: int
    tokens: int
    waiting: int
