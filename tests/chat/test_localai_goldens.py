"""Prompts of LocalAI's chats as Go itself writes them: from a YAML and the body of a request, the whole way."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import msgspec
import pytest

from llmgallery.api.dialects.openai import convert, schema
from llmgallery.backends.base import Loaded
from llmgallery.backends.loader import specs
from llmgallery.chat.prompt import render_chat
from llmgallery.config.load import parse_model
from llmgallery.config.model import ModelConfig
from llmgallery.core.requests import ChatRequest

GOLDENS = json.loads((Path(__file__).parent / "cases" / "localai.json").read_text(encoding="utf-8"))
FAILING = ("fails", "does_not_parse", "llama3.2: older call")


def config(name: str) -> ModelConfig:
    text = json.dumps({"backend": "echo", **GOLDENS["models"][name]}).encode()
    loaded = parse_model(text, Path("m.yaml"), specs())
    assert loaded.config is not None, loaded.problems
    return loaded.config


def request(fields: dict[str, Any]) -> ChatRequest:
    body, extra = schema.read(json.dumps(fields).encode(), schema.ChatBody)
    [asked] = convert.chat_ask(body, extra, token=None).prompts
    assert isinstance(asked, ChatRequest)
    choice = body.tool_choice or "auto"
    forced = choice["function"]["name"] if isinstance(choice, dict) else None
    # Said once more, so that this test does not depend on what tools a model is allowed.
    return msgspec.structs.replace(
        asked, tools=convert.tools(body), tool_choice="required" if forced else choice, forced_tool=forced
    )


@pytest.mark.parametrize("name", GOLDENS["prompts"])
def test_a_prompt_is_the_one_that_go_writes(name: str) -> None:
    model, _, chat = name.partition(": ")
    rendered = render_chat(request(GOLDENS["chats"][chat]), config(model), Loaded(context_size=100))
    assert rendered.prompt == GOLDENS["prompts"][name]
    assert bool(rendered.warnings) == name.startswith(FAILING)


def test_the_goldens_are_enough_and_say_what_made_them() -> None:
    assert len(GOLDENS["prompts"]) >= 150
    assert "go1." in GOLDENS["made by"] and "sprig 3." in GOLDENS["made by"]
