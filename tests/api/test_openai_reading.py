"""OpenAI's requests become core's: pure functions, no server."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from test_openai_sampling import NUMBERS

from llmgallery.api.dialects.openai import convert, schema
from llmgallery.api.errors import BadBody
from llmgallery.api.respond import preferred_wait
from llmgallery.core.errors import InvalidField
from llmgallery.core.messages import RefusalPart, TextPart, ToolCall
from llmgallery.core.requests import ChatRequest, CompletionRequest
from llmgallery.core.sampling import Sampling
from llmgallery.service.demands import Wish
from llmgallery.service.gallery import Ask

SAID = {"role": "user", "content": "hello"}


def chat(**fields: Any) -> Ask:
    return convert.chat_ask(*schema.read(json.dumps({"messages": [SAID], **fields}).encode(), schema.ChatBody), token=None)


def request_of(ask: Ask) -> ChatRequest:
    [request] = ask.prompts
    assert isinstance(request, ChatRequest)
    return request


def completion(**fields: Any) -> Ask:
    return convert.completion_ask(*schema.read(json.dumps(fields).encode(), schema.CompletionBody), token="t")


def completions_of(ask: Ask) -> list[CompletionRequest]:
    return [request for request in ask.prompts if isinstance(request, CompletionRequest)]


def test_nothing_asked_is_nothing_set() -> None:
    assert request_of(chat()).sampling == Sampling()
    assert chat() == Ask(None, chat().prompts, unsaid=frozenset({"n", "logprobs", "top_logprobs"}))


def test_every_parameter_arrives() -> None:
    fields = {
        "temperature": 0.5,
        "top_k": 7,
        "top_p": 0.6,
        "min_p": 0.1,
        "typical_p": 0.9,
        "seed": -5,
        "max_tokens": 9,
        "repeat_penalty": 1.1,
        "repeat_last_n": 33,
        "presence_penalty": 0.2,
        "frequency_penalty": 0.3,
        "ignore_eos": True,
    }
    samplers = {"samplers", "dry_sequence_breakers", *NUMBERS}  # test_openai_sampling.py sends these
    assert set(fields) | {"logit_bias", "extra"} | samplers == set(Sampling.__struct_fields__)
    request = request_of(chat(**fields, logit_bias={"5": -1, "70000": 2.5}))
    assert request.sampling == Sampling(**fields, logit_bias={5: -1.0, 70000: 2.5})


@pytest.mark.parametrize(
    ("stop", "stops"), [(None, ()), ("a", ("a",)), (["a", "b"], ("a", "b")), ([], ()), (list("abcdef"), tuple("abcdef"))]
)
def test_stops(stop: Any, stops: tuple[str, ...]) -> None:
    assert request_of(chat(stop=stop)).stop == stops


def test_what_nobody_knows_is_kept_and_wished_as_a_hint() -> None:
    ask = chat(who_knows={"a": [1]}, user="ann", nothing=None)
    assert request_of(ask).extra == {"who_knows": {"a": [1]}, "nothing": None, "user": "ann"}
    assert ask.wishes == (Wish("user", "user", hint=True), Wish("who_knows", "who_knows", hint=True))


def test_messages_keep_their_parts() -> None:
    messages = [
        {"role": "user", "content": [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}], "name": "ann"},
        {"role": "assistant", "content": [{"type": "refusal", "refusal": "no"}], "reasoning_content": "hm"},
        {"role": "assistant", "tool_calls": [{"id": "c", "type": "function", "function": {"name": "f", "arguments": "{"}}]},
        {"role": "assistant", "content": None, "function_call": {"name": "g", "arguments": "{}"}},
        {"role": "tool", "tool_call_id": "c", "content": "done"},
        {"role": "assistant", "refusal": "never"},
    ]
    one, two, three, four, five, six = request_of(chat(messages=messages)).messages
    assert (one.parts, one.name) == ((TextPart("a"), TextPart("b")), "ann")
    assert (two.parts, two.reasoning) == ((RefusalPart("no"),), "hm")
    assert three.tool_calls == (ToolCall("c", "f", "{"),)
    assert four.tool_calls == (ToolCall("", "g", "{}"),)
    assert (five.text, five.tool_call_id) == ("done", "c")
    assert six.parts == (RefusalPart("never"),)


def test_a_list_of_prompts_is_a_list_of_requests() -> None:
    ask = completion(prompt=["a", [1, 2]], n=2, best_of=3, echo=True, suffix="z", logprobs=4)
    assert [(request.prompt, request.echo, request.suffix, request.logprobs) for request in completions_of(ask)] == [
        ("a", True, "z", 4), ((1, 2), True, "z", 4),
    ]  # fmt: skip
    assert (ask.copies, ask.best_of, ask.token, ask.unsaid) == (2, 3, "t", frozenset())
    assert {wish.field for wish in ask.wishes} == {"suffix", "best_of", "logprobs", "n", "echo"}


def test_what_a_completion_does_not_say_is_left_open() -> None:
    ask = completion(prompt="a", suffix="", echo=None)
    (request,) = completions_of(ask)
    assert (request.echo, request.suffix, request.logprobs) == (False, None, None)
    assert (ask.copies, ask.best_of, ask.unsaid) == (1, None, {"n", "echo", "logprobs"})
    assert completion(prompt="a", echo=False, logprobs=0, n=1).unsaid == frozenset()
    assert completions_of(completion(prompt="a", max_tokens=0))[0].sampling.max_tokens == 0


@pytest.mark.parametrize(
    ("fields", "logprobs", "unsaid"),
    [
        ({}, None, {"n", "logprobs", "top_logprobs"}),
        ({"logprobs": False}, None, {"n", "top_logprobs"}),
        ({"logprobs": False, "top_logprobs": 0}, None, {"n"}),
        ({"logprobs": True}, 0, {"n", "top_logprobs"}),
        ({"logprobs": True, "top_logprobs": 5}, 5, {"n"}),
    ],
)
def test_the_logprobs_of_a_chat(fields: dict[str, Any], logprobs: int | None, unsaid: set[str]) -> None:
    assert (request_of(chat(**fields)).logprobs, chat(**fields).unsaid) == (logprobs, unsaid)


@given(st.dictionaries(st.text(max_size=4) | st.integers().map(str), st.floats() | st.integers() | st.none()))
def test_any_logit_bias_is_read_or_refused_by_its_key(biases: dict[str, Any]) -> None:
    try:
        read = convert.read_bias(biases)
    except InvalidField as exc:
        assert exc.field is not None and exc.field.removeprefix("logit_bias.") in biases
        return
    assert all(0 <= token < 2**31 and -100 <= value <= 100 for token, value in read.items())


@given(st.binary(max_size=40))
def test_any_bytes_are_read_or_refused(data: bytes) -> None:
    try:
        body, _ = schema.read(data, schema.ChatBody)
    except (BadBody, InvalidField):
        return
    assert body.messages


@given(st.recursive(st.integers() | st.text(max_size=3) | st.none(), lambda inner: st.lists(inner, max_size=3)))
def test_any_prompt_is_read_or_refused(prompt: Any) -> None:
    try:
        prompts = convert.read_prompts(prompt)
    except InvalidField as exc:
        assert exc.field is not None and exc.field.startswith("prompt")
        return
    assert prompts and all(isinstance(item, str) or all(token >= 0 for token in item) for item in prompts)


@pytest.mark.parametrize(
    ("header", "wait", "applied"),
    [
        ("", 540, {}),
        ("wait=10", 10, {"Preference-Applied": "wait=10"}),
        ("respond-async, wait=10", 10, {"Preference-Applied": "wait=10"}),
        ('return=minimal; foo, wait="3"', 3, {"Preference-Applied": "wait=3"}),
        ("wait=100000", 540, {"Preference-Applied": "wait=100000"}),
        ("await=5", 540, {}),
        ("wait=-5", 540, {}),
        ("wait=soon", 540, {}),
    ],
)
def test_the_preferred_wait(header: str, wait: float, applied: dict[str, str]) -> None:
    assert preferred_wait({"prefer": header}, 540) == (wait, applied)
