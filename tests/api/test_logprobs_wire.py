"""Log probabilities, echo, suffix and the best of several over HTTP. echo's tokens are bytes, their chances known."""

from __future__ import annotations

import math
from typing import Any

import httpx
import openai
import pytest
from live_server import LiveServer, error_of, fits, sse, user
from openai import OpenAI

from llmgallery.backends.echo import vocab

CHAT = "/v1/chat/completions"
COMPLETION = "/v1/completions"


def chat(http: httpx.Client, text: str, **fields: Any) -> dict[str, Any]:
    body = {"model": "echo", "messages": user(text), "logprobs": True, **fields}
    return fits("chat", http.post(CHAT, json=body).json())["choices"][0]  # type: ignore[no-any-return]


def completion(http: httpx.Client, prompt: Any, **fields: Any) -> dict[str, Any]:
    reply = http.post(COMPLETION, json={"model": "echo", "prompt": prompt, **fields})
    return fits("completion", reply.json())  # type: ignore[no-any-return]


def streamed(http: httpx.Client, route: str, shape: str, **fields: Any) -> list[dict[str, Any]]:
    events = sse(http.post(route, json={"model": "echo", "stream": True, **fields}).text)
    assert events.pop() == "[DONE]"
    return [fits(shape, event)["choices"][0] for event in events]


def known(token: int, top: int = 0) -> list[tuple[bytes, float]]:
    """What echo says of a token, itself first."""
    said = vocab.logprob(token, top, 0)
    return [(said.piece, said.logprob or 0.0), *((other.piece, other.logprob) for other in said.top)]


@pytest.mark.parametrize("text", ["hello", "żółć 🌍"])
def test_a_chat_s_tokens_have_their_bytes_and_those_are_the_text(http: httpx.Client, text: str) -> None:
    choice = chat(http, text, top_logprobs=3)
    content = choice["logprobs"]["content"]
    assert bytes(byte for entry in content for byte in entry["bytes"]).decode() == choice["message"]["content"] == text
    for byte, entry in zip(text.encode(), content, strict=True):
        (piece, logprob), *top = known(byte, 3)
        assert entry["token"] == piece.decode(errors="replace")
        assert math.isclose(entry["logprob"], logprob)
        assert [bytes(other["bytes"]) for other in entry["top_logprobs"]] == [piece for piece, _ in top]
        assert sum(math.exp(other["logprob"]) for other in entry["top_logprobs"]) <= 1


def test_without_top_logprobs_there_are_none_and_without_logprobs_nothing(http: httpx.Client) -> None:
    assert [entry["top_logprobs"] for entry in chat(http, "hi")["logprobs"]["content"]] == [[], []]
    assert chat(http, "hi", logprobs=False)["logprobs"] is None
    assert completion(http, "hi")["choices"][0]["logprobs"] is None
    assert chat(http, "hi", stop="h")["logprobs"] == {"content": [], "refusal": None}


def test_streamed_tokens_come_with_their_text(live: LiveServer, http: httpx.Client) -> None:
    live.add("slowly", options={"delay_ms": 1})
    text = "ab żó 🌍!"
    choices = streamed(http, CHAT, "chat_chunk", model="slowly", messages=user(text), logprobs=True)
    assert len(choices) > 4
    for choice in choices[1:-1]:
        content = choice["logprobs"]["content"]
        assert bytes(byte for entry in content for byte in entry["bytes"]).decode() == choice["delta"]["content"]
    assert choices[0]["logprobs"] is None and choices[-1]["logprobs"] is None
    assert "".join(choice["delta"].get("content", "") for choice in choices) == text


@pytest.mark.parametrize("stream", [False, True])
def test_tokens_of_a_stop_string_are_not_told(http: httpx.Client, stream: bool) -> None:
    fields = {"messages": user("hello world"), "stop": "lo w", "logprobs": True}
    if stream:
        parts = [choice["logprobs"] for choice in streamed(http, CHAT, "chat_chunk", **fields)]
        content = [entry for part in parts if part for entry in part["content"]]
    else:
        content = chat(http, "hello world", stop="lo w")["logprobs"]["content"]
    assert [entry["token"] for entry in content] == ["h", "e", "l"]


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("prompt", ["ab é", list("ab é".encode())])
def test_an_echoed_prompt_is_scored(http: httpx.Client, prompt: Any, stream: bool) -> None:
    fields = {"echo": True, "logprobs": 2, "max_tokens": 1}
    if stream:
        choices = streamed(http, COMPLETION, "completion", prompt=prompt, **fields)
        text = "".join(choice["text"] for choice in choices)
        parts = [choice["logprobs"] for choice in choices if choice["logprobs"]]
        told = {key: [item for part in parts for item in part[key]] for key in parts[0]}
    else:
        (choice,) = completion(http, prompt, **fields)["choices"]
        text, told = choice["text"], choice["logprobs"]
    assert text == "ab éa"
    assert told["tokens"] == ["a", "b", " ", "bytes:\\xc3", "bytes:\\xa9", "a"]
    assert told["text_offset"] == [0, 1, 2, 3, 3, 4]
    assert told["token_logprobs"][0] is None and told["top_logprobs"][0] is None
    assert told["token_logprobs"][1:] == pytest.approx([known(byte)[0][1] for byte in "b éa".encode()])
    assert list(told["top_logprobs"][1]) == ["b", "c"] or set(told["top_logprobs"][1]) == {"b", "c"}


@pytest.mark.parametrize("echo", [False, True])
def test_nothing_is_generated_when_nothing_is_asked_for(http: httpx.Client, echo: bool) -> None:
    body = completion(http, ["ab", "cde"], max_tokens=0, echo=echo, logprobs=0)
    assert [choice["text"] for choice in body["choices"]] == (["ab", "cde"] if echo else ["", ""])
    assert [choice["finish_reason"] for choice in body["choices"]] == ["length", "length"]
    assert [choice["logprobs"]["tokens"] for choice in body["choices"]] == ([["a", "b"], ["c", "d", "e"]] if echo else [[], []])
    assert (body["usage"]["prompt_tokens"], body["usage"]["completion_tokens"]) == (5, 0)


def test_a_harness_can_score_a_continuation(client: OpenAI) -> None:
    """As lm-evaluation-harness asks: context and continuation as token ids, one token that is thrown away, greedy or not."""
    context, continuation = list(b"2 + 2 = "), list(b"4.")
    reply = client.completions.create(
        model="echo", prompt=[context + continuation], echo=True, max_tokens=1, logprobs=1, temperature=0, seed=1234
    )
    told = reply.choices[0].logprobs
    assert told is not None and told.token_logprobs is not None and told.tokens is not None and told.top_logprobs is not None
    scores = told.token_logprobs[len(context) : -1]
    assert len(scores) == len(continuation) and all(score < 0 for score in scores)
    places = range(len(context), len(told.tokens) - 1)
    assert all(told.tokens[at] == max(told.top_logprobs[at], key=lambda name: told.top_logprobs[at][name]) for at in places)


def test_stop_strings_act_on_the_answer_not_on_the_echo(http: httpx.Client) -> None:
    (choice,) = completion(http, "a.b", echo=True, stop=".", logprobs=0)["choices"]
    assert (choice["text"], choice["finish_reason"]) == ("a.ba", "stop")
    assert choice["logprobs"]["tokens"] == ["a", ".", "b", "a"]


def test_of_control_tokens_in_a_prompt_the_offsets_are_right(http: httpx.Client) -> None:
    (choice,) = completion(http, "<|user|>a<|end|>", echo=True, max_tokens=0, logprobs=0)["choices"]
    assert choice["logprobs"]["tokens"] == ["<|user|>", "a", "<|end|>"]
    assert choice["logprobs"]["text_offset"] == [0, 8, 9]


def test_the_official_client_reads_logprobs(client: OpenAI) -> None:
    reply = client.chat.completions.create(model="echo", messages=user("hé"), logprobs=True, top_logprobs=2)
    told = reply.choices[0].logprobs
    assert told is not None and told.content is not None
    assert bytes(byte for entry in told.content for byte in entry.bytes or []).decode() == "hé"
    assert [len(entry.top_logprobs) for entry in told.content] == [2, 2, 2]
    old = client.completions.create(model="echo", prompt="hi", logprobs=1, echo=True).choices[0].logprobs
    assert old is not None and old.tokens == ["h", "i", "h", "i"] and old.text_offset == [0, 1, 2, 3]


def test_the_best_are_given_renumbered_and_all_are_counted(client: OpenAI) -> None:
    reply = client.completions.create(model="echo", prompt=["ab", "c"], n=2, best_of=4, seed=0, logprobs=0)
    assert [(choice.index, choice.text) for choice in reply.choices] == [(0, "ab"), (1, "ab"), (2, "c"), (3, "c")]
    sure = [choice.logprobs.token_logprobs[0] for choice in reply.choices if choice.logprobs and choice.logprobs.token_logprobs]
    assert sure == sorted(sure[:2], reverse=True) * 2 and len(set(sure)) == 2
    assert reply.usage is not None
    assert (reply.usage.prompt_tokens, reply.usage.completion_tokens) == (3, 4 * 3 + 4 * 2)
    unseen = client.completions.create(model="echo", prompt="ab", best_of=3)
    assert [choice.logprobs for choice in unseen.choices] == [None]
    with pytest.raises(openai.BadRequestError, match="cannot be streamed") as caught:
        client.completions.create(model="echo", prompt="ab", best_of=2, stream=True)
    assert caught.value.param == "best_of"


def test_defaults_of_the_yaml(live: LiveServer, http: httpx.Client) -> None:
    live.add("talkative", parameters={"n": 2, "echo": True, "logprobs": True, "top_logprobs": 1})
    body = completion(http, "ab", model="talkative")
    assert [choice["text"] for choice in body["choices"]] == ["abab", "abab"]
    assert [list(top) for top in body["choices"][0]["logprobs"]["top_logprobs"][1:]] == [["b"], ["a"], ["b"]]
    said = completion(http, "ab", model="talkative", n=1, echo=False)
    assert [(choice["text"], choice["logprobs"]["tokens"]) for choice in said["choices"]] == [("ab", ["a", "b"])]
    assert len(chat(http, "x", model="talkative")["logprobs"]["content"][0]["top_logprobs"]) == 1
    assert chat(http, "x", model="talkative", logprobs=False)["logprobs"] is None
    best = http.post(COMPLETION, json={"model": "talkative", "prompt": "a", "best_of": 1})
    assert error_of(best)["message"].startswith("best_of: must be at least n, which is 2")


@pytest.mark.parametrize("prompt", ["ab", [97, 98]])
def test_a_gap_is_filled_in(live: LiveServer, http: httpx.Client, prompt: Any) -> None:
    live.add("filling", options={"fills_in": True})
    body = completion(http, prompt, model="filling", suffix="yz", echo=True, logprobs=0)
    (choice,) = body["choices"]
    assert choice["text"] == "abyz"  # the prompt, and echo's answer: what follows the gap
    assert (choice["logprobs"]["tokens"], choice["logprobs"]["text_offset"]) == (["a", "b", "y", "z"], [0, 1, 2, 3])
    assert None not in choice["logprobs"]["token_logprobs"]
    assert body["usage"]["prompt_tokens"] == 2 + 2 + 3


@pytest.mark.parametrize("stream", [False, True])
def test_a_suffix_that_the_model_cannot_heed_is_refused_or_warned_of(live: LiveServer, http: httpx.Client, stream: bool) -> None:
    fields = {"prompt": "ab", "suffix": "z", "stream": stream}
    refused = http.post(COMPLETION, json={"model": "echo", **fields})
    assert (refused.status_code, error_of(refused)["code"]) == (400, "unsupported_parameter")
    assert "its vocabulary has no tokens for that" in error_of(refused)["message"]
    live.add("warning", on_unsupported={"demands": "warn"})
    reply = http.post(COMPLETION, json={"model": "warning", **fields})
    assert reply.headers["x-llmgallery-warnings"] == "1"
    body = sse(reply.text)[0] if stream else reply.json()
    assert fits("completion", body)["warnings"][0].startswith("suffix was ignored: this model cannot fill in text")
    live.add("ignoring", on_unsupported={"demands": "ignore"})
    ignored = http.post(COMPLETION, json={"model": "ignoring", **fields})
    assert ignored.status_code == 200 and "x-llmgallery-warnings" not in ignored.headers


def test_a_big_echo_with_logprobs_arrives_whole(live: LiveServer, http: httpx.Client) -> None:
    live.add("wide", context_size=30_000)
    prompt = [97 + place % 26 for place in range(29_000)]
    body = {"model": "wide", "prompt": prompt, "echo": True, "logprobs": 5}
    (choice,) = http.post(COMPLETION, json={**body, "max_tokens": 0}).json()["choices"]
    assert choice["logprobs"]["text_offset"] == list(range(len(prompt)))
    assert len(choice["logprobs"]["top_logprobs"]) == len(choice["text"]) == len(prompt)
    *chunks, done = sse(http.post(COMPLETION, json={**body, "max_tokens": 3, "stream": True}).text)
    parts = [chunk["choices"][0]["logprobs"] for chunk in chunks]
    assert done == "[DONE]" and sum(len(part["tokens"]) for part in parts if part) == len(prompt) + 3
    narrow = http.post(COMPLETION, json={"model": "wide", "prompt": "x" * 40_000, "max_tokens": 0})
    assert error_of(narrow)["code"] == "context_length_exceeded"
