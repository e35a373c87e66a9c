"""What goes over the wire, byte by byte where it matters: bodies, chunks, their order, usage."""

from __future__ import annotations

import httpx
import pytest
from live_server import LiveServer, fits, sse, user

CHAT = "/v1/chat/completions"
COMPLETION = "/v1/completions"


def stream(http: httpx.Client, route: str, **body: object) -> list:
    reply = http.post(route, json={"model": "echo", "stream": True, **body})
    assert reply.status_code == 200, reply.text
    assert reply.headers["content-type"] == "text/event-stream; charset=utf-8"
    assert reply.headers["cache-control"] == "no-cache"
    events = sse(reply.text)
    assert events.pop() == "[DONE]"
    return events


def counted(usage: dict) -> dict:
    """Without what depends on the requests before."""
    return {name: value for name, value in usage.items() if name != "prompt_tokens_details"}


def test_a_chat_body(http: httpx.Client) -> None:
    reply = http.post(CHAT, json={"model": "parrot", "messages": user("hello")})
    assert reply.headers["content-type"] == "application/json"
    body = fits("chat", reply.json())
    assert body["model"] == "echo"
    cached = body["usage"].pop("prompt_tokens_details")["cached_tokens"]
    assert body["usage"] == {"prompt_tokens": 8, "completion_tokens": 6, "total_tokens": 14}
    assert 0 <= cached < 8  # by what was asked before


def test_chat_chunks_have_the_role_first_and_the_reason_last(http: httpx.Client) -> None:
    chunks = [fits("chat_chunk", chunk) for chunk in stream(http, CHAT, messages=user("hello"))]
    choices = [chunk["choices"][0] for chunk in chunks]
    assert choices[0]["delta"] == {"role": "assistant", "content": "", "refusal": None}
    assert [choice["finish_reason"] for choice in choices] == [None] * (len(choices) - 1) + ["stop"]
    assert choices[-1]["delta"] == {}
    assert all(set(choice["delta"]) == {"content"} for choice in choices[1:-1])
    assert not any("usage" in chunk for chunk in chunks)
    assert len({(chunk["id"], chunk["created"], chunk["system_fingerprint"]) for chunk in chunks}) == 1


@pytest.mark.parametrize(("route", "shape", "asked"), [(CHAT, "chat_chunk", "messages"), (COMPLETION, "completion", "prompt")])
def test_usage_comes_last_and_only_when_asked_for(http: httpx.Client, route: str, shape: str, asked: str) -> None:
    question = user("hello") if asked == "messages" else "hello"
    events = stream(http, route, **{asked: question}, stream_options={"include_usage": True})
    *chunks, last = [fits(shape, event) for event in events]
    assert all(chunk["usage"] is None and len(chunk["choices"]) == 1 for chunk in chunks)
    assert last["choices"] == []
    assert last["usage"]["completion_tokens"] == 6
    without = stream(http, route, **{asked: question}, stream_options={"include_usage": False})
    assert not any("usage" in chunk for chunk in without)


def test_a_completion_body(http: httpx.Client) -> None:
    body = fits("completion", http.post(COMPLETION, json={"model": "echo", "prompt": "hello"}).json())
    assert [choice["text"] for choice in body["choices"]] == ["hello"]
    assert body["usage"]["prompt_tokens"] == 5


def test_completion_chunks_are_text_and_then_a_reason(http: httpx.Client) -> None:
    chunks = [fits("completion", chunk) for chunk in stream(http, COMPLETION, prompt="hello")]
    choices = [chunk["choices"][0] for chunk in chunks]
    assert "".join(choice["text"] for choice in choices) == "hello"
    assert [choice["finish_reason"] for choice in choices] == [None] * (len(choices) - 1) + ["stop"]


@pytest.mark.parametrize("route", [CHAT, COMPLETION])
def test_n_answers_are_numbered_and_the_prompt_counts_once(http: httpx.Client, route: str) -> None:
    question = {"messages": user("hello")} if route == CHAT else {"prompt": "hello"}
    one = http.post(route, json={"model": "echo", **question}).json()["usage"]
    three = http.post(route, json={"model": "echo", "n": 3, **question}).json()
    assert [choice["index"] for choice in three["choices"]] == [0, 1, 2]
    assert three["usage"]["prompt_tokens"] == one["prompt_tokens"]
    assert three["usage"]["completion_tokens"] == 3 * one["completion_tokens"]
    options = {"include_usage": True}
    *chunks, usage = stream(http, route, n=3, stream_options=options, **question)
    ends = sorted(chunk["choices"][0]["index"] for chunk in chunks if chunk["choices"][0]["finish_reason"])
    assert ends == [0, 1, 2]
    assert counted(usage["usage"]) == counted(three["usage"])
    for index in range(3):
        mine = [chunk["choices"][0] for chunk in chunks if chunk["choices"][0]["index"] == index]
        texts = [choice["delta"].get("content", "") if route == CHAT else choice["text"] for choice in mine]
        assert "".join(texts) == "hello"
        assert [choice["finish_reason"] for choice in mine][-1] == "stop"


@pytest.mark.parametrize(
    ("prompt", "texts", "tokens"),
    [
        ("ab", ["ab"], 2),
        (["ab", "c"], ["ab", "c"], 3),
        ([104, 105], ["hi"], 2),
        ([[104, 105], [111]], ["hi", "o"], 3),
        (["ab", [104, 105]], ["ab", "hi"], 4),
    ],
)
def test_prompts_come_as_text_or_tokens_alone_or_in_lists(http, prompt, texts, tokens) -> None:
    body = http.post(COMPLETION, json={"model": "echo", "prompt": prompt}).json()
    assert [choice["text"] for choice in body["choices"]] == texts
    assert body["usage"]["prompt_tokens"] == tokens


@pytest.mark.parametrize("streamed", [False, True])
def test_echo_puts_the_prompt_before_the_answer(http: httpx.Client, streamed: bool) -> None:
    for prompt in ("ab", [97, 98]):
        if streamed:
            chunks = stream(http, COMPLETION, prompt=prompt, echo=True)
            text = "".join(chunk["choices"][0]["text"] for chunk in chunks)
        else:
            reply = http.post(COMPLETION, json={"model": "echo", "prompt": prompt, "echo": True})
            text = reply.json()["choices"][0]["text"]
        assert text == "abab"


def test_the_length_limit_ends_an_answer(http: httpx.Client) -> None:
    for field in ("max_tokens", "max_completion_tokens"):
        body = http.post(CHAT, json={"model": "echo", "messages": user("hello"), field: 3}).json()
        assert body["choices"][0]["message"]["content"] == "hel"
        assert body["choices"][0]["finish_reason"] == "length"
        assert body["usage"]["completion_tokens"] == 3


def test_no_limit_goes_on_until_the_context_is_full(live: LiveServer, http: httpx.Client) -> None:
    live.add("endless", context_size=64, parameters={"max_tokens": 4})
    endless = {"model": "endless", "messages": user("hello"), "ignore_eos": True}
    limited = http.post(CHAT, json=endless).json()
    assert limited["usage"]["completion_tokens"] == 4
    full = http.post(CHAT, json={**endless, "max_tokens": -1}).json()
    assert full["choices"][0]["finish_reason"] == "length"
    assert full["usage"]["total_tokens"] == 64


@pytest.mark.parametrize("stop", ["lo w", ["xyz", "lo w", "d"], ["a", "b", "c", "f", "lo w"]])
@pytest.mark.parametrize("streamed", [False, True])
def test_a_stop_string_ends_the_answer_and_never_shows(live, http, tmp_path, stop, streamed) -> None:
    live.add("letters", options={"delay_ms": 2})  # each step is a chunk of its own: the stop string spans four
    body = {"model": "letters", "messages": user("hello world"), "stop": stop}
    if streamed:
        choices = [chunk["choices"][0] for chunk in stream(http, CHAT, **body)]
        texts = [choice["delta"].get("content", "") for choice in choices]
        assert len(texts) > 3
        text, reason = "".join(texts), choices[-1]["finish_reason"]
    else:
        choice = http.post(CHAT, json=body).json()["choices"][0]
        text, reason = choice["message"]["content"], choice["finish_reason"]
    assert (text, reason) == ("hel", "stop")


def test_the_yaml_s_stop_words_hold_beside_the_request_s(live: LiveServer, http: httpx.Client) -> None:
    live.add("stopping", stopwords=["wor"])
    for stop, text in ((None, "hello "), (["l"], "he"), (["zzz"], "hello ")):
        body = http.post(CHAT, json={"model": "stopping", "messages": user("hello world"), "stop": stop}).json()
        assert body["choices"][0]["message"]["content"] == text


def test_characters_are_never_split(live: LiveServer, http: httpx.Client) -> None:
    live.add("bytes", options={"delay_ms": 1})  # echo's tokens are bytes
    text = "żółć 🌍🏽 日本 \u0000\u2028 end"
    chunks = stream(http, CHAT, model="bytes", messages=user(text))
    pieces = [chunk["choices"][0]["delta"].get("content", "") for chunk in chunks]
    assert "".join(pieces) == text
    assert not any("\ufffd" in piece for piece in pieces)


def test_a_seed_decides_and_copies_of_a_seeded_request_differ(http: httpx.Client) -> None:
    wild = {"temperature": 2, "top_k": 0, "top_p": 1, "min_p": 0}
    body = {"model": "pocket", "messages": user("Tell me a story."), "max_tokens": 24, **wild}

    def answers(**more: int) -> list[str]:
        reply = fits("chat", http.post(CHAT, json={**body, **more}).json())
        return [choice["message"]["content"] for choice in reply["choices"]]

    answers(seed=7)  # from now on the prompt's share of the cache is the same
    assert answers(seed=7) == answers(seed=7) != answers(seed=8)
    assert len(set(answers(seed=7, n=3))) > 1


def test_messages_come_in_many_shapes(http: httpx.Client) -> None:
    messages = [
        {"role": "developer", "content": "be brief"},
        {"role": "user", "content": [{"type": "text", "text": "what "}, {"type": "text", "text": "now?"}], "name": "ann"},
        {
            "role": "assistant",
            "content": None,
            "tool_calls": [{"id": "call_1", "type": "function", "function": {"name": "time", "arguments": "{}"}}],
        },
        {"role": "tool", "tool_call_id": "call_1", "content": "noon"},
        {"role": "assistant", "content": [{"type": "refusal", "refusal": "no"}]},
        {"role": "user", "content": [{"type": "text", "text": "he"}, {"type": "text", "text": "llo"}]},
    ]
    reply = http.post(CHAT, json={"model": "echo", "messages": messages})
    assert reply.status_code == 200, reply.text
    assert reply.json()["choices"][0]["message"]["content"] == "hello"


def test_null_means_not_asked(http: httpx.Client) -> None:
    names = """stream stream_options n stop seed temperature top_p top_k min_p typical_p max_tokens max_completion_tokens
    presence_penalty frequency_penalty repeat_penalty repeat_last_n logit_bias ignore_eos user logprobs top_logprobs
    response_format tools tool_choice functions function_call modalities audio web_search_options metadata store"""
    reply = http.post(CHAT, json={"model": "echo", "messages": user("hello"), **dict.fromkeys(names.split())})
    assert reply.status_code == 200, reply.text


def test_models_are_listed_without_the_broken_ones(http: httpx.Client) -> None:
    listed = fits("models", http.get("/v1/models").json())["data"]
    names = [model["id"] for model in listed]
    assert "broken" not in names
    assert names == sorted(names)
    assert next(model for model in listed if model["id"] == "echo")["aliases"] == ["parrot", "gpt-4o*"]


def test_model_ids_may_hold_slashes(live: LiveServer, http: httpx.Client) -> None:
    live.add("owner/repo:Q4")
    for path in ("/v1/models/owner/repo:Q4", "/v1/models/owner%2Frepo%3AQ4"):
        assert fits("model", http.get(path).json())["id"] == "owner/repo:Q4"


def test_the_fingerprint_changes_with_the_configuration(live: LiveServer, http: httpx.Client) -> None:
    def fingerprint() -> str:
        body = http.post(CHAT, json={"model": "changing", "messages": user("hello")}).json()
        return str(body["system_fingerprint"])

    live.add("changing", parameters={"temperature": 0.5})
    first = fingerprint()
    assert fingerprint() == first
    live.add("changing", parameters={"temperature": 0.25})
    assert fingerprint() != first
