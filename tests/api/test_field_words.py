"""What a client is told of a field at fault: words that need no knowledge of our libraries."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import httpx
import msgspec
import pytest
from live_server import LiveServer, error_of, user

from llmgallery.api.dialects.openai import schema

CHAT = "/v1/chat/completions"
COMPLETION = "/v1/completions"
CALL = {"id": "c", "type": "function", "function": {"name": "f", "arguments": "{}"}}
ROLES = "system, developer, user, assistant, tool, function"
PARTS = "text, refusal, image_url, input_audio, file"


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"stop": 5}, "stop: expected text, a list or null, got a whole number"),
        ({"stop": ""}, "stop: expected text that is not empty"),
        ({"stop": ["a", ""]}, "stop[1]: expected text that is not empty"),
        ({"stream": "yes"}, "stream: expected true or false or null, got text"),
        ({"tools": {}}, "tools: expected a list or null, got an object"),
        ({"top_k": 1.5}, "top_k: expected a whole number or null, got a number"),
        ({"temperature": 2.1}, "temperature: expected a number of at most 2"),
        ({"n": 0}, "n: expected a whole number of at least 1"),
        ({"repeat_penalty": 0}, "repeat_penalty: expected a number above 0"),
        ({"messages": []}, "messages: expected a list that is not empty"),
        ({"messages": None}, "messages: expected a list, got null"),
        ({"messages": [{"content": "x"}]}, f"messages[0].role is missing: expected one of {ROLES}"),
        ({"messages": [{"role": "robot"}]}, f"messages[0].role: 'robot' is not one of {ROLES}"),
        ({"messages": [{"role": "a - at `$.b`"}]}, f"messages[0].role: 'a - at `$.b`' is not one of {ROLES}"),
        ({"messages": [{"role": 5}]}, f"messages[0].role: expected one of {ROLES}"),
        ({"messages": [{"role": "user", "content": [{}]}]}, f"messages[0].content[0].type is missing: expected one of {PARTS}"),
        (
            {"messages": [{"role": "user", "content": [{"type": "smell"}]}]},
            f"messages[0].content[0].type: 'smell' is not one of {PARTS}",
        ),
        ({"response_format": {"type": "xml"}}, "response_format.type: 'xml' is not one of text, json_object, json_schema"),
        (
            {"messages": [{"role": "assistant", "tool_calls": [{**CALL, "type": "x"}]}]},
            "messages[0].tool_calls[0].type: 'x' is not function",
        ),
        ({"logit_bias": {"abc": 1}}, "logit_bias.abc: expected a token id, a whole number from 0 to 2147483647, as the key"),
        ({"logit_bias": {"5": 101}}, "logit_bias.5: expected a number from -100 to 100"),
    ],
)
def test_a_bad_field_is_told_in_words(http: httpx.Client, fields: dict[str, Any], message: str) -> None:
    assert error_of(http.post(CHAT, json={"model": "echo", "messages": user("hello"), **fields}))["message"] == message


@pytest.mark.parametrize(
    ("prompt", "message"),
    [
        ([5, -1], "prompt[1]: token ids are whole numbers from 0 to 2147483647, not -1"),
        ([1.5], "prompt[0]: token ids are whole numbers from 0 to 2147483647, not 1.5"),
        (["a", -1], "prompt[1]: expected text, or a list of token ids (whole numbers from 0) that is not empty"),
    ],
)
def test_a_bad_prompt_is_told_in_words(http: httpx.Client, prompt: Any, message: str) -> None:
    assert error_of(http.post(COMPLETION, json={"model": "echo", "prompt": prompt}))["message"] == message


def test_every_field_of_few_values_says_which() -> None:
    """Every Literal and tag that the schema holds has its place in the table of choices."""
    found = set(choice_paths(msgspec.inspect.type_info(schema.ChatBody)))
    assert found == set(schema._CHOICES)


def choice_paths(type_: msgspec.inspect.Type, path: str = "") -> Iterator[str]:
    match type_:
        case msgspec.inspect.LiteralType():
            yield path
        case msgspec.inspect.StructType(fields=fields, tag_field=tag_field):
            if tag_field is not None:
                yield f"{path}.{tag_field}"
            for field in fields:
                yield from choice_paths(field.type, f"{path}.{field.encode_name}" if path else field.encode_name)
        case msgspec.inspect.ListType(item_type=item):
            yield from choice_paths(item, f"{path}[]")
        case msgspec.inspect.UnionType(types=types):
            for inner in types:
                yield from choice_paths(inner, path)


@pytest.mark.parametrize(("kind", "feature"), [("image_url", "images"), ("input_audio", "audio input"), ("file", "files")])
def test_a_refused_part_is_called_by_what_it_is(live: LiveServer, http: httpx.Client, kind: str, feature: str) -> None:
    messages = [{"role": "user", "content": [{"type": "text", "text": "x"}, {"type": kind, kind: {}}]}]
    error = error_of(http.post(CHAT, json={"model": "echo", "messages": messages}))
    assert error["message"].startswith(f"messages[0].content[1]: model echo does not support {feature}; leave it out")
    live.add("dropping", on_unsupported={"demands": "warn"})
    warned = http.post(CHAT, json={"model": "dropping", "messages": messages}).json()["warnings"]
    assert warned == [f"messages[0].content[1] was ignored: model dropping does not support {feature}"]
