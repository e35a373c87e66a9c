"""Answers that come in parts of any kind, as remote endpoints send them, are put together."""

from __future__ import annotations

import time
from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from llmgallery.core.events import ToolCallDelta
from llmgallery.service.parts import united, whole_calls


def test_parts_of_calls_are_joined_by_their_index() -> None:
    parts = [
        ToolCallDelta(1, "c1", "look", "", {"type": "function"}),
        ToolCallDelta(0, "c0", "say", "{"),
        ToolCallDelta(1, "", "", '{"a"'),
        ToolCallDelta(0, "", "", "}"),
        ToolCallDelta(1, "", "", ":1}", {"signature": "x"}),
    ]
    assert whole_calls(parts) == [
        ToolCallDelta(1, "c1", "look", '{"a":1}', {"type": "function", "signature": "x"}),
        ToolCallDelta(0, "c0", "say", "{}"),
    ]


def test_custom_calls_are_joined_within() -> None:
    first = {"type": "custom", "custom": {"name": "sql", "input": "sel"}}
    (call,) = whole_calls([ToolCallDelta(0, "c", "", "", first), ToolCallDelta(0, "", "", "", {"custom": {"input": "ect"}})])
    assert call.extra == {"type": "custom", "custom": {"name": "sql", "input": "select"}}


def test_texts_are_joined_and_of_other_values_the_last_holds() -> None:
    said = [
        {"reasoning": "a", "score": 1, "audio": {"id": "x", "data": "AA"}},
        {"reasoning": "b", "score": 2, "list": [1]},
        {"reasoning": "", "audio": {"id": "x", "data": "BB", "expires_at": 5}, "list": [2]},
    ]
    assert united(said) == {
        "reasoning": "ab",
        "score": 2,
        "audio": {"id": "x", "data": "AABB", "expires_at": 5},
        "list": [2],
    }


@given(st.text(), st.lists(st.integers(0, 5)))
def test_however_arguments_are_cut_the_whole_is_the_same(arguments: str, cuts: list[int]) -> None:
    parts, rest = [ToolCallDelta(0, "c", "f", "")], arguments
    for cut in cuts:
        parts.append(ToolCallDelta(0, "", "", rest[:cut]))
        rest = rest[cut:]
    assert whole_calls([*parts, ToolCallDelta(0, "", "", rest)]) == [ToolCallDelta(0, "c", "f", arguments)]


def test_an_answer_in_many_parts_is_joined_once() -> None:
    began = time.monotonic()
    said: list[dict[str, Any]] = [{"reasoning": "abcdefghij" * 10, "audio": {"data": "abcd" * 10}}] * 100_000
    whole = united(said)
    assert (len(whole["reasoning"]), len(whole["audio"]["data"])) == (10_000_000, 4_000_000)
    assert time.monotonic() - began < 5
