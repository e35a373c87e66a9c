"""Ollama's templates write what Ollama writes: whole conversations, or a turn at a time."""

from __future__ import annotations

import datetime
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from llmgallery.backends.base import Loaded
from llmgallery.chat.formats.ollama import OllamaFormat
from llmgallery.chat.prompt import render_chat
from llmgallery.config.model import ModelConfig, Template
from llmgallery.core.errors import InvalidField, TemplateError
from llmgallery.core.messages import Message, TextPart, Tool, ToolCall, say
from llmgallery.core.requests import ChatRequest
from llmgallery.templates.ollama import check_ollama, compile_ollama

TURNS = (
    "{{ if .System }}<|im_start|>system\n{{ .System }}<|im_end|>\n{{ end }}"
    "{{ if .Prompt }}<|im_start|>user\n{{ .Prompt }}<|im_end|>\n{{ end }}"
    "<|im_start|>assistant\n{{ .Response }}<|im_end|>\n"
)
WHOLE = (
    "{{ if .System }}[S]{{ .System }}{{ end }}"
    "{{ range $i, $_ := .Messages }}{{ $last := eq (len (slice $.Messages $i)) 1 }}"
    '{{ if ne .Role "system" }}[{{ .Role }}]{{ .Content }}{{ if $last }}!{{ end }}{{ end }}{{ end }}[assistant]'
)
TALK = (say("system", "Be brief."), say("user", "Hi"), say("assistant", "Hello."), say("user", "Bye"))


def prompt(template: str, *messages: Message, system: str | None = None, **fields: Any) -> str:
    config = ModelConfig(template=Template(engine="ollama", chat=template), system_prompt=system)
    return render_chat(ChatRequest(messages or TALK, **fields), config, Loaded(100, chat_template="not this")).prompt


def test_a_turn_at_a_time() -> None:
    assert prompt(TURNS) == (
        "<|im_start|>system\nBe brief.<|im_end|>\n<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\nHello.<|im_end|>\n"
        "<|im_start|>user\nBye<|im_end|>\n<|im_start|>assistant\n"
    )
    assert prompt(TURNS, say("user", "a")) == "<|im_start|>user\na<|im_end|>\n<|im_start|>assistant\n"


def test_a_template_without_a_response_ends_with_it() -> None:
    assert prompt("{{ .Prompt }}>") == "Hi>Hello.Bye>"


@pytest.mark.parametrize(
    ("template", "expected"),
    [
        ("{{ .Prompt }}{{ if .System }}{{ .Response }} end{{ end }} more", "a"),
        ("{{ .Prompt }}{{ if .Prompt }}<{{ .Response }}>{{ end }} more", "a<"),
        ("{{ if .Prompt }}{{ .Prompt }}{{ else }}{{ .Response }}none{{ end }} more", "a"),
        ('{{ with .Prompt }}{{ . }}{{ end }}[{{ printf "%s" .Response }}]', "a["),
        ("{{ if .Response }}seen{{ end }}{{ .Prompt }}{{ .Response }}x", "a"),
        ('{{ range (list "1" "2") }}{{ . }}{{ end }}{{ $.Response }}{{ .Response }}x', "12"),
    ],
)
def test_the_prompt_ends_where_the_response_begins(template: str, expected: str) -> None:
    assert prompt(template, say("user", "a")) == expected


def test_an_unfinished_answer_is_where_a_turn_template_goes_on() -> None:
    assert prompt("{{ .Prompt }}:{{ .Response }}.", say("user", "a"), say("assistant", "b")) == "a:b"


def test_a_whole_conversation() -> None:
    assert prompt(WHOLE) == "[S]Be brief.[user]Hi[assistant]Hello.[user]Bye![assistant]"


def test_messages_of_one_role_are_joined() -> None:
    said = (say("system", "a"), say("developer", "b"), say("user", "c"), say("user", "d"))
    assert prompt(WHOLE, *said) == "[S]a\n\nb[user]c\n\nd![assistant]"
    late = (say("user", "a"), say("system", "b"), say("user", "c"))
    assert prompt("{{ .System }}>{{ .Prompt }}<{{ .Response }};", *late) == ">a<;b>c<"


def test_the_models_system_prompt_leads() -> None:
    assert prompt(WHOLE, say("user", "a"), system="Own.") == "[S]Own.[user]a![assistant]"
    assert prompt(WHOLE, say("system", "Theirs."), say("user", "a"), system="Own.") == "[S]Theirs.[user]a![assistant]"


def test_calls_and_tools_are_json() -> None:
    template = (
        "{{ range .Tools }}{{ . }}|{{ .Function }}|{{ .Function.Name }}"
        "{{ range $name, $p := .Function.Parameters.Properties }} {{ $name }}:{{ $p.Type }}{{ end }}\n{{ end }}"
        "{{ range .Messages }}{{ .Content }}{{ range .ToolCalls }}{{ .Function.Name }}{{ .Function.Arguments }}"
        "{{ range $k, $v := .Function.Arguments }}<{{ $k }}={{ $v }}>{{ end }}{{ end }}{{ .ToolName }};{{ end }}{{ json .Tools }}"
    )
    add = Tool("add", "Adds.", {"type": "object", "required": ["a"], "properties": {"a": {"type": "integer"}}})
    parameters = '{"type":"object","required":["a"],"properties":{"a":{"type":"integer"}}}'
    function = f'{{"name":"add","description":"Adds.","parameters":{parameters}}}'
    tool = f'{{"type":"function","function":{function}}}'
    said = (
        say("user", "x"),
        Message("assistant", tool_calls=(ToolCall("1", "add", '{"b": "<", "a": 1}'), ToolCall("2", "add", "no json"))),
        Message("tool", (TextPart("3"),), name="add"),
        Message("tool", (TextPart("4"),)),
    )
    assert prompt(template, *said, tools=(add,)) == (
        f'{tool}|{function}|add a:integer\nx;add{{"a":1,"b":"\\u003c"}}<a=1><b=<>add{{}};3add;4;[{tool}]'
    )
    assert prompt("{{ if .Tools }}tools{{ end }}{{ range .Messages }}{{ .Content }}{{ end }}", say("user", "x")) == "x"
    deep = Message("assistant", tool_calls=(ToolCall("1", "add", '{"a":' * 5000 + "1" + "}" * 5000),))
    assert prompt("{{ range .Messages }}{{ range .ToolCalls }}{{ .Function.Arguments }}{{ end }}{{ end }}", deep) == "{}"


def test_thinking() -> None:
    template = "{{ .Think }} {{ .IsThinkSet }} {{ .ThinkLevel }}{{ range .Messages }}{{ .Thinking }}{{ end }}"
    said = Message("assistant", (TextPart("b"),), reasoning="hm")
    assert prompt(template, said) == "false false hm"
    assert prompt(template, said, template_vars={"enable_thinking": False}) == "false true hm"
    assert prompt(template, said, reasoning_effort="high") == "true true highhm"


def test_dates() -> None:
    today = datetime.date.today()
    dates = {str(today + datetime.timedelta(days=days)) for days in (-2, -1, 0, 1)}
    assert set(prompt("{{ currentDate }} {{ yesterdayDate }}{{ .Messages }}").partition("[")[0].split()) < dates


def test_the_last_message_may_be_continued() -> None:
    said = (say("user", "a"), say("assistant", "b"))
    assert prompt(WHOLE, *said, continue_final=True) == "[user]a![assistant]b"
    with pytest.raises(InvalidField, match="no assistant's text"):
        prompt(WHOLE, say("user", "a"), continue_final=True)


@pytest.mark.parametrize(
    ("source", "place", "message"),
    [
        ("a\n{{ .X }", (2, 1), ""),
        ("{{ nofunction .X }}", (1, 4), 'function "nofunction" not defined'),
        ("{{ if .X }}", (1, 12), ""),
    ],
)
def test_what_does_not_parse(source: str, place: tuple[int, int], message: str) -> None:
    problem = check_ollama(source)
    assert problem is not None
    assert problem.line == place[0]
    assert message in problem.message
    with pytest.raises(TemplateError, match=f"t, line {problem.line}, column {problem.column}: "):
        compile_ollama(source, "t")


def test_failures_name_the_place() -> None:
    with pytest.raises(TemplateError, match=r"template\.chat, line 2, column \d+: "):
        prompt("x\n{{ range .Messages }}{{ .Nothing }}{{ end }}")
    with pytest.raises(TemplateError):
        prompt('{{ range .Messages }}{{ repeat 100000000 "x" }}{{ end }}')


def test_slow_templates_cannot_hold_a_long_chat(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("llmgallery.chat.formats.ollama.MOST_SECONDS", 0.0)
    said = [message for index in range(50) for message in (say("user", str(index)), say("assistant", "x"))]
    with pytest.raises(TemplateError, match="the template takes too long: 1 turns took 0 seconds"):
        prompt("{{ .Prompt }}{{ .Response }}", *said)


def test_all_turns_together_stay_within_the_bounds() -> None:
    said = [message for index in range(5) for message in (say("user", str(index)), say("assistant", "x"))]
    with pytest.raises(TemplateError, match=r"the template makes a text that is too long \(limit: 80000\d\d characters\)"):
        prompt('{{ .Prompt }}{{ repeat 3000000 "x" }}{{ .Response }}', *said)


PIECES = [
    "{{ .Response }}",
    "{{ .Prompt }}",
    "{{ if .System }}",
    "{{ else }}",
    "{{ end }}",
    "{{ range .Messages }}",
    "{{ . }}",
    "x",
    "{{",
]


@given(st.lists(st.sampled_from(PIECES), max_size=8).map("".join))
def test_random_templates_only_fail_cleanly(source: str) -> None:
    try:
        said = OllamaFormat(source).chat(ChatRequest(TALK), ModelConfig(), Loaded(100))
    except TemplateError:
        return
    assert isinstance(said.prompt, str)
