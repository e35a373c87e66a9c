"""POST /v1/edits, and LocalAI's templates, against the running server: the whole way from a YAML to the prompt and the answer."""

from __future__ import annotations

from typing import Any

import httpx
import pytest
from live_server import LiveServer, error_of, user

from llmgallery.api.dialects.openai import schema
from llmgallery.api.dialects.openai.edits import EditBody, edit_ask
from llmgallery.core.errors import InvalidField, UnsupportedField
from llmgallery.core.requests import CompletionRequest

URL = "/v1/edits"
BLACK_CAT = {"instruction": "rephrase", "input": "Black cat jumped out of the window", "temperature": 0.7}
"""LocalAI's example."""


@pytest.fixture(scope="module")
def editor(live: LiveServer) -> str:
    template = {"edit": "{{.Instruction}}: {{.Input}}\n", "chat": "{{.Input}}|", "completion": "<{{.Input}}>"}
    return live.add("editor", template=template, options={"reply": "A feline leapt."}, context_size=100)


@pytest.mark.parametrize("url", [URL, "/edits"])
def test_an_edit(http: httpx.Client, editor: str, url: str) -> None:
    reply = http.post(url, json={"model": editor, **BLACK_CAT})
    assert reply.status_code == 200
    body = reply.json()
    assert body["id"].startswith("edit-") and body["created"] > 1_700_000_000
    assert (body["object"], body["model"]) == ("edit", editor)
    assert body["choices"] == [{"index": 0, "text": "A feline leapt.", "finish_reason": "stop"}]
    prompt = len("rephrase: Black cat jumped out of the window\n")
    assert (body["usage"]["prompt_tokens"], body["usage"]["total_tokens"]) == (prompt, prompt + len("A feline leapt.") + 1)


def test_several_texts_and_several_answers(http: httpx.Client, editor: str) -> None:
    body = http.post(URL, json={"model": editor, "instruction": "x", "input": ["a", "bcd"], "n": 2}).json()
    assert [choice["index"] for choice in body["choices"]] == [0, 1, 2, 3]
    assert body["usage"]["prompt_tokens"] == len("x: a\n") + len("x: bcd\n")


def test_a_model_without_a_template_for_edits_is_asked_in_a_chat(http: httpx.Client) -> None:
    reply = http.post(URL, json={"model": "echo", "instruction": "rephrase", "input": "Cat"})
    assert reply.status_code == 200
    assert reply.json()["choices"][0]["text"] == "rephrase\n\nCat"


def test_an_edit_that_does_not_fit_names_its_field(http: httpx.Client, editor: str) -> None:
    reply = http.post(URL, json={"model": editor, "instruction": "x", "input": "y" * 200})
    assert (reply.status_code, error_of(reply)["param"]) == (400, "input")


def asked(**fields: Any) -> tuple[CompletionRequest, ...]:
    ask = edit_ask(EditBody(**{"instruction": "x", **fields}), {}, None)
    assert ask.unsaid == frozenset({"n"})
    return tuple(request for request in ask.prompts if isinstance(request, CompletionRequest))


def test_what_is_asked() -> None:
    (one,) = asked(input="a", temperature=0.5, stop=["b"], max_tokens=7)
    assert (one.prompt, one.instruction, one.stop, one.echo) == ("a", "x", ("b",), False)
    assert (one.sampling.temperature, one.sampling.max_tokens) == (0.5, 7)
    assert [request.prompt for request in asked()] == [""]
    assert [request.prompt for request in asked(input=["a", ""])] == ["a", ""]


@pytest.mark.parametrize(
    ("fields", "kind", "field"),
    [
        ({"instruction": " "}, InvalidField, "instruction"),
        ({"input": []}, InvalidField, "input"),
        ({"input": ["a"] * 129}, InvalidField, "input"),
        ({"stream": True}, UnsupportedField, "stream"),
    ],
)
def test_what_cannot_be_asked(fields: dict[str, Any], kind: type[InvalidField | UnsupportedField], field: str) -> None:
    with pytest.raises(kind) as caught:
        asked(**fields)
    assert caught.value.field == field


def test_a_body_without_an_instruction_is_refused() -> None:
    with pytest.raises(InvalidField, match="instruction is missing"):
        schema.read(b'{"input": "a"}', EditBody)


# --- templates on the whole way ----------------------------------------------------------------------------------------------


def test_completions_are_asked_by_their_template_and_echo_it(http: httpx.Client, editor: str) -> None:
    body = http.post("/v1/completions", json={"model": editor, "prompt": "ab", "echo": True}).json()
    assert (body["choices"][0]["text"], body["usage"]["prompt_tokens"]) == ("<ab>A feline leapt.", 4)
    ids = http.post("/v1/completions", json={"model": editor, "prompt": [97, 98]}).json()
    assert ids["usage"]["prompt_tokens"] == 2


def test_a_template_that_fails_is_told_with_the_answer(http: httpx.Client, live: LiveServer) -> None:
    model = live.add("half", template={"chat": "{{.Input}}{{.System}}"})
    reply = http.post("/v1/chat/completions", json={"model": model, "messages": user("Hi")})
    assert reply.json()["usage"]["prompt_tokens"] == 2
    (warning,) = reply.json()["warnings"]
    assert "template.chat, line 1, column 13" in warning


def test_an_answer_begins_with_the_reply_prefix(http: httpx.Client, live: LiveServer) -> None:
    """The prompt does not: LocalAI's templates end with it themselves."""
    model = live.add("prefixed", template={"chat": "{{.Input}}<think>", "reply_prefix": "<think>"}, options={"reply": "Hm."})
    chat = {"model": model, "messages": user("Hi")}
    whole = http.post("/v1/chat/completions", json=chat).json()
    assert (whole["choices"][0]["message"]["content"], whole["usage"]["prompt_tokens"]) == ("<think>Hm.", len("Hi<think>"))
    assert http.post("/v1/completions", json={"model": model, "prompt": "Hi"}).json()["choices"][0]["text"] == "<think>Hm."
    continued = {"messages": [*user("Hi"), {"role": "assistant", "content": "H"}], "continue_final_message": True}
    body = http.post("/v1/chat/completions", json={**chat, **continued, "add_generation_prompt": False}).json()
    assert (body["choices"][0]["message"]["content"], body["usage"]["prompt_tokens"]) == ("Hm.", len("Hi<think>H"))
