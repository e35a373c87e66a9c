"""The `adapter` of chat completions, from the body to the prompt."""

from __future__ import annotations

import json
from typing import Any

import httpx
import pytest
from live_server import error_of

from llmgallery.api.dialects.openai import convert, schema
from llmgallery.core.errors import InvalidField
from llmgallery.core.requests import ChatRequest
from llmgallery.service.demands import Wish
from llmgallery.service.gallery import Ask

CHAT = "/v1/chat/completions"
SAID = {"role": "user", "content": "hello"}


def ask(**fields: Any) -> Ask:
    return convert.chat_ask(*schema.read(json.dumps({"messages": [SAID], **fields}).encode(), schema.ChatBody), token=None)


def asked(**fields: Any) -> ChatRequest:
    [request] = ask(**fields).prompts
    assert isinstance(request, ChatRequest)
    return request


@pytest.mark.parametrize("adapter", [{}, {"user_start": "U:"}, {"templates": {"user": {"start": "U:"}}}, "AutoGuess", None])
def test_adapters_arrive_as_they_came(adapter: dict[str, Any] | str | None) -> None:
    assert asked(adapter=adapter).adapter == adapter
    assert asked().adapter is None


@pytest.mark.parametrize("adapter", [5, ["user_start"], True, ""])
def test_an_adapter_is_an_object_or_a_name(adapter: Any) -> None:
    with pytest.raises(InvalidField) as caught:
        ask(adapter=adapter)
    assert caught.value.field == "adapter"


def test_an_adapter_may_say_how_long_an_answer_is() -> None:
    adapter = {"max_length": 80}
    assert asked(adapter=adapter).sampling.max_tokens == 80
    assert asked(adapter=adapter, max_tokens=5).sampling.max_tokens == 5
    assert asked(adapter=adapter, max_tokens=-1).sampling.max_tokens == -1
    assert asked(adapter={"max_length": "long"}).sampling.max_tokens is None


def test_what_it_says_of_images_is_a_hint() -> None:
    adapter = {"add_sd_prompt": "draw", "add_sd_negative_prompt": ""}
    assert ask(adapter=adapter).wishes == (Wish("images of its own", "adapter.add_sd_prompt", hint=True),)


def test_a_wrong_adapter_is_a_bad_request(http: httpx.Client) -> None:
    for adapter, param, words in [
        ({"templates": {"user": {"begin": "x"}}}, "adapter.templates.user.begin", "no such key in an adapter"),
        ("chatlm", "adapter", "did you mean ChatML?"),
    ]:
        answer = http.post(CHAT, json={"model": "echo", "messages": [SAID], "adapter": adapter})
        assert answer.status_code == 400
        error = error_of(answer)
        assert error["param"] == param
        assert words in error["message"]


def test_an_adapter_changes_the_prompt(http: httpx.Client) -> None:
    def tokens(**fields: Any) -> int:
        answer = http.post(CHAT, json={"model": "echo", "messages": [SAID], **fields})
        assert answer.status_code == 200, answer.text
        count: int = answer.json()["usage"]["prompt_tokens"]
        return count

    around = {"user_start": "U", "assistant_start": "A"}
    assert tokens(adapter={**around, "user_end": "x" * 50}) - tokens(adapter=around) == 50
    assert tokens(adapter="Metharme") != tokens(adapter="ChatML")
