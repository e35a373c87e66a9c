"""Who stays in memory. Pure: plain data in, plain data out; no clock, no process, no log."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Resident:
    """A model that holds memory. `bytes`: what it takes; `last_use`: seconds on any steady clock;
    `keep_alive`: seconds of idleness after which it goes, math.inf = never; `stale`: no YAML wants it any more."""

    key: str
    bytes: int
    busy: bool
    pinned: bool
    last_use: float
    keep_alive: float
    stale: bool = False


@dataclass(frozen=True)
class Fits:
    """There is room once `evict` are gone, in this order; often nobody has to go."""

    evict: tuple[str, ...] = ()


@dataclass(frozen=True)
class Wait:
    """There will be room when some of `busy` have become idle."""

    busy: tuple[str, ...]


@dataclass(frozen=True)
class Impossible:
    """Not even with everything evictable gone. `most` = the bytes that could be had."""

    most: int


def is_evictable(resident: Resident) -> bool:
    """Nobody uses it, and nobody wants it kept."""
    return not resident.busy and (resident.stale or not resident.pinned)


def make_room(need: int, free: int, residents: Sequence[Resident]) -> Fits | Wait | Impossible:
    """Whom to evict so that `need` bytes are free: stale models first, then the least recently used, nobody in vain.
    Never a busy or pinned one."""
    if need <= free:
        return Fits()
    idle = sorted((resident for resident in residents if is_evictable(resident)), key=_order)
    chosen: list[Resident] = []
    for resident in idle:
        if free + _total(chosen) >= need:
            break
        chosen.append(resident)
    if free + _total(chosen) >= need:
        return Fits(tuple(resident.key for resident in _spare(need - free, chosen)))
    busy = [r for r in residents if r.busy and not r.pinned]
    most = free + _total(idle) + _total(busy)
    if most >= need:
        return Wait(tuple(resident.key for resident in busy))
    return Impossible(most)


def expired(residents: Sequence[Resident], now: float) -> tuple[str, ...]:
    """Idle models whose time is up, and idle ones that no YAML wants."""
    return tuple(r.key for r in residents if not r.busy and (r.stale or ((due := _due(r)) is not None and due <= now)))


def next_expiry(residents: Sequence[Resident]) -> float | None:
    """When the next idle model's time is up; None = not by itself."""
    return min((due for r in residents if not r.busy and (due := _due(r)) is not None), default=None)


def _due(resident: Resident) -> float | None:
    if resident.pinned or resident.keep_alive == math.inf:
        return None
    return resident.last_use + resident.keep_alive


def _order(resident: Resident) -> tuple[bool, float]:
    return (not resident.stale, resident.last_use)


def _total(residents: Sequence[Resident]) -> int:
    return sum(resident.bytes for resident in residents)


def _spare(missing: int, chosen: list[Resident]) -> list[Resident]:
    """Without those that turned out not to be needed, the most recently used spared first."""
    kept = list(chosen)
    for resident in reversed(chosen):
        if _total(kept) - resident.bytes >= missing:
            kept.remove(resident)
    return kept
