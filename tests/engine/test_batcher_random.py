"""Thousands of random arrivals, cancels, lengths and shared beginnings: nothing leaks, nothing is lost, all is as if alone."""

from __future__ import annotations

import itertools
import random
from dataclasses import dataclass
from typing import Any

import pytest
from batching import Watched
from caching_runner import CachingRunner, Steering, alone, text_of
from hypothesis import given, settings
from hypothesis import strategies as st

from llmgallery.core.errors import GalleryError
from llmgallery.engine.plan import Plan

TRUNK = tuple(range(2, 22)) * 3
BRANCHES = (TRUNK, TRUNK[:17] + TRUNK[5:], tuple(reversed(TRUNK)))


@dataclass(frozen=True)
class Asked:
    """A job: a beginning that others have too, an end of its own; `wait`: steps before it comes; `stay`: steps before it is
    cancelled."""

    branch: int
    length: int
    rest: tuple[int, ...]
    limit: int
    wait: int
    stay: int | None
    steering: int
    logprobs: bool
    scored: bool

    @property
    def prompt(self) -> tuple[int, ...]:
        return BRANCHES[self.branch][: self.length] + self.rest

    def constraint(self) -> Steering | None:
        table = [None, Steering(7, (0, 1, 4)), Steering(3, (1,), end_at=9), Steering(50, range(3, 40))]
        return table[self.steering]


ASKED = st.builds(
    Asked,
    st.integers(0, len(BRANCHES) - 1),
    st.integers(1, 60),
    st.lists(st.integers(2, 21), max_size=5).map(tuple),
    st.integers(0, 14),
    st.sampled_from([0, 0, 0, 1, 3]),
    st.sampled_from([*[None] * 20, 0, 1, 2, 5, 9]),
    st.sampled_from([0, 0, 0, 1, 2, 3]),
    st.booleans(),
    st.sampled_from([False, False, False, True]),
)
RUNNERS = st.fixed_dictionaries(
    {
        "slots": st.integers(1, 6),
        "can_truncate": st.booleans(),
        "copy_cost": st.sampled_from([0, 4, 12]),
        "guesses": st.sampled_from([0, 0, 3, 8]),
        "refuses": st.frozensets(st.integers(1, 20), max_size=3),
        "room": st.sampled_from([None, None, 80, 150, 300]),
    }
)


@settings(max_examples=300, deadline=None)
@given(
    jobs=st.lists(ASKED, min_size=1, max_size=25),
    shape=RUNNERS,
    budget=st.sampled_from([1, 7, 16, 64]),
    troubles=st.dictionaries(st.integers(0, 60), st.sampled_from(["interrupted", "failed"]), max_size=3),
)
def test_every_answer_is_as_if_alone(jobs, shape, budget, troubles):
    drive(jobs, shape, budget, troubles)


@pytest.mark.parametrize("seed", range(12))
def test_hundreds_of_jobs_under_load(seed):
    dice = random.Random(seed)
    jobs = [
        Asked(
            branch=dice.randrange(len(BRANCHES)),
            length=dice.choice([3, 20, 40, 60]),
            rest=tuple(dice.choices(range(2, 22), k=dice.randrange(6))),
            limit=dice.randrange(20),
            wait=dice.choice([0, 0, 1, 2]),
            stay=dice.choice([*[None] * 9, dice.randrange(12)]),
            steering=dice.choice([0, 0, 0, 0, 1, 2, 3]),
            logprobs=dice.random() < 0.2,
            scored=dice.random() < 0.05,
        )
        for _ in range(250)
    ]
    shape = {
        "slots": dice.randrange(2, 9),
        "can_truncate": seed % 3 != 0,
        "copy_cost": dice.choice([0, 8, 24]),
        "guesses": [0, 0, 4][seed % 3],
        "refuses": frozenset(dice.sample(range(200), 10)) if seed % 2 else frozenset(),
        "room": dice.choice([120, 240]) if seed % 4 > 1 else None,
    }
    drive(jobs, shape, dice.choice([9, 32]), {})


def drive(jobs: list[Asked], shape: dict[str, Any], budget: int, troubles: dict[int, str]) -> None:
    runner = CachingRunner(**shape)
    watched = Watched(runner, budget=budget)
    failed: set[int] = set()
    decodes = itertools.count(1)

    def trouble(plan: Plan) -> bool:
        kind = troubles.get(next(decodes))
        if kind == "failed":
            failed.update(chunk.id for chunk in plan.chunks)
            raise GalleryError("no luck")
        return kind is None

    runner.on_decode = trouble
    leaving: dict[int, int] = {}
    step = 0

    def tick() -> None:
        nonlocal step
        for id in [id for id, due in leaving.items() if due <= step]:
            watched.cancel(id)
            del leaving[id]
        watched.step()
        step += 1

    for id, asked in enumerate(jobs):
        for _ in range(asked.wait):
            tick()
        if asked.stay is not None:
            leaving[id] = step + asked.stay
        constraint, logprobs = asked.constraint(), 0 if asked.logprobs else None
        watched.add(id, asked.prompt, asked.limit, logprobs=logprobs, prompt_logprobs=asked.scored, constraint=constraint)
    while leaving:
        tick()
    watched.run()
    assert sorted(runner.ended) == sorted(runner.begun), "everybody who began has ended"
    assert runner.begun == sorted(runner.begun), "first come, first served"
    for id, asked in enumerate(jobs):
        check(watched, id, asked, failed, shape["room"])


def check(watched: Watched, id: int, asked: Asked, failed: set[int], room: int | None) -> None:
    finishes = [output.finish for output in watched.outputs[id] if output.finish]
    said, finish = alone(asked.prompt, asked.limit, asked.constraint())
    told = [token for token in said if token]
    assert len(finishes) == 1
    last = watched.last(id)
    if finishes == ["error"]:
        assert id in failed or (room is not None and len(asked.prompt) + asked.limit > room and "context_size" in last.message)
    elif finishes == ["cancelled"]:
        assert asked.stay is not None
    else:
        assert finishes == [finish] and watched.tokens(id) == told and watched.text(id) == text_of(told)
        assert last.usage.completion_tokens == len(said)
    assert watched.tokens(id) == told[: len(watched.tokens(id))]
    assert last.usage.prompt_tokens == len(asked.prompt)
    places = watched.runner.places.get(id)
    if places is not None and finishes[0] in ("stop", "length") and (said or asked.scored):
        computed = sum(place < len(asked.prompt) for place in places)
        # Forced to its end before anything was computed, it has computed nothing.
        if computed or last.usage.cached_tokens:
            assert last.usage.cached_tokens == len(asked.prompt) - computed or not places
    check_logprobs(watched, id, asked, finishes[0])


def check_logprobs(watched: Watched, id: int, asked: Asked, finish: str) -> None:
    outputs = watched.outputs[id]
    for output in outputs:
        assert len(output.logprobs) == (len(output.tokens) if asked.logprobs else 0)
        assert tuple(logprob.token for logprob in output.logprobs) in ((), output.tokens)
    given_ = [logprob.logprob for output in outputs for logprob in output.logprobs]
    for place, logprob in enumerate(given_, len(asked.prompt)):
        assert logprob in (None, -float(place))
        assert logprob is not None or asked.constraint() is not None
    scores = [output.prompt_logprobs for output in outputs if output.prompt_logprobs]
    if asked.scored and finish in ("stop", "length"):
        assert len(scores) == 1 and [score.token for score in scores[0]] == list(asked.prompt)
        assert [score.logprob for score in scores[0]] == [None, *(-float(place) for place in range(1, len(asked.prompt)))]
    elif not asked.scored:
        assert not scores
