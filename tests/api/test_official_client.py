"""OpenAI's own client against the running server."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

import openai
import pytest
from live_server import LiveServer, user
from openai import OpenAI

QUESTION = "What is the capital of France?"


def test_it_chats(client: OpenAI) -> None:
    reply = client.chat.completions.create(model="echo", messages=user("hello"))
    assert reply.choices[0].message.content == "hello"
    assert reply.choices[0].finish_reason == "stop"
    assert reply.model == "echo"
    assert reply.usage is not None
    assert reply.usage.total_tokens == reply.usage.prompt_tokens + reply.usage.completion_tokens


def test_it_streams(client: OpenAI) -> None:
    chunks = list(client.chat.completions.create(model="echo", messages=user("héllo, wörld 🌍"), stream=True))
    assert chunks[0].choices[0].delta.role == "assistant"
    assert "".join(chunk.choices[0].delta.content or "" for chunk in chunks) == "héllo, wörld 🌍"
    assert [chunk.choices[0].finish_reason for chunk in chunks][-1] == "stop"
    assert {chunk.id for chunk in chunks} == {chunks[0].id}


def test_it_completes(client: OpenAI) -> None:
    reply = client.completions.create(model="echo", prompt=["one", "two"], n=2)
    assert [choice.text for choice in reply.choices] == ["one", "one", "two", "two"]
    assert [choice.index for choice in reply.choices] == [0, 1, 2, 3]


def test_it_streams_completions(client: OpenAI) -> None:
    chunks = list(client.completions.create(model="echo", prompt="one two", stream=True))
    assert "".join(chunk.choices[0].text for chunk in chunks) == "one two"


def test_it_lists_and_retrieves(client: OpenAI) -> None:
    assert "echo" in [model.id for model in client.models.list()]
    assert client.models.retrieve("gpt-4o-mini").id == "echo"
    assert client.models.retrieve("echo").owned_by == "us"


def test_an_unknown_model_is_not_found_with_near_names(client: OpenAI) -> None:
    with pytest.raises(openai.NotFoundError) as caught:
        client.chat.completions.create(model="ecko", messages=user("hello"))
    assert caught.value.code == "model_not_found"
    assert caught.value.param == "model"
    assert "'echo'" in caught.value.message


def test_a_bad_field_is_a_bad_request_that_names_it(client: OpenAI) -> None:
    with pytest.raises(openai.BadRequestError) as caught:
        client.chat.completions.create(model="echo", messages=user("hello"), temperature=3)
    assert caught.value.param == "temperature"
    with pytest.raises(openai.BadRequestError) as caught:
        client.chat.completions.create(model="echo", messages=user("hello"), response_format={"type": "json_object"})
    assert (caught.value.param, caught.value.code) == ("response_format", "unsupported_parameter")


def test_a_prompt_over_the_context_is_refused_also_when_streaming(live: LiveServer, client: OpenAI) -> None:
    live.add("narrow", context_size=64)
    for stream in (False, True):
        with pytest.raises(openai.BadRequestError) as caught:
            client.chat.completions.create(model="narrow", messages=user("x" * 100), stream=stream)
        assert caught.value.code == "context_length_exceeded"


def test_the_bundled_model_answers(client: OpenAI) -> None:
    reply = client.chat.completions.create(model="default", messages=user(QUESTION))
    assert reply.choices[0].message.content == "The capital of France is Paris."
    assert reply.model == "pocket"


@pytest.mark.parametrize("question", [QUESTION, "What is llmgallery?", "Hello!", "żółć 🌍", "Count to twenty", "a " * 30])
def test_streamed_and_whole_answers_are_the_same_text(client: OpenAI, question: str) -> None:
    limits = {"model": "pocket", "temperature": 0, "max_tokens": 40}
    whole = client.chat.completions.create(messages=user(question), **limits)
    pieces = client.chat.completions.create(messages=user(question), stream=True, **limits)
    assert "".join(chunk.choices[0].delta.content or "" for chunk in pieces) == whole.choices[0].message.content != ""
    text = client.completions.create(prompt=question, **limits).choices[0].text
    assert "".join(chunk.choices[0].text for chunk in client.completions.create(prompt=question, stream=True, **limits)) == text


def test_eight_streams_share_decodes(live: LiveServer, client: OpenAI, tmp_path) -> None:
    gate = tmp_path / "gate"
    live.add("eight", parallel=8, options={"gate": str(gate), "gate_after": 1})

    def ask(number: int) -> str:
        chunks = client.chat.completions.create(model="eight", messages=user(f"answer {number}"), stream=True)
        return "".join(chunk.choices[0].delta.content or "" for chunk in chunks)

    with ThreadPoolExecutor(8) as pool:
        answers = [pool.submit(ask, number) for number in range(8)]
        live.until(lambda: (state := live.state("eight")) and state.busy == 8 and state.stats and state.stats.waiting == 0)
        gate.touch()
        assert [answer.result() for answer in answers] == [f"answer {number}" for number in range(8)]
    state = live.state("eight")
    assert state is not None and state.stats is not None
    assert state.stats.most_sequences == 8


def test_eight_streams_of_the_bundled_model(live: LiveServer, client: OpenAI) -> None:
    def ask(_: int) -> str:
        chunks = client.chat.completions.create(model="pocket", messages=user(QUESTION), stream=True)
        return "".join(chunk.choices[0].delta.content or "" for chunk in chunks)

    with ThreadPoolExecutor(8) as pool:
        assert set(pool.map(ask, range(8))) == {"The capital of France is Paris."}
    state = live.state("pocket")
    assert state is not None and state.stats is not None
    assert state.stats.most_sequences > 1
