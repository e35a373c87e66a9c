"""Sequences of many lengths as padded tensors: the pool's packs, computed in few forward passes. Knows no pooling."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import TypeAlias

import torch

from llmgallery.core.errors import GalleryError
from llmgallery.engine.pooling import Piece

TYPE = 1 << 32
"""Added to a token of the second text of a pair, times its token type."""
SILENT = 1 << 40
"""Added to a token that the model sees, and that is not pooled."""

Tensor: TypeAlias = torch.Tensor


def marked(tokens: Sequence[int], types: Sequence[int] | None = None, *, silent: int = 0) -> list[int]:
    """Tokens as the pool carries them: with their token types, the first `silent` ones not to be pooled."""
    kinds = types if types is not None else [0] * len(tokens)
    return [
        token + kind * TYPE + (SILENT if place < silent else 0)
        for place, (token, kind) in enumerate(zip(tokens, kinds, strict=True))
    ]


@dataclass(frozen=True)
class Batch:
    """Padded on the right. All of (batch, length) and on the model's device; `pooled`: 1 for the tokens that count in the
    vector, `last`: (batch), where each sequence ends."""

    input_ids: Tensor
    attention_mask: Tensor
    token_type_ids: Tensor
    pooled: Tensor
    last: Tensor


class BatchRunner:
    """A PoolRunner: `compute` makes of a Batch one vector for each sequence, (batch, numbers).

    `pad`: the token that fills rows up; None = the model cannot tell it from the others, so that each sequence is computed
    alone. `turn`: held while a batch is computed.
    """

    def __init__(
        self,
        compute: Callable[[Batch], Tensor],
        *,
        pad: int | None,
        device: torch.device,
        turn: AbstractContextManager[object] | None = None,
    ) -> None:
        self._compute = compute
        self._pad = pad
        self._device = device
        self._turn = contextlib.nullcontext() if turn is None else turn
        self._stopped = False

    def pool(self, pack: Sequence[Piece]) -> list[bytes] | None:
        vectors = [b""] * len(pack)
        for group in self._groups([len(piece.tokens) for piece in pack]):
            if self._stopped:
                return None
            rows = self.vectors([pack[place].tokens for place in group])
            for place, row in zip(group, rows, strict=True):
                vectors[place] = row
        return vectors

    def vectors(self, sequences: Sequence[Sequence[int]]) -> list[bytes]:
        """Of one batch. Raises GalleryError when memory is short."""
        try:
            with self._turn, torch.inference_mode():
                made = self._compute(self._batch(sequences)).float().cpu().numpy()
        except (MemoryError, RuntimeError) as exc:
            if not is_shortage(exc):
                raise
            count, longest = len(sequences), max(map(len, sequences))
            raise GalleryError(f"there is not enough memory to compute {count} inputs of up to {longest} tokens") from exc
        return [row.astype("<f4").tobytes() for row in made]

    def _groups(self, lengths: Sequence[int]) -> Iterator[list[int]]:
        """Which sequences are computed together: of like lengths, so that at most half of a batch is padding."""
        group: list[int] = []
        for place in sorted(range(len(lengths)), key=lambda place: -lengths[place]):
            if group and (self._pad is None or 2 * lengths[place] < lengths[group[0]]):
                yield group
                group = []
            group.append(place)
        if group:
            yield group

    def _batch(self, sequences: Sequence[Sequence[int]]) -> Batch:
        longest = max(map(len, sequences))
        rows = torch.full((len(sequences), longest), self._pad or 0, dtype=torch.int64)
        mask = torch.zeros_like(rows)
        for place, tokens in enumerate(sequences):
            rows[place, : len(tokens)] = torch.tensor(tokens, dtype=torch.int64)
            mask[place, : len(tokens)] = 1
        pooled = mask * (rows < SILENT)
        types = (rows % SILENT) // TYPE
        last = mask.sum(dim=1) - 1
        return Batch(*(each.to(self._device) for each in (rows % TYPE, mask, types, pooled, last)))

    def interrupt(self) -> None:
        """A forward pass cannot be broken off: the batch that is being computed is the last."""
        self._stopped = True


def is_shortage(error: BaseException) -> bool:
    """There was not enough memory, of whatever kind."""
    return isinstance(error, MemoryError | torch.OutOfMemoryError) or "allocate memory" in str(error)
