"""Prefixes in the cache: what is found, where a sequence goes for it, and how many tokens are computed in the end."""

from __future__ import annotations

import pytest
from batching import Watched
from caching_runner import CachingRunner, alone
from hypothesis import given
from hypothesis import strategies as st

from llmgallery.core.sampling import Sampling
from llmgallery.engine.prefixes import Placement, Reuse, common
from llmgallery.engine.sequence import Sequence
from llmgallery.engine.slots import SlotTable

PREFIX = [2 + token % 20 for token in range(2000)]


def prompts(count: int, shared: int = 2000, own: int = 5) -> list[list[int]]:
    return [[*PREFIX[:shared], *[2 + id] * own] for id in range(count)]


@given(st.lists(st.integers(0, 3), max_size=300), st.integers(0, 400), st.lists(st.integers(0, 3), max_size=5))
def test_common_is_the_first_difference(tokens, cut, rest):
    one, other = tuple(tokens), (*tokens[:cut], *rest)
    slow = next((place for place, pair in enumerate(zip(one, other, strict=False)) if pair[0] != pair[1]), None)
    assert common(one, other) == common(other, one) == (min(len(one), len(other)) if slow is None else slow)


def table(*held: int | None) -> SlotTable:
    """Slots that hold so many tokens of PREFIX, the first used longest ago; None: it is in use by somebody else."""
    slots = SlotTable(len(held))
    for index, length in enumerate(held):
        slots.claim(index, Sequence(1000 + index, (1,), 1, Sampling()))
        if length is not None:
            slots.free(index, tuple(PREFIX[:length]))
    return slots


@pytest.mark.parametrize(
    ("held", "slot"),
    [
        ([0, 0, 0], 0),
        ([500, 0, 0], 1),
        ([500, 400, 300], 0),
        ([500, 20, 0], 1),
        ([0, 0, None, 0], 1),
        ([None, 0, 0, None, 0], 1),
        ([0, 0, 0, 0, None], 3),
        ([500, 0, 0, None], 2),
        ([500, 500, None, 500, 500], 1),  # of the old ones a neighbour
        ([500, 500, 500, None], 0),  # not the newest, though it is one
        ([None, 500, 500, 500, 500, None], 1),
        ([500, 400], 0),
    ],
)
def test_the_spare_slot_is_empty_or_the_oldest_and_near_the_others(held, slot):
    assert table(*held).spare().index == slot


def fresh(shared: int, own: int = 10, id: int = 1) -> Sequence:
    return Sequence(id, (*PREFIX[:shared], *[1] * own), 4, Sampling())


@pytest.mark.parametrize(
    ("held", "shared", "own", "cost", "placement"),
    [
        # In place: all of it, or all but a short tail, or when it would be overwritten anyway.
        ([0, 300], 300, 10, 64, Placement(1, 300, None, 300)),
        ([0, 300], 260, 10, 64, Placement(1, 260, None, 300)),
        ([300], 100, 10, 64, Placement(0, 100, None, 300)),
        ([0, 300], 300, 0, 64, Placement(1, 299, None, 300)),
        # A copy, when it is worth it.
        ([0, 900], 300, 10, 64, Placement(0, 300, 1, 0)),
        ([0, 900], 60, 10, 64, Placement(0, 0, None, 0)),
        ([0, 900], 60, 10, 0, Placement(0, 60, 1, 0)),
        ([0, 900, 120], 300, 10, 64, Placement(0, 300, 1, 0)),
        ([0, 900, 290], 300, 10, 64, Placement(2, 290, None, 290)),
        # The oldest makes room for it.
        ([700, 900], 300, 10, 64, Placement(0, 300, None, 700)),
        ([0], 300, 10, 64, Placement(0)),
    ],
)
def test_where_a_sequence_begins(held, shared, own, cost, placement):
    assert Reuse(True, cost).place(fresh(shared, own), table(*held)) == placement


@pytest.mark.parametrize(
    ("held", "shared", "placement"),
    [
        ([0, 300], 300, Placement(1, 300, None, 300)),
        ([0, 301], 300, Placement(0, 0, None, 0)),
        ([301], 300, Placement(0, 0, None, 301)),
    ],
)
def test_a_model_that_cannot_truncate_takes_whole_caches_only(held, shared, placement):
    assert Reuse(False, 0).place(fresh(shared), table(*held)) == placement


def test_a_prompt_to_be_scored_is_computed_whole():
    sequence = fresh(300)
    sequence.prompt_logprobs = True
    assert Reuse(True, 0).place(sequence, table(0, 300)) == Placement(0)


@pytest.mark.parametrize(("can_truncate", "late"), [(True, 0), (True, 1), (True, 20), (False, 0), (False, 1)])
def test_a_prefix_of_concurrent_requests_is_computed_once(can_truncate, late):
    """However late the others come while the first computes, also after a part of its own."""
    runner = CachingRunner(8, can_truncate=can_truncate, copy_cost=64)
    watched = Watched(runner, budget=128)
    asked = prompts(8)
    watched.add(0, asked[0], 1)
    watched.step(late)
    for id in range(1, 8):
        watched.add(id, asked[id], 1)
    watched.run()
    assert runner.num_computed == 2000 + 8 * 5
    assert [watched.cached(id) for id in range(8)] == [0, *[2000] * 7]
    assert [watched.tokens(id) for id in range(8)] == [[token for token in alone(prompt, 1)[0] if token] for prompt in asked]


def test_those_who_share_get_their_first_token_in_one_step():
    runner = CachingRunner(8, copy_cost=64)
    watched = Watched(runner, budget=512)
    for id, prompt in enumerate(prompts(8)):
        watched.add(id, prompt, 3)
    watched.step(4)
    assert not any(watched.outputs.values())
    watched.step()
    assert all(watched.outputs.values())


@pytest.mark.parametrize("can_truncate", [True, False])
def test_answers_to_one_prompt_share_it_however_short(can_truncate):
    runner = CachingRunner(4, can_truncate=can_truncate, copy_cost=64 if can_truncate else 4)
    watched = Watched(runner, budget=128)
    for id in range(4):
        watched.add(id, PREFIX[:10], 1)
    watched.run()
    assert runner.num_computed == 9 + 4
    assert [watched.cached(id) for id in range(4)] == [0, 9, 9, 9]


def test_more_answers_than_slots_share_too():
    runner = CachingRunner(2, copy_cost=64)
    watched = Watched(runner, budget=128)
    for id in range(6):
        watched.add(id, PREFIX[:10], 1)
    watched.run()
    assert runner.num_computed == 9 + 6


def test_nested_prefixes_are_each_computed_once():
    runner = CachingRunner(4, copy_cost=16)
    watched = Watched(runner, budget=64)
    watched.add(0, [*PREFIX[:500], 2], 1)
    watched.add(1, [*PREFIX[:500], *[3] * 200, 4], 1)
    watched.add(2, [*PREFIX[:500], *[3] * 200, 5], 1)
    watched.run()
    assert runner.num_computed == 500 + 200 + 3
    assert [watched.cached(id) for id in range(3)] == [0, 500, 700]


@pytest.mark.parametrize("can_truncate", [True, False])
def test_when_the_leader_leaves_another_leads(can_truncate):
    runner = CachingRunner(4, can_truncate=can_truncate, copy_cost=16)
    watched = Watched(runner, budget=100)
    for id, prompt in enumerate(prompts(4)):
        watched.add(id, prompt, 1)
    watched.step(5)
    watched.cancel(0)
    watched.run()
    assert watched.finish(0) == "cancelled" and all(watched.finish(id) in ("stop", "length") for id in (1, 2, 3))
    assert runner.num_computed == 2000 + 3 * 5
    assert watched.cached(1) == 500 and watched.cached(2) == watched.cached(3) == 2000


def test_a_copy_that_fails_costs_only_time():
    runner = CachingRunner(2, copy_cost=16, refuses=frozenset({1}))
    watched = Watched(runner, budget=1000)
    for id, prompt in enumerate(prompts(2)):
        watched.add(id, prompt, 1)
    watched.run()
    assert runner.num_computed == 2 * 2005 and watched.cached(1) == 0


@pytest.mark.parametrize("can_truncate", [True, False])
def test_the_next_turn_of_a_chat_computes_what_is_new(can_truncate):
    runner = CachingRunner(4, can_truncate=can_truncate, copy_cost=64)
    watched = Watched(runner, budget=128)
    prompt = PREFIX[:100]
    watched.add(0, prompt, 8)
    watched.run()
    said = alone(prompt, 8)[0]
    before = runner.num_computed
    watched.add(1, [*prompt, *said, 5, 6], 1)
    watched.run()
    # The last token was never computed: nothing followed it.
    assert runner.num_computed - before == 3 and watched.cached(1) == 100 + len(said) - 1
    assert runner.copies == []


def test_idle_prefixes_go_least_recently_used_first():
    runner = CachingRunner(2, copy_cost=10)
    watched = Watched(runner, budget=512)
    chats = [[2 + id] * 200 for id in range(3)]
    for turn, chat in enumerate([0, 1, 0, 2, 0, 1]):
        watched.add(turn, [*chats[chat], 3, 4], 1)
        watched.run()
    assert [watched.cached(turn) > 100 for turn in range(6)] == [False, False, True, False, True, False]


def test_a_cancelled_prefill_frees_its_slot_and_leaves_its_tokens():
    runner = CachingRunner(1, copy_cost=10)
    watched = Watched(runner, budget=100)
    watched.add(0, PREFIX, 1)
    watched.add(1, [*PREFIX[:600], 9, 9], 1)
    watched.step(4)
    assert watched.scheduler.slots.num_free == 0
    watched.cancel(0)
    assert watched.scheduler.slots.num_free == 1
    watched.step()
    assert watched.scheduler.running.keys() == {1}
    watched.run()
    assert runner.num_computed == 602 and watched.cached(1) == 400


@pytest.mark.parametrize("can_truncate", [True, False])
def test_a_shorter_prefix_comes_from_the_first_who_has_it(can_truncate):
    """Not from one who waits himself, and will then have more of it at once than can be cut."""
    runner = CachingRunner(4, can_truncate=can_truncate, copy_cost=16)
    watched = Watched(runner, budget=64)
    watched.add(0, [*PREFIX[:700], 2], 1)
    watched.add(1, [*PREFIX[:700], 3], 1)
    watched.add(2, [*PREFIX[:500], 1, 4], 1)
    watched.run()
    assert runner.num_computed == 700 + 1 + 1 + 2
    assert [watched.cached(id) for id in range(3)] == [0, 700, 500]
