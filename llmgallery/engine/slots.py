"""Places in the KV cache: each holds one sequence at a time."""

from __future__ import annotations

import heapq


class SlotTable:
    """Slots 0 to `count` - 1, the lowest free one first."""

    def __init__(self, count: int) -> None:
        self.count = count
        self._free = list(range(count))

    @property
    def num_free(self) -> int:
        return len(self._free)

    def can_claim(self) -> bool:
        return bool(self._free)

    def claim(self) -> int:
        """A free slot, which is then taken. Only when can_claim()."""
        return heapq.heappop(self._free)

    def free(self, slot: int) -> None:
        """The slot may be claimed again."""
        if slot in self._free or not 0 <= slot < self.count:
            raise AssertionError(f"slot {slot} is not taken")
        heapq.heappush(self._free, slot)
