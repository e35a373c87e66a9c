"""Functions on offer and calls of them over HTTP, as OpenAI's own client sees them."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import httpx
import openai
import pytest
import yaml
from live_server import LiveServer, error_of, fits, sse, user
from openai import OpenAI

from llmgallery.api.dialects.openai import convert, schema
from llmgallery.config.model import OnUnsupported
from llmgallery.core.errors import InvalidField
from llmgallery.core.requests import ChatRequest
from llmgallery.service.demands import settle

CHAT = "/v1/chat/completions"
TOOLS: list[Any] = [
    {"type": "function", "function": {"name": name, "parameters": {"type": "object", "properties": {}}}} for name in ("f", "g")
]
TWO = 'Well.\n<tool_call>{"name": "f", "arguments": {"a": 1}}</tool_call><tool_call>{"name": "g", "arguments": {}}</tool_call>'
LENIENT = OnUnsupported(demands="ignore", hints="ignore")
SHOWN = {"function": "{{range .Functions}}{{.Name}} {{end}}{{.Input}}", "chat": "{{.Input}}", "chat_message": "{{.Content}}"}


def calling(live: LiveServer, name: str, reply: str, **config: Any) -> str:
    return live.add(name, **{"options": {"reply": reply}, "template": SHOWN, "function": {"disable_no_action": True}, **config})


def test_calls_are_told(live: LiveServer, client: OpenAI) -> None:
    model = calling(live, "calls two", TWO)
    reply = client.chat.completions.create(model=model, messages=user("Hi"), tools=TOOLS)  # type: ignore[arg-type]
    choice = reply.choices[0]
    assert choice.finish_reason == "tool_calls" and choice.message.content == "Well."
    assert choice.message.tool_calls is not None
    first, second = choice.message.tool_calls
    assert first.type == second.type == "function"
    assert (first.function.name, first.function.arguments) == ("f", '{"a":1}') and second.function.name == "g"
    assert first.id.startswith("call_") and first.id != second.id
    # The call and its result go back to the model.
    history = [
        *user("Hi"),
        choice.message.model_dump(exclude_none=True),
        {"role": "tool", "tool_call_id": first.id, "content": "7"},
    ]
    again = client.chat.completions.create(model=model, messages=history, tools=TOOLS)  # type: ignore[arg-type]
    assert again.choices[0].finish_reason == "tool_calls"


def test_only_calls_have_no_content(live: LiveServer, http: httpx.Client) -> None:
    model = calling(live, "calls one", '{"name": "f", "arguments": {}}')
    body = {"model": model, "messages": user("Hi"), "tools": TOOLS}
    choice = fits("chat", http.post(CHAT, json=body).json())["choices"][0]
    assert choice["message"]["content"] is None and choice["finish_reason"] == "tool_calls"
    assert list(choice["message"]) == ["role", "content", "refusal", "tool_calls"]


def test_streams_tell_the_same(live: LiveServer, client: OpenAI, http: httpx.Client) -> None:
    model = calling(live, "calls two", TWO)
    asked: dict[str, Any] = {"model": model, "messages": user("Hi"), "tools": TOOLS, "stream": True}
    with client.chat.completions.stream(model=model, messages=user("Hi"), tools=TOOLS) as stream:  # type: ignore[arg-type]
        final = stream.get_final_completion().choices[0]
    assert final.message.content == "Well." and final.finish_reason == "tool_calls"
    assert [call.function.name for call in final.message.tool_calls or []] == ["f", "g"]
    events = sse(http.post(CHAT, json={**asked, "stream_options": {"include_usage": True}}).text)
    chunks = [fits("chat_chunk", event) for event in events[:-2]]
    deltas = [call for chunk in chunks for call in chunk["choices"][0]["delta"].get("tool_calls", ())]
    assert [(call["index"], call["type"], call["function"]) for call in deltas] == [
        (0, "function", {"name": "f", "arguments": '{"a":1}'}),
        (1, "function", {"name": "g", "arguments": "{}"}),
    ]
    assert chunks[-1]["choices"][0] == {"index": 0, "delta": {}, "logprobs": None, "finish_reason": "tool_calls"}
    assert events[-2]["choices"] == [] and events[-2]["usage"]["completion_tokens"] >= len(TWO)


def test_the_older_words(live: LiveServer, http: httpx.Client) -> None:
    model = calling(live, "calls two", TWO)
    body = {"model": model, "messages": user("Hi"), "functions": [TOOLS[0]["function"]], "function_call": "auto"}
    choice = http.post(CHAT, json=body).json()["choices"][0]
    assert choice["message"]["function_call"] == {"name": "f", "arguments": '{"a":1}'} and "tool_calls" not in choice["message"]
    assert choice["finish_reason"] == "function_call"
    chunks = sse(http.post(CHAT, json={**body, "stream": True}).text)[:-1]
    deltas = [chunk["choices"][0]["delta"] for chunk in chunks]
    assert [delta["function_call"]["name"] for delta in deltas if "function_call" in delta] == ["f"]
    assert chunks[-1]["choices"][0]["finish_reason"] == "function_call"


def test_parallel_calls_may_be_refused_and_log_probabilities_asked_for(live: LiveServer, http: httpx.Client) -> None:
    model = calling(live, "calls two", TWO)
    body = {"model": model, "messages": user("Hi"), "tools": TOOLS, "parallel_tool_calls": False, "logprobs": True}
    choice = fits("chat", http.post(CHAT, json=body).json())["choices"][0]
    assert [call["function"]["name"] for call in choice["message"]["tool_calls"]] == ["f"]
    assert "".join(entry["token"] for entry in choice["logprobs"]["content"]).startswith(TWO)


def test_the_documents_model_does_what_they_say(live: LiveServer, http: httpx.Client) -> None:
    text = (Path(__file__).parents[2] / "docs" / "answers.md").read_text(encoding="utf-8")
    _, written = re.findall(r"```yaml\n(.*?)```", text, re.DOTALL)
    (reply,) = re.findall(r"this model answers `(.*?)`, the client gets", text)
    told = json.loads(re.findall(r"the client gets\n\n(.*?)\n\n", text, re.DOTALL)[0])
    config = {**yaml.safe_load(written), "options": {"reply": reply}, "parameters": {}}
    model = live.add(config.pop("name"), **config)
    tools = [{"type": "function", "function": {"name": "weather"}}]
    message = http.post(CHAT, json={"model": model, "messages": user("Hi"), "tools": tools}).json()["choices"][0]["message"]
    message["tool_calls"][0]["id"] = "call_..."
    assert message == told


@pytest.mark.parametrize(
    ("choice", "shown", "calls"),
    [
        ("auto", "f g Hi", True),
        ("required", "f g Hi", True),
        ("none", "Hi", False),
        ({"type": "function", "function": {"name": "g"}}, "g Hi", True),
        ({"type": "allowed_tools", "allowed_tools": {"mode": "auto", "tools": [TOOLS[1]]}}, "g Hi", True),
    ],
)
def test_the_choice_decides_what_is_shown(live: LiveServer, http: httpx.Client, choice: Any, shown: str, calls: bool) -> None:
    model = calling(live, "calls one", '{"name": "g", "arguments": {}}', on_unsupported={"demands": "ignore"})
    body = {"model": model, "messages": user("Hi"), "tools": TOOLS, "tool_choice": choice}
    assert http.post("/apply-template", json=body).json()["prompt"] == shown
    answer = http.post(CHAT, json=body).json()["choices"][0]
    assert (answer["finish_reason"] == "tool_calls") is calls
    if not calls:
        assert answer["message"]["content"] == '{"name": "g", "arguments": {}}'


NAMED = {"type": "function", "function": {"name": "g"}}
SOME = {"type": "allowed_tools", "allowed_tools": {"mode": "required", "tools": [TOOLS[1]]}}
FORCING: list[tuple[dict[str, Any], str]] = [
    ({"tools": TOOLS, "tool_choice": "required"}, "tool_choice"),
    ({"tools": TOOLS, "tool_choice": NAMED}, "tool_choice"),
    ({"tools": TOOLS, "tool_choice": SOME}, "tool_choice"),
    ({"functions": [TOOLS[1]["function"]], "function_call": {"name": "g"}}, "function_call"),
]


@pytest.mark.parametrize(("fields", "field"), FORCING)
def test_nothing_forces_a_call_and_it_is_said(live: LiveServer, http: httpx.Client, fields: dict[str, Any], field: str) -> None:
    strict = calling(live, "forced strictly", '{"name": "g", "arguments": {}}')
    lax = calling(live, "forced laxly", '{"name": "g", "arguments": {}}', on_unsupported={"demands": "warn"})
    asked = {"messages": user("Hi"), **fields}
    reply = http.post(CHAT, json={"model": strict, **asked})
    assert (reply.status_code, error_of(reply)["param"], error_of(reply)["code"]) == (400, field, "unsupported_parameter")
    message = error_of(reply)["message"]
    assert "this version cannot force" in message and "on_unsupported: {demands: warn}" in message
    (told,) = http.post("/apply-template", json={"model": strict, **asked}).json()["warnings"]
    assert told.startswith(f"a server refuses this request: {field}: this version cannot force")
    body = http.post(CHAT, json={"model": lax, **asked}).json()
    assert body["choices"][0]["finish_reason"] in ("tool_calls", "function_call")
    (warning,) = body["warnings"]
    assert warning.startswith(f"{field}: this version cannot force") and warning.endswith("without a call is possible")


def test_without_functions_a_forced_call_is_told_of_once(live: LiveServer, http: httpx.Client) -> None:
    model = live.add("knows no functions", on_unsupported={"demands": "warn"})
    body = http.post(CHAT, json={"model": model, "messages": user("Hi"), "tools": TOOLS, "tool_choice": "required"}).json()
    assert [warning.split(" was ignored")[0] for warning in body["warnings"]] == ["tools", "tool_choice"]


@pytest.mark.parametrize(
    "fields",
    [{"tools": TOOLS, "tool_choice": "none"}, {"functions": [{"name": "f"}], "function_call": "none"}],
)
def test_tools_that_may_not_be_called_ask_for_nothing(http: httpx.Client, fields: dict[str, Any]) -> None:
    body = http.post(CHAT, json={"model": "echo", "messages": user("Hi"), **fields}).json()
    assert body["choices"][0]["message"]["content"] == "Hi" and "warnings" not in body


def test_texts_are_cut_in_chats_and_completions_streamed_or_not(live: LiveServer, http: httpx.Client) -> None:
    keys = {"cutstrings": ["(?s)<think>.*?</think>"], "trimspace": ["Answer:"], "trimsuffix": ["."]}
    model = live.add("cuts", options={"reply": "<think>\nhm</think> Answer: 42. "}, **keys)
    for path, asked in ((CHAT, {"messages": user("Hi")}), ("/v1/completions", {"prompt": "Hi"})):
        body = {"model": model, **asked}
        whole = http.post(path, json=body).json()["choices"][0]
        chunks = sse(http.post(path, json={**body, "stream": True}).text)[:-1]
        if path == CHAT:
            assert whole["message"]["content"] == "Answer: 42"
            assert "".join(chunk["choices"][0]["delta"].get("content", "") for chunk in chunks) == "Answer: 42"
        else:
            assert whole["text"] == "".join(chunk["choices"][0]["text"] for chunk in chunks) == "Answer: 42"


def test_rules_that_are_too_much_work_are_told(live: LiveServer, http: httpx.Client) -> None:
    model = live.add("hard rules", options={"reply": "a" * 3000}, extract_regex=["(a?){500}a{500}b"])
    reply = http.post("/v1/completions", json={"model": model, "prompt": "Hi"})
    (warning,) = reply.json()["warnings"]
    assert "too much work" in warning and reply.headers["x-llmgallery-warnings"] == "1"
    assert set(reply.json()["choices"][0]["text"]) == {"a"}
    chunks = sse(http.post(CHAT, json={"model": model, "messages": user("Hi"), "stream": True}).text)[:-1]
    assert [chunk.get("warnings") for chunk in chunks] == [*[None] * (len(chunks) - 1), [warning]]


def test_models_that_say_nothing_of_functions_refuse_them(client: OpenAI) -> None:
    with pytest.raises(openai.BadRequestError) as caught:
        client.chat.completions.create(model="echo", messages=user("Hi"), tools=TOOLS)  # type: ignore[arg-type]
    assert caught.value.code == "unsupported_parameter" and caught.value.param == "tools"


def test_a_choice_among_no_tools_is_refused(live: LiveServer, http: httpx.Client) -> None:
    model = calling(live, "calls one", "x")
    reply = http.post(CHAT, json={"model": model, "messages": user("Hi"), "tool_choice": "required"})
    assert reply.status_code == 400 and error_of(reply)["param"] == "tool_choice"
    assert "a choice among no tools" in error_of(reply)["message"]


@pytest.mark.parametrize(
    ("fields", "place"),
    [
        ({"tools": [{"type": "custom"}]}, "tools[0].type"),
        ({"tools": TOOLS, "tool_choice": "any"}, "tool_choice"),
        ({"tools": TOOLS, "tool_choice": {"type": "tool"}}, "tool_choice.type"),
        ({"tools": TOOLS, "tool_choice": {"type": "function"}}, "tool_choice.function.name"),
        ({"tools": TOOLS, "tool_choice": {"type": "function", "function": {"name": "h"}}}, "tool_choice.function.name"),
        ({"tools": TOOLS, "tool_choice": {"type": "allowed_tools"}}, "tool_choice.allowed_tools.mode"),
        ({"tools": TOOLS, "tool_choice": {"type": "allowed_tools", "allowed_tools": {"mode": "auto"}}},
         "tool_choice.allowed_tools.tools"),
        ({"functions": [{"name": "f"}], "function_call": "required"}, "function_call"),
        ({"functions": [{"name": "f"}], "function_call": {"name": "h"}}, "function_call.name"),
    ],
)  # fmt: skip
def test_what_is_no_choice(fields: dict[str, Any], place: str) -> None:
    """Where it is something that a server elsewhere may know, a model that is here refuses it all the same."""
    with pytest.raises(InvalidField) as caught:
        data = json.dumps({"messages": user("Hi"), **fields}).encode()
        settle(convert.chat_ask(*schema.read(data, schema.ChatBody), token=None).wishes, LENIENT, "m")
    assert caught.value.field == place


def test_what_is_asked() -> None:
    named = asked({"tools": TOOLS, "tool_choice": {"type": "function", "function": {"name": "g"}}})
    assert ([tool.name for tool in named.tools], named.tool_choice, named.forced_tool) == (["g"], "required", "g")
    older = asked({"functions": [{"name": "f"}, {"name": "g"}], "function_call": {"name": "f"}})
    assert ([tool.name for tool in older.tools], older.forced_tool, older.parallel_tool_calls) == (["f"], "f", False)
    none = asked({"tools": TOOLS, "tool_choice": "none"})
    assert (none.tools, none.tool_choice, none.parallel_tool_calls) == ((), "none", True)


def asked(fields: dict[str, Any]) -> ChatRequest:
    data = json.dumps({"messages": user("Hi"), **fields}).encode()
    (request,) = convert.chat_ask(*schema.read(data, schema.ChatBody), token=None).prompts
    assert isinstance(request, ChatRequest)
    return request
