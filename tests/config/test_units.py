import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from llmgallery.config.units import parse_duration, parse_size

DURATIONS = {
    "15m": 900, "1h30m": 5400, "90s": 90, "250ms": 0.25, "1.5h": 5400, "1 h 5 min": 3900, "2d": 172800, "30": 30, 30: 30,
    0.5: 0.5, 0: 0, "0": 0, -1: math.inf, "-1": math.inf, "-1s": math.inf, "never": math.inf,
}  # fmt: skip


@pytest.mark.parametrize(("written", "seconds"), DURATIONS.items())
def test_durations(written: str | float, seconds: float) -> None:
    assert parse_duration(written) == pytest.approx(seconds)


@pytest.mark.parametrize("written", ["", "m", "15q", "15m!", "1h30", "-", "- m", "m15", True, math.nan, "1..5s"])
def test_what_is_no_duration(written: str | float) -> None:
    with pytest.raises(ValueError, match="a duration such as"):
        parse_duration(written)


@pytest.mark.parametrize(
    ("written", "size"),
    [
        ("8GiB", 8 << 30),
        ("500MB", 500_000_000),
        ("8G", 8 << 30),
        ("1.5k", 1536),
        ("100", 100),
        (100, 100),
        ("100b", 100),
        ("2 tib", 2 << 40),
    ],
)
def test_sizes(written: str | int, size: int) -> None:
    assert parse_size(written) == size


@pytest.mark.parametrize("written", ["", "GB", "-1", -1, "8XB", "8 GiB free", True])
def test_what_is_no_size(written: str | int) -> None:
    with pytest.raises(ValueError, match="a size such as"):
        parse_size(written)


@given(st.integers(0, 10**7))
def test_whole_seconds_survive(seconds: int) -> None:
    hours, rest = divmod(seconds, 3600)
    assert parse_duration(f"{hours}h{rest // 60}m{rest % 60}s") == seconds
