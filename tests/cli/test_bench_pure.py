"""The benchmark's prompts, its reading of streams, and its arithmetic, without a server."""

from __future__ import annotations

import json
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from llmgallery.cli.bench.client import Recording, Target, Trace, events
from llmgallery.cli.bench.drive import Row
from llmgallery.cli.bench.figures import Spread, decode_rate, figures, percentile, prefill_rate, steady_rate
from llmgallery.cli.bench.report import COLUMNS, as_json, table
from llmgallery.cli.bench.workload import Workload, prompts, sweep, waves_for
from llmgallery.core.errors import GalleryError

# --- prompts -----------------------------------------------------------------------------------------------------------------


@given(st.integers(1, 9), st.integers(1, 40), st.integers(0, 40), st.integers(0, 3))
def test_prompts_have_their_length_and_share_exactly_their_prefix(concurrency, own, shared, wave):
    texts = prompts(Workload(concurrency, 1, own + shared, 8, shared), wave, "salt")
    split = [text.split() for text in texts]
    assert {len(words) for words in split} == {own + shared} and len(texts) == concurrency
    assert len({tuple(words[:shared]) for words in split}) == 1
    if own >= 8:
        assert len({tuple(words[shared:]) for words in split}) == concurrency


def test_prompts_repeat_only_for_the_same_salt_and_wave():
    workload = Workload(2, 2, 40, 8, shared_tokens=20)
    first = prompts(workload, 0, "salt")
    assert first == prompts(workload, 0, "salt")
    for other in (prompts(workload, 1, "salt"), prompts(workload, 0, "pepper")):
        assert other[0].split()[:5] != first[0].split()[:5]


def test_words_that_cost_more_make_shorter_prompts():
    (text,) = prompts(Workload(1, 1, 100, 8, shared_tokens=50), 0, "salt", tokens_per_word=2.0)
    assert len(text.split()) == 50


@pytest.mark.parametrize(("requests", "concurrency", "waves"), [(8, 8, 1), (8, 3, 3), (1, 16, 1), (9, 2, 5)])
def test_waves_are_whole(requests, concurrency, waves):
    assert waves_for(requests, concurrency) == waves
    (workload,) = sweep([concurrency], requests, 10, 10)
    assert workload.requests == waves * concurrency >= requests


# --- streams -----------------------------------------------------------------------------------------------------------------


def line(text: str = "", **more: object) -> bytes:
    chunk = {"choices": [{"text": text, "index": 0, "finish_reason": more.pop("finish", None)}], **more}
    return b"data: " + json.dumps(chunk).encode() + b"\n\n"


USAGE = {"prompt_tokens": 7, "completion_tokens": 3, "prompt_tokens_details": {"cached_tokens": 4}}
STREAM = [
    line("a"),
    b": keep-alive\n\n",
    line("é"),
    line("", finish="length"),
    line(usage=USAGE, choices=[]),
    b"data: [DONE]\n\n",
]


@given(st.lists(st.integers(0, len(b"".join(STREAM))), max_size=12).map(sorted))
def test_a_stream_reads_the_same_however_it_is_cut(cuts):
    """Each piece of text counts when its line is complete."""
    whole = b"".join(STREAM)
    borders = [0, *cuts, len(whole)]
    received = [(float(index), whole[begin:end]) for index, (begin, end) in enumerate(pairwise(borders))]
    trace = Recording(0.0, received).trace()
    assert (trace.prompt_tokens, trace.completion_tokens, trace.cached_tokens, trace.finish) == (7, 3, 4, "length")
    ends = [len(STREAM[0]) - 1, sum(map(len, STREAM[:3])) - 1]  # the first of the two line ends is enough
    assert list(trace.times) == [next(i for i, border in enumerate(borders[1:]) if border >= end) for end in ends]


def test_carriage_returns_belong_to_the_line_end():
    (event,) = events([(1.0, b'data: {"choices": []}\r\n\r\ndata: [DONE]\r\n\r\n')])
    assert event == (1.0, {"choices": []})


def test_a_server_that_tells_no_usage_is_counted_by_pieces():
    received = [(1.0, line("a")), (2.0, line("b")), (3.0, line("", finish="length"))]
    assert Recording(0.5, received).trace() == Trace(0.5, (1.0, 2.0), 0, 2, None, "length")


def test_an_error_in_the_stream_is_told():
    with pytest.raises(GalleryError, match="broke an answer off: no memory left"):
        Recording(0.0, [(1.0, b'data: {"error": {"message": "no memory left"}}\n\n')]).trace()


@pytest.mark.parametrize("url", ["http://h:1", "http://h:1/", "http://h:1/v1", "http://h:1/v1/"])
def test_a_targets_url_may_end_in_v1(url):
    assert Target(url, "m").base == "http://h:1"


# --- figures -----------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("values", "share", "expected"), [([3.0], 0.95, 3.0), ([1, 2, 3, 4], 0.5, 2.5), ([4, 1, 3, 2], 1, 4), (range(101), 0.95, 95)]
)
def test_percentiles(values, share, expected):
    assert percentile(values, share) == pytest.approx(expected)


@given(st.lists(st.floats(-1e6, 1e6), min_size=1), st.floats(0, 1))
def test_a_percentile_lies_among_the_values(values, share):
    assert min(values) <= percentile(values, share) <= max(values)


def test_no_values_have_no_percentile():
    with pytest.raises(ValueError, match="no values"):
        percentile([], 0.5)


WAVE = [Trace(0.0, (1.0, 2.0, 3.0), 100, 3, 50, "length"), Trace(0.0, (2.0, 3.0, 5.0), 100, 3, 50, "length")]


def test_throughput_is_that_of_all_streams_together():
    assert prefill_rate(WAVE) == (200 - 100) / 2.0  # until both have begun; what was cached does not count
    assert decode_rate(WAVE) == 4 / (5.0 - 1.0)  # the tokens after each first


def test_a_steady_rate_counts_only_while_all_run():
    assert steady_rate(WAVE) == 2 / (3.0 - 2.0)  # at 3.0 one token of each
    assert steady_rate([Trace(0.0, (1.0, 2.0), 0, 2), Trace(0.0, (2.0, 3.0), 0, 2)]) is None


def test_figures_of_waves_are_medians_and_spreads():
    slower = [Trace(10.0, (12.0, 14.0, 18.0), 100, 3, 0, "length")] * 2
    found = figures([WAVE, slower])
    assert (found.concurrency, found.requests) == (2, 4)
    assert (found.prompt_tokens, found.cached_tokens, found.completion_tokens) == (400, 100, 12)
    assert found.decode_tokens_per_second == pytest.approx((4 / 4 + 4 / 6) / 2)
    assert found.time_to_first_token == Spread(2.0, 2.0)
    assert found.inter_token == Spread(2.0, 4.0)


def test_what_cannot_be_measured_is_none():
    found = figures([[Trace(0.0, (1.0,), 0, 1, None, "length")]])
    assert found.prefill_tokens_per_second is found.decode_tokens_per_second is found.inter_token is found.cached_tokens is None


# --- report ------------------------------------------------------------------------------------------------------------------


def test_the_table_shows_what_there_is():
    short = Row(Workload(1, 1, 100, 1), figures([[Trace(0.0, (0.25,), 0, 1)]]))
    shared = Row(Workload(2, 1, 100, 3, 60), figures([WAVE]), cached=True)
    lines = table([short, shared])
    assert lines[0] == ("100 + 1", "1", "-", "-", "-", "250.0", "250.0", "-", "-")
    assert lines[1][:6] == ("100 (60 shared, again) + 3", "2", "50.0", "1.0", "0.5", "1500.0")
    assert all(len(line) == len(COLUMNS) for line in lines)


def test_json_holds_every_figure():
    body = json.loads(as_json([Row(Workload(2, 1, 100, 3), figures([WAVE]))], model="m"))
    assert body["model"] == "m"
    (row,) = body["rows"]
    assert row["workload"]["concurrency"] == 2
    assert row["figures"]["inter_token"] == {"p50": 1.0, "p95": pytest.approx(1.85)}
