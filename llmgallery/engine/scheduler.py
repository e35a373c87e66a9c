"""Who computes what in the next step. Plain data in, plain data out: knows no model, no tensors, no threads, no clock."""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence as Items
from dataclasses import dataclass

from llmgallery.engine.sequence import Sequence
from llmgallery.engine.slots import SlotTable


@dataclass(frozen=True)
class Chunk:
    """Tokens of one sequence to compute: the first at `position` of `slot`. `samples`: the next token is wanted."""

    id: int
    slot: int
    position: int
    tokens: tuple[int, ...]
    samples: bool


@dataclass(frozen=True)
class Plan:
    """One step: all chunks go into one decode."""

    chunks: tuple[Chunk, ...] = ()

    @property
    def num_tokens(self) -> int:
        return sum(len(chunk.tokens) for chunk in self.chunks)


def share(total: int, needs: Items[int]) -> list[int]:
    """Divide `total` fairly: all get the same, what one does not need goes to the others; ties favour the first."""
    given = [0] * len(needs)
    order = sorted(range(len(needs)), key=lambda index: needs[index])
    for place, index in enumerate(order):
        given[index] = min(needs[index], -(-total // (len(order) - place)))
        total -= given[index]
    return given


class Scheduler:
    """First come, first served for slots; in each step one token for every running answer, the rest of the budget for
    prompts, in equal parts: a long prompt stalls neither the streams nor a short prompt beside it.

    `budget`: most tokens of one step, at least one per slot, so that nobody starves.
    """

    def __init__(self, slots: int, budget: int) -> None:
        self.slots = SlotTable(slots)
        self.budget = max(budget, slots)
        self._waiting: deque[Sequence] = deque()
        self._running: dict[int, Sequence] = {}

    @property
    def num_waiting(self) -> int:
        return len(self._waiting)

    @property
    def running(self) -> tuple[Sequence, ...]:
        """Who holds a slot, in the order of coming."""
        return tuple(self._running.values())

    def has_work(self) -> bool:
        return bool(self._waiting or self._running)

    def add(self, sequence: Sequence) -> None:
        """To the end of the queue."""
        self._waiting.append(sequence)

    def find(self, id: int) -> Sequence | None:
        """The sequence of this id, waiting or running."""
        waiting = (sequence for sequence in self._waiting if sequence.id == id)
        return self._running.get(id) or next(waiting, None)

    def admit(self) -> list[Sequence]:
        """Give free slots to those who wait longest; returns who got one."""
        admitted = []
        while self._waiting and self.slots.can_claim():
            sequence = self._waiting.popleft()
            sequence.slot = self.slots.claim()
            self._running[sequence.id] = sequence
            admitted.append(sequence)
        return admitted

    def plan(self) -> Plan:
        """The next step's work; empty when nobody runs. Changes nothing: `advance` says that it was done."""
        decoding = [sequence for sequence in self._running.values() if sequence.is_decoding]
        prefilling = [sequence for sequence in self._running.values() if not sequence.is_decoding]
        chunks = [_chunk(sequence, sequence.pending) for sequence in decoding]
        rest = self.budget - sum(len(chunk.tokens) for chunk in chunks)
        counts = share(rest, [sequence.pending for sequence in prefilling])
        chunks += [_chunk(sequence, count) for sequence, count in zip(prefilling, counts, strict=True) if count]
        return Plan(tuple(chunks))

    def advance(self, plan: Plan) -> None:
        """The plan's tokens are computed."""
        for chunk in plan.chunks:
            self._running[chunk.id].computed += len(chunk.tokens)

    def finish(self, sequence: Sequence) -> None:
        """It computes no more; its slot, if it has one, is free."""
        if sequence.slot is None:
            self._waiting.remove(sequence)
            return
        del self._running[sequence.id]
        self.slots.free(sequence.slot)
        sequence.slot = None


def _chunk(sequence: Sequence, count: int) -> Chunk:
    if sequence.slot is None:
        raise AssertionError(f"sequence {sequence.id} runs without a slot")
    return Chunk(sequence.id, sequence.slot, sequence.computed, sequence.next_tokens(count), samples=count == sequence.pending)
