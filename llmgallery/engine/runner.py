"""What the engine asks of a model: compute these tokens, sample the next ones, tell their bytes."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Protocol

from llmgallery.engine.scheduler import Plan
from llmgallery.engine.sequence import Sequence


class Runner(Protocol):
    """A model in memory. Called from the engine's thread only, `interrupt` excepted."""

    def begin(self, sequence: Sequence) -> None:
        """The sequence has just got its slot: empty the slot's cache, make its sampler. A GalleryError ends only this
        sequence."""

    def decode(self, plan: Plan) -> Mapping[int, int] | None:
        """Compute the plan; the sampled token of every chunk that samples, by the sequence's id. Blocks.

        None: interrupted, and nothing of the plan counts. A GalleryError ends the plan's sequences; any other
        exception ends the engine.
        """

    def end(self, sequence: Sequence) -> None:
        """The sequence leaves its slot (still set). Called once for each `begin` that returned, unless the engine closes."""

    def piece(self, token: int) -> bytes:
        """The token's bytes in the answer; none for control tokens."""

    def is_end(self, token: int) -> bool:
        """The token ends an answer."""

    def interrupt(self) -> None:
        """Let a running decode return soon. From any thread; the engine is about to close."""
