"""POST /apply-template: what it reads, shows and refuses. tests/stack/test_render.py compares prompts with answers."""

from __future__ import annotations

from typing import Any

import httpx
import pytest
from live_server import LiveServer, error_of, user

from llmgallery.api.dialects.openai import convert, schema
from llmgallery.api.dialects.openai.rendering import read_ask
from llmgallery.core.errors import InvalidField
from llmgallery.core.messages import Tool

TOOLS = [{"type": "function", "function": {"name": "f", "description": "does it", "parameters": {"type": "object"}}}]
LISTED = "{% for t in tools or [] %}{{ t.function.name }}: {{ t.function.description }}\n{% endfor %}{{ messages[0].content }}"


def test_tools_are_shown_also_where_no_answer_could_call_them(live: LiveServer, http: httpx.Client) -> None:
    strict = live.add("shows tools", template={"chat_template": LISTED})
    lax = live.add("ignores tools", template={"chat_template": LISTED}, on_unsupported={"demands": "warn"})
    body = {"messages": user("Hi"), "tools": TOOLS, "who_knows": 1}
    reply = http.post("/apply-template", json={"model": strict, **body})
    assert reply.json()["prompt"] == "f: does it\nHi"
    assert "tools is not supported" in reply.json()["warnings"][0] and reply.headers["x-llmgallery-warnings"] == "1"
    # What the server leaves out of a prompt is left out here.
    told = http.post("/apply-template", json={"model": lax, **body}).json()
    assert told["prompt"] == "Hi" and told["warnings"] == ["tools was ignored: model ignores tools does not support it"]


def test_what_is_refused(live: LiveServer, http: httpx.Client) -> None:
    broken = live.add("refuses", template={"chat_template": "{{ raise_exception('no robots') }}"})
    cases: list[tuple[dict[str, Any], int, str, str | None]] = [
        ({"model": "nobody", "messages": user("Hi")}, 404, "model_not_found", "model"),
        ({"model": "echo"}, 400, "invalid_value", "messages"),
        ({"model": "echo", "prompt": ["a", "b"]}, 400, "invalid_value", "prompt"),
        ({"model": "echo", "messages": user("Hi"), "tools": [{"type": "function"}]}, 400, "invalid_value", "tools[0].function"),
        ({"model": broken, "messages": user("Hi")}, 400, "template_error", None),
    ]
    for body, status, code, param in cases:
        reply = http.post("/apply-template", json=body)
        assert (reply.status_code, error_of(reply)["code"], error_of(reply)["param"]) == (status, code, param), reply.text
    assert http.post("/apply-template", content=b"{").status_code == 400


@pytest.mark.parametrize(
    ("body", "path"),
    [
        ({"tools": [{}]}, "tools[0].type"),
        ({"tools": [{"type": "custom"}]}, "tools[0].type"),
        ({"tools": [*TOOLS, {"type": "function", "function": {"name": ""}}]}, "tools[1].function.name"),
        ({"tools": [{"type": "function", "function": {"name": "f", "parameters": []}}]}, "tools[0].function.parameters"),
        ({"functions": [{"name": "f", "description": 1}]}, "functions[0].description"),
        ({"functions": [{"name": "f", "strict": "yes"}]}, "functions[0].strict"),
    ],
)
def test_the_place_of_what_is_no_tool(body: dict[str, Any], path: str) -> None:
    with pytest.raises(InvalidField, match=r"expected") as caught:
        convert.tools(schema.ChatBody(messages=[], **body))
    assert caught.value.field == path


def test_functions_are_tools() -> None:
    body = schema.ChatBody(messages=[], tools=TOOLS, functions=[{"name": "g", "strict": True}])
    assert convert.tools(body) == (Tool("f", "does it", {"type": "object"}), Tool("g", "", None, True))


def test_a_prompt_without_messages_is_a_completion() -> None:
    (chat,) = read_ask(b'{"messages": [{"role": "user", "content": "Hi"}], "prompt": "x"}').prompts
    (completion,) = read_ask(b'{"prompt": "x"}').prompts
    assert type(chat).__name__ == "ChatRequest" and type(completion).__name__ == "CompletionRequest"
