"""The scheduler alone: who gets a slot, and what a step computes."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from llmgallery.core.sampling import Sampling
from llmgallery.engine.plan import Plan, Sampled
from llmgallery.engine.scheduler import LEAST, Scheduler, share
from llmgallery.engine.sequence import Sequence


def sequence(id: int, prompt: int = 3, limit: int = 4) -> Sequence:
    return Sequence(id, tuple(range(prompt)), limit, Sampling())


def admit(scheduler: Scheduler) -> list[Sequence]:
    """Everybody who can get a slot; a prefix is never kept."""
    admitted = []
    while (found := scheduler.next()) is not None:
        scheduler.settle(found, replace(scheduler.admit(), leader=None), 0)
        admitted.append(found)
    return admitted


def run_step(scheduler: Scheduler, token: int = 7) -> Plan:
    """Admit, plan, compute, sample; nobody finishes."""
    admit(scheduler)
    plan = scheduler.plan()
    scheduler.advance(plan, {chunk.id: Sampled((token,)) for chunk in plan.chunks})
    for chunk in plan.chunks:
        found = scheduler.find(chunk.id)
        assert found is not None
        if chunk.samples:
            found.generated.append(token)
    return plan


@pytest.mark.parametrize(
    ("total", "needs", "given_"),
    [
        (10, [], []),
        (10, [3], [3]),
        (10, [100], [10]),
        (10, [100, 100], [5, 5]),
        (10, [2, 100], [2, 8]),
        (10, [100, 2], [8, 2]),
        (10, [100, 100, 100], [4, 3, 3]),
        (9, [1, 4, 100], [1, 4, 4]),
        (3, [5, 5, 5], [1, 1, 1]),
        (100, [1, 2, 3], [1, 2, 3]),
    ],
)
def test_share(total, needs, given_):
    assert share(total, needs) == given_


@given(st.integers(0, 1000), st.lists(st.integers(1, 300), max_size=12))
def test_share_is_fair(total, needs):
    parts = share(total, needs)
    assert sum(parts) == min(total, sum(needs))
    assert all(0 <= part <= need for part, need in zip(parts, needs, strict=True))
    # Whoever got less than he needs got no less than anybody else, rounding aside.
    hungry = [part for part, need in zip(parts, needs, strict=True) if part < need]
    assert not hungry or max(parts) - min(hungry) <= 1
    if total >= len(needs):
        assert all(parts)


def test_first_come_first_served():
    scheduler = Scheduler(slots=2, budget=64)
    waiting = [sequence(id) for id in range(5)]
    for item in waiting:
        scheduler.add(item)
    assert [item.id for item in admit(scheduler)] == [0, 1]
    assert scheduler.num_waiting == 3 and admit(scheduler) == []
    scheduler.finish(waiting[1])
    assert [item.id for item in admit(scheduler)] == [2]
    assert waiting[2].slot == 1


def test_a_prompt_is_computed_in_chunks_and_sampled_once():
    scheduler = Scheduler(slots=1, budget=4)
    scheduler.add(sequence(1, prompt=10))
    plans = [run_step(scheduler) for _ in range(5)]
    chunks = [plan.chunks[0] for plan in plans]
    assert [(chunk.position, chunk.tokens) for chunk in chunks] == [
        (0, (0, 1, 2, 3)),
        (4, (4, 5, 6, 7)),
        (8, (8, 9)),
        (10, (7,)),
        (11, (7,)),
    ]
    assert [chunk.samples for chunk in chunks] == [False, False, True, True, True]


def test_a_long_prompt_stalls_neither_streams_nor_short_prompts():
    scheduler = Scheduler(slots=4, budget=16)
    scheduler.add(sequence(1))
    run_step(scheduler)
    scheduler.pace.measured(1, 0, 1.0)
    scheduler.add(sequence(2, prompt=1000))
    scheduler.add(sequence(3, prompt=5))
    plan = run_step(scheduler)
    assert {chunk.id: (len(chunk.tokens), chunk.samples) for chunk in plan.chunks} == {
        1: (1, True),
        2: (10, False),
        3: (5, True),
    }
    assert (plan.streams, plan.prefill) == (1, 15)
    scheduler.pace.measured(2, 0, 1.0)
    plan = run_step(scheduler)
    assert {chunk.id: len(chunk.tokens) for chunk in plan.chunks} == {1: 1, 3: 1, 2: 14}


def test_the_pace_limits_prompts_beside_streams_only():
    scheduler = Scheduler(slots=4, budget=512, slowdown=2.5)
    scheduler.add(sequence(1, prompt=300))
    assert run_step(scheduler).num_tokens == 300
    scheduler.add(sequence(2, prompt=1000))
    assert run_step(scheduler).prefill == 0, "what a step without prompts takes is measured first"
    scheduler.pace.measured(1, 0, 1.0)
    for count in (8, 16, 32):
        scheduler.pace.measured(1, count, 1.0 + 0.1 * count)
    assert run_step(scheduler).prefill == 12


def test_what_is_forced_goes_into_one_chunk_and_leaves_prompts_their_share():
    scheduler = Scheduler(slots=2, budget=16)
    first = sequence(1, limit=100)
    scheduler.add(first)
    run_step(scheduler)
    first.generated += [3] * 29
    scheduler.add(sequence(2, prompt=100))
    scheduler.pace.measured(1, 0, 1.0)
    assert [(len(chunk.tokens), chunk.samples) for chunk in run_step(scheduler).chunks] == [(16 - LEAST, False), (LEAST, False)]
    scheduler.finish(scheduler.running[2])
    assert [(len(chunk.tokens), chunk.samples) for chunk in run_step(scheduler).chunks] == [(16, False)]
    assert [(len(chunk.tokens), chunk.samples) for chunk in run_step(scheduler).chunks] == [(2, True)]


def test_guesses_follow_the_last_token_and_count_when_met():
    scheduler = Scheduler(slots=2, budget=16)
    first = sequence(1, limit=100)
    scheduler.add(first)
    run_step(scheduler)
    assert scheduler.room_for_drafts() == 15
    plan = scheduler.plan({1: (8, 9, 10)})
    assert [(chunk.position, chunk.tokens, chunk.drafts, chunk.samples) for chunk in plan.chunks] == [(3, (7, 8, 9, 10), 3, True)]
    scheduler.advance(plan, {1: Sampled((8, 9, 1))})
    assert first.computed == 6


def test_who_had_to_go_comes_back_first_when_there_is_room_again():
    scheduler = Scheduler(slots=3, budget=64)
    for id in range(4):
        scheduler.add(sequence(id, prompt=20))
    run_step(scheduler)
    plan = scheduler.plan()
    assert scheduler.preempt(plan) == 2
    assert admit(scheduler) == [] and scheduler.num_waiting == 2
    scheduler.finish(scheduler.running[0])
    assert [item.id for item in admit(scheduler)] == [2], "all four would be too many again"
    assert scheduler.running.keys() == {1, 2}
    scheduler.finish(scheduler.running[2])
    assert scheduler.preempt(plan) is None
    scheduler.finish(scheduler.running[1])
    assert [item.id for item in admit(scheduler)] == [3], "alone anybody may come"


def test_the_budget_is_at_least_one_token_a_slot():
    scheduler = Scheduler(slots=4, budget=1)
    for id in range(4):
        scheduler.add(sequence(id, prompt=2))
    assert run_step(scheduler).num_tokens == 4


def test_waiting_sequences_can_be_withdrawn():
    scheduler = Scheduler(slots=1, budget=8)
    first, second = sequence(1), sequence(2)
    scheduler.add(first)
    scheduler.add(second)
    admit(scheduler)
    scheduler.finish(second)
    assert scheduler.find(2) is None and scheduler.num_waiting == 0
    scheduler.finish(first)
    assert not scheduler.has_work()


def check(plan: Plan, scheduler: Scheduler) -> None:
    running = scheduler.running
    assert plan.num_tokens <= scheduler.budget
    assert {chunk.id for chunk in plan.chunks} == running.keys(), "everybody who runs goes on"
    slots = [item.slot for item in running.values()]
    assert len(set(slots)) == len(slots) and all(slot is not None and slot < scheduler.slots.count for slot in slots)
    for chunk in plan.chunks:
        item = running[chunk.id]
        assert chunk.slot == item.slot and chunk.position == item.computed and chunk.tokens
        assert (*item.prompt, *item.generated)[chunk.position :][: len(chunk.tokens)] == chunk.tokens
        assert chunk.samples == (chunk.position + len(chunk.tokens) == len(item.prompt) + len(item.generated))
        if item.is_decoding:
            assert len(chunk.tokens) == 1 and chunk.samples


JOBS = st.lists(st.tuples(st.integers(1, 60), st.integers(1, 8), st.integers(0, 30)), min_size=1, max_size=20)


@given(jobs=JOBS, slots=st.integers(1, 5), budget=st.integers(1, 32), withdrawn=st.sets(st.integers(0, 19), max_size=5))
def test_everybody_finishes_once_in_order(jobs, slots, budget, withdrawn):
    """Jobs of (prompt, limit, step of arrival); those of `withdrawn` are taken back two steps after they came."""
    scheduler = Scheduler(slots, budget)
    for count in range(1, slots + 1):
        scheduler.pace.measured(count, 0, 1.0)
    made = {id: sequence(id, prompt, limit) for id, (prompt, limit, _) in enumerate(jobs)}
    arrivals = sorted(made, key=lambda id: jobs[id][2])
    admitted: list[int] = []
    finished: list[int] = []
    for step in range(2000):
        for id in arrivals:
            if jobs[id][2] == step:
                scheduler.add(made[id])
            elif jobs[id][2] == step - 2 and id in withdrawn and scheduler.find(id):
                scheduler.finish(made[id])
                finished.append(id)
        admitted += [item.id for item in admit(scheduler)]
        plan = scheduler.plan()
        check(plan, scheduler)
        scheduler.advance(plan, {})
        for chunk in plan.chunks:
            if chunk.samples:
                made[chunk.id].generated.append(step)
                if made[chunk.id].is_full:
                    scheduler.finish(made[chunk.id])
                    finished.append(chunk.id)
        if step > 32 and not scheduler.has_work():
            break
    assert sorted(finished) == sorted(made)
    assert admitted == [id for id in arrivals if id in admitted]
    assert scheduler.slots.num_free == slots
    for id in set(made) - withdrawn:
        assert len(made[id].generated) == jobs[id][1]
