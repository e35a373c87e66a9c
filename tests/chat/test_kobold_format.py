from __future__ import annotations

from typing import Any

import msgspec
import pytest

from llmgallery.backends.base import Loaded
from llmgallery.chat.formats.kobold import kobold_format
from llmgallery.chat.prompt import pick_format, render_chat, render_completion
from llmgallery.config.model import ModelConfig, Parameters, Template
from llmgallery.core.errors import InvalidField, TemplateError
from llmgallery.core.messages import ImagePart, Message, TextPart, Tool, ToolCall, say
from llmgallery.core.requests import ChatRequest, CompletionRequest

CHATML = "{%- for m in messages %}<|im_start|>{{ m.role }}…<|im_start|>assistant\n…<|im_end|>{% endfor %}"
WEIGHTS = Loaded(100, chat_template=CHATML)
BARE = Loaded(100)
CONFIG = ModelConfig(parameters=Parameters(model="x.gguf"))
TALK = (say("system", "Be brief."), say("user", "Hi"), say("assistant", "Hello."), say("user", "Bye"))


def prompt(adapter: dict[str, Any] | str, *messages: Message, config: ModelConfig = CONFIG, **fields: Any) -> str:
    request = ChatRequest(messages or TALK, adapter=adapter, **fields)
    return render_chat(request, config, WEIGHTS).prompt


def test_the_pull_requests_example() -> None:
    adapter = {
        "templates": {"system": {"start": "<s>[INST] ", "end": " [/INST]"}, "user": {"start": "[INST] ", "end": " [/INST]"}}
    }
    said = (say("system", "you are a dungeons and dragons dungeon master"), say("user", "Go."))
    expected = "<s>[INST] you are a dungeons and dragons dungeon master [/INST][INST] Go. [/INST]\n### Response:\n"
    assert prompt(adapter, *said) == expected


def test_nothing_set_is_koboldcpps_instruct_format() -> None:
    assert prompt({}) == (
        "\n### Instruction:\nBe brief.\n### Instruction:\nHi\n### Response:\nHello.\n### Instruction:\nBye\n### Response:\n"
    )


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        (
            "ChatML",
            "<|im_start|>system\nBe brief.<|im_end|>\n<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\nHello.<|im_end|>\n"
            "<|im_start|>user\nBye<|im_end|>\n<|im_start|>assistant\n",
        ),
        ("Mistral-V2-V3", "Be brief.[INST] Hi[/INST]Hello.</s>[INST] Bye[/INST]"),
        ("vicuna", "Be brief.\n\nUSER: Hi\nASSISTANT: Hello.</s>\nUSER: Bye\nASSISTANT: "),
        ("Metharme", "<|system|>Be brief.<|user|>Hi<|model>Hello.<|user|>Bye<|model>"),
    ],
)
def test_named(name: str, expected: str) -> None:
    assert prompt(name) == expected


def test_texts_around_the_chat() -> None:
    adapter = {"chat_start": "<bos>", "user_start": "U:", "assistant_start": "A: ", "assistant_gen": "A:", "assistant_end": ";"}
    assert prompt(adapter, say("user", "a"), say("assistant", "b"), say("user", "c")) == "<bos>U:aA: b;U:cA:"
    assert prompt(adapter, say("user", "a"), add_generation_prompt=False) == "<bos>U:a"


def test_tools_are_told_as_koboldcpp_tells_them() -> None:
    adapter = {"user_start": "U:", "assistant_start": "A:", "tools_start": "T:", "tools_end": ";", "system_start": "S:"}
    calls = (ToolCall("c1", "add", '{"a": 1}'), ToolCall("c2", "now", ""))
    said = (
        say("user", "1+1?"),
        Message("assistant", tool_calls=calls),
        Message("tool", (TextPart("2"),), tool_call_id="c1"),
        Message("function", (TextPart("noon"),), name="now"),
    )
    assert prompt(adapter, *said) == (
        'U:1+1?A:\n(Made a function call c1 to add with arguments={"a": 1})\n(Made a function call c2 to now)\n'
        "T:\nReceived results of function call c1:\n2;T:\nReceived results of function call:\nnoon;A:"
    )
    add = Tool("add", "Adds.", {"type": "object", "properties": {"a": {"type": "integer"}, "b": True}})
    listed = '[\n{\n"name": "add",\n"description": "Adds.",\n"properties": {\n"a": "integer",\n"b": "any"\n}\n}\n]'
    assert prompt(adapter, say("user", "x"), tools=(add,)) == f"S:### Available Tools:\n{listed}U:xA:"


def test_images_are_numbered_through_the_chat() -> None:
    seen = Message("user", (TextPart("a"), ImagePart(url="data:,"), ImagePart(url="data:,")))
    adapter = {"user_start": "U:", "assistant_start": "A:"}
    assert prompt(adapter, seen, Message("user", (ImagePart(url="data:,"),))) == (
        "U:a\n(Attached Image 1)\n\n(Attached Image 2)\nU:\n(Attached Image 3)\nA:"
    )


def test_system_prompt_leads_where_the_chat_has_none() -> None:
    config = msgspec.structs.replace(CONFIG, system_prompt="Be kind.")
    adapter = {"system_start": "S:", "user_start": "U:", "assistant_start": "A:"}
    assert prompt(adapter, say("user", "x"), config=config) == "S:Be kind.U:xA:"
    assert prompt(adapter, say("developer", "Be wild."), say("user", "x"), config=config) == "S:Be wild.U:xA:"


def test_the_last_message_may_be_continued() -> None:
    adapter = {"user_start": "U:", "user_end": ".", "assistant_start": "A:", "assistant_end": ";"}
    assert prompt(adapter, say("user", "x"), say("assistant", "b;"), continue_final=True) == "U:x.A:b;"
    with pytest.raises(InvalidField, match="no text that could be continued"):
        prompt(adapter, say("user", ""), continue_final=True)


def test_stops_are_the_stripped_beginnings_of_turns() -> None:
    request = ChatRequest(TALK, stop=("x",), adapter={"user_start": "\nU: ", "assistant_start": " \n"})
    config = msgspec.structs.replace(CONFIG, stopwords=["y"])
    assert render_chat(request, config, WEIGHTS).stops == ("x", "y", "U:")


def test_autoguess_reads_the_weights_template() -> None:
    assert prompt("AutoGuess", say("user", "x")) == "<|im_start|>user\nx<|im_end|>\n<|im_start|>assistant\n"
    assert pick_format(CONFIG, WEIGHTS, adapter="autoguess").origin == "the request's adapter AutoGuess (ChatML (Generic))"
    nothing = kobold_format("AutoGuess", BARE, origin="template.adapter")
    assert nothing.adapter == kobold_format({}, BARE, origin="").adapter
    assert "nothing fits" in nothing.origin


def test_a_requests_adapter_replaces_the_models_template() -> None:
    own = ModelConfig(template=Template(adapter={"user_start": "own", "system_start": "own"}), parameters=CONFIG.parameters)
    assert prompt({"user_start": "U:"}, say("system", "s"), say("user", "x"), config=own) == (
        "\n### Instruction:\nsU:x\n### Response:\n"
    )
    assert render_chat(ChatRequest((say("user", "x"),)), own, WEIGHTS).prompt == "ownx\n### Response:\n"


@pytest.mark.parametrize(
    ("template", "origin", "expected"),
    [
        (Template(adapter={"user_start": "U:", "assistant_start": "A:"}), "template.adapter", "U:xA:"),
        (Template(adapter="metharme"), "template.adapter metharme", "<|user|>x<|model>"),
        (Template(preset="kobold/Metharme"), "template.preset kobold/Metharme", "<|user|>x<|model>"),
    ],
)
def test_a_models_yaml_may_name_one(template: Template, origin: str, expected: str) -> None:
    rendered = render_chat(
        ChatRequest((say("user", "x"),)), ModelConfig(template=template, parameters=CONFIG.parameters), WEIGHTS
    )
    assert (rendered.prompt, rendered.origin) == (expected, origin)


def test_texts_are_shown_by_their_keys() -> None:
    format = kobold_format("Metharme", BARE, origin="x")
    assert format.texts["template.adapter.assistant_start"] == "<|model>"


@pytest.mark.parametrize(
    ("adapter", "field"),
    [({"user": {}}, "adapter.user"), ("chatlm", "adapter"), ({"templates": {"x": {}}}, "adapter.templates.x")],
)
def test_what_is_wrong_is_the_requests_fault(adapter: dict[str, Any] | str, field: str) -> None:
    with pytest.raises(InvalidField) as caught:
        prompt(adapter)
    assert caught.value.field == field


def test_an_adapter_cannot_fill_the_memory() -> None:
    with pytest.raises(TemplateError, match="the adapter adds 10,000,000 characters"):
        prompt({"user_start": "x" * 1_000_000}, *[say("user", "a")] * 10)


def test_completions_have_their_placeholders_filled() -> None:
    config = ModelConfig(template=Template(adapter="ChatML"), parameters=CONFIG.parameters)
    rendered = render_completion(CompletionRequest("{{[INPUT]}}x{{[OUTPUT]}}"), config, WEIGHTS)
    assert rendered is not None
    assert rendered.prompt == "<|im_end|>\n<|im_start|>user\nx<|im_end|>\n<|im_start|>assistant\n"
    assert render_completion(CompletionRequest("plain"), config, WEIGHTS) is None
    assert render_completion(CompletionRequest((1, 2)), config, WEIGHTS) is None


@pytest.mark.parametrize("adapter", [{"user_start": "U:"}, "ChatML", {}, None])
def test_adapters_cross_the_wire(adapter: dict[str, Any] | str | None) -> None:
    request = ChatRequest(TALK, adapter=adapter)
    assert msgspec.msgpack.decode(msgspec.msgpack.encode(request), type=ChatRequest) == request
