"""Chunks and whole answers as core events; bytes in any pieces as the same events of a stream."""

from __future__ import annotations

import math
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from llmgallery.backends.openai import sse
from llmgallery.backends.openai.events import AnswerReader
from llmgallery.backends.openai.failures import message_of, portable, retry_after
from llmgallery.backends.openai.sse import EventReader
from llmgallery.core.errors import UpstreamError, UpstreamUnavailable
from llmgallery.core.events import Alternative, Done, TextDelta, TokenLogprob, ToolCallDelta, Usage

# --- bytes -------------------------------------------------------------------------------------------------------------------

LINES = st.lists(
    st.one_of(
        st.sampled_from(["", "", "data", "data:", "data: ", "data:  x", ": comment", "event: e", "id: 1", "retry: 5", "junk: y"]),
        st.text(st.characters(exclude_characters="\r\n", exclude_categories=["Cs"]), max_size=8).map(
            lambda text: "data: " + text
        ),
    ),
    max_size=12,
)


def reference(lines: list[str]) -> list[bytes]:
    """The standard's algorithm, line by line."""
    events, data = [], []
    for line in lines:
        name, colon, value = line.partition(":")
        if not line:
            events += ["\n".join(data)] if data else []
            data = []
        elif name == "data":
            data.append(value.removeprefix(" ") if colon else "")
    return [event.encode() for event in events]


def read(pieces: list[bytes]) -> list[bytes]:
    reader = EventReader()
    return [event for piece in pieces for event in reader.feed(piece)]


@given(LINES, st.lists(st.sampled_from(["\n", "\r\n", "\r"]), min_size=12, max_size=12), st.booleans(), st.data())
def test_any_pieces_make_the_same_events(lines: list[str], ends: list[str], mark: bool, draw: st.DataObject) -> None:
    text = ("\ufeff" if mark else "") + "".join(line + end for line, end in zip(lines, ends, strict=False))
    data = text.encode()
    cuts = sorted(draw.draw(st.lists(st.integers(0, len(data)), max_size=20)))
    pieces = [data[start:end] for start, end in zip([0, *cuts], [*cuts, len(data)], strict=True)]
    expected = reference(text.removeprefix("\ufeff").replace("\r\n", "\n").replace("\r", "\n").split("\n")[:-1])
    assert read([data]) == read(pieces) == read([bytes([byte]) for byte in data]) == expected


def test_an_event_without_its_empty_line_is_none() -> None:
    assert read([b"data: a\n\ndata: b\n"]) == [b"a"]


def test_an_event_has_bounds(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sse, "MOST", 100)
    reader = EventReader()
    with pytest.raises(UpstreamUnavailable, match="more than 100 bytes"):
        for _ in range(100):
            list(reader.feed(b"data: 12345\n"))
    with pytest.raises(UpstreamUnavailable):
        list(EventReader().feed(b"x" * 101))


# --- streams -----------------------------------------------------------------------------------------------------------------


def chunk(delta: dict[str, Any] | None = None, finish: str | None = None, **choice: Any) -> dict[str, Any]:
    return {"id": "1", "model": "m", "choices": [{"index": 0, "delta": delta or {}, "finish_reason": finish, **choice}]}


def chat(*chunks: Any) -> list[Any]:
    reader = AnswerReader("chat")
    return [*(event for each in chunks for event in reader.chunk(each)), reader.done()]


def completion(*chunks: Any) -> list[Any]:
    reader = AnswerReader("completion")
    return [*(event for each in chunks for event in reader.chunk(each)), reader.done()]


def test_text() -> None:
    first = chunk({"role": "assistant", "content": "", "refusal": None})
    assert chat(first, chunk({"content": "a"}), chunk({"content": "b"}), chunk({}, "length")) == [
        TextDelta("a"),
        TextDelta("b"),
        Done("length"),
    ]


def test_other_fields_of_the_message() -> None:
    said = chat(
        chunk({"reasoning_content": "hm", "content": None}), chunk({"refusal": "no"}), chunk({"x": {"y": 1}, "content": "a"})
    )
    assert said[:3] == [
        TextDelta("", extra={"reasoning_content": "hm"}),
        TextDelta("", extra={"refusal": "no"}),
        TextDelta("a", extra={"x": {"y": 1}}),
    ]


def test_content_in_parts() -> None:
    thinking = {"type": "thinking", "thinking": [{"type": "text", "text": "hm"}]}
    said = chat(chunk({"content": [thinking, {"type": "text", "text": "a"}]}))
    assert said[0] == TextDelta("a", extra={"content_parts": [thinking]})


def test_calls_come_in_parts() -> None:
    said = chat(
        chunk({"tool_calls": [{"index": 0, "id": "c0", "type": "function", "function": {"name": "f", "arguments": ""}}]}),
        chunk({"tool_calls": [{"index": 0, "function": {"arguments": '{"a'}}, {"index": 1, "id": "c1", "signature": "s"}]}),
        chunk({"tool_calls": [{"index": 2, "id": "c2", "type": "custom", "custom": {"name": "n", "input": "i"}}]}),
        chunk({}, "tool_calls"),
    )
    assert said == [
        ToolCallDelta(0, "c0", "f", ""),
        ToolCallDelta(0, "", "", '{"a'),
        ToolCallDelta(1, "c1", "", "", {"signature": "s"}),
        ToolCallDelta(2, "c2", "", "", {"custom": {"name": "n", "input": "i"}, "type": "custom"}),
        Done("tool_calls"),
    ]


def test_calls_in_the_older_form() -> None:
    said = chat(
        chunk({"function_call": {"name": "f", "arguments": ""}}), chunk({"function_call": {"arguments": "{}"}}, "function_call")
    )
    assert said == [
        ToolCallDelta(0, "", "f", ""),
        ToolCallDelta(0, "", "", "{}"),
        Done("tool_calls", extra={"finish_reason": "function_call"}),
    ]


@pytest.mark.parametrize("reason", ["content_filter", "insufficient_system_resource", "error"])
def test_other_reasons(reason: str) -> None:
    assert chat(chunk({"content": "a"}, reason))[-1] == Done("stop", extra={"finish_reason": reason})


def test_what_stands_beside_the_choice() -> None:
    usage = {"prompt_tokens": 3, "completion_tokens": 4, "completion_tokens_details": {"reasoning_tokens": 2}}
    done = chat(
        {**chunk({"content": "a"}), "system_fingerprint": "fp", "service_tier": None, "usage": None},
        chunk({}, "stop", content_filter_results={"hate": {"filtered": False}}),
        {"choices": [], "usage": usage, "timings": {"ms": 1}},
    )[-1]
    assert done == Done(
        "stop",
        Usage(3, 4),
        extra={
            "body": {"usage": usage, "system_fingerprint": "fp", "timings": {"ms": 1}},
            "choice": {"content_filter_results": {"hate": {"filtered": False}}},
        },
    )


def test_logprobs_of_a_chat() -> None:
    top = [{"token": "é", "bytes": [195, 169], "logprob": -0.5}, {"token": "x", "bytes": None, "logprob": -2}]
    content = [
        {"token": "é", "bytes": [195, 169], "logprob": -0.5, "top_logprobs": top},
        {"token": "\\xe2", "bytes": [226], "logprob": -3},
    ]
    text, done = chat(chunk({"content": "é"}, logprobs={"content": content, "refusal": None}))
    assert text.logprobs == (
        TokenLogprob(-1, "é".encode(), -0.5, (Alternative(-1, "é".encode(), -0.5), Alternative(-1, b"x", -2))),
        TokenLogprob(-1, b"\xe2", -3),
    )
    assert done.mean_logprob == -1.75


def test_logprobs_of_a_completion() -> None:
    logprobs = {
        "tokens": ["A", "bytes:\\xe2\\x82"],
        "token_logprobs": [None, -1],
        "top_logprobs": [None, {"b": -2, "bytes:\\xe2\\x82": -1}],
        "text_offset": [0, 1],
    }
    text, done = completion({"choices": [{"text": "A?", "logprobs": logprobs, "finish_reason": "stop"}]})
    assert text == TextDelta(
        "A?",
        (
            TokenLogprob(-1, b"A", None),
            TokenLogprob(-1, b"\xe2\x82", -1, (Alternative(-1, b"\xe2\x82", -1), Alternative(-1, b"b", -2))),
        ),
        (0, 1),
    )
    assert done.mean_logprob == -1


def test_a_completions_logprobs_in_the_form_of_chats_have_offsets() -> None:
    def said(text: str) -> dict[str, Any]:
        content = [{"token": text[:2], "logprob": -1}, {"token": text[2:], "logprob": -1}]
        return {"choices": [{"text": text, "logprobs": {"content": content}}]}

    first, second, _ = completion(said("abc"), said("déf"))
    assert (first.offsets, second.offsets) == ((0, 2), (3, 5))


# --- whole answers -----------------------------------------------------------------------------------------------------------


def test_a_whole_chat() -> None:
    message = {"role": "assistant", "content": None, "refusal": None, "annotations": [], "audio": {"id": "a"}}
    calls = [
        {"id": "c", "type": "function", "function": {"name": "f", "arguments": "{}"}},
        {"id": "d", "function": {"name": "g"}},
    ]
    value = {"choices": [{"index": 0, "message": {**message, "tool_calls": calls}, "finish_reason": "stop"}]}
    assert AnswerReader("chat").whole(value) == [
        TextDelta("", extra={"audio": {"id": "a"}}),
        ToolCallDelta(0, "c", "f", "{}"),
        ToolCallDelta(1, "d", "g", ""),
        Done("stop"),
    ]


def test_a_whole_completion() -> None:
    assert AnswerReader("completion").whole(
        {"choices": [{"text": "a", "index": 0, "finish_reason": "length", "stop_reason": 5}]}
    ) == [
        TextDelta("a"),
        Done("length", extra={"choice": {"stop_reason": 5}}),
    ]


@pytest.mark.parametrize("value", [None, [], "x", {}, {"choices": None}, {"choices": [3]}])
def test_what_is_no_answer(value: Any) -> None:
    with pytest.raises(UpstreamUnavailable):
        AnswerReader("chat").whole(value)


def test_an_error_in_place_of_an_answer() -> None:
    with pytest.raises(UpstreamError, match="broke off: too busy") as told:
        AnswerReader("chat").chunk({"error": {"message": "too busy", "code": "busy"}})
    assert told.value.upstream is not None and told.value.upstream.status == 502


JSON = st.recursive(
    st.none() | st.booleans() | st.integers(-3, 300) | st.floats(allow_nan=False) | st.text(max_size=3),
    lambda below: (
        st.lists(below, max_size=3) | st.dictionaries(st.sampled_from(["content", "index", "name", "x"]), below, max_size=3)
    ),
    max_leaves=8,
)
FIELDS = ["delta", "message", "text", "logprobs", "finish_reason", "index", "tool_calls", "function_call", "content", "function"]
CHOICE = st.dictionaries(st.sampled_from(FIELDS), JSON | st.dictionaries(st.sampled_from(FIELDS), JSON, max_size=4), max_size=6)


@given(st.lists(CHOICE, max_size=3), JSON, st.sampled_from(["chat", "completion"]))
def test_nothing_that_comes_breaks_the_reader(choices: list[dict[str, Any]], usage: Any, kind: Any) -> None:
    reader = AnswerReader(kind)
    for choice in choices:
        for event in reader.chunk({"choices": [choice], "usage": usage}):
            assert isinstance(event, TextDelta | ToolCallDelta)
    assert reader.done().reason in ("stop", "length", "tool_calls")


def test_half_a_character_is_no_reason_to_break_off() -> None:
    assert portable(b'{"content": "a\\ud83d", "x": "\\ud83d\\ude00"}') == {"content": "a?", "x": "😀"}


@pytest.mark.parametrize("data", [b"", b"{", b'{"a": NaN}', b"[" * 990 + b"]" * 990, b"\xff", b'"\\u12"'])
def test_what_no_frame_holds(data: bytes) -> None:
    with pytest.raises(ValueError):
        portable(data)


# --- errors ------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("body", "said"),
    [
        ({"error": {"message": "a"}}, "a"),
        ({"error": "a"}, "a"),
        ({"message": "a"}, "a"),
        ({"detail": [{"loc": ["x"], "msg": "a"}, {"msg": "b"}]}, "a; b"),
        ("<p>a</p>\n b", "a b"),
        ([], ""),
        (None, ""),
    ],
)
def test_what_errors_say(body: Any, said: str) -> None:
    assert message_of(body) == said


@pytest.mark.parametrize(
    ("headers", "seconds"),
    [({"retry-after": "3"}, 3), ({"retry-after-ms": "250"}, 0.25), ({"retry-after": "soon"}, None), ({}, None)],
)
def test_retry_after(headers: dict[str, str], seconds: float | None) -> None:
    assert retry_after(headers) == seconds


def test_retry_after_a_date() -> None:
    assert retry_after({"retry-after": "Wed, 21 Oct 2015 07:28:00 GMT"}) == 0
    later = retry_after({"retry-after": "Fri, 31 Dec 2099 23:59:59 GMT"})
    assert later is not None and later > 1e6 and not math.isinf(later)
