from __future__ import annotations

import time
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from llmgallery.chat.stops import StopFilter

texts = st.text("abc<|>é", max_size=40)
stop_lists = st.lists(st.text("abc<|>é", max_size=6), max_size=4)


def reference(text: str, stops: list[str]) -> tuple[str, str | None]:
    """The earliest place where a stop string stands, and the longest that stands there."""
    for at in range(len(text)):
        if standing := [stop for stop in stops if stop and text.startswith(stop, at)]:
            return text[:at], max(standing, key=len)
    return text, None


def run(pieces: list[str], stops: list[str]) -> tuple[str, str | None]:
    stop_filter = StopFilter(stops)
    out = ""
    for piece in pieces:
        emitted, matched = stop_filter.feed(piece)
        out += emitted
        assert matched == stop_filter.matched
    return out + stop_filter.flush(), stop_filter.matched


@given(texts, stop_lists, st.lists(st.integers(0, 40)))
def test_any_split_equals_the_whole(text: str, stops: list[str], cuts: list[int]) -> None:
    edges = [0, *sorted(min(cut, len(text)) for cut in cuts), len(text)]
    pieces = [text[start:end] for start, end in pairwise(edges)]
    assert run(pieces, stops) == reference(text, stops)


@given(texts, stop_lists)
def test_one_character_at_a_time_equals_the_whole(text: str, stops: list[str]) -> None:
    assert run(list(text), stops) == reference(text, stops)


@given(texts, stop_lists)
def test_held_text_is_always_a_possible_beginning(text: str, stops: list[str]) -> None:
    stop_filter = StopFilter(stops)
    out, fed = "", ""
    for char in text:
        emitted, matched = stop_filter.feed(char)
        out, fed = out + emitted, fed + char
        if matched is None:
            held = fed[len(out) :]
            assert not held or any(stop.startswith(held) and stop != held for stop in stops)


@pytest.mark.parametrize(
    ("pieces", "stops", "expected"),
    [
        (["Hello<|im", "_end|>", " never"], ["<|im_end|>"], ("Hello", "<|im_end|>")),
        (["a<|im", "possible"], ["<|im_end|>"], ("a<|impossible", None)),
        (["xaab"], ["ab", "aab"], ("x", "aab")),
        (["x", "a", "b", "d"], ["ab", "abc"], ("x", "ab")),
        (["abc", "x"], ["abcd", "c"], ("ab", "c")),
        (["abc"], ["abcd", "c"], ("ab", "c")),
        (["User", ":"], ["User:", "User"], ("", "User:")),
        (["text"], [], ("text", None)),
        (["text"], [""], ("text", None)),
    ],
)
def test_cases(pieces: list[str], stops: list[str], expected: tuple[str, str | None]) -> None:
    assert run(pieces, stops) == expected


def test_text_without_a_beginning_passes_at_once() -> None:
    assert StopFilter(["</s>"]).feed("Hello") == ("Hello", None)
    assert StopFilter(["</s>"]).feed("Hello<") == ("Hello", None)


def test_nothing_after_a_match() -> None:
    stop_filter = StopFilter(["x"])
    assert stop_filter.feed("ax") == ("a", "x")
    assert stop_filter.feed("more") == ("", "x")
    assert stop_filter.flush() == ""


def test_a_long_stop_string_costs_no_square() -> None:
    stop_filter = StopFilter(["a" * 2_000 + "b"])
    began = time.perf_counter()
    out = "".join(stop_filter.feed("aaaa")[0] for _ in range(2_000)) + stop_filter.flush()
    assert out == "a" * 8_000
    assert time.perf_counter() - began < 5
