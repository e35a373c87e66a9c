"""Core requests as OpenAI's JSON, checked against what the official client's types say where they say it."""

from __future__ import annotations

import base64
from typing import Any

import pytest

from llmgallery.backends.openai.body import answer_body, data_uri, embed_body, rerank_body
from llmgallery.config.model import ModelConfig, OnUnsupported
from llmgallery.core.errors import UnsupportedField
from llmgallery.core.messages import ImagePart, Message, RawPart, RefusalPart, TextPart, Tool, ToolCall, say
from llmgallery.core.requests import ChatRequest, CompletionRequest, EmbedRequest, RerankRequest
from llmgallery.core.sampling import Sampling

PNG = b"\x89PNG\r\n\x1a\n rest"
HI = (say("user", "Hi"),)
NOTHING = ModelConfig()


def chat(config: ModelConfig = NOTHING, **fields: Any) -> dict[str, Any]:
    return answer_body(ChatRequest(**{"messages": HI, **fields}), config, "m", streamed=False)


def message(*parts: Any, role: Any = "user", **fields: Any) -> dict[str, Any]:
    (written,) = chat(messages=(Message(role, parts, **fields),))["messages"]
    return written


def test_nothing_is_sent_that_nobody_asked_for() -> None:
    assert chat() == {"model": "m", "messages": [{"role": "user", "content": "Hi"}]}
    assert answer_body(CompletionRequest((1, 2)), NOTHING, "m", streamed=False) == {"model": "m", "prompt": (1, 2)}


def test_messages() -> None:
    assert message(TextPart("a"), TextPart("b"))["content"] == [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]
    assert message(TextPart("a"), role="developer", name="Bob") == {"role": "developer", "content": "a", "name": "Bob"}
    call = ToolCall("call_1", "f", "{}", 3)
    assert message(role="assistant", tool_calls=(call,), reasoning="hm", extra={"cache": 1}) == {
        "role": "assistant",
        "content": None,
        "tool_calls": [{"id": "call_1", "type": "function", "function": {"name": "f", "arguments": "{}"}}],
        "reasoning_content": "hm",
        "cache": 1,
    }
    older = message(TextPart(""), role="assistant", tool_calls=(ToolCall("", "f", "{}"),))
    assert older == {"role": "assistant", "content": "", "function_call": {"name": "f", "arguments": "{}"}}
    assert message(TextPart("42"), role="tool", tool_call_id="call_1")["tool_call_id"] == "call_1"
    assert message(RefusalPart("no"), role="assistant") == {"role": "assistant", "content": None, "refusal": "no"}


def test_images_and_parts_that_nobody_here_reads() -> None:
    audio = {"type": "input_audio", "input_audio": {"data": "AA==", "format": "wav"}}
    parts = (TextPart("See"), ImagePart(url="https://x/y.png", detail="low"), ImagePart(data=PNG), RawPart(audio))
    assert message(*parts)["content"] == [
        {"type": "text", "text": "See"},
        {"type": "image_url", "image_url": {"url": "https://x/y.png", "detail": "low"}},
        {"type": "image_url", "image_url": {"url": "data:image/png;base64," + base64.b64encode(PNG).decode()}},
        audio,
    ]


@pytest.mark.parametrize(
    ("data", "kind"),
    [(b"\xff\xd8\xff\xe0", "jpeg"), (b"GIF89a", "gif"), (b"RIFF1234WEBPVP8", "webp"), (PNG, "png"), (b"?", "png")],
)
def test_the_kind_of_an_image(data: bytes, kind: str) -> None:
    assert data_uri(data) == f"data:image/{kind};base64,{base64.b64encode(data).decode()}"


def test_the_system_prompt_of_the_yaml() -> None:
    config = ModelConfig(system_prompt="Be brief.")
    assert chat(config)["messages"][0] == {"role": "system", "content": "Be brief."}
    assert len(chat(config, messages=(say("developer", "own"), *HI))["messages"]) == 2


def test_tools() -> None:
    tools = (Tool("f", "does", {"type": "object"}, True), Tool("g"))
    assert (
        chat(tools=tools, tool_choice="required", parallel_tool_calls=False).items()
        >= {
            "tools": [
                {
                    "type": "function",
                    "function": {"name": "f", "description": "does", "parameters": {"type": "object"}, "strict": True},
                },
                {"type": "function", "function": {"name": "g"}},
            ],
            "tool_choice": "required",
            "parallel_tool_calls": False,
        }.items()
    )
    assert chat(tools=tools, forced_tool="g")["tool_choice"] == {"type": "function", "function": {"name": "g"}}
    assert not {"tool_choice", "parallel_tool_calls"} & chat(tools=tools).keys()
    assert not {"tools", "tool_choice"} & chat(tools=tools, tool_choice="none", extra={"functions": [{}]}).keys()
    custom = [{"type": "custom", "custom": {"name": "c"}}]
    assert chat(tool_choice="required", extra={"tools": custom}).items() >= {"tools": custom, "tool_choice": "required"}.items()


def test_sampling_goes_under_the_names_that_it_came_by() -> None:
    sampling = Sampling(
        temperature=0.0, top_k=3, seed=7, logit_bias={5: -1.0}, repeat_penalty=1.1, max_tokens=9, extra={"guidance": 2}
    )
    assert chat(sampling=sampling, stop=("a", "b")) == {
        **chat(),
        "temperature": 0.0,
        "top_k": 3,
        "seed": 7,
        "logit_bias": {"5": -1.0},
        "repeat_penalty": 1.1,
        "max_tokens": 9,
        "guidance": 2,
        "stop": ["a", "b"],
    }
    assert chat(sampling=Sampling(seed=-1, max_tokens=-1)) == chat()


def test_the_length_limit_has_the_clients_name() -> None:
    sampling = Sampling(max_tokens=9)
    said = chat(sampling=sampling, extra={"max_completion_tokens": 8})
    assert said["max_completion_tokens"] == 8 and "max_tokens" not in said
    request = ChatRequest(HI, sampling)
    named = answer_body(request, NOTHING, "m", streamed=False, limit="max_completion_tokens")
    assert named["max_completion_tokens"] == 9 and "max_tokens" not in named
    completion = CompletionRequest("a", Sampling(max_tokens=0))
    assert answer_body(completion, NOTHING, "m", streamed=False, limit="max_completion_tokens")["max_tokens"] == 0


def test_what_the_dialect_left_goes_as_it_came_but_for_what_is_ours() -> None:
    extra = {
        "response_format": {"type": "json_object"},
        "user": "u",
        "verbosity": None,
        "n": 3,
        "model": "other",
        "stream": False,
    }
    body = answer_body(ChatRequest(HI, extra=extra), NOTHING, "m", streamed=True)
    assert body.items() >= {"response_format": {"type": "json_object"}, "user": "u", "model": "m", "stream": True}.items()
    assert not {"verbosity", "n"} & body.keys()


def test_streams_ask_for_usage() -> None:
    def options(usage: bool, **extra: Any) -> Any:
        return answer_body(ChatRequest(HI, extra=extra), NOTHING, "m", streamed=True, usage=usage).get("stream_options")

    assert options(True) == {"include_usage": True}
    assert options(True, stream_options={"include_obfuscation": False}) == {"include_obfuscation": False, "include_usage": True}
    assert options(False) is None


def test_logprobs() -> None:
    assert chat(logprobs=0) == {**chat(), "logprobs": True}
    assert chat(logprobs=4) == {**chat(), "logprobs": True, "top_logprobs": 4}
    request = CompletionRequest("a", suffix="z", echo=True, logprobs=0)
    assert answer_body(request, NOTHING, "m", streamed=False) == {
        "model": "m",
        "prompt": "a",
        "suffix": "z",
        "echo": True,
        "logprobs": 0,
    }


def test_what_templates_elsewhere_are_told() -> None:
    config = ModelConfig(chat_template_kwargs={"enable_thinking": False}, reasoning_effort="low")
    body = chat(config, template_vars={"documents": [{"text": "t"}], "x": 1}, continue_final=True, metadata={"a": "b"})
    assert body == {
        **chat(),
        "documents": [{"text": "t"}],
        "chat_template_kwargs": {"enable_thinking": False, "x": 1},
        "continue_final_message": True,
        "add_generation_prompt": False,
        "reasoning_effort": "low",
        "metadata": {"a": "b"},
    }
    assert chat(config, reasoning_effort="high")["reasoning_effort"] == "high"
    assert chat(add_generation_prompt=False)["add_generation_prompt"] is False


def test_edits_are_refused() -> None:
    with pytest.raises(UnsupportedField, match="instruction"):
        answer_body(CompletionRequest("a", instruction="upper"), NOTHING, "m", streamed=False)


def test_vectors_and_scores() -> None:
    assert embed_body(EmbedRequest(("a", (1, 2)), extra={"user": "u", "input_type": None}), NOTHING, "m") == {
        "model": "m",
        "input": ["a", (1, 2)],
        "encoding_format": "base64",
        "user": "u",
    }
    assert embed_body(EmbedRequest(("a",), dimensions=3), NOTHING, "m")["dimensions"] == 3
    assert rerank_body(RerankRequest("q", ("a",)), NOTHING, "m") == {
        "model": "m",
        "query": "q",
        "documents": ["a"],
        "return_documents": False,
    }


def test_inputs_that_are_too_long_are_the_endpoints_matter() -> None:
    for make, request in ((embed_body, EmbedRequest(("a",), truncate=True)), (rerank_body, RerankRequest("q", ("a",), True))):
        with pytest.raises(UnsupportedField, match="truncate"):
            make(request, NOTHING, "m")
        assert "truncate" not in make(request, ModelConfig(on_unsupported=OnUnsupported(demands="warn")), "m")
    told = EmbedRequest(("a",), truncate=True, extra={"truncate": True})
    assert embed_body(told, NOTHING, "m")["truncate"] is True
