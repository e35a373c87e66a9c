from __future__ import annotations

from typing import Any

import msgspec
import pytest

from llmgallery.chat.formats.jinja import messages_for_template, tool_for_template
from llmgallery.chat.prompt import pick_format, render_chat
from llmgallery.config.model import ModelConfig, Parameters, Template
from llmgallery.core.clues import Clues
from llmgallery.core.errors import InvalidField, TemplateError
from llmgallery.core.messages import ImagePart, Message, RefusalPart, TextPart, Tool, ToolCall, say
from llmgallery.core.requests import ChatRequest

SHOW = "{% for m in messages %}<{{ m.role }}>{{ m.content }}{% endfor %}{% if add_generation_prompt %}<assistant>{% endif %}"
ASK = ChatRequest((say("user", "Hi"),))


class Weights(msgspec.Struct, frozen=True):
    """What a backend would tell of a model's templates."""

    chat_template: str | None = None
    templates: dict[str, str] = {}
    bos: str = ""
    eos: str = ""
    clues: Clues = Clues()


WEIGHTS = Parameters(model="x.gguf")


def prompt(request: ChatRequest, template: str = SHOW, **keys: Any) -> str:
    return render_chat(request, ModelConfig(**keys), Weights(template)).prompt


def test_messages_have_openai_shape() -> None:
    call = ToolCall("call_1", "add", '{"a": 1}')
    request = ChatRequest(
        (
            say("system", "Be brief."),
            Message("user", (TextPart("a"), TextPart("b")), name="Ann"),
            Message("assistant", tool_calls=(call, ToolCall("call_2", "add", "not json"), ToolCall("call_3", "add", "[1]"))),
            Message("tool", (TextPart("2"),), tool_call_id="call_1"),
            Message("function", (TextPart("3"),), name="add"),
            Message("assistant", (RefusalPart("No."),), reasoning="hm"),
        )
    )
    assert messages_for_template(request) == [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": "ab", "name": "Ann"},
        {
            "role": "assistant",
            "content": None,
            "tool_calls": [
                {"type": "function", "id": "call_1", "function": {"name": "add", "arguments": {"a": 1}}},
                {"type": "function", "id": "call_2", "function": {"name": "add", "arguments": "not json"}},
                {"type": "function", "id": "call_3", "function": {"name": "add", "arguments": "[1]"}},
            ],
        },
        {"role": "tool", "content": "2", "tool_call_id": "call_1"},
        {"role": "tool", "content": "3", "name": "add"},
        {"role": "assistant", "content": "No.", "reasoning_content": "hm", "thinking": "hm"},
    ]


def test_arguments_that_are_nested_beyond_all_measure_stay_text() -> None:
    deep = '{"a":' * 5000 + "1" + "}" * 5000
    (message,) = messages_for_template(ChatRequest((Message("assistant", tool_calls=(ToolCall("1", "add", deep),)),)))
    assert message["tool_calls"][0]["function"]["arguments"] == deep


def test_images_keep_the_parts_apart() -> None:
    request = ChatRequest((Message("user", (TextPart("a"), ImagePart(url="http://x/y.png"), TextPart("b"))),))
    assert messages_for_template(request)[0]["content"] == [
        {"type": "text", "text": "a"},
        {"type": "image"},
        {"type": "text", "text": "b"},
    ]


def test_empty_content_is_an_empty_text() -> None:
    assert messages_for_template(ChatRequest((Message("assistant"),)))[0]["content"] == ""


def test_tools_have_openai_shape() -> None:
    assert tool_for_template(Tool("now")) == {
        "type": "function",
        "function": {"name": "now", "parameters": {"type": "object", "properties": {}}},
    }
    schema = {"type": "object", "properties": {"a": {"type": "number"}}}
    assert tool_for_template(Tool("add", "Adds.", schema, strict=True)) == {
        "type": "function",
        "function": {"name": "add", "description": "Adds.", "parameters": schema, "strict": True},
    }


@pytest.mark.parametrize(
    ("template", "weights", "tools", "origin"),
    [
        ({"chat_template": "mine"}, Weights("own"), False, "template.chat_template"),
        ({"chat_template": "mine", "chat_template_file": "x.jinja"}, Weights("own"), False, "x.jinja"),
        ({"chat_template": "mine", "preset": "chatml"}, Weights("own"), False, "template.chat_template"),
        ({"preset": "chatml"}, Weights("own"), False, "template.preset chatml"),
        ({"preset": "chatml", "use_tokenizer_template": True}, Weights("own"), False, "the weights' chat template"),
        ({"use_tokenizer_template": True}, Weights(), False, "preset alpaca, as nothing about the weights tells a format"),
        ({}, Weights("own"), False, "the weights' chat template"),
        ({}, Weights("own", {"tool_use": "tools"}), False, "the weights' chat template"),
        ({}, Weights("own", {"tool_use": "tools"}), True, "the weights' chat template"),
        ({}, Weights(None, {"default": "own"}), False, "the weights' chat template"),
        ({}, Weights(), False, "preset alpaca, as nothing about the weights tells a format"),
    ],
)
def test_which_template(template: dict[str, Any], weights: Weights, tools: bool, origin: str) -> None:
    choice = pick_format(ModelConfig(template=Template(**template), parameters=WEIGHTS), weights, tools=tools)
    assert choice.origin == origin
    if "the weights'" in origin:
        assert choice.source == ("tools" if tools else "own")
    elif "preset" not in origin:
        assert choice.source == "mine"
    assert bool(choice.stops) == ("preset" in origin)


def test_without_any_template_the_prompt_is_alpacas() -> None:
    rendered = render_chat(ASK, ModelConfig(), Weights())
    assert rendered.prompt.endswith("### Instruction:\nHi\n\n### Response:\n")
    assert rendered.stops == ("### Instruction:",)


def test_stop_strings_are_united() -> None:
    request = ChatRequest((say("user", "Hi"),), stop=("END", "<|im_end|>", ""))
    model = ModelConfig(stopwords=["User:", "END"], template=Template(preset="chatml"))
    assert render_chat(request, model, Weights()).stops == ("END", "<|im_end|>", "User:")


def test_the_system_prompt_leads_when_the_chat_brings_none() -> None:
    assert prompt(ASK, system_prompt="Be brief.") == "<system>Be brief.<user>Hi<assistant>"
    own = ChatRequest((say("system", "Mine."), say("user", "Hi")))
    assert prompt(own, system_prompt="Be brief.") == "<system>Mine.<user>Hi<assistant>"
    developer = ChatRequest((say("developer", "Mine."), say("user", "Hi")))
    assert prompt(developer, system_prompt="Be brief.") == "<system>Mine.<user>Hi<assistant>"


def test_the_developer_role_reaches_templates_that_know_it() -> None:
    request = ChatRequest((say("developer", "x"),))
    assert prompt(request) == "<system>x<assistant>"
    assert prompt(request, "{# developer #}" + SHOW) == "<developer>x<assistant>"


def test_variables_reach_the_template() -> None:
    names = ("bos_token", "eos_token", "tools | length if tools", "documents is none", "a", "b", "messages | length")
    template = "|".join(f"{{{{ {name} }}}}" for name in names)
    request = ChatRequest((say("user", "Hi"),), tools=(Tool("f"),), template_vars={"a": 1, "messages": "mine"})
    model = ModelConfig(chat_template_kwargs={"a": 2, "b": 3})
    assert render_chat(request, model, Weights(template, bos="<s>", eos="</s>")).prompt == "<s>|</s>|1|True|1|3|1"
    model = ModelConfig(template=Template(bos_token="B", eos_token=""))
    assert render_chat(ASK, model, Weights(template, bos="<s>", eos="</s>")).prompt == "B|||True|||1"


@pytest.mark.parametrize(
    ("template", "bos", "there"), [("{{ bos_token }}x", "<s>", True), ("x", "<s>", False), ("{{ bos_token }}x", "", False)]
)
def test_whether_the_text_begins_with_bos(template: str, bos: str, there: bool) -> None:
    assert render_chat(ASK, ModelConfig(), Weights(template, bos=bos)).bos_in_text is there


TRIMMING = SHOW.replace("m.content", "m.content | trim") + "."


@pytest.mark.parametrize(
    ("template", "text", "expected"),
    [
        (SHOW, "Once upon ", "<user>Hi<assistant>Once upon "),
        (SHOW + "<end>", "Once upon", "<user>Hi<assistant>Once upon"),
        (SHOW + "<end>", "Once upon ", "<user>Hi<assistant>Once upon "),
        (TRIMMING, "Once upon ", "<user>Hi<assistant>Once upon"),
        (TRIMMING, "Once", "<user>Hi<assistant>Once"),
    ],
)
def test_a_last_message_can_be_continued(template: str, text: str, expected: str) -> None:
    request = ChatRequest((say("user", "Hi"), say("assistant", text)), continue_final=True)
    assert prompt(request, template) == expected


def test_continuing_needs_text_that_the_template_prints() -> None:
    with pytest.raises(InvalidField, match="no text"):
        prompt(ChatRequest((), continue_final=True))
    with pytest.raises(InvalidField, match="no text"):
        prompt(ChatRequest((Message("user", (ImagePart(url="x"),)),), continue_final=True))
    with pytest.raises(TemplateError, match="leaves out"):
        prompt(ChatRequest((say("assistant", "x"),), continue_final=True), "{{ messages | length }}")


def test_a_template_that_fails_is_named() -> None:
    with pytest.raises(TemplateError, match=r"^the weights' chat template, line 2: 'x' is undefined$"):
        prompt(ASK, "\n{{ x.y.z }}", parameters=WEIGHTS)
    with pytest.raises(TemplateError, match=r"^the backend's own chat template, line 1: 'x' is undefined$"):
        prompt(ASK, "{{ x.y.z }}")
    with pytest.raises(TemplateError, match=r"^only users$"):
        prompt(ASK, "{{ raise_exception('only users') }}")


def test_a_template_that_does_not_parse_is_told_with_a_way_out() -> None:
    with pytest.raises(TemplateError, match=r"^the weights' chat template, line 1, column 4: .*endfro.*; set template\.preset"):
        prompt(ASK, "{% endfro %}", parameters=WEIGHTS)


HISTORY = "{% for m in messages %}{% if '</think>' in m.content %}{{ m.content.split('</think>')[-1] | trim }}{% else %}"


@pytest.mark.parametrize("template", [SHOW, TRIMMING, HISTORY + "{{ m.content | trim }}{% endif %}{% endfor %}"])
def test_what_is_said_comes_on_top_of_a_template_s_bounds(template: str) -> None:
    """Its length is for the context to judge."""
    long = "word " * 2_000_000
    assert len(prompt(ChatRequest((say("user", long),)), template)) >= len(long) - 1
    many = ChatRequest(tuple(say("user", long[:1_000_000]) for _ in range(12)))
    assert len(prompt(many, template)) >= 12 * 999_999


def test_a_template_that_multiplies_what_is_said_is_still_bounded() -> None:
    with pytest.raises(TemplateError, match="too long"):
        prompt(ChatRequest((say("user", "x" * 1_000_000),)), "{% for i in range(20) %}{{ messages[0].content }}{% endfor %}")
