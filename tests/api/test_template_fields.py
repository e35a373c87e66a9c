"""Fields of a chat that are for its template: vLLM's and OpenAI's names become core's."""

from __future__ import annotations

import json
from typing import Any

import pytest

from llmgallery.api.dialects.openai import convert, schema
from llmgallery.core.errors import InvalidField
from llmgallery.core.requests import ChatRequest

SAID = {"role": "user", "content": "hello"}


def chat(**fields: Any) -> ChatRequest:
    body, extra = schema.read(json.dumps({"messages": [SAID], **fields}).encode(), schema.ChatBody)
    ask = convert.chat_ask(body, extra, token=None)
    assert not ask.wishes, "these are for the template, which alone knows whether it reads them"
    [request] = ask.prompts
    assert isinstance(request, ChatRequest)
    assert not request.extra
    return request


DOCUMENTS = [{"title": "a", "text": "b"}]


@pytest.mark.parametrize(
    ("fields", "expected"),
    [
        ({"reasoning_effort": "high"}, {"reasoning_effort": "high"}),
        ({"metadata": {"a": "b"}}, {"metadata": {"a": "b"}}),
        ({"documents": DOCUMENTS}, {"template_vars": {"documents": DOCUMENTS}}),
        ({"documents": [], "chat_template_kwargs": {"x": 1}}, {"template_vars": {"documents": [], "x": 1}}),
        ({"documents": DOCUMENTS, "chat_template_kwargs": {"documents": []}}, {"template_vars": {"documents": []}}),
        ({"continue_final_message": True}, {"continue_final": True}),
        (
            {"continue_final_message": True, "add_generation_prompt": False},
            {"continue_final": True, "add_generation_prompt": False},
        ),
        ({"continue_final_message": False, "add_generation_prompt": True}, {}),
        ({"add_generation_prompt": False}, {"add_generation_prompt": False}),
        (dict.fromkeys(("reasoning_effort", "metadata", "documents", "continue_final_message", "add_generation_prompt")), {}),
    ],
)
def test_fields_for_the_template(fields: dict[str, Any], expected: dict[str, Any]) -> None:
    unset = {
        "reasoning_effort": None,
        "metadata": {},
        "template_vars": {},
        "continue_final": False,
        "add_generation_prompt": True,
    }
    request = chat(**fields)
    assert {name: getattr(request, name) for name in unset} == {**unset, **expected}


@pytest.mark.parametrize(
    ("fields", "field"),
    [
        ({"continue_final_message": True, "add_generation_prompt": True}, "continue_final_message"),
        ({"continue_final_message": "yes"}, "continue_final_message"),
        ({"documents": "a"}, "documents"),
        ({"documents": ["a"]}, "documents[0]"),
        ({"reasoning_effort": ""}, "reasoning_effort"),
        ({"reasoning_effort": 5}, "reasoning_effort"),
        ({"metadata": {"a": 1}}, "metadata"),
        ({"chat_template_kwargs": "x"}, "chat_template_kwargs"),
    ],
)
def test_bad_fields_are_named(fields: dict[str, Any], field: str) -> None:
    with pytest.raises(InvalidField) as caught:
        chat(**fields)
    assert caught.value.field == field
    assert field.split("[")[0] in caught.value.message
