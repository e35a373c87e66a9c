"""Where a new sequence lives, and which of its tokens some slot's cache holds already. Decides, and changes nothing."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import compress, count
from operator import ne

from llmgallery.engine.sequence import Sequence
from llmgallery.engine.slots import WORTHLESS, Slot, SlotTable

BLOCK = 64


def common(one: tuple[int, ...], other: tuple[int, ...]) -> int:
    """How many first tokens are the same: in blocks that double, so that thousands take microseconds."""
    end = min(len(one), len(other))
    start, size = 0, BLOCK
    while start < end:
        part, of_other = one[start : start + size], other[start : start + size]
        if part != of_other:
            return min(end, start + next(compress(count(), map(ne, part, of_other)), min(len(part), len(of_other))))
        start, size = start + size, size * 2
    return end


@dataclass(frozen=True)
class Placement:
    """A slot, and the first `length` tokens from the cache of `source` (None = the slot's own, which holds `held`).

    With a `leader` the sequence then waits until that one has computed `shared` tokens, to copy them."""

    slot: int
    length: int = 0
    source: int | None = None
    held: int = 0
    leader: Sequence | None = None
    shared: int = 0

    @property
    def is_done(self) -> bool:
        """The slot's cache holds just that already."""
        return self.source is None and self.length == self.held


@dataclass(frozen=True)
class Reuse:
    """What the model's cache can do: see Runner.can_truncate and Runner.copy_cost."""

    can_truncate: bool = True
    copy_cost: int = 0

    def place(self, sequence: Sequence, slots: SlotTable) -> Placement:
        """For a sequence without a slot; only when a slot is free.

        In place where little is lost by it, or where the slot would be overwritten anyway; else as a copy that is worth its
        cost; else in the spare slot, from nothing. If somebody is about to compute more of the same, it is waited for.
        """
        spare = slots.spare()
        here = Placement(spare.index, self._usable(sequence, spare), held=len(spare.left))
        best, value = here, here.length
        for slot in slots:
            length = 0 if slot is spare else self._usable(sequence, slot)
            if not length:
                continue
            if slot.owner is None and len(slot.left) - length <= max(self.copy_cost, WORTHLESS):
                if length > value or (length == value and best.source is not None):
                    best = here = Placement(slot.index, length, held=len(slot.left))
                    value = length
            elif length - self._cost(sequence, slot) > value:
                best, value = Placement(spare.index, length, slot.index, len(spare.left)), length - self._cost(sequence, slot)
        return self._waiting(sequence, slots, best, here)

    def replace(self, sequence: Sequence, slots: SlotTable) -> Placement:
        """For one that has its slot, whose leader has come far enough, or is gone."""
        if sequence.slot is None:
            raise AssertionError(f"sequence {sequence.id} has no slot to stay in")
        here = Placement(sequence.slot, sequence.computed, held=sequence.computed)
        best, value = here, here.length
        for slot in slots:
            length = 0 if slot.owner is sequence else self._usable(sequence, slot)
            if length - self._cost(sequence, slot) > value:
                best, value = Placement(here.slot, length, slot.index, here.held), length - self._cost(sequence, slot)
        return self._waiting(sequence, slots, best, here)

    def _waiting(self, sequence: Sequence, slots: SlotTable, best: Placement, here: Placement) -> Placement:
        """The best that can be had now, or `here` and waiting for the one who will soon have the most (the earliest such:
        who waits himself might get more at once than is shared, and a model that cannot truncate could not copy that)."""
        promises = self._promises(sequence, slots)
        shared, owner = max(promises, key=lambda promise: (promise[0], -promise[1].order), default=(0, None))
        if owner is None or shared - best.length <= self._cost(sequence, slots[owner.slot or 0]):
            return best
        return Placement(here.slot, here.length, None, here.held, owner, shared)

    def _promises(self, sequence: Sequence, slots: SlotTable) -> Iterator[tuple[int, Sequence]]:
        """Who will have computed how many of its tokens, but has not yet. Only those who came earlier: so nobody waits in
        a circle."""
        for slot in slots:
            owner = slot.owner
            if owner is None or owner is sequence or owner.is_decoding or 0 <= sequence.order < owner.order:
                continue
            shared = min(common(sequence.known, owner.known), sequence.reusable)
            if shared > owner.computed:
                yield shared, owner

    def _usable(self, sequence: Sequence, slot: Slot) -> int:
        """How many of the sequence's first tokens the slot's cache can give now."""
        tokens = slot.tokens
        length = min(common(sequence.known, tokens), sequence.reusable)
        return length if self.can_truncate or length == len(tokens) else 0

    def _cost(self, sequence: Sequence, slot: Slot) -> int:
        """What a copy out of the slot must save. One prompt for several answers is always computed once."""
        owner = slot.owner
        same = self.can_truncate and owner is not None and owner.prompt == sequence.prompt
        return 0 if same else self.copy_cost
