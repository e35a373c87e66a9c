"""How many tokens of prompts a step may take beside running streams: learned from what steps have cost. Knows no clock."""

from __future__ import annotations

SLOWDOWN = 2.8
AIM = 0.9
"""The target stays this far below what is allowed: costs scatter."""
NEARLY = 1.1
"""As much more than the quickest step is as good as the quickest."""
START = 32
SMALLEST, LARGEST = 2, 20
PROBE_EVERY = 32
PROBE_REACH = 3
STALE_CLASS = 256
HOPELESS = 3
STALE_BASE = 256


class Pace:
    """A step with prompts shall take at most `slowdown` times a step without, of the same number of streams; longer in proportion
    when more prompts wait than answers stream, since who waits for his first token counts as much as who waits for his next.

    The cost of a prompt's token depends on how many there are, and not smoothly (on a CPU with 4 streams: 16 tokens more
    284 ms, 32 493 ms, but 64 242 ms, as another kernel is used): it is learned for each power of two, from the step times,
    and larger chunks than fit are tried now and then.
    """

    def __init__(self, slowdown: float = SLOWDOWN) -> None:
        self.slowdown = slowdown
        self._bases: dict[int, float] = {}
        self._ages: dict[int, int] = {}
        self._costs: dict[int, float] = {}
        self._seen: dict[int, int] = {}
        self._alone: dict[int, float] = {}
        self._mixed = 0

    def allowance(self, decoding: int, waiting: int = 1) -> int | None:
        """Tokens of so many prompts beside so many streams; 0 = measure a step without them first. None = any number (no
        streams)."""
        if not decoding:
            return None
        base = self._bases.get(decoding)
        if base is None or self._ages[decoding] >= STALE_BASE:
            return 0
        if not (self._costs or self._alone):
            return START
        spare = base * max(0.0, AIM * self.slowdown * max(1.0, waiting / decoding) - 1)
        chosen = self._largest(spare) or self._largest(NEARLY * self._unavoidable()) or 1 << SMALLEST
        return self._probe(chosen, spare) or chosen

    def measured(self, decoding: int, prefill: int, seconds: float) -> None:
        """A step of so many streams and so many tokens of prompts has taken so long."""
        if not decoding:
            if prefill:
                _learn(self._alone, _class(prefill), seconds / prefill, 0.3, 0.3)
            return
        if not prefill:
            # What is slow once must not allow long steps for long.
            _learn(self._bases, decoding, seconds, 0.15, 0.3)
            self._ages[decoding] = 0
            return
        if decoding not in self._bases:
            return
        self._mixed += 1
        self._ages[decoding] += 1
        kind = _class(prefill)
        _learn(self._costs, kind, max(seconds - self._bases[decoding], 0.0) / prefill, 0.3, 0.3)
        self._seen[kind] = self._mixed

    def _largest(self, spare: float) -> int:
        """Most tokens that can be computed in the time; 0 = not even the smallest chunk."""
        return next((size for kind in range(LARGEST, SMALLEST - 1, -1) if (size := self._fitting(kind, spare))), 0)

    def _unavoidable(self) -> float:
        """What the quickest chunk costs; not always the smallest one."""
        known = [cost * (1 << kind) for kind, cost in self._costs.items()]
        return min([self._cost(SMALLEST) * (1 << SMALLEST), *known])

    def _fitting(self, kind: int, spare: float) -> int:
        """Most tokens of this class that can be computed in the time; 0 = none."""
        cost = self._cost(kind)
        most = (2 << kind) - 1
        count = most if cost <= 0 else min(most, int(spare / cost))
        return count if count >= 1 << kind else 0

    def _cost(self, kind: int) -> float:
        """Of one token of a chunk of this class. Of a class never seen beside streams: what it was without them, or else what
        the nearest smaller one is, or else the nearest larger."""
        known = self._costs if kind in self._costs else {**self._alone, **self._costs}
        nearest = min(known, key=lambda other: abs(other - kind) + (LARGEST if other > kind else 0))
        return known[nearest]

    def _probe(self, chosen: int, spare: float) -> int:
        """A larger chunk than seems to fit, now and then: the next that nobody knows yet, or not lately, and that is not
        hopeless, even if its tokens cost as little as any did."""
        if self._mixed % PROBE_EVERY != PROBE_EVERY - 1:
            return 0
        cheapest = min([*self._costs.values(), *self._alone.values()])
        for kind in range(_class(chosen) + 1, min(_class(chosen) + PROBE_REACH, LARGEST) + 1):
            last = self._seen.get(kind)
            cost = cheapest if last is None else self._costs[kind]
            if (last is None or self._mixed - last >= STALE_CLASS) and cost * (1 << kind) <= HOPELESS * spare:
                return 1 << kind
        return 0


def _class(count: int) -> int:
    """The power of two below."""
    return min(LARGEST, max(SMALLEST, count.bit_length() - 1))


def _learn(known: dict[int, float], key: int, value: float, up: float, down: float) -> None:
    """A moving average; one outlier counts as twice what was known at most."""
    old = known.get(key)
    if old is None:
        known[key] = value
        return
    value = min(value, 2 * old) if old > 0 else value
    known[key] = old + (up if value > old else down) * (value - old)
