"""Who stays in memory, as tables and as properties."""

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from llmgallery.runtime.policy import Fits, Impossible, Resident, Wait, expired, make_room, next_expiry


def resident(key: str, size: int, *, busy=False, pinned=False, used=0.0, keep_alive=math.inf, stale=False) -> Resident:
    return Resident(key, size, busy, pinned, used, keep_alive, stale)


CASES = {
    "room enough": (5, 5, [resident("a", 9)], Fits()),
    "the least recently used goes": (5, 0, [resident("a", 5, used=2), resident("b", 5, used=1)], Fits(("b",))),
    "as many as needed": (9, 0, [resident("a", 5, used=2), resident("b", 5, used=1)], Fits(("b", "a"))),
    "nobody goes in vain": (8, 0, [resident("a", 1, used=1), resident("b", 8, used=2)], Fits(("b",))),
    "stale ones first": (5, 0, [resident("a", 5, used=1), resident("b", 5, used=9, stale=True)], Fits(("b",))),
    "pinned stays": (5, 0, [resident("a", 5, pinned=True), resident("b", 5)], Fits(("b",))),
    "a pinned one that nobody wants goes": (5, 0, [resident("a", 5, pinned=True, stale=True)], Fits(("a",))),
    "busy ones are waited for": (5, 0, [resident("a", 5, busy=True)], Wait(("a",))),
    "idle and busy together": (9, 0, [resident("a", 5, busy=True), resident("b", 4)], Wait(("a",))),
    "pinned never makes room": (5, 1, [resident("a", 5, pinned=True), resident("b", 2)], Impossible(3)),
    "busy and pinned never does": (5, 0, [resident("a", 5, busy=True, pinned=True)], Impossible(0)),
    "an empty house is too small": (5, 4, [], Impossible(4)),
    "debt counts": (5, -3, [resident("a", 8)], Fits(("a",))),
}


@pytest.mark.parametrize(("need", "free", "residents", "expected"), CASES.values(), ids=CASES.keys())
def test_make_room(need, free, residents, expected) -> None:
    assert make_room(need, free, residents) == expected


RESIDENTS = st.lists(
    st.builds(
        Resident,
        key=st.uuids().map(str),
        bytes=st.integers(0, 100),
        busy=st.booleans(),
        pinned=st.booleans(),
        last_use=st.floats(0, 100),
        keep_alive=st.just(math.inf) | st.floats(0, 50),
        stale=st.booleans(),
    ),
    max_size=8,
)


@given(st.integers(0, 300), st.integers(-50, 100), RESIDENTS)
def test_a_plan_makes_room_with_nobody_harmed(need: int, free: int, residents: list[Resident]) -> None:
    by_key = {r.key: r for r in residents}
    plan = make_room(need, free, residents)
    if isinstance(plan, Fits):
        gone = [by_key[key] for key in plan.evict]
        assert free + sum(r.bytes for r in gone) >= need
        assert not any(r.busy or (r.pinned and not r.stale) for r in gone)
        for spared in gone:
            assert free + sum(r.bytes for r in gone) - spared.bytes < need
    elif isinstance(plan, Wait):
        assert plan.busy
        assert all(by_key[key].busy for key in plan.busy)
    else:
        assert plan.most < need


@given(RESIDENTS, st.floats(0, 200))
def test_expiry_takes_idle_models_whose_time_is_up(residents: list[Resident], now: float) -> None:
    gone = set(expired(residents, now))
    for r in residents:
        due = r.keep_alive < math.inf and not r.pinned and r.last_use + r.keep_alive <= now
        assert (r.key in gone) == (not r.busy and (r.stale or due))


def test_next_expiry_is_the_earliest() -> None:
    waiting = [resident("a", 1, used=5, keep_alive=10), resident("b", 1, used=1, keep_alive=20), resident("c", 1)]
    assert next_expiry(waiting) == 15
    assert next_expiry([resident("c", 1), resident("p", 1, pinned=True, keep_alive=1)]) is None
