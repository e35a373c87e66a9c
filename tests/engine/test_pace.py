"""The pace of prompts beside streams, against costs that are made up: no clock in here."""

from __future__ import annotations

import random
from collections.abc import Callable
from statistics import quantiles

import pytest

from llmgallery.engine.pace import SMALLEST, Pace

Cost = Callable[[int, int], float]


def linear(streams: int, prefill: int) -> float:
    return 0.010 + 0.002 * streams + 0.0005 * prefill


def stepped(streams: int, prefill: int) -> float:
    """Measured on a CPU: 4 streams beside 0, 16, 32, 64, 128 tokens of a prompt: 120, 284, 493, 242, 420 ms."""
    base = 0.080 + 0.010 * streams
    return base + (0.0105 * prefill if prefill < 64 else 0.0019 * max(prefill, 64))


def dear(streams: int, prefill: int) -> float:
    """A prompt's token costs as much as a stream's step."""
    return 0.020 + 0.020 * prefill


def cheap(streams: int, prefill: int) -> float:
    """As on a GPU: hundreds of tokens are as quick as one."""
    return 0.012 + 0.00002 * max(0, prefill - 256)


def mixed(pace: Pace, cost: Cost, streams: int, steps: int, batch: int = 512, seed: int = 1) -> tuple[list[float], int]:
    """Steps while a prompt without end is there: how long each takes, and how many of its tokens they compute."""
    dice = random.Random(seed)
    times, tokens = [], 0
    for _ in range(steps):
        allowed = pace.allowance(streams)
        assert allowed is not None
        count = min(batch, allowed)
        seconds = cost(streams, count) * dice.uniform(0.95, 1.05)
        pace.measured(streams, count, seconds)
        times.append(seconds)
        tokens += count
    return times, tokens


def p95(times: list[float]) -> float:
    return quantiles(times, n=20)[-1]


@pytest.mark.parametrize("cost", [linear, stepped, cheap], ids=lambda cost: cost.__name__)
@pytest.mark.parametrize("streams", [1, 4, 8])
@pytest.mark.parametrize("slowdown", [1.5, 2.5, 4.0])
def test_steps_with_prompts_stay_below_the_slowdown(cost, streams, slowdown):
    pace = Pace(slowdown)
    pace.measured(0, 512, cost(0, 512))
    mixed(pace, cost, streams, 100)
    times, _ = mixed(pace, cost, streams, 2000)
    least = cost(streams, 9) * 1.05
    assert p95(times) <= max(slowdown * cost(streams, 0) * 1.05, least)


@pytest.mark.parametrize(
    ("cost", "least"),
    [(linear, 40), (stepped, 64), (cheap, 500)],
)
def test_the_time_that_is_allowed_is_used(cost, least):
    """Tokens a step with 4 streams. The stepped costs have their second hill to be climbed."""
    pace = Pace(2.5)
    pace.measured(0, 512, cost(0, 512))
    times, _ = mixed(pace, cost, 4, 300)
    assert max(times) <= 5 * cost(4, 0) * 1.05, "what is tried now and then is bounded"
    _, tokens = mixed(pace, cost, 4, 500)
    assert tokens / 500 >= least


def test_prompts_go_on_however_dear_they_are():
    pace = Pace()
    _, tokens = mixed(pace, dear, 4, 200)
    assert tokens >= 198 * (1 << SMALLEST)


def test_nobody_streams_nothing_is_limited():
    assert Pace().allowance(0) is None


def test_a_step_without_prompts_is_measured_first_and_now_and_then():
    pace = Pace()
    assert pace.allowance(3) == 0
    pace.measured(3, 0, 0.02)
    assert pace.allowance(3)
    assert pace.allowance(2) == 0
    asked = 0
    for _ in range(1000):
        count = pace.allowance(3)
        assert count is not None
        asked += not count
        pace.measured(3, count, linear(3, count))
    assert 3 <= asked <= 4


def test_asking_changes_nothing():
    pace = Pace()
    pace.measured(4, 0, linear(4, 0))
    for _ in range(100):
        first = pace.allowance(4)
        assert first is not None and pace.allowance(4) == first
        pace.measured(4, first, linear(4, first))


def test_one_slow_step_does_not_change_the_pace_for_long():
    pace = Pace()
    mixed(pace, linear, 4, 100)
    before = pace.allowance(4)
    pace.measured(4, 32, 10.0)
    pace.measured(4, 0, 10.0)
    _, tokens = mixed(pace, linear, 4, 100)
    assert before is not None and tokens / 100 >= 0.7 * before
    assert (pace.allowance(4) or 0) <= 1.3 * before


def test_many_prompts_wait_less_for_few_streams() -> None:
    """One stream, seven prompts: the step may take as much longer as there are more who wait."""
    pace = Pace()
    mixed(pace, linear, 1, 200)
    one, seven = pace.allowance(1), pace.allowance(1, 7)
    assert one is not None
    assert seven is not None
    assert seven > 4 * one
    assert linear(1, seven) <= 7 * pace.slowdown * linear(1, 0) * 1.1
    mixed(pace, linear, 4, 200)
    assert pace.allowance(4, 1) == pace.allowance(4, 4), "as long as streams are more, they keep their pace"
