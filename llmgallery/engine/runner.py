"""What the engine asks of a model: compute these tokens, sample the next ones, tell their bytes."""

from __future__ import annotations

from collections.abc import Mapping
from collections.abc import Sequence as Items
from typing import Protocol

from llmgallery.engine.plan import Plan, Sampled
from llmgallery.engine.sequence import Sequence


class NoRoom(Exception):
    """The cache has no place for the plan's tokens; nothing of the plan was computed. Not an error of a request: the engine
    gives up idle prefixes, then puts a sequence back into the queue, and tries again."""


class Runner(Protocol):
    """A model in memory. Called from the engine's thread only, `interrupt` excepted.

    A slot's cache outlives its sequence: what it holds can be the beginning of another. The engine keeps the account of
    which tokens are in which slot.
    """

    @property
    def can_truncate(self) -> bool:
        """A slot's cache can be cut at any length. False (recurrent models): kept as it is, or dropped."""

    @property
    def copy_cost(self) -> int:
        """How many tokens could be computed in the time that a copy from slot to slot takes; 0 = copies are free."""

    def begin(self, sequence: Sequence) -> None:
        """The sequence has just got its slot for the first time: make its sampler. A GalleryError ends only this sequence."""

    def keep(self, slot: int, length: int, source: int | None = None) -> int:
        """Let the slot's cache hold the first `length` tokens of its own, or of the slot `source`'s, and nothing else.

        Returns how many it holds now: `length`, or 0 where the model cannot do it (the slot is empty then). `length` 0 empties
        the slot. The source stays as it is.
        """

    def decode(self, plan: Plan, sequences: Mapping[int, Sequence]) -> Mapping[int, Sampled] | None:
        """Compute the plan; what came of every chunk that samples or scores, by the sequence's id. Blocks.

        Each sampled token has been accepted by the sequence's sampler and by its constraint, whose mask was applied.
        None: interrupted, and nothing of the plan counts. NoRoom: see there. A GalleryError ends the plan's sequences, whose
        slots the engine then empties; any other exception ends the engine.
        """

    def accept(self, sequence: Sequence, tokens: Items[int]) -> None:
        """Tokens that came without sampling (forced by the constraint, which has accepted them): the sampler must know."""

    def draft(self, sequences: Items[Sequence], most: int) -> Mapping[int, tuple[int, ...]]:
        """Guesses for what follows each decoding sequence, at most `most` each, by id; a sequence may have none."""

    def end(self, sequence: Sequence) -> None:
        """The sequence leaves for good. Called once for each `begin` that returned, unless the engine closes. What is in its
        slot's cache stays there."""

    def piece(self, token: int) -> bytes:
        """The token's bytes in the answer; none for control tokens."""

    def written(self, token: int) -> bytes:
        """The token's bytes as the vocabulary writes it, a control token's too."""

    def is_end(self, token: int) -> bool:
        """The token ends an answer."""

    def interrupt(self) -> None:
        """Let a running decode return soon. From any thread; the engine is about to close."""
