"""What this backend asks of ExLlamaV2 and ExLlamaV3: the seam between our loop and a library's generator."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from llmgallery.engine.choosing import Chooser, Chosen

Told = Callable[[Chooser, Chosen], None]
"""Hears of every token that was chosen, in the library's threads."""


@dataclass(frozen=True)
class Plan:
    """How a model is to be loaded. `context_size`: tokens of one request; `cache_size`: of all together, a multiple of a page.
    `gpu_split`: GiB for each GPU, None = by free memory. `bits`: of a number in the cache. `adapters`: LoRA folders and their
    scales. `draft`: the folder of the model that drafts."""

    folder: Path
    context_size: int
    slots: int
    cache_size: int
    chunk: int
    bits: int = 16
    gpu_split: tuple[float, ...] | None = None
    paged: bool | None = None
    adapters: tuple[tuple[Path, float], ...] = ()
    draft: Path | None = None
    drafts: int = 4
    ends: tuple[int, ...] = ()


class Library(Protocol):
    """A loaded model and its generator. Of the loop's thread, once it is loaded."""

    @property
    def slots(self) -> int:
        """How many requests it computes at once."""

    @property
    def vocab_size(self) -> int:
        """Of the output layer, which may be longer than the tokenizer's."""

    @property
    def memory_bytes(self) -> int:
        """Of the GPUs' memory, as it is taken now."""

    def enqueue(self, chooser: Chooser, told: Told) -> object:
        """Queues the chooser's job, whose tokens are chosen in `iterate`, and told. Returns what `cancel` takes. Raises a
        GalleryError for a job that can never run."""

    def cancel(self, ticket: object) -> None:
        """The job computes no further. Nothing happens when it has ended."""

    def iterate(self) -> Sequence[tuple[object, str]]:
        """One round: parts of prompts, and a token, or several that were drafted, for each running job. The jobs that the library
        ended: with the reason when it had to give one up, with "" when it was done or had no room for more."""

    def close(self) -> None:
        """Gives the memory back."""
