"""Who computes what in the next step. Plain data in, plain data out: knows no model, no tensors, no threads, no clock."""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping
from collections.abc import Sequence as Items

from llmgallery.engine.pace import SLOWDOWN, Pace
from llmgallery.engine.plan import Chunk, Plan, Sampled
from llmgallery.engine.prefixes import Placement, Reuse
from llmgallery.engine.sequence import Sequence
from llmgallery.engine.slots import SlotTable

LEAST = 4
"""Tokens of prompts in a step, however slow they are: prompts must come to an end too."""

ROOMY = 0.8
"""Of the tokens for which there was no room, so many may be known when another sequence comes: all of them grow."""

Drafts = Mapping[int, tuple[int, ...]]
NO_DRAFTS: Drafts = {}


def share(total: int, needs: Items[int]) -> list[int]:
    """Divide `total` fairly: all get the same, what one does not need goes to the others; ties favour the first."""
    given = [0] * len(needs)
    order = sorted(range(len(needs)), key=lambda index: needs[index])
    for place, index in enumerate(order):
        given[index] = min(needs[index], -(-total // (len(order) - place)))
        total -= given[index]
    return given


class Scheduler:
    """First come, first served for slots; in each step one token for every running answer (more where they are guessed or
    forced), and as much of the prompts as the pace allows, in equal parts: a long prompt stalls neither the streams nor a
    short prompt beside it.

    `budget`: most tokens of one step, at least one per slot, so that nobody starves. `slowdown`: see Pace.
    """

    def __init__(self, slots: int, budget: int, *, reuse: Reuse | None = None, slowdown: float = SLOWDOWN) -> None:
        self.slots = SlotTable(slots)
        self.budget = max(budget, slots)
        self.pace = Pace(slowdown)
        self._reuse = reuse or Reuse()
        self._waiting: deque[Sequence] = deque()
        self._running: dict[int, Sequence] = {}
        self._order = 0
        self._crowd: int | None = None

    @property
    def num_waiting(self) -> int:
        return len(self._waiting)

    @property
    def running(self) -> Mapping[int, Sequence]:
        """Who holds a slot, by id, in the order of coming."""
        return self._running

    def has_work(self) -> bool:
        return bool(self._waiting or self._running)

    def everyone(self) -> list[Sequence]:
        """Running, then waiting."""
        return [*self._running.values(), *self._waiting]

    def add(self, sequence: Sequence) -> None:
        """To the end of the queue."""
        self._waiting.append(sequence)

    def find(self, id: int) -> Sequence | None:
        """The sequence of this id, waiting or running."""
        waiting = (sequence for sequence in self._waiting if sequence.id == id)
        return self._running.get(id) or next(waiting, None)

    def next(self) -> Sequence | None:
        """Who is to get a slot now: who waits longest, if a slot is free, and the cache will not be crowded again by it."""
        return self._waiting[0] if self._waiting and self.slots.can_claim() and self._has_room() else None

    def admit(self) -> Placement:
        """Give `next()` a slot; how it begins there. `settle` must follow."""
        sequence = self._waiting.popleft()
        placement = self._reuse.place(sequence, self.slots)
        self.slots.claim(placement.slot, sequence)
        self._order += 1
        sequence.order = self._order
        self._running[sequence.id] = sequence
        return placement

    def rejoin(self) -> tuple[Sequence, Placement] | None:
        """Somebody who need not wait any longer for his leader, which has come far enough or is gone, and how he goes on;
        `settle` must follow."""
        for sequence in self._running.values():
            leader = sequence.leader
            if leader is not None and (leader.slot is None or leader.computed >= sequence.shared):
                return sequence, self._reuse.replace(sequence, self.slots)
        return None

    def settle(self, sequence: Sequence, placement: Placement, kept: int) -> None:
        """Its slot's cache holds its first `kept` tokens."""
        sequence.settle(kept)
        sequence.leader, sequence.shared = placement.leader, placement.shared

    def room_for_drafts(self) -> int:
        """How many guesses each decoding sequence may have in the next step."""
        decoding, prefilling = self._parted()
        if not decoding:
            return 0
        needed = sum(sequence.pending for sequence in decoding) + self._least(decoding, prefilling)
        return max(0, self.budget - needed) // len(decoding)

    def plan(self, drafts: Drafts = NO_DRAFTS) -> Plan:
        """The next step's work; empty when nobody runs. Changes nothing: `advance` says that it was done."""
        decoding, prefilling = self._parted()
        chunks = self._decodes(decoding, self.budget - self._least(decoding, prefilling), drafts)
        if not prefilling:
            return Plan(tuple(chunks), len(decoding))
        used = sum(len(chunk.tokens) for chunk in chunks)
        allowed = self._allowed(decoding, prefilling, self.budget - used)
        counts = share(allowed, self._prefill_needs(prefilling))
        chunks += [_chunk(sequence, count) for sequence, count in zip(prefilling, counts, strict=True) if count]
        return Plan(tuple(chunks), len(decoding), sum(counts))

    def advance(self, plan: Plan, sampled: Mapping[int, Sampled]) -> None:
        """The plan's tokens are computed; guesses that were not met do not count."""
        for chunk in plan.chunks:
            count = len(chunk.tokens)
            if chunk.drafts:
                met = len(sampled[chunk.id].tokens) - 1
                count -= chunk.drafts - met
            self._running[chunk.id].computed += count

    def finish(self, sequence: Sequence, *, forget: bool = False) -> None:
        """It computes no more; its slot, if it has one, is free and keeps what is computed, unless it is to be forgotten."""
        if sequence.slot is None:
            self._waiting.remove(sequence)
            return
        self._leave(sequence, () if forget else sequence.known[: sequence.computed])

    def preempt(self, plan: Plan) -> int | None:
        """The plan's tokens have no room: let the youngest give up its slot and what it has computed, and wait in front of the
        queue; the slot, to be emptied. None: it is alone, and that would help nobody."""
        if len(self._running) < 2:
            return None
        self._crowd = self._num_computed() + plan.num_tokens
        sequence = next(reversed(self._running.values()))
        slot = sequence.slot
        self._leave(sequence, ())
        sequence.unsettle()
        self._waiting.appendleft(sequence)
        return slot

    def _has_room(self) -> bool:
        """There is no telling how much room there is (copies may share it), but how many tokens once were too many: the next
        one comes when all would be clearly fewer, or when nobody runs."""
        if self._crowd is None or not self._running:
            return True
        self._crowd = max(self._crowd, self._num_computed())
        known = sum(sequence.computed + sequence.pending for sequence in (*self._running.values(), self._waiting[0]))
        return known <= ROOMY * self._crowd

    def _num_computed(self) -> int:
        return sum(sequence.computed for sequence in self._running.values())

    def _leave(self, sequence: Sequence, left: tuple[int, ...]) -> None:
        if sequence.slot is None:
            raise AssertionError(f"sequence {sequence.id} runs without a slot")
        del self._running[sequence.id]
        self.slots.free(sequence.slot, left)
        sequence.slot = sequence.leader = None

    def _parted(self) -> tuple[list[Sequence], list[Sequence]]:
        """Who decodes, and whose prompt is to be computed; who waits for a leader is neither."""
        decoding: list[Sequence] = []
        prefilling: list[Sequence] = []
        for sequence in self._running.values():
            if sequence.leader is None:
                (decoding if sequence.is_decoding else prefilling).append(sequence)
        return decoding, prefilling

    def _least(self, decoding: Items[Sequence], prefilling: Items[Sequence]) -> int:
        """What is kept for prompts in any case."""
        if not prefilling:
            return 0
        return min(self.budget - len(decoding), max(LEAST, len(prefilling)))

    def _decodes(self, decoding: Items[Sequence], room: int, drafts: Drafts) -> list[Chunk]:
        needs = [sequence.pending + len(drafts.get(sequence.id, ())) for sequence in decoding]
        if sum(needs) > room:
            drafts, needs = NO_DRAFTS, share(room, [sequence.pending for sequence in decoding])
        return [
            _chunk(sequence, count - len(guesses), guesses)
            for sequence, count in zip(decoding, needs, strict=True)
            for guesses in (drafts.get(sequence.id, ()),)
        ]

    def _allowed(self, decoding: Items[Sequence], prefilling: Items[Sequence], room: int) -> int:
        allowed = self.pace.allowance(len(decoding), len(prefilling))
        if allowed is None:
            return room
        return min(room, max(allowed, self._least(decoding, prefilling))) if allowed else 0

    def _prefill_needs(self, prefilling: Items[Sequence]) -> list[int]:
        """What is left of each prompt, at most up to where somebody waits to copy it."""
        needs = [sequence.pending for sequence in prefilling]
        stops: dict[int, int] = {}
        for follower in self._running.values():
            if follower.leader is not None:
                leader = follower.leader.id
                stops[leader] = min(follower.shared, stops.get(leader, follower.shared))
        if not stops:
            return needs
        ends = [stops.get(sequence.id, sequence.goal) - sequence.computed for sequence in prefilling]
        return [min(need, end) for need, end in zip(needs, ends, strict=True)]


def _chunk(sequence: Sequence, count: int, guesses: tuple[int, ...] = ()) -> Chunk:
    if sequence.slot is None:
        raise AssertionError(f"sequence {sequence.id} runs without a slot")
    return Chunk(
        sequence.id,
        sequence.slot,
        sequence.computed,
        sequence.next_tokens(count) + guesses,
        samples=count == sequence.pending and not sequence.is_full,
        drafts=len(guesses),
        scores=sequence.prompt_logprobs,
    )
