"""The two shapes of log probabilities, from plain data."""

from __future__ import annotations

import json
import math

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st
from live_server import fits

from llmgallery.api.dialects.openai.logprobs import LEAST, chat_logprobs, completion_logprobs
from llmgallery.core.events import Alternative, TokenLogprob

pieces = st.binary(max_size=4)
logprobs = st.floats(max_value=0) | st.just(math.nan)
alternatives = st.builds(Alternative, st.integers(0, 9), pieces, logprobs)
tokens = st.lists(
    st.builds(TokenLogprob, st.integers(0, 9), pieces, st.none() | logprobs, st.lists(alternatives, max_size=3).map(tuple)),
    max_size=4,
)


@given(tokens)
def test_any_tokens_have_the_published_shape(told: list[TokenLogprob]) -> None:
    chat = json.loads(msgspec.json.encode(chat_logprobs(told)))
    assert [bytes(entry["bytes"]) for entry in fits("chat_logprobs", chat)["content"]] == [token.piece for token in told]
    completion = json.loads(msgspec.json.encode(completion_logprobs(told, range(len(told)))))
    columns = fits("completion_logprobs", completion)
    assert {len(column) for column in columns.values()} == {len(told)}
    for token, top in zip(told, columns["top_logprobs"], strict=True):
        assert (top is None) == (token.logprob is None)


def test_the_token_itself_is_among_the_likeliest() -> None:
    top = (Alternative(1, b"a", -0.1), Alternative(2, b"b", -3.0))
    (among,) = completion_logprobs([TokenLogprob(1, b"a", -0.1, top)], [0])["top_logprobs"]
    assert among == {"a": -0.1, "b": -3.0}
    (beyond,) = completion_logprobs([TokenLogprob(3, b"c", -9.0, top)], [0])["top_logprobs"]
    assert beyond == {"a": -0.1, "b": -3.0, "c": -9.0}
    (alone,) = completion_logprobs([TokenLogprob(3, b"c", -9.0)], [0])["top_logprobs"]
    assert alone == {"c": -9.0}


def test_of_two_tokens_with_one_name_the_likelier_is_told() -> None:
    top = (Alternative(1, b"<s>", -0.1), Alternative(2, b"<s>", -5.0))
    assert completion_logprobs([TokenLogprob(2, b"<s>", -5.0, top)], [0])["top_logprobs"] == [{"<s>": -0.1}]


@pytest.mark.parametrize(("logprob", "told"), [(-math.inf, LEAST), (math.nan, LEAST), (-12_000.0, LEAST), (-0.0, 0.0)])
def test_numbers_that_json_does_not_know(logprob: float, told: float) -> None:
    assert completion_logprobs([TokenLogprob(1, b"a", logprob)], [0])["token_logprobs"] == [told]
    assert chat_logprobs([TokenLogprob(1, b"a", logprob)])["content"][0]["logprob"] == told


def test_what_was_not_asked_of_the_model() -> None:
    """The first token of an echoed prompt, and tokens that a constraint forced."""
    token = TokenLogprob(1, b"{", None)
    assert completion_logprobs([token], [0]) == {
        "tokens": ["{"], "token_logprobs": [None], "top_logprobs": [None], "text_offset": [0],
    }  # fmt: skip
    assert chat_logprobs([token])["content"] == [{"token": "{", "logprob": 0.0, "bytes": [123], "top_logprobs": []}]


def test_bytes_that_are_no_character_have_names_of_their_own() -> None:
    halves = [TokenLogprob(byte, bytes([byte]), -1.0) for byte in "é".encode()]
    assert completion_logprobs(halves, [0, 0])["tokens"] == ["bytes:\\xc3", "bytes:\\xa9"]
    assert [entry["token"] for entry in chat_logprobs(halves)["content"]] == ["\ufffd", "\ufffd"]
