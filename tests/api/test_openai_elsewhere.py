"""What only servers elsewhere may know is kept as it came, and refused for models that are here as it always was."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from llmgallery.api.dialects.openai import convert, schema
from llmgallery.config.model import OnUnsupported
from llmgallery.core.errors import InvalidField, UnsupportedField
from llmgallery.core.messages import ImagePart, RawPart
from llmgallery.core.requests import ChatRequest
from llmgallery.service.demands import FEATURES, settle
from llmgallery.service.gallery import Ask

LENIENT = OnUnsupported(demands="ignore", hints="ignore")
FUNCTION = {"type": "function", "function": {"name": "f"}}
CALL = {"id": "c", "type": "function", "function": {"name": "f", "arguments": "{}"}}


def read(**fields: Any) -> tuple[Ask, ChatRequest]:
    data = json.dumps({"messages": [{"role": "user", "content": "Hi"}], **fields}).encode()
    ask = convert.chat_ask(*schema.read(data, schema.ChatBody), token=None)
    (request,) = ask.prompts
    assert isinstance(request, ChatRequest)
    return ask, request


def said(**message: Any) -> tuple[Ask, ChatRequest]:
    return read(messages=[{"role": "user", **message}])


@pytest.mark.parametrize(
    ("fields", "field"),
    [
        ({"tools": [{"type": "web_search"}]}, "tools[0].type"),
        ({"tools": [FUNCTION, {"type": "custom", "custom": {"name": "x"}}]}, "tools[1].type"),
        ({"tools": [FUNCTION], "tool_choice": {"type": "web_search"}}, "tool_choice.type"),
        ({"messages": [{"role": "user", "content": [{"type": "video_url"}]}]}, "messages[0].content[0].type"),
        ({"messages": [{"role": "assistant", "tool_calls": [CALL, {"type": "custom"}]}]}, "messages[0].tool_calls[1].type"),
    ],
)
def test_a_model_that_is_here_refuses_it_whatever_its_file_says(fields: dict[str, Any], field: str) -> None:
    ask, request = read(**fields)
    with pytest.raises(InvalidField) as caught:
        settle(ask.wishes, LENIENT, "m", FEATURES)
    assert caught.value.field == field and caught.value.message.startswith(field)
    for name in ("tools", "tool_choice"):
        assert request.extra.get(name) == fields.get(name)


@pytest.mark.parametrize(
    "fields",
    [
        {"tools": [{"type": 5}]},
        {"tools": [{}]},
        {"tools": [{"type": "function"}]},
        {"tools": [FUNCTION], "tool_choice": {"type": 5}},
        {"messages": [{"role": "user", "content": [{"type": 5}]}]},
        {"messages": [{"role": "user", "content": [{"type": "video_url"}, {"type": "text"}]}]},
        {"messages": [{"role": "assistant", "tool_calls": [{"type": 5}]}]},
        {"response_format": {"type": "grammar"}},
    ],
)
def test_what_is_malformed_nobody_gets(fields: dict[str, Any]) -> None:
    with pytest.raises(InvalidField):
        read(**fields)


def test_tools_that_hold_more_than_we_know_go_as_they_came() -> None:
    more = {**FUNCTION, "cache_control": {"type": "ephemeral"}}
    _, request = read(tools=[more])
    assert [tool.name for tool in request.tools] == ["f"] and request.extra["tools"] == [more]
    assert "tools" not in read(tools=[FUNCTION])[1].extra


@pytest.mark.parametrize(
    ("part", "expected"),
    [
        ({"type": "image_url", "image_url": {"url": "x", "detail": "high"}}, ImagePart(url="x", detail="high")),
        ({"type": "image_url", "image_url": "x"}, ImagePart(url="x")),
        ({"type": "input_audio", "input_audio": {"data": "AA"}}, RawPart({"type": "input_audio", "input_audio": {"data": "AA"}})),
        ({"type": "file", "file": 5}, RawPart({"type": "file", "file": 5})),
        ({"type": "smell", "smell": "rose"}, RawPart({"type": "smell", "smell": "rose"})),
        ({"type": "image_url", "image_url": {"uri": "x"}}, RawPart({"type": "image_url", "image_url": {"uri": "x"}})),
        ({"type": "\0", "a": 1}, RawPart({"type": "\0", "a": 1})),
    ],
)
def test_parts(part: dict[str, Any], expected: ImagePart | RawPart) -> None:
    _, request = said(content=[part])
    assert request.messages[0].parts == (expected,)


@pytest.mark.parametrize("kind", ["image_url", "input_audio", "file"])
def test_parts_that_a_model_here_lacks_are_demands(kind: str) -> None:
    ask, _ = said(content=[{"type": kind, kind: {"url": "x"}}])
    assert settle(ask.wishes, LENIENT, "m", FEATURES - {"images"}) == ()
    with pytest.raises(UnsupportedField) as caught:
        settle(ask.wishes, OnUnsupported(), "m", FEATURES - {"images"})
    assert caught.value.field == "messages[0].content[0]"


def test_fields_that_core_does_not_know_are_kept() -> None:
    text = {"type": "text", "text": "a"}
    marked = {**text, "cache_control": 1}
    assert said(content=[text])[1].messages[0].extra == {}
    assert said(content="a", cache_control=1, nothing=None)[1].messages[0].extra == {"cache_control": 1}
    assert said(content=[marked])[1].messages[0].extra == {"content": [marked]}
    signed = {**CALL, "extra_content": {"signature": "x"}}
    (message,) = read(messages=[{"role": "assistant", "tool_calls": [signed]}])[1].messages
    assert message.extra == {"tool_calls": [signed]} and message.tool_calls[0].name == "f"
    (spoken,) = read(messages=[{"role": "assistant", "audio": {"id": "a1"}}])[1].messages
    assert (spoken.parts, spoken.extra) == ((), {"audio": {"id": "a1"}})


def test_what_core_cannot_hold_is_kept_under_openai_s_names() -> None:
    fields: dict[str, Any] = {
        "response_format": {"type": "json_schema", "json_schema": {"name": "x"}},
        "modalities": ["text"],
        "audio": {"voice": "x"},
        "web_search_options": {},
        "user": "ann",
        "max_completion_tokens": 5,
        "parallel_tool_calls": True,
        "store": False,
    }
    _, request = read(**fields)
    assert request.extra == fields and request.sampling.max_tokens == 5
    assert read(max_completion_tokens=-1)[1].extra == {}
    functions = {"functions": [{"name": "f"}], "function_call": "auto"}
    older = read(**functions)[1]
    assert older.extra == functions and older.tools[0].name == "f"


JSON = st.recursive(
    st.none() | st.booleans() | st.integers(-5, 5) | st.sampled_from(["text", "function", "custom", "image_url", "\0", ""]),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(
            st.sampled_from(["role", "content", "type", "text", "tool_calls", "id", "function", "image_url", "", "raw"]),
            inner,
            max_size=4,
        )
    ),
    max_leaves=12,
)


@given(
    st.lists(
        st.fixed_dictionaries({"role": st.sampled_from(["user", "assistant"]), "content": JSON, "tool_calls": JSON}), min_size=1
    )
)
def test_any_messages_are_read_or_refused(messages: list[dict[str, Any]]) -> None:
    try:
        ask, request = read(messages=messages)
    except InvalidField as exc:
        assert exc.field is None or exc.field.startswith("messages")
        return
    assert len(request.messages) == len(messages)
    assert all(wish.field.startswith("messages[") for wish in ask.wishes)
