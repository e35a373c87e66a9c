"""Chats become the prompts that transformers makes of them. It is the referee here, and renders beside us; the templates are
written in the styles of the families that models come in."""

from __future__ import annotations

import copy
import json
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jinja2
import msgspec
import pytest
from transformers.utils.chat_template_utils import render_jinja_template

from llmgallery.api.dialects.openai import convert, schema
from llmgallery.backends.base import Loaded
from llmgallery.chat.formats.jinja import JinjaFormat
from llmgallery.chat.formats.repair import Caps, caps_of, repair
from llmgallery.config.model import ModelConfig
from llmgallery.core.errors import InvalidField, TemplateError
from llmgallery.core.messages import Tool
from llmgallery.core.requests import ChatRequest
from llmgallery.templates import presets

CASES = Path(__file__).parent / "cases"
TEMPLATES = {path.stem: path.read_text("utf-8") for path in sorted(CASES.glob("*.jinja"))}
TEMPLATES |= {f"preset {name}": presets.get(name, "jinja").chat_template for name in presets.names("jinja")}

SYSTEM = {"role": "system", "content": "You are brief. "}
USER = {"role": "user", "content": " What is 2+2? é "}
ANSWER = {"role": "assistant", "content": "4\n"}
MORE = {"role": "user", "content": 'And "3+3"?'}
FUNCTION = {"name": "add", "arguments": '{"a": 3, "b": [1, "<x>"], "c": {"d": null, "e": true}}'}
CALL = {"role": "assistant", "content": None, "tool_calls": [{"type": "function", "id": "abcdefghi", "function": FUNCTION}]}
RESULT = {"role": "tool", "content": "6", "name": "add", "tool_call_id": "abcdefghi"}
CALLED = {"type": "function", "id": "jklmnopqr", "function": {"name": "now", "arguments": "{}"}}
BOTH = {**CALL, "tool_calls": [*CALL["tool_calls"], CALLED]}  # type: ignore[misc]
NOW = {**RESULT, "name": "now", "tool_call_id": "jklmnopqr", "content": '{"time": "12:00"}'}
SCHEMA = {
    "type": "object",
    "properties": {
        "a": {"type": "number", "description": " The first <one>"},
        "b": {"type": "array", "items": {"type": "object", "properties": {"z": {"type": "string", "enum": ["p", "q"]}}}},
        "c": {"type": ["object", "null"], "additionalProperties": {"type": "boolean"}},
    },
    "required": ["a"],
}
TOOLS = [
    {"type": "function", "function": {"name": "add", "description": "Adds & 'sums'", "parameters": SCHEMA}},
    {
        "type": "function",
        "function": {"name": "now", "description": "Tells\nthe time", "parameters": {"type": "object", "properties": {}}},
    },
]
DOCUMENTS = [{"title": "Sums", "text": "2+2 is 4."}, {"title": "Größe", "text": "An <b>\nis bold"}]
OPTIONS = {
    "enable_thinking": False,
    "thinking": True,
    "thinking_budget": 512,
    "controls": {"length": "short"},
    "date_string": "now",
}

BODIES: dict[str, dict[str, Any]] = {
    "one": {"messages": [USER]},
    "system": {"messages": [SYSTEM, USER]},
    "turns": {"messages": [SYSTEM, USER, ANSWER, MORE]},
    "answered": {"messages": [USER, ANSWER], "add_generation_prompt": False},
    "named": {"messages": [{**USER, "name": "ann"}]},
    "empty": {"messages": [{"role": "user", "content": ""}]},
    "markup": {"messages": [{"role": "user", "content": "{{ x }} {% y %} <|im_end|>\r\n\t\\n"}]},
    "thinking": {"messages": [USER, {"role": "assistant", "content": "<think>\nhm\n</think>\n\nSix"}, MORE]},
    "reasoning": {"messages": [USER, {**ANSWER, "reasoning_content": "hm, 2"}, MORE]},
    "late system": {"messages": [USER, ANSWER, SYSTEM, MORE]},
    "two systems": {"messages": [SYSTEM, {**SYSTEM, "content": "And kind."}, USER]},
    "system alone": {"messages": [SYSTEM]},
    "two users": {"messages": [USER, MORE]},
    "two answers": {"messages": [USER, ANSWER, {**ANSWER, "content": "Four."}, MORE]},
    "assistant first": {"messages": [ANSWER, USER]},
    "offered": {"messages": [SYSTEM, USER], "tools": TOOLS},
    "offered, no system": {"messages": [USER, ANSWER, MORE], "tools": TOOLS},
    "called": {"messages": [USER, CALL, RESULT], "tools": TOOLS},
    "called on": {"messages": [SYSTEM, USER, CALL, RESULT, {"role": "assistant", "content": "6"}, MORE], "tools": TOOLS},
    "said and called": {"messages": [USER, {**CALL, "content": "Let me see."}, RESULT], "tools": TOOLS},
    "thought and called": {"messages": [USER, {**CALL, "reasoning_content": "A sum."}, RESULT], "tools": TOOLS},
    "called twice": {"messages": [USER, BOTH, RESULT, NOW], "tools": TOOLS},
    "called, no tools": {"messages": [USER, CALL, RESULT]},
    "documents": {"messages": [USER], "documents": DOCUMENTS},
    "documents and tools": {"messages": [USER], "documents": DOCUMENTS, "tools": TOOLS},
    "options": {"messages": [USER], "chat_template_kwargs": OPTIONS},
    "thinking on": {"messages": [SYSTEM, USER], "chat_template_kwargs": {"enable_thinking": True}},
    "effort": {"messages": [USER], "reasoning_effort": "high"},
    "metadata": {"messages": [USER], "metadata": {"a": "b"}},
    "continued": {"messages": [USER, {"role": "assistant", "content": "It is"}], "continue_final_message": True},
    "continued space": {
        "messages": [SYSTEM, USER, {"role": "assistant", "content": " It is \n "}],
        "continue_final_message": True,
    },
    "continued thought": {
        "messages": [USER, {"role": "assistant", "content": "<think>a</think>b"}],
        "continue_final_message": True,
    },
    "continued user": {"messages": [USER], "continue_final_message": True},
}


STRICT, FIRST = Caps("never", alternating=True), Caps("first", alternating=True)
INSISTING = {
    "command_r": FIRST,
    "dbrx": FIRST,
    "gemma3": FIRST,
    "gemma_refusing": STRICT,
    "llama2": FIRST,
    "mistral_alternation": FIRST,
    "mistral_tekken": FIRST,
    "mistral_v1": STRICT,
    "mixtral": FIRST,
    "qwen35": Caps("first"),
    "smolvlm": Caps(parts=True),
    "starcoder2": Caps("never"),
    "vicuna": Caps("first"),
}
"""What templates do not take; all others take every conversation as it is."""


WEIGHTS = Loaded(0, bos="<s>", eos="</s>")


@dataclass(frozen=True)
class Refused:
    """`words`: those of the template itself, when it is the one that refuses."""

    words: str | None


def asked(body: dict[str, Any]) -> ChatRequest:
    """As the API reads the body; tools in core's words."""
    read, extra = schema.read(json.dumps({k: v for k, v in body.items() if k != "tools"}).encode(), schema.ChatBody)
    (request,) = convert.chat_ask(read, extra, None).prompts
    assert isinstance(request, ChatRequest)
    tools = tuple(msgspec.convert(tool["function"], Tool) for tool in body.get("tools", ()))
    return msgspec.structs.replace(request, tools=tools)


REQUESTS = {name: asked(body) for name, body in BODIES.items()}


def for_templates(body: dict[str, Any]) -> list[dict[str, Any]]:
    """The body's messages as transformers wants them, with arguments as objects."""
    messages = copy.deepcopy(body["messages"])
    for message in messages:
        for call in message.get("tool_calls", ()):
            call["function"]["arguments"] = json.loads(call["function"]["arguments"])
    return messages  # type: ignore[no-any-return]


def referee(source: str, body: dict[str, Any], messages: list[dict[str, Any]]) -> str | Refused:
    continued = body.get("continue_final_message", False)
    try:
        texts: Any = render_jinja_template(
            conversations=[messages],
            tools=body.get("tools"),
            documents=body.get("documents"),
            chat_template=source,
            continue_final_message=continued,
            add_generation_prompt=body.get("add_generation_prompt", not continued),
            bos_token="<s>",
            eos_token="</s>",
            **{name: body[name] for name in ("reasoning_effort", "metadata") if name in body},
            **body.get("chat_template_kwargs", {}),
        )
    except (jinja2.TemplateError, TypeError, ValueError, LookupError, AttributeError) as error:
        return Refused(str(error) if type(error) is jinja2.TemplateError else None)
    return str(texts[0][0])


def ours(source: str, request: ChatRequest) -> tuple[str | Refused, tuple[str, ...]]:
    try:
        said = JinjaFormat(source, "template").chat(request, ModelConfig(), WEIGHTS)
    except (TemplateError, InvalidField) as error:
        return Refused(error.message), ()
    return said.prompt, said.repairs


@pytest.mark.parametrize("name", TEMPLATES)
def test_prompts_are_transformers_prompts(name: str) -> None:
    source, seen = TEMPLATES[name], Counter[str]()
    caps = caps_of(source)
    assert caps == INSISTING.get(name, Caps())
    for case, body in BODIES.items():
        messages = for_templates(body)
        got, repairs = ours(source, REQUESTS[case])
        put_right, done = repair(messages, caps)
        if done and not caps.parts:
            assert isinstance(referee(source, body, messages), Refused), f"{case}: the template takes it as it is"
        expected = referee(source, body, put_right)
        if isinstance(expected, Refused):
            assert isinstance(got, Refused), f"{case}: transformers refuses this"
            assert expected.words in (None, got.words), case
            seen["refused"] += 1
        else:
            assert (got, repairs) == (expected, done), case
            seen["repaired" if done else "rendered"] += 1
    # Most chats must come through, so that there is something to compare.
    assert seen["refused"] <= len(BODIES) // 2, seen
