"""Everything that is refused: status, code, and the field at fault, as a table."""

from __future__ import annotations

from typing import Any

import httpx
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from live_server import LiveServer, error_of, fits, user

CHAT = "/v1/chat/completions"
COMPLETION = "/v1/completions"
SAID = {"role": "user", "content": "hello"}
CALL = {"id": "c", "type": "function", "function": {"name": "f", "arguments": "{}"}}
IMAGE = {"type": "image_url", "image_url": {"url": "data:image/png;base64,AAAA"}}

INVALID: list[tuple[dict[str, Any], str]] = [
    ({"temperature": -0.1}, "temperature"),
    ({"temperature": 2.1}, "temperature"),
    ({"temperature": "hot"}, "temperature"),
    ({"temperature": True}, "temperature"),
    ({"top_p": 1.1}, "top_p"),
    ({"top_k": -2}, "top_k"),
    ({"top_k": 1.5}, "top_k"),
    ({"min_p": -1}, "min_p"),
    ({"typical_p": 2}, "typical_p"),
    ({"presence_penalty": 2.5}, "presence_penalty"),
    ({"frequency_penalty": -2.5}, "frequency_penalty"),
    ({"repeat_penalty": 0}, "repeat_penalty"),
    ({"repeat_last_n": -2}, "repeat_last_n"),
    ({"seed": 1.5}, "seed"),
    ({"seed": 2**63}, "seed"),
    ({"n": 0}, "n"),
    ({"n": 129}, "n"),
    ({"max_tokens": -2}, "max_tokens"),
    ({"max_tokens": 2**40}, "max_tokens"),
    ({"stop": ""}, "stop"),
    ({"stop": ["a", ""]}, "stop[1]"),
    ({"stop": 5}, "stop"),
    ({"stream": "yes"}, "stream"),
    ({"stream_options": {"include_usage": True}}, "stream_options"),
    ({"stream": True, "stream_options": {"include_usage": 1}}, "stream_options.include_usage"),
    ({"logit_bias": {"5": 1, "6": 101}}, "logit_bias.6"),
    ({"logit_bias": {"5": "much"}}, "logit_bias.5"),
    ({"logit_bias": {"5": True}}, "logit_bias.5"),
    ({"logit_bias": {"five": 1}}, "logit_bias.five"),
    ({"logit_bias": {"-1": 1}}, "logit_bias.-1"),
    ({"logit_bias": {"4294967296": 1}}, "logit_bias.4294967296"),
    ({"logit_bias": {"100000": 1}}, "logit_bias"),
    ({"logit_bias": [1]}, "logit_bias"),
    ({"ignore_eos": 1}, "ignore_eos"),
    ({"model": 5}, "model"),
    ({"user": 5}, "user"),
]

INVALID_CHAT: list[tuple[dict[str, Any], str]] = [
    ({"messages": []}, "messages"),
    ({"messages": "hello"}, "messages"),
    ({"messages": [5]}, "messages[0]"),
    ({"messages": [{}]}, "messages[0].role"),
    ({"messages": [SAID, {"role": "robot", "content": "x"}]}, "messages[1].role"),
    ({"messages": [{"role": "user"}]}, "messages[0].content"),
    ({"messages": [{"role": "user", "content": None}]}, "messages[0].content"),
    ({"messages": [{"role": "assistant"}, SAID]}, "messages[0].content"),
    ({"messages": [{"role": "user", "content": 5}]}, "messages[0].content"),
    ({"messages": [{"role": "user", "content": []}]}, "messages[0].content"),
    ({"messages": [{"role": "user", "content": [{"text": "x"}]}]}, "messages[0].content[0].type"),
    ({"messages": [{"role": "user", "content": [{"type": "smell"}]}]}, "messages[0].content[0].type"),
    ({"messages": [{"role": "user", "content": [{"type": "text"}]}]}, "messages[0].content[0].text"),
    ({"messages": [{"role": "user", "content": [{"type": "refusal", "refusal": "x"}]}]}, "messages[0].content[0].type"),
    ({"messages": [{"role": "system", "content": [IMAGE]}]}, "messages[0].content[0].type"),
    ({"messages": [{"role": "tool", "content": "x"}]}, "messages[0].tool_call_id"),
    ({"messages": [{"role": "user", "content": "x", "tool_calls": [CALL]}]}, "messages[0].tool_calls"),
    ({"messages": [{"role": "assistant", "tool_calls": [{"id": "c"}]}]}, "messages[0].tool_calls[0].function"),
    ({"max_tokens": 5, "max_completion_tokens": 6}, "max_tokens"),
    ({"max_tokens": 0}, "max_tokens"),
    ({"max_completion_tokens": 0}, "max_completion_tokens"),
    ({"logprobs": True, "top_logprobs": 21}, "top_logprobs"),
    ({"logprobs": True, "top_logprobs": -1}, "top_logprobs"),
    ({"logprobs": 1}, "logprobs"),
    ({"top_logprobs": 2}, "top_logprobs"),
    ({"logprobs": False, "top_logprobs": 2}, "top_logprobs"),
    ({"response_format": {"type": "xml"}}, "response_format.type"),
]

INVALID_COMPLETION: list[tuple[dict[str, Any], str]] = [
    ({"prompt": None}, "prompt"),
    ({"prompt": []}, "prompt"),
    ({"prompt": 5}, "prompt"),
    ({"prompt": ["a", 5]}, "prompt[1]"),
    ({"prompt": [[]]}, "prompt[0]"),
    ({"prompt": [-1]}, "prompt[0]"),
    ({"prompt": [5, 1.5]}, "prompt[1]"),
    ({"prompt": [[1, "a"]]}, "prompt[0]"),
    ({"prompt": [[1, -2]]}, "prompt[0][1]"),
    ({"prompt": ["a"] * 300, "n": 2}, "n"),
    ({"n": 3, "best_of": 2}, "best_of"),
    ({"best_of": 21}, "best_of"),
    ({"best_of": 2, "stream": True}, "best_of"),
    ({"prompt": ["a"] * 30, "best_of": 20}, "best_of"),
    ({"suffix": 5}, "suffix"),
    ({"logprobs": 21}, "logprobs"),
    ({"logprobs": -1}, "logprobs"),
    ({"logprobs": True}, "logprobs"),
]

UNSUPPORTED_CHAT: list[tuple[dict[str, Any], str]] = [
    ({"tools": [{"type": "function", "function": {"name": "f"}}]}, "tools"),
    ({"tool_choice": "auto"}, "tool_choice"),
    ({"tool_choice": {"type": "function", "function": {"name": "f"}}}, "tool_choice"),
    ({"functions": [{"name": "f"}]}, "functions"),
    ({"function_call": "auto"}, "function_call"),
    ({"response_format": {"type": "json_object"}}, "response_format"),
    ({"response_format": {"type": "json_schema", "json_schema": {"name": "x", "schema": {}}}}, "response_format"),
    ({"modalities": ["text", "audio"]}, "modalities"),
    ({"audio": {"voice": "x", "format": "wav"}}, "audio"),
    ({"web_search_options": {}}, "web_search_options"),
    ({"documents": [{"title": "a", "text": "b"}]}, "documents"),
    ({"messages": [{"role": "user", "content": [{"type": "text", "text": "x"}, IMAGE]}]}, "messages[0].content[1]"),
    ({"messages": [{"role": "user", "content": [{"type": "input_audio", "input_audio": {}}]}]}, "messages[0].content[0]"),
    ({"messages": [{"role": "user", "content": [{"type": "file", "file": {}}]}]}, "messages[0].content[0]"),
]

UNSUPPORTED_COMPLETION: list[tuple[dict[str, Any], str]] = [
    ({"suffix": "the end"}, "suffix"),
]

ALLOWED: list[tuple[str, dict[str, Any]]] = [
    (CHAT, {"tools": [], "tool_choice": "none"}),
    (CHAT, {"response_format": {"type": "text"}, "logprobs": False, "modalities": ["text"]}),
    (CHAT, {"max_tokens": 5, "max_completion_tokens": 5, "top_k": -1, "seed": -1, "stop": []}),
    (CHAT, {"user": "ann", "metadata": {"a": "b"}, "store": True, "service_tier": "auto", "who_knows": [1]}),
    (CHAT, {"logit_bias": {"5": 100, "6": -100}, "temperature": 2, "top_p": 0, "chat_template_kwargs": {"a": 1}}),
    (CHAT, {"logprobs": False, "top_logprobs": 0}),
    (CHAT, {"documents": [], "reasoning_effort": "high", "continue_final_message": False, "add_generation_prompt": True}),
    (CHAT, {"add_generation_prompt": False}),
    (CHAT, {"logprobs": True, "top_logprobs": 20}),
    (COMPLETION, {"best_of": 2, "n": 2, "suffix": "", "stream": True}),
    (COMPLETION, {"best_of": 20, "logprobs": 20, "max_tokens": 0, "echo": True}),
]


def post(http: httpx.Client, route: str, fields: dict[str, Any]) -> httpx.Response:
    base = {"messages": [SAID]} if route == CHAT else {"prompt": "hello"}
    return http.post(route, json={"model": "echo", **base, **fields})


@pytest.mark.parametrize(
    ("route", "fields", "param"),
    [
        *((route, *row) for row in INVALID for route in (CHAT, COMPLETION)),
        *((CHAT, *row) for row in INVALID_CHAT),
        *((COMPLETION, *row) for row in INVALID_COMPLETION),
    ],
)
def test_a_bad_field_is_400_and_named(http: httpx.Client, route: str, fields: dict[str, Any], param: str) -> None:
    reply = post(http, route, fields)
    error = error_of(reply)
    assert (reply.status_code, error["type"], error["code"]) == (400, "invalid_request_error", "invalid_value")
    assert error["param"] == param
    assert error["param"].split("[")[0].split(".")[0] in error["message"]


@pytest.mark.parametrize(
    ("route", "fields", "param"),
    [*((CHAT, *row) for row in UNSUPPORTED_CHAT), *((COMPLETION, *row) for row in UNSUPPORTED_COMPLETION)],
)
def test_what_cannot_be_had_is_400_unsupported(http: httpx.Client, route: str, fields: dict[str, Any], param: str) -> None:
    for more in ({}, {"stream": True}):
        reply = post(http, route, {**fields, **more})
        assert (reply.status_code, error_of(reply)["code"]) == (400, "unsupported_parameter")
        assert error_of(reply)["param"] == param


@pytest.mark.parametrize(("route", "fields"), ALLOWED)
def test_what_asks_for_nothing_special_is_answered(http: httpx.Client, route: str, fields: dict[str, Any]) -> None:
    assert post(http, route, fields).status_code == 200


@pytest.mark.parametrize(
    ("body", "words"),
    [
        (b"", "not valid JSON"),
        (b"{", "not valid JSON"),
        (b'{"model": "echo", messages: []}', "not valid JSON"),
        (b'{"model": "\xff"}', "not valid JSON"),
        (b'{"model": "\\ud800"}', "not valid JSON"),
        (b"[1]", "must be a JSON object"),
        (b"null", "must be a JSON object"),
        (b'"text"', "must be a JSON object"),
        (b"[" * 100_000, "nested too deeply"),
        (b'{"seed": 123456789012345678901234567890}', "beyond 64 bits"),
        (b'{"who_knows": {"a": [-123456789012345678901234567890]}}', "beyond 64 bits"),
        (b'{"temperature": 1e999}', "not valid JSON"),
    ],
)
def test_a_body_that_is_no_json_object_is_400(http: httpx.Client, body: bytes, words: str) -> None:
    for route in (CHAT, COMPLETION):
        reply = http.post(route, content=body, headers={"content-type": "application/json"})
        assert (reply.status_code, error_of(reply)["code"]) == (400, "invalid_body")
        assert words in error_of(reply)["message"]


_JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=6,
)
_FIELDS = "messages prompt stop logit_bias n seed max_tokens stream_options tools response_format temperature who_knows"


@given(route=st.sampled_from([CHAT, COMPLETION]), fields=st.dictionaries(st.sampled_from(_FIELDS.split()), _JSON, max_size=3))
@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_no_body_is_an_internal_error(http: httpx.Client, route: str, fields: dict[str, Any]) -> None:
    reply = post(http, route, {"max_tokens": 1, **fields})
    assert reply.status_code in (200, 400)
    fits("error" if reply.status_code == 400 else "chat" if route == CHAT else "completion", reply.json())


def test_a_token_that_the_model_does_not_know_is_400(http: httpx.Client) -> None:
    reply = post(http, COMPLETION, {"prompt": [100000]})
    assert (reply.status_code, error_of(reply)["param"]) == (400, "prompt")


def test_a_broken_model_file_is_503_with_its_problems(http: httpx.Client) -> None:
    reply = post(http, CHAT, {"model": "broken"})
    error = error_of(reply)
    assert (reply.status_code, error["code"]) == (503, "model_broken")
    assert "parameters.temperature" in error["message"]
    assert reply.headers["x-should-retry"] == "false"


def test_a_template_that_refuses_is_400(live: LiveServer, http: httpx.Client) -> None:
    template = "{% if messages[0].role != 'system' %}{{ raise_exception('begin with a system message') }}{% endif %}x"
    live.add("strict", template={"chat_template": template})
    for more in ({}, {"stream": True}):
        reply = post(http, CHAT, {"model": "strict", **more})
        assert (reply.status_code, error_of(reply)["code"]) == (400, "template_error")
        assert "begin with a system message" in error_of(reply)["message"]


def test_unknown_models_are_404_with_near_names(http: httpx.Client) -> None:
    for reply in (post(http, CHAT, {"model": "ecko"}), http.get("/v1/models/ecko")):
        error = error_of(reply)
        assert (reply.status_code, error["code"], error["param"]) == (404, "model_not_found", "model")
        assert error["hints"] == ["echo"]


def test_a_model_may_be_left_out_when_the_token_names_it(http: httpx.Client) -> None:
    fields = {"model": None}
    reply = http.post(CHAT, json={"messages": user("hi"), **fields}, headers={"authorization": "Bearer parrot"})
    assert reply.json()["model"] == "echo"
    reply = http.post(CHAT, json={"messages": user("hi")})
    assert (reply.status_code, error_of(reply)["param"]) == (400, "model")


def test_routes_and_methods(http: httpx.Client) -> None:
    reply = http.get("/v1/nonsense")
    assert (reply.status_code, error_of(reply)["code"]) == (404, "not_found")
    assert "GET /v1/nonsense" in error_of(reply)["message"]
    for method, route, allowed in (("GET", CHAT, "POST"), ("PUT", COMPLETION, "POST"), ("POST", "/v1/models", "GET")):
        reply = http.request(method, route)
        assert (reply.status_code, error_of(reply)["code"]) == (405, "method_not_allowed")
        assert allowed in reply.headers["allow"]


@pytest.mark.parametrize("path", ["/healthz", "/readyz", "/metrics", "/v1/models", "/v1/models/echo", "/v1/models/nobody"])
def test_head_is_answered_as_get_without_a_body(http: httpx.Client, path: str) -> None:
    head, got = http.head(path), http.get(path)
    assert (head.status_code, head.content) == (got.status_code, b"")
    assert head.headers["content-type"] == got.headers["content-type"]
    assert path == "/metrics" or head.headers["content-length"] == str(len(got.content))  # the counters go on


def test_head_is_offered_beside_get_and_nowhere_else(http: httpx.Client) -> None:
    assert http.post("/v1/models").headers["allow"] == "GET, HEAD, OPTIONS"
    reply = http.head(CHAT)
    assert (reply.status_code, reply.headers["allow"], reply.content) == (405, "OPTIONS, POST", b"")


@pytest.mark.parametrize("route", [CHAT, COMPLETION])
@pytest.mark.parametrize("count", [2048, 2_000_000, 9_000_000])
def test_what_is_too_long_is_told_so_however_long_it_is(http: httpx.Client, route: str, count: int) -> None:
    """9 million: more than a chat template may make by itself."""
    text = "x" * count
    reply = post(http, route, {"messages": user(text)} if route == CHAT else {"prompt": text})
    error = error_of(reply)
    assert (reply.status_code, error["code"]) == (400, "context_length_exceeded")
    assert error["param"] == ("messages" if route == CHAT else "prompt")
    assert error["param"] in error["message"] and "context" in error["message"]


def test_a_body_that_is_too_large_is_413(live: LiveServer) -> None:
    with live.http() as http:
        reply = http.post(CHAT, content=b" " * (32 * 1024 * 1024 + 1))
        assert (reply.status_code, error_of(reply)["code"]) == (413, "request_too_large")


def test_ignored_demands_are_warned_of(live: LiveServer, http: httpx.Client) -> None:
    live.add("easy", on_unsupported={"demands": "warn", "hints": "warn"})
    fields = {"model": "easy", "tools": [{"type": "function", "function": {"name": "f"}}], "who_knows": 1}
    reply = post(http, CHAT, fields)
    warnings = fits("chat", reply.json())["warnings"]
    assert reply.headers["x-llmgallery-warnings"] == "2"
    assert [warning.split()[0] for warning in warnings] == ["tools", "who_knows"]
    streamed = post(http, CHAT, {**fields, "stream": True})
    assert streamed.headers["x-llmgallery-warnings"] == "2"
    assert streamed.text.count('"warnings"') == 1


def test_unknown_fields_are_passed_over_unless_the_yaml_wants_them_told(live: LiveServer, http: httpx.Client) -> None:
    fields = {"user": "ann", "who_knows": 1}
    silent = post(http, CHAT, fields)
    assert silent.status_code == 200
    assert "warnings" not in silent.json() and "x-llmgallery-warnings" not in silent.headers
    live.add("talkative", on_unsupported={"hints": "warn"})
    for route in (CHAT, COMPLETION):
        warnings = post(http, route, {"model": "talkative", **fields}).json()["warnings"]
        assert [warning.split()[0] for warning in warnings] == ["user", "who_knows"]


def test_a_strict_model_refuses_unknown_fields(live: LiveServer, http: httpx.Client) -> None:
    live.add("severe", on_unsupported={"hints": "error"})
    reply = post(http, CHAT, {"model": "severe", "who_knows": 1})
    assert (reply.status_code, error_of(reply)["param"]) == (400, "who_knows")


def test_a_model_that_does_not_load_says_why(live: LiveServer, http: httpx.Client) -> None:
    live.add("failing", options={"fail_load": "these weights are stale"})
    for more in ({}, {"stream": True}):
        reply = post(http, CHAT, {"model": "failing", **more})
        assert (reply.status_code, error_of(reply)["code"]) == (503, "load_error")
        assert "these weights are stale" in error_of(reply)["message"]


def test_the_yaml_s_limit_of_concurrent_requests_holds(live: LiveServer, http: httpx.Client, tmp_path) -> None:
    live.add("busy", options={"gate": str(tmp_path / "gate")}, limits={"max_concurrent": 1, "retry_after_seconds": 7})
    with live.http() as other, other.stream("POST", CHAT, json={"model": "busy", "messages": [SAID], "stream": True}):
        reply = post(http, CHAT, {"model": "busy"})
        assert (reply.status_code, error_of(reply)["code"]) == (503, "overloaded")
        assert reply.headers["retry-after"] == "7"
