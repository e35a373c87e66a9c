"""Models that are elsewhere, through the whole of this server: in front of another instance of it, and of scripted endpoints."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import httpx
import openai
import pytest
from live_server import LiveServer, error_of, fits, sse, user
from loopback_endpoint import Asked, LoopbackEndpoint, answered, chunk, event, head, piece, stream, whole
from openai import OpenAI

CHAT = "/v1/chat/completions"
KEY = "sk-upstream-123456"
TOOLS: list[Any] = [{"type": "function", "function": {"name": "look", "parameters": {"type": "object", "properties": {}}}}]
CALL = '{"name": "look", "arguments": {"at": "that"}}'
SHOWN = {"function": "{{range .Functions}}{{.Name}} {{end}}{{.Input}}", "chat": "{{.Input}}", "chat_message": "{{.Content}}"}


@pytest.fixture(scope="module")
def above(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LiveServer]:
    """The instance that has the models."""
    with LiveServer(tmp_path_factory.mktemp("above"), api_keys=[KEY]) as server:
        server.add("parrot", embeddings=True, reranking=True)
        server.add("slow", options={"delay_ms": 15})
        server.add("caller", options={"reply": CALL}, template=SHOWN, function={"disable_no_action": True})
        yield server


@pytest.fixture(scope="module")
def front(above: LiveServer, tmp_path_factory: pytest.TempPathFactory) -> Iterator[LiveServer]:
    """The instance that has endpoints."""
    with LiveServer(tmp_path_factory.mktemp("front")) as server:
        for name in ("parrot", "slow", "caller", "pocket", "gone"):
            remote(server, name, f"{above.url}/v1", api_key=KEY)
        remote(server, "denied", f"{above.url}/v1", api_key="sk-wrong-123456", upstream_model="parrot")
        remote(server, "nobody", "http://127.0.0.1:9/v1", api_key=KEY, connect_retries=0)
        yield server


def remote(server: LiveServer, name: str, url: str, **options: Any) -> str:
    return server.add(name, backend="openai", options={"base_url": url, **options})


@pytest.fixture(scope="module")
def client(front: LiveServer) -> Iterator[OpenAI]:
    with front.client as client:
        yield client


@pytest.fixture(scope="module")
def http(front: LiveServer) -> Iterator[httpx.Client]:
    with front.http() as client:
        yield client


@pytest.fixture
def endpoint() -> Iterator[LoopbackEndpoint]:
    scripted = LoopbackEndpoint()
    try:
        yield scripted
    finally:
        scripted.close()


def bearing(server: LiveServer) -> httpx.Client:
    return server.http(headers={"authorization": f"Bearer {KEY}"})


# --- in front of another instance -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("model", ["parrot", "pocket"])
def test_an_answer_through_both_is_the_answer(front: LiveServer, above: LiveServer, model: str) -> None:
    body = {"model": model, "messages": user("Once upon a time"), "temperature": 0, "max_tokens": 20, "seed": 1}
    with front.http() as through, bearing(above) as straight:
        reply, direct = through.post(CHAT, json=body), straight.post(CHAT, json=body).json()
    told = fits("chat", reply.json())
    assert told["choices"] == direct["choices"] and told["choices"][0]["message"]["content"]
    assert (told["model"], told["usage"]["total_tokens"]) == (model, direct["usage"]["total_tokens"])
    assert told["system_fingerprint"] == direct["system_fingerprint"]


def test_the_official_client_streams_through_both(client: OpenAI) -> None:
    asked: dict[str, Any] = {"model": "slow", "messages": user("one two three")}
    with client.chat.completions.create(**asked, stream=True, stream_options={"include_usage": True}) as chunks:
        came = list(chunks)
    text = "".join(each.choices[0].delta.content or "" for each in came if each.choices)
    assert text == client.chat.completions.create(**asked).choices[0].message.content == "one two three"
    assert len([each for each in came if each.choices and each.choices[0].delta.content]) > 3, "piece by piece"
    assert came[-1].usage is not None and came[-1].usage.completion_tokens >= len(text)
    assert [each.choices[0].finish_reason for each in came if each.choices][-1] == "stop"


def test_several_answers_and_completions(client: OpenAI) -> None:
    several = client.chat.completions.create(model="parrot", messages=user("a"), n=3)  # type: ignore[arg-type]
    assert [(choice.index, choice.message.content) for choice in several.choices] == [(0, "a"), (1, "a"), (2, "a")]
    done = client.completions.create(model="parrot", prompt=["one", "two"], echo=True, max_tokens=3)
    assert [choice.text[:3] for choice in done.choices] == ["one", "two"] and done.choices[0].finish_reason == "length"


def test_tool_calls_go_through_and_back(client: OpenAI, http: httpx.Client) -> None:
    asked: dict[str, Any] = {"model": "caller", "messages": user("Hi"), "tools": TOOLS}
    choice = client.chat.completions.create(**asked).choices[0]
    assert choice.finish_reason == "tool_calls" and choice.message.tool_calls is not None
    (call,) = choice.message.tool_calls
    assert call.type == "function" and (call.function.name, call.function.arguments) == ("look", '{"at":"that"}')
    chunks = [each for each in sse(http.post(CHAT, json={**asked, "stream": True}).text) if each != "[DONE]"]
    (streamed,) = [each for chunk in chunks for each in chunk["choices"][0]["delta"].get("tool_calls", ())]
    assert streamed["function"] == {"name": "look", "arguments": '{"at":"that"}'} and streamed["type"] == "function"
    older = {"model": "caller", "messages": user("Hi"), "functions": [TOOLS[0]["function"]]}
    told = http.post(CHAT, json=older).json()["choices"][0]
    assert (told["message"]["function_call"]["name"], told["finish_reason"]) == ("look", "function_call")


def test_log_probabilities_go_through(front: LiveServer, above: LiveServer) -> None:
    body = {"model": "pocket", "messages": user("Once"), "logprobs": True, "top_logprobs": 3, "max_tokens": 4, "temperature": 0}
    prompt = {"model": "pocket", "prompt": "Once upon", "logprobs": 2, "max_tokens": 3, "temperature": 0}
    with front.http() as through, bearing(above) as straight:
        for path, asked in ((CHAT, body), ("/v1/completions", prompt)):
            told, direct = (each.post(path, json=asked).json()["choices"][0]["logprobs"] for each in (through, straight))
            assert told == _near(direct), path


def _near(value: Any) -> Any:
    """Scores of two runs may differ in their last digits."""
    if isinstance(value, float):
        return pytest.approx(value, abs=0.01)
    if isinstance(value, dict):
        return {name: _near(each) for name, each in value.items()}
    return [_near(each) for each in value] if isinstance(value, list) else value


def test_vectors_and_scores_go_through(front: LiveServer, above: LiveServer) -> None:
    asks: list[dict[str, Any]] = [
        {"input": "a"},
        {"input": ["a", "b c"]},
        {"input": [72, 105]},
        {"input": [[72], [105, 33]], "encoding_format": "base64"},
        {"input": "a", "dimensions": 7},
        {"input": "a", "normalize": False},
        {"input": "x" * 5000, "truncate": True},
    ]
    with front.http() as through, bearing(above) as straight:
        for ask in asks:
            told, direct = (each.post("/v1/embeddings", json={"model": "parrot", **ask}).json() for each in (through, straight))
            assert told["data"] == direct["data"] and told["usage"] == direct["usage"], ask
        too_long = through.post("/v1/embeddings", json={"model": "parrot", "input": ["a", "x" * 5000]})
        assert too_long.status_code == 400 and "input[1]" in error_of(too_long)["message"]
        ranked = through.post(
            "/v1/rerank", json={"model": "parrot", "query": "red fox", "documents": ["a fox", "red fox"]}
        ).json()
        assert [row["index"] for row in ranked["results"]] == [1, 0]


def test_errors_come_as_they_were_told(front: LiveServer, above: LiveServer, client: OpenAI) -> None:
    with pytest.raises(openai.AuthenticationError) as denied:
        client.chat.completions.create(model="denied", messages=user("Hi"))  # type: ignore[arg-type]
    assert denied.value.code == "invalid_api_key"
    with pytest.raises(openai.NotFoundError) as gone:
        client.chat.completions.create(model="gone", messages=user("Hi"), stream=True)  # type: ignore[arg-type]
    assert gone.value.code == "model_not_found" and "gone" in gone.value.message
    body = {"model": "parrot", "messages": user("Hi"), "temperature": 2.0, "response_format": {"type": "json_object"}}
    with front.http() as through, bearing(above) as straight:
        told, direct = through.post(CHAT, json=body), straight.post(CHAT, json=body)
        assert (told.status_code, told.json()) == (direct.status_code, direct.json())
        assert error_of(told)["param"] == "response_format"
        away = through.post(CHAT, json={"model": "nobody", "messages": user("Hi")})
    assert away.status_code == 502 and error_of(away)["code"] == "upstream_unavailable"
    assert "127.0.0.1:9" in error_of(away)["message"]


def test_who_leaves_cancels_what_runs_above(front: LiveServer, above: LiveServer, tmp_path: Path) -> None:
    above.add("gated", options={"gate": str(tmp_path / "gate"), "gate_after": 2})
    remote(front, "gated", f"{above.url}/v1", api_key=KEY)

    def busy() -> int:
        state = above.state("gated")
        return state.busy if state is not None else 0

    body = {"model": "gated", "messages": user("a long answer"), "stream": True}
    with front.http() as through, through.stream("POST", CHAT, json=body) as reply:
        assert next(line for line in reply.iter_lines() if '"content":"a' in line)
        assert busy() == 1
    front.until(lambda: busy() == 0)
    front.until(lambda: (state := front.state("gated")) is not None and state.busy == 0)


def test_all_models_share_one_light_worker(front: LiveServer, http: httpx.Client) -> None:
    for model in ("parrot", "caller", "pocket"):
        assert http.post(CHAT, json={"model": model, "messages": user("Hi"), "max_tokens": 1}).status_code == 200
    states = [front.state(model) for model in ("parrot", "caller", "pocket")]
    pids = {state.pid for state in states if state is not None}
    assert len(pids) == 1 and None not in pids
    assert all(state is not None and state.memory_bytes == 0 for state in states)


def test_an_edited_file_holds_at_the_next_request_in_the_same_worker(front: LiveServer, above: LiveServer) -> None:
    above.add("other", options={"reply": "the other"})
    name = remote(front, "edited", f"{above.url}/v1", api_key=KEY, upstream_model="parrot")
    with front.http() as through:
        body = {"model": name, "messages": user("Hi")}
        assert through.post(CHAT, json=body).json()["choices"][0]["message"]["content"] == "Hi"
        before = front.state(name)
        front.add(
            name,
            backend="openai",
            options={"base_url": f"{above.url}/v1", "api_key": KEY, "upstream_model": "other"},
            parameters={"max_tokens": 3},
        )
        front.call(front.stack.gallery.reload())
        choice = through.post(CHAT, json=body).json()["choices"][0]
    assert (choice["message"]["content"], choice["finish_reason"]) == ("the", "length")
    after = front.state(name)
    assert before is not None and after is not None and before.pid == after.pid


def test_the_worker_s_death_is_told_and_the_next_request_has_another(
    front: LiveServer, above: LiveServer, tmp_path: Path
) -> None:
    above.add("held", options={"gate": str(tmp_path / "gate")})
    remote(front, "held", f"{above.url}/v1", api_key=KEY)
    replies: list[httpx.Response] = []

    def ask() -> None:
        with front.http() as through:
            replies.append(through.post(CHAT, json={"model": "held", "messages": user("Hi")}))

    asking = threading.Thread(target=ask)
    asking.start()
    above.until(lambda: (state := above.state("held")) is not None and state.busy == 1)
    state = front.state("held")
    assert state is not None and state.pid is not None
    os.kill(state.pid, signal.SIGKILL)
    asking.join(20)
    error = error_of(replies[0])
    assert replies[0].status_code == 502 and error["code"] == "worker_died" and "SIGKILL" in error["message"]
    assert "remote models" in error["message"] and replies[0].headers["x-should-retry"] == "false"
    with front.http() as through:
        assert through.post(CHAT, json={"model": "parrot", "messages": user("Hi")}).status_code == 200
    front.until(lambda: (state := above.state("held")) is not None and state.busy == 0)
    assert (after := front.state("held")) is not None and after.pid != state.pid


def test_nobody_here_knows_the_prompt(http: httpx.Client) -> None:
    reply = http.post("/apply-template", json={"model": "parrot", "messages": user("Hi")})
    assert reply.status_code == 400 and "endpoint writes the prompt" in error_of(reply)["message"]


def test_remote_models_are_listed(client: OpenAI) -> None:
    assert {"parrot", "caller", "denied"} <= {model.id for model in client.models.list()}


# --- in front of scripted endpoints ---------------------------------------------------------------------------------------------

LIMITS = {"x_ratelimit_remaining_tokens": "7", "retry_after": "3", "x_request_id": "req_1", "set_cookie": "a=b"}
SLOW = {"error": {"message": "slow down", "type": "tokens", "param": None, "code": "rate_limit_exceeded", "more": 1}}


def scripted(front: LiveServer, endpoint: LoopbackEndpoint, **config: Any) -> str:
    return front.add("scripted", backend="openai", options={"base_url": endpoint.url, "api_key": KEY}, **config)


def test_limits_are_told_with_answers_and_errors(front: LiveServer, endpoint: LoopbackEndpoint, http: httpx.Client) -> None:
    body = {"model": scripted(front, endpoint), "messages": user("Hi")}
    for reply, asked in (
        (whole(SLOW, 429, **LIMITS), body),
        (whole(SLOW, 429, **LIMITS), {**body, "stream": True}),
        (whole(answered("Hi"), **LIMITS), body),
        (stream(chunk("Hi"), chunk(finish="stop"), **LIMITS), {**body, "stream": True}),
    ):
        endpoint.reply = reply
        told = http.post(CHAT, json=asked)
        assert told.headers["x-ratelimit-remaining-tokens"] == "7" and told.headers["retry-after"] == "3"
        assert told.headers["x-upstream-request-id"] == "req_1" and "set-cookie" not in told.headers
        if told.status_code != 200:
            assert (told.status_code, told.json()) == (429, SLOW)
    assert len(endpoint.asked) == 4, "nothing is tried again"


def test_what_nobody_here_knows_goes_through(front: LiveServer, endpoint: LoopbackEndpoint, http: httpx.Client) -> None:
    model = scripted(front, endpoint, on_unsupported={"demands": "error", "hints": "error"}, parameters={"temperature": 0.3})
    messages = [
        {"role": "developer", "content": "be brief", "cache_control": {"type": "ephemeral"}},
        {
            "role": "user",
            "content": [
                {"type": "text", "text": "what is this?", "cache_control": {"type": "ephemeral"}},
                {"type": "image_url", "image_url": {"url": "https://nowhere.invalid/a.png", "detail": "low"}},
                {"type": "input_audio", "input_audio": {"data": "AAAA", "format": "wav"}},
                {"type": "file", "file": {"file_id": "f-1"}},
                {"type": "video_url", "video_url": {"url": "https://nowhere.invalid/a.mp4"}},
            ],
        },
        {
            "role": "assistant",
            "content": None,
            "tool_calls": [{"id": "c1", "type": "custom", "custom": {"name": "sql", "input": "select 1"}}],
            "reasoning_details": [{"type": "reasoning.text", "text": "hm"}],
        },
        {"role": "tool", "tool_call_id": "c1", "content": "1"},
    ]
    fields = {
        "response_format": {"type": "json_schema", "json_schema": {"name": "x", "schema": {"type": "object"}, "strict": True}},
        "tools": [*TOOLS, {"type": "custom", "custom": {"name": "sql"}}, {"type": "web_search", "search_context_size": "low"}],
        "tool_choice": {"type": "custom", "custom": {"name": "sql"}},
        "parallel_tool_calls": True,
        "modalities": ["text", "audio"],
        "audio": {"voice": "x", "format": "wav"},
        "web_search_options": {"search_context_size": "low"},
        "max_completion_tokens": 9,
        "stop": ["a", "b"],
        "seed": 5,
        "user": "ann",
        "store": True,
        "service_tier": "flex",
        "prediction": {"type": "content", "content": "x"},
        "metadata": {"a": "b"},
        "reasoning_effort": "minimal",
        "verbosity": "low",
        "provider": {"order": ["x"]},
        "transforms": [],
        "logit_bias": {"5": 1},
    }
    endpoint.reply = whole(answered("ok"))
    assert http.post(CHAT, json={"model": model, "messages": messages, **fields}).status_code == 200
    sent = endpoint.asked[0].body
    assert sent["messages"] == messages
    assert {name: sent.get(name) for name in fields} == fields
    assert "max_tokens" not in sent and "top_k" not in sent and sent["temperature"] == 0.3
    assert endpoint.asked[0].headers["authorization"] == f"Bearer {KEY}"


def test_what_the_endpoint_says_beside_an_answer_comes_through(
    front: LiveServer, endpoint: LoopbackEndpoint, http: httpx.Client
) -> None:
    usage = {
        "prompt_tokens": 7,
        "completion_tokens": 5,
        "total_tokens": 12,
        "prompt_tokens_details": {"cached_tokens": 3, "audio_tokens": 1},
        "completion_tokens_details": {"reasoning_tokens": 4},
        "cost": 0.01,
    }
    message = {"role": "assistant", "content": "ok", "reasoning_content": "hm", "annotations": [{"type": "url_citation"}]}
    choice = {"index": 0, "message": message, "finish_reason": "content_filter", "content_filter_results": {"hate": True}}
    beside = {"system_fingerprint": "fp_1", "service_tier": "flex", "citations": ["https://a.example"], "usage": usage}
    endpoint.reply = whole({"id": "x", "object": "chat.completion", "model": "real", "choices": [choice], **beside})
    model = scripted(front, endpoint)
    told = http.post(CHAT, json={"model": model, "messages": user("Hi")}).json()
    assert told["choices"] == [{**choice, "logprobs": None, "message": {**message, "refusal": None}}]
    assert {name: told[name] for name in beside} == beside and told["model"] == model and told["id"] != "x"


def test_streams_tell_the_same_as_they_came(front: LiveServer, endpoint: LoopbackEndpoint, http: httpx.Client) -> None:
    parts = [{"index": 0, "id": "c1", "type": "function", "function": {"name": "look", "arguments": ""}}]
    parts += [{"index": 0, "function": {"arguments": text}} for text in ('{"at"', ':"that"}')]
    end = {**chunk(finish="tool_calls"), "system_fingerprint": "fp_1", "usage": {"prompt_tokens": 2, "completion_tokens": 3}}
    thoughts = [chunk(reasoning_content=text) for text in ("h", "m")]
    calls = [chunk(tool_calls=[part]) for part in parts]
    endpoint.reply = stream(chunk("", role="assistant"), *thoughts, chunk("ok"), *calls, end)
    body = {"model": scripted(front, endpoint), "messages": user("Hi"), "tools": TOOLS}
    asked = {**body, "stream": True, "stream_options": {"include_usage": True}}
    chunks = sse(http.post(CHAT, json=asked).text)[:-1]
    deltas = [each["choices"][0]["delta"] for each in chunks if each["choices"]]
    assert [delta["reasoning_content"] for delta in deltas if "reasoning_content" in delta] == ["h", "m"]
    assert [part for delta in deltas for part in delta.get("tool_calls", ())] == parts
    assert chunks[-1]["usage"]["total_tokens"] == 5 and chunks[-1]["system_fingerprint"] == "fp_1"
    # An endpoint that streams though nobody asked it to: the answer is the same, whole.
    message = http.post(CHAT, json=body).json()["choices"][0]["message"]
    assert (message["content"], message["reasoning_content"]) == ("ok", "hm")
    call = {"id": "c1", "type": "function", "function": {"name": "look", "arguments": '{"at":"that"}'}}
    assert message["tool_calls"] == [call]


def test_custom_calls_are_told_as_they_came(front: LiveServer, endpoint: LoopbackEndpoint, http: httpx.Client) -> None:
    first = {"index": 0, "id": "c1", "type": "custom", "custom": {"name": "sql", "input": "sel"}}
    endpoint.reply = stream(
        chunk(tool_calls=[first]),
        chunk(tool_calls=[{"index": 0, "custom": {"input": "ect 1"}}]),
        chunk(finish="tool_calls"),
    )
    body = {"model": scripted(front, endpoint), "messages": user("Hi"), "tools": [{"type": "custom", "custom": {"name": "sql"}}]}
    chunks = [each for each in sse(http.post(CHAT, json={**body, "stream": True}).text) if each != "[DONE]"]
    parts = [part for each in chunks for part in each["choices"][0]["delta"].get("tool_calls", ())]
    assert parts == [first, {"index": 0, "custom": {"input": "ect 1"}}]
    (call,) = http.post(CHAT, json=body).json()["choices"][0]["message"]["tool_calls"]
    assert call == {"id": "c1", "type": "custom", "custom": {"name": "sql", "input": "select 1"}}


def test_an_error_within_a_stream_ends_it_as_it_came(front: LiveServer, endpoint: LoopbackEndpoint, http: httpx.Client) -> None:
    model = scripted(front, endpoint)
    body = {"model": model, "messages": user("Hi"), "stream": True}
    endpoint.reply = stream(chunk("Hi"), SLOW, end=False)
    events = sse(http.post(CHAT, json=body).text)
    assert events[-1] == SLOW and events[-2]["choices"][0]["delta"]["content"] == "Hi"
    endpoint.reply = stream(chunk("Hi"), b"", end=False)
    last = sse(http.post(CHAT, json=body).text)[-1]
    assert last["error"]["code"] == "upstream_unavailable" and "broke off" in last["error"]["message"]


def test_who_leaves_closes_the_connection_to_the_endpoint(front: LiveServer, endpoint: LoopbackEndpoint) -> None:
    async def waits(asked: Asked) -> AsyncIterator[bytes]:
        yield head(kind="text/event-stream") + piece(event(chunk("Hi")))
        await asked.go.wait()

    endpoint.reply = waits
    body = {"model": scripted(front, endpoint), "messages": user("Hi"), "stream": True}
    with front.http() as through, through.stream("POST", CHAT, json=body) as reply:
        assert next(line for line in reply.iter_lines() if '"content":"Hi"' in line)
    assert endpoint.asked[0].left.wait(20)


def test_rate_limits_of_embeddings_are_told(front: LiveServer, endpoint: LoopbackEndpoint, http: httpx.Client) -> None:
    data = [{"object": "embedding", "index": 0, "embedding": [0.5, 0.25]}]
    endpoint.reply = whole({"object": "list", "data": data, "usage": {"prompt_tokens": 1}}, **LIMITS)
    asked = {"model": scripted(front, endpoint), "input": "a", "user": "ann", "input_type": "query"}
    told = http.post("/v1/embeddings", json=asked)
    assert told.json()["data"] == data and told.headers["x-ratelimit-remaining-tokens"] == "7"
    assert {name: endpoint.asked[0].body[name] for name in ("user", "input_type")} == {"user": "ann", "input_type": "query"}


# --- endpoints that mean no good ------------------------------------------------------------------------------------------------


def deep(key: bytes) -> bytes:
    return (
        b'{"choices":[{"index":0,"finish_reason":"stop","message":{"content":"x","%s":' % key + b'{"a":' * 150 + b"1" + b"}" * 150
    )


ODD_CALLS = [{"index": -5, "id": 3, "function": "x"}, {"index": 2**63, "function": {"name": {}, "arguments": {"a": 1}}}, 7, None]
ODD_USAGE = {"prompt_tokens": "7", "completion_tokens": -3, "total_tokens": None, "prompt_tokens_details": [1], "cost": 0.5}
ODD: list[tuple[Any, int]] = [
    (b"", 502),
    (b"null", 502),
    (b"[" * 100_000, 502),
    (deep(b"audio") + b"}}]}", 200),
    (b'{"error":' * 150 + b"1" + b"}" * 150, 502),
    ({"error": True}, 502),
    ({"error": {"message": "x", "code": 418}}, 418),
    ({"choices": []}, 502),
    ({"choices": [{"index": 1, "message": {"content": "b"}}, {"index": 0, "message": {"content": "a"}}]}, 200),
    ({"choices": [{"message": {"tool_calls": ODD_CALLS}}]}, 200),
    ({**answered("x"), "usage": ODD_USAGE}, 200),
    ({**answered("x"), "warnings": 5, "choices_": [], "id": [], "created": {}}, 200),
]


def test_odd_endpoints_are_no_bug_of_ours(front: LiveServer, endpoint: LoopbackEndpoint, http: httpx.Client) -> None:
    body = {"model": scripted(front, endpoint), "messages": user("Hi")}
    assert http.post(CHAT, json={**body, "model": "parrot"}).status_code == 200
    before = front.state("parrot")
    for said, status in ODD:
        endpoint.reply = whole(said)
        for asked in (body, {**body, "stream": True, "stream_options": {"include_usage": True}}):
            told = http.post(CHAT, json=asked)
            assert told.status_code == status and "internal_error" not in told.text, (said, told.text)
            if status == 200 and "stream" not in asked:
                fits_usage = told.json()["usage"]
                counts = [fits_usage[name] for name in ("prompt_tokens", "completion_tokens", "total_tokens")]
                assert all(type(count) is int and count >= 0 for count in counts)
                assert isinstance(fits_usage["prompt_tokens_details"], dict)
    after = front.state("parrot")
    assert before is not None and after is not None and before.pid == after.pid, "the worker of all remote models lives"


def test_no_key_is_told_in_whatever_an_endpoint_answers(
    front: LiveServer, endpoint: LoopbackEndpoint, http: httpx.Client
) -> None:
    body = {"model": scripted(front, endpoint), "messages": user("Hi")}
    escaped = f'{{"error":{{"message":"{KEY}"}}}}'.replace("s", "\\u0073").encode()
    headers = {"x_ratelimit_by": KEY, "location": f"https://a.example/?k={KEY}"}
    for said in (escaped, KEY.encode(), b'"' + KEY.encode() + b'"'):
        for status in (200, 302, 401, 500):
            endpoint.reply = whole(said, status, **headers)
            for asked in (body, {**body, "stream": True}):
                told = http.post(CHAT, json=asked)
                assert told.status_code >= 400 and KEY[:10] not in told.text + str(told.headers), told.text
    assert len(endpoint.asked) == 24, "no redirect is followed"
    assert KEY not in http.get("/v1/models").text + http.get("/metrics").text
