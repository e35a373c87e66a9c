from __future__ import annotations

import itertools
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from llmgallery.backends.base import Loaded
from llmgallery.chat.formats.jinja import JinjaFormat
from llmgallery.chat.formats.repair import JOINED, MERGED, PARTED, Caps, caps_of, repair
from llmgallery.chat.prompt import pick_format, render_chat
from llmgallery.chat.unread import unread
from llmgallery.config.model import ModelConfig, OnUnsupported, Template
from llmgallery.core.errors import InvalidField, TemplateError, UnsupportedField
from llmgallery.core.messages import ImagePart, Message, TextPart, Tool, ToolCall, say
from llmgallery.core.requests import ChatRequest

SHOW = "{% for m in messages %}<{{ m.role }}>{{ m.content }}{% endfor %}{% if add_generation_prompt %}<assistant>{% endif %}"
NO_SYSTEM = "{% if messages | selectattr('role', 'equalto', 'system') | list %}{{ raise_exception('no system') }}{% endif %}"
ALTERNATE = (
    "{% for m in messages %}{% if (m.role == 'user') != (loop.index0 % 2 == 0) %}{{ raise_exception('alternate') }}"
    "{% endif %}{% endfor %}"
)
FIRST = "{% for m in messages[1:] %}{% if m.role == 'system' %}{{ raise_exception('begin with it') }}{% endif %}{% endfor %}"
PARTS = "{% for m in messages %}<{{ m.role }}>{% for p in m.content %}{{ p.text }}{% endfor %}{% endfor %}"
STRICT = Caps("never", alternating=True)


def weights(template: str | None = None, templates: dict[str, str] | None = None) -> Loaded:
    return Loaded(0, chat_template=template, templates=templates or {})


def chat(text: str) -> list[dict[str, Any]]:
    """`s:Be brief. u:Hi` -> messages"""
    roles = {"s": "system", "u": "user", "a": "assistant", "t": "tool"}
    return [{"role": roles[word[0]], "content": word[2:]} for word in text.split()]


def short(messages: list[dict[str, Any]]) -> str:
    return " ".join(f"{message['role'][0]}:{message['content']}" for message in messages).replace("\n\n", "+")


def prompt(source: str, *messages: Message, **fields: Any) -> str:
    return JinjaFormat(source, "x").chat(ChatRequest(messages, **fields), ModelConfig(), weights()).prompt


@pytest.mark.parametrize(
    ("source", "caps"),
    [
        (SHOW, Caps()),
        (NO_SYSTEM + SHOW, Caps("never")),
        (FIRST + SHOW, Caps("first")),
        (ALTERNATE + SHOW, STRICT),
        (PARTS, Caps(parts=True)),
        (NO_SYSTEM + ALTERNATE + PARTS, Caps("never", True, True)),
        # What does not take a question at all is not known to take anything less.
        ("{{ raise_exception('never') }}", Caps()),
        ("{% endfro %}", Caps()),
        ("{{ messages[0].content.no.such }}", Caps()),
        ("{% for i in range(99999) %}{% for j in range(99999) %}{% endfor %}{% endfor %}", Caps()),
        # A template that says nothing of what is said wants no other form of it.
        ("Hello", Caps()),
    ],
)
def test_what_a_template_takes_is_found_by_trying(source: str, caps: Caps) -> None:
    assert caps_of(source) == caps


@pytest.mark.parametrize(
    ("caps", "before", "after", "done"),
    [
        (Caps(), "s:1 s:2 u:3 u:4 a:5 s:6", "s:1 s:2 u:3 u:4 a:5 s:6", ()),
        (Caps("never"), "u:1 a:2 u:3", "u:1 a:2 u:3", ()),
        (Caps("never"), "s:1 u:2 a:3", "u:1+2 a:3", (MERGED,)),
        (Caps("never"), "s:1 s:2 u:3", "u:1+2+3", (MERGED,)),
        (Caps("never"), "u:1 a:2 s:3 u:4", "u:1 a:2 u:3+4", (MERGED,)),
        (Caps("never"), "u:1 s:2 u:3", "u:1 u:2+3", (MERGED,)),
        (Caps("never"), "s:1", "u:1", (MERGED,)),
        (Caps("never"), "s:1 a:2 u:3", "u:1 a:2 u:3", (MERGED,)),
        (Caps("first"), "s:1 u:2 a:3 u:4", "s:1 u:2 a:3 u:4", ()),
        (Caps("first"), "s:1 s:2 u:3", "s:1+2 u:3", (MERGED,)),
        (Caps("first"), "s:1 u:2 a:3 s:4 u:5", "s:1 u:2 a:3 u:4+5", (MERGED,)),
        (Caps("first"), "u:1 s:2", "u:1 u:2", (MERGED,)),
        (Caps(alternating=True), "u:1 u:2 a:3 a:4 u:5", "u:1+2 a:3+4 u:5", (JOINED,)),
        (Caps(alternating=True), "u:1 a:2 t:3 t:4 a:5", "u:1 a:2 t:3 t:4 a:5", ()),
        (STRICT, "s:1 u:2 u:3", "u:1+2+3", (MERGED, JOINED)),
        (STRICT, "u:1 s:2 a:3 u:4", "u:1+2 a:3 u:4", (MERGED, JOINED)),
        (STRICT, "u:1 a:2 u:3 s:4", "u:1 a:2 u:3+4", (MERGED, JOINED)),
    ],
)
def test_conversations_are_put_right(caps: Caps, before: str, after: str, done: tuple[str, ...]) -> None:
    messages = chat(before)
    result, repairs = repair(messages, caps)
    assert (short(result), repairs) == (after, done)
    assert short(messages) == before


def test_calls_of_tools_stay_apart() -> None:
    call = {"role": "assistant", "content": None, "tool_calls": [{"id": "1"}]}
    messages = [*chat("u:1"), call, {"role": "assistant", "content": "2"}]
    assert repair(messages, STRICT) == (messages, ())


def test_images_stay_in_their_place() -> None:
    image, text = {"type": "image"}, {"type": "text", "text": "2"}
    result, _ = repair([*chat("s:1"), {"role": "user", "content": [image, text]}], STRICT)
    texts = [{"type": "text", "text": part} for part in ("1", "\n\n")]
    assert result == [{"role": "user", "content": [*texts, image, text]}]


def test_texts_become_parts() -> None:
    call = {"role": "assistant", "content": None}
    result, done = repair([*chat("u:1"), call], Caps(parts=True))
    assert (result, done) == ([{"role": "user", "content": [{"type": "text", "text": "1"}]}, call], (PARTED,))


@given(st.lists(st.tuples(st.sampled_from(["system", "user", "assistant"]), st.text("xy", min_size=1))), st.booleans())
def test_nothing_that_was_said_is_lost(said: list[tuple[str, str]], leads: bool) -> None:
    messages = [{"role": role, "content": f"{text}{at}"} for at, (role, text) in enumerate(said)]
    result, done = repair(messages, Caps("first" if leads else "never", alternating=True))
    assert "\n\n".join(message["content"] for message in result) == "\n\n".join(message["content"] for message in messages)
    roles = [message["role"] for message in result]
    assert all(one != other for one, other in itertools.pairwise(roles))
    assert "system" not in roles[leads:]
    assert bool(done) == (roles != [message["role"] for message in messages])


def test_a_repaired_prompt_says_so() -> None:
    model = ModelConfig(template=Template(chat_template=NO_SYSTEM + SHOW), system_prompt="Be brief.")
    rendered = render_chat(ChatRequest((say("user", "Hi"),)), model, weights())
    assert (rendered.prompt, rendered.repairs) == ("<user>Be brief.\n\nHi<assistant>", (MERGED,))
    texts = pick_format(model, weights()).texts
    assert texts["template repairs"] == "a system message becomes part of the user message that follows it"
    assert (
        render_chat(ChatRequest((say("user", "Hi"),)), ModelConfig(template=Template(chat_template=SHOW)), weights()).repairs
        == ()
    )


def test_the_template_still_refuses_what_cannot_be_put_right() -> None:
    with pytest.raises(TemplateError, match=r"^alternate$"):
        prompt(ALTERNATE + SHOW, say("assistant", "Hi"), say("user", "Ho"))
    with pytest.raises(TemplateError, match=r"^alternate$"):
        prompt(ALTERNATE + SHOW, say("user", "Hi"), say("assistant", "Ho"), Message("tool", (TextPart("1"),), tool_call_id="1"))


def test_a_repaired_last_message_can_be_continued() -> None:
    turns = (say("user", "a"), say("assistant", "b"), say("assistant", "c "))
    assert prompt(ALTERNATE + SHOW, *turns, continue_final=True) == "<user>a<assistant>b\n\nc "
    assert prompt(PARTS, *turns, continue_final=True) == "<user>a<assistant>b<assistant>c "


def test_what_the_template_changes_cannot_be_continued() -> None:
    stripping = "{% for m in messages %}{{ m.content.split('</think>')[-1] }}{% endfor %}"
    with pytest.raises(TemplateError, match="leaves out a part of the last message"):
        prompt(stripping, say("assistant", "<think>a</think>b"), continue_final=True)
    call = Message("assistant", tool_calls=(ToolCall("1", "f", "{}"),))
    with pytest.raises(InvalidField, match="no text"):
        prompt(SHOW, say("user", "a"), call, continue_final=True)
    image = Message("user", (ImagePart(url="x"), TextPart("a")))
    assert prompt(PARTS, image, continue_final=True) == "<user>a"


def test_a_prompt_without_the_beginning_of_an_answer() -> None:
    assert prompt(SHOW, say("user", "Hi"), add_generation_prompt=False) == "<user>Hi"
    assert prompt(SHOW, say("user", "Hi")) == "<user>Hi<assistant>"


NAMED = weights("default", {"tool_use": "tools", "rag": "documents", "other": "other"})


@pytest.mark.parametrize(
    ("variables", "tools", "expected"),
    [
        ({}, False, "default"),
        ({}, True, "tools"),
        ({"documents": [{"text": "x"}]}, False, "documents"),
        ({"documents": []}, False, "default"),
        ({"chat_template": "rag"}, False, "documents"),
        ({"chat_template": "rag"}, True, "documents"),
        ({"chat_template": "other", "documents": [{"text": "x"}]}, True, "other"),
        ({"chat_template": "default"}, False, "default"),
        ({"chat_template": "default"}, True, "default"),
    ],
)
def test_named_templates(variables: dict[str, Any], tools: bool, expected: str) -> None:
    request = ChatRequest((say("user", "Hi"),), tools=(Tool("f"),) if tools else (), template_vars=variables)
    assert render_chat(request, ModelConfig(), NAMED).prompt == expected


def test_a_model_s_yaml_may_choose_the_named_template() -> None:
    model = ModelConfig(chat_template_kwargs={"chat_template": "other"})
    assert render_chat(ChatRequest((say("user", "Hi"),)), model, NAMED).prompt == "other"


def test_a_template_that_is_not_there_is_refused_with_those_that_are() -> None:
    """A client hands in no template of its own: it would be code."""
    for name in ("rga", "{{ 1 }}", ["rag"]):
        request = ChatRequest((say("user", "Hi"),), template_vars={"chat_template": name})
        with pytest.raises(InvalidField, match=r"it has: default, other, rag, tool_use$") as caught:
            render_chat(request, ModelConfig(), NAMED)
        assert caught.value.field == "chat_template_kwargs.chat_template"


def test_named_templates_are_shown() -> None:
    assert pick_format(ModelConfig(), NAMED).texts == {
        "template": "default",
        "template tool_use": "tools",
        "template rag": "documents",
        "template other": "other",
    }


def test_effort_and_metadata_reach_the_template() -> None:
    source = "{{ reasoning_effort }} {{ metadata | tojson if metadata is defined }}"
    model = ModelConfig(reasoning_effort="low", template=Template(chat_template=source))

    def said(**fields: Any) -> str:
        return render_chat(ChatRequest((say("user", "Hi"),), **fields), model, weights()).prompt

    assert said() == "low "
    assert said(reasoning_effort="high", metadata={"a": "b"}) == 'high {"a": "b"}'
    assert said(reasoning_effort="high", template_vars={"reasoning_effort": "none"}) == "none "


ASKING = ChatRequest((say("user", "Hi"),), reasoning_effort="high", metadata={"a": "b"}, template_vars={"documents": [{}]})


def test_what_no_template_reads_is_told_by_the_model_s_policy() -> None:
    with pytest.raises(UnsupportedField, match=r"documents: .* does not read it.*demands: warn") as caught:
        unread(ASKING, ["{{ messages }}"], OnUnsupported())
    assert caught.value.field == "documents"
    with pytest.raises(UnsupportedField, match=r"reasoning_effort: .*hints: warn"):
        unread(ASKING, ["{{ documents }}"], OnUnsupported(hints="error"))
    warnings = unread(ASKING, ["x"], OnUnsupported(demands="warn", hints="warn"))
    assert [warning.split()[0] for warning in warnings] == ["documents", "reasoning_effort", "metadata"]
    assert unread(ASKING, ["x"], OnUnsupported(demands="ignore")) == ()


@pytest.mark.parametrize(
    "texts", [["{{ documents }} {{ reasoning_effort }}", "{{ metadata }}"], ["{{.ReasoningEffort}}{{.Metadata}}documents"]]
)
def test_what_a_template_reads_is_not_told(texts: list[str]) -> None:
    assert unread(ASKING, texts, OnUnsupported("error", "error")) == ()
    assert unread(ChatRequest((say("user", "Hi"),)), [], OnUnsupported("error", "error")) == ()


def test_a_prompt_brings_the_warnings_of_what_it_leaves_out() -> None:
    model = ModelConfig(template=Template(chat_template=SHOW), on_unsupported=OnUnsupported(demands="warn"))
    assert render_chat(ASKING, model, weights()).warnings == (
        "documents was ignored: the model's chat template does not read it",
    )
    with pytest.raises(UnsupportedField):
        render_chat(ASKING, ModelConfig(template=Template(chat_template=SHOW)), weights())
