"""LocalAI's chats, completions and edits: its templates over its data, in the order in which it does it.

The templates are of the kinds that its gallery has. What comes out was compared with its core/templates/evaluator.go.
"""

from __future__ import annotations

import textwrap
from typing import Any

import msgspec
import pytest

from llmgallery.chat.prompt import pick_format, render_chat, render_completion
from llmgallery.config.model import Function, Grammar, ModelConfig, Template
from llmgallery.core.clues import Clues
from llmgallery.core.errors import InvalidField, TemplateError
from llmgallery.core.messages import ImagePart, Message, TextPart, Tool, ToolCall, say
from llmgallery.core.requests import ChatRequest, CompletionRequest
from llmgallery.templates.gotmpl.budget import Limits


class Weights(msgspec.Struct, frozen=True):
    """What a backend would tell of a model's templates."""

    chat_template: str | None = None
    templates: dict[str, str] = {}
    bos: str = ""
    eos: str = ""
    clues: Clues = Clues()


NONE = Weights()
TALK = (say("system", "Be brief."), say("user", "Is 1 < 2?"), say("assistant", "Yes."), say("user", "Why?"))
WEATHER = Tool("weather", "Tells it.", {"type": "object", "properties": {"city": {"type": "string", "minLength": 1}}})
CALL = Message("assistant", tool_calls=(ToolCall("call_1", "weather", '{"city":"Bern"}'),))
RESULT = Message("tool", (TextPart("sunny"),), name="weather", tool_call_id="call_1")
TOOLS = ChatRequest((say("user", "How is it in Bern?"), CALL, RESULT), tools=(WEATHER,))


def block(text: str) -> str:
    """As a YAML block scalar reads."""
    return textwrap.dedent(text).removeprefix("\n")


CHATML = Template(
    chat="{{.Input -}}\n<|im_start|>assistant\n",
    chat_message=block(
        """
        <|im_start|>{{ .RoleName }}
        {{ if .FunctionCall -}}
        Function call:
        {{ else if eq .RoleName "tool" -}}
        Function response:
        {{ end -}}
        {{ if .Content -}}
        {{.Content }}
        {{ end -}}
        {{ if .FunctionCall -}}
        {{toJson .FunctionCall}}
        {{ end -}}<|im_end|>
        """
    ),
    function=block(
        """
        <|im_start|>system
        Your tools:
        {{range .Functions}}
        {'name': '{{.Name}}', 'description': '{{.Description}}', 'parameters': {{toJson .Parameters}} }
        {{end}}<|im_end|>
        {{.Input -}}
        <|im_start|>assistant
        """
    ),
    completion="{{.Input}}\n",
)
NO_GRAMMAR = Function(grammar=Grammar(disable=True))
JSON_CALL = '[{"index":0,"id":"call_1","type":"function","function":{"name":"weather","arguments":"{\\"city\\":\\"Bern\\"}"}}]'


def prompt(request: ChatRequest, template: Template = CHATML, **keys: Any) -> str:
    rendered = render_chat(request, ModelConfig(template=template, **keys), NONE)
    assert rendered.warnings == ()
    return rendered.prompt


# --- chats -------------------------------------------------------------------------------------------------------------------


def test_each_message_and_then_all_of_them() -> None:
    assert prompt(ChatRequest(TALK)) == (
        "<|im_start|>system\nBe brief.\n<|im_end|>\n\n<|im_start|>user\nIs 1 < 2?\n<|im_end|>\n\n"
        "<|im_start|>assistant\nYes.\n<|im_end|>\n\n<|im_start|>user\nWhy?\n<|im_end|>\n<|im_start|>assistant\n"
    )


def test_calls_are_written_with_the_fields_of_localais_structs() -> None:
    assert prompt(TOOLS, function=NO_GRAMMAR) == (
        "<|im_start|>system\nYour tools:\n\n{'name': 'weather', 'description': 'Tells it.', 'parameters': "
        '{"properties":{"city":{"minLength":1,"type":"string"}},"type":"object"} }\n<|im_end|>\n'
        "<|im_start|>user\nHow is it in Bern?\n<|im_end|>\n\n"
        f"<|im_start|>assistant\nFunction call:\n{JSON_CALL}\n<|im_end|>\n\n"
        "<|im_start|>tool\nFunction response:\nsunny\n<|im_end|>\n<|im_start|>assistant\n"
    )


def test_json_escapes_what_go_escapes() -> None:
    template = Template(chat_message="{{toJson .FunctionCall}}{{.Content}}", chat="{{.Input}}")
    call = Message("assistant", (TextPart("<&>"),), tool_calls=(ToolCall("", "f", "<&>\u2028é"),))
    assert prompt(ChatRequest((call,)), template) == '{"arguments":"\\u003c\\u0026\\u003e\\u2028é","name":"f"}<&>'


@pytest.mark.parametrize("joint", [None, "", " | "])
def test_messages_are_joined_by_a_line_s_end_or_what_the_yaml_says(joint: str | None) -> None:
    template = Template(chat_message="<{{.Content}}>", join_chat_messages_by_character=joint)
    between = "\n" if joint is None else joint
    assert prompt(ChatRequest(TALK[:2]), template) == f"<Be brief.>{between}<Is 1 < 2?>"


def test_messages_whose_template_writes_nothing_are_left_out_with_their_joint() -> None:
    template = Template(chat_message='{{if eq .RoleName "user"}}{{.Content}}{{end}}', chat="[{{.Input}}]")
    assert prompt(ChatRequest(TALK), template) == "[Is 1 < 2?\nWhy?]"


def test_all_that_a_message_s_template_gets() -> None:
    fields = ".MessageIndex .Role .RoleName .FunctionName .Content .SystemPrompt .Function .LastMessage"
    actions = " ".join(f"{{{{printf `%v` {field}}}}}" for field in fields.split())
    template = Template(chat_message=actions, chat="{{.Input}}")
    keys: dict[str, Any] = {"system_prompt": "S", "roles": {"user": "U:", "tool": "T:"}}
    assert prompt(TOOLS, template, **keys).split("\n") == [
        "0 U: user  How is it in Bern? S false false",
        "1  assistant   S false false",
        "2 T: tool weather sunny S true true",
    ]
    assert prompt(TOOLS, template, function=NO_GRAMMAR, **keys).endswith("sunny S false true")


def test_all_that_the_template_around_them_gets() -> None:
    fields = ".SystemPrompt .SuppressSystemPrompt .Instruction .MessageIndex .ReasoningEffort .Metadata .Functions"
    template = Template(chat=" ".join(f"{{{{printf `%v` {field}}}}}" for field in fields.split()))
    request = ChatRequest((say("user", "Hi"),), reasoning_effort="low", metadata={"b": "2", "a": "1"})
    assert prompt(request, template, system_prompt="S") == "S false  0 low map[a:1 b:2] []"
    assert prompt(ChatRequest(TALK), template, reasoning_effort="high") == " true  0 high map[] []"
    assert prompt(ChatRequest(TALK), Template(chat="{{toJson .Functions}} {{toJson .Metadata}}")) == "null null"


# --- without a template for messages -----------------------------------------------------------------------------------------


def test_without_a_template_messages_are_their_roles_and_texts() -> None:
    around = Template(chat="{{if not .SuppressSystemPrompt}}{{.SystemPrompt}}!{{end}}{{.Input}}")
    assert prompt(ChatRequest(TALK), around, system_prompt="S") == "Be brief.\nIs 1 < 2?\nYes.\nWhy?"
    assert prompt(ChatRequest(TALK[1:2]), around, system_prompt="S") == "S!Is 1 < 2?"
    roles = {"user": "USER: ", "assistant": "BOT: "}
    assert prompt(ChatRequest(TALK), around, roles=roles) == "Be brief.\nUSER: Is 1 < 2?\nBOT: Yes.\nUSER: Why?"


def test_calls_without_a_template_are_json_behind_the_role() -> None:
    both = Message("assistant", (TextPart("Let me see."),), tool_calls=CALL.tool_calls)
    template = Template(chat="{{.Input}}")
    assert prompt(ChatRequest((CALL, both)), template) == f"{JSON_CALL}\nLet me see.\n{JSON_CALL}"
    assert prompt(ChatRequest((CALL, both)), template, roles={"assistant": "A"}) == f"A {JSON_CALL}\nALet me see.\nA {JSON_CALL}"
    roles = {"assistant": "A", "assistant_function_call": "CALLS"}
    assert prompt(ChatRequest((CALL, TALK[2])), template, roles=roles) == f"CALLS {JSON_CALL}\nAYes."
    named = Template(chat_message="{{.RoleName}}")
    assert prompt(ChatRequest((CALL, TALK[2])), named, roles=roles) == "assistant_function_call\nassistant"


def test_older_function_calls_are_a_map() -> None:
    older = Message("assistant", tool_calls=(ToolCall("", "weather", "{}"),))
    template = Template(chat="{{.Input}}")
    assert prompt(ChatRequest((older,)), template) == '{"arguments":"{}","name":"weather"}'
    assert prompt(ChatRequest((older,)), Template(chat_message="{{.FunctionCall.name}} {{.FunctionCall}}")) == (
        "weather map[arguments:{} name:weather]"
    )


def test_a_message_without_anything_keeps_its_joint() -> None:
    assert prompt(ChatRequest((TALK[1], Message("assistant"), TALK[3])), Template(chat="{{.Input}}")) == "Is 1 < 2?\n\nWhy?"


# --- functions ---------------------------------------------------------------------------------------------------------------

NAMES = Template(
    chat="chat", chat_message="-", function="{{range .Functions}}{{.Name}},{{end}}", join_chat_messages_by_character=""
)


@pytest.mark.parametrize(
    ("function", "strict", "forced", "choice", "expected"),
    [
        (Function(), None, None, "auto", "weather,answer,"),
        (Function(), None, None, "required", "weather,answer,"),
        (Function(), None, None, "none", "chat"),
        (Function(disable_no_action=True), None, None, "auto", "weather,"),
        (Function(no_action_function_name="say"), None, None, "auto", "weather,say,"),
        (Function(), True, None, "auto", "weather,"),
        (NO_GRAMMAR, None, None, "auto", "weather,"),
        (Function(), None, "weather", "required", "weather,"),
        (NO_GRAMMAR, None, "other", "required", ""),
    ],
)
def test_which_functions_are_told(
    function: Function, strict: bool | None, forced: str | None, choice: Any, expected: str
) -> None:
    tool = msgspec.structs.replace(WEATHER, strict=strict)
    request = ChatRequest((say("user", "Hi"),), tools=(tool,), tool_choice=choice, forced_tool=forced)
    assert prompt(request, NAMES, function=function) == expected


def test_functions_without_a_template_of_their_own_go_to_the_chat_s() -> None:
    template = Template(chat="{{range .Functions}}{{.Name}} {{end}}{{.Input}}")
    assert prompt(TOOLS, template, function=NO_GRAMMAR).startswith("weather How is")


def test_a_function_nested_beyond_all_measure_is_refused() -> None:
    deep: dict[str, Any] = {}
    for _ in range(5000):
        deep = {"a": deep}
    with pytest.raises(InvalidField, match="the parameters of f are nested too deeply"):
        prompt(ChatRequest((TALK[3],), tools=(Tool("f", "", deep),)))


def test_a_function_in_json() -> None:
    template = Template(chat="{{toJson .Functions}}")
    tools = (Tool("now"), Tool("f", "x", {"const": 3, "list": [1.5, True, None], "big": 1e21}, strict=True))
    assert prompt(ChatRequest((say("user", "Hi"),), tools=tools), template) == (
        '[{"name":"now","description":"","strict":false,"parameters":null},{"name":"f","description":"x","strict":true,'
        '"parameters":{"big":1e+21,"const":3,"list":[1.5,true,null]}}]'
    )
    number = Tool("f", parameters={"most": 2_000_000})
    assert prompt(
        ChatRequest((say("user", "Hi"),), tools=(number,)), Template(chat="{{(index .Functions 0).Parameters.most}}")
    ) == ("2e+06")


# --- images ------------------------------------------------------------------------------------------------------------------


def test_images_are_marked_before_the_text_and_count_through_the_chat() -> None:
    pair = Message("user", (ImagePart(), TextPart("What "), ImagePart(), TextPart("is it?")))
    one = Message("user", (TextPart("And this?"), ImagePart()))
    plain = Template(chat_message="{{.Content}}")
    assert prompt(ChatRequest((pair, one)), plain) == "<__media__><__media__>What is it?\n<__media__>And this?"
    numbered = Template(chat_message="{{.Content}}", multimodal="{{range .Images}}[img-{{.ID}}]{{end}}{{.Text}}")
    assert prompt(ChatRequest((pair, TALK[1], one)), numbered) == "[img-0][img-1]What is it?\nIs 1 < 2?\n[img-2]And this?"


# --- what fails --------------------------------------------------------------------------------------------------------------


def test_a_message_s_template_that_fails_is_done_without_and_told() -> None:
    template = Template(
        chat_message="{{range .FunctionCall}}{{.FunctionCall.Name}}{{else}}{{.Content}}{{end}}", chat="{{.Input}}!"
    )
    assert prompt(ChatRequest((CALL, TALK[3])), template) == "weather\nWhy?!"
    older = Message("assistant", tool_calls=(ToolCall("", "weather", "{}"),))
    rendered = render_chat(ChatRequest((TALK[3], older)), ModelConfig(template=template), NONE)
    assert rendered.prompt == 'Why?\n{"arguments":"{}","name":"weather"}!'
    (warning,) = rendered.warnings
    assert warning.startswith(
        "messages[1] stands in the prompt with its role and text only: template.chat_message, line 1, column "
    )


def test_a_template_around_messages_that_fails_is_done_without_and_told() -> None:
    rendered = render_chat(ChatRequest(TALK[:1]), ModelConfig(template=Template(chat="{{.System}} {{.Input}}")), NONE)
    assert rendered.prompt == "Be brief."
    (warning,) = rendered.warnings
    assert "template.chat, line 1, column 3" in warning and "System" in warning and "PromptTemplateData" in warning


def test_a_chat_takes_no_longer_than_it_may(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("llmgallery.chat.formats.localai.MOST_SECONDS", 0.0)
    with pytest.raises(TemplateError, match="chat_message takes too long"):
        prompt(ChatRequest(TALK))


def test_messages_that_fail_alike_are_told_once() -> None:
    template = Template(chat_message="{{.Nothing}}")
    rendered = render_chat(ChatRequest(TALK), ModelConfig(template=template), NONE)
    (warning,) = rendered.warnings
    assert warning.startswith("messages[0] and 3 others stand in the prompt with their roles and texts only: template.chat_mess")


@pytest.mark.parametrize("joint", ["", "x" * 7_000_000])
def test_all_messages_together_stay_within_the_bounds(joint: str) -> None:
    """What each of them may make is no measure for a thousand of them."""
    greedy = Template(chat_message="{{.Content}}" if joint else '{{repeat 4000000 "x"}}', join_chat_messages_by_character=joint)
    with pytest.raises(TemplateError, match=r"chat_message makes a text that is too long \(limit: 80000\d\d "):
        prompt(ChatRequest(TALK), greedy)


def test_what_is_said_comes_on_top_of_the_bounds() -> None:
    long = "x" * (Limits().chars + 10)
    assert prompt(ChatRequest((say("user", long),))).count("x") == len(long)
    greedy = Template(chat='{{range until 20}}{{repeat 1000000 "x"}}{{end}}')
    rendered = render_chat(ChatRequest(TALK[:1]), ModelConfig(template=greedy), NONE)
    assert rendered.prompt == "Be brief." and "limit" in rendered.warnings[0]


# --- continuing --------------------------------------------------------------------------------------------------------------


def test_a_message_that_is_to_be_continued_follows_the_beginning_of_an_answer() -> None:
    request = ChatRequest((*TALK[:2], say("assistant", "Because ")), continue_final=True)
    assert prompt(request).endswith("Is 1 < 2?\n<|im_end|>\n<|im_start|>assistant\nBecause ")
    with pytest.raises(InvalidField, match="no assistant's text"):
        prompt(ChatRequest(TALK, continue_final=True))


def test_a_reply_prefix_that_the_template_ends_with_is_not_said_twice() -> None:
    template = Template(chat="{{.Input}}\nA: Sure", reply_prefix="Sure")
    request = ChatRequest((TALK[1], say("assistant", "Sure, it")), continue_final=True)
    assert prompt(request, template) == "Is 1 < 2?\nA: Sure, it"
    assert prompt(ChatRequest((TALK[1],)), template) == "Is 1 < 2?\nA: Sure"


def test_templates_always_begin_the_answer() -> None:
    rendered = render_chat(ChatRequest(TALK, add_generation_prompt=False), ModelConfig(template=CHATML), NONE)
    assert rendered.prompt.endswith("<|im_start|>assistant\n")
    assert rendered.warnings == ("add_generation_prompt was ignored: LocalAI's templates always begin the answer",)


def test_bos_in_the_template_is_not_put_before_it_again() -> None:
    model = ModelConfig(template=Template(chat="<s>{{.Input}}"))
    assert render_chat(ChatRequest(TALK), model, Weights(bos="<s>")).bos_in_text
    assert not render_chat(ChatRequest(TALK), model, Weights(bos="<bos>")).bos_in_text


def test_stop_strings_are_the_request_s_and_the_yaml_s() -> None:
    model = ModelConfig(template=CHATML, stopwords=["<|im_end|>", "END"])
    assert render_chat(ChatRequest(TALK, stop=("END", "")), model, NONE).stops == ("END", "<|im_end|>")


# --- completions and edits ---------------------------------------------------------------------------------------------------


def completed(request: CompletionRequest, template: Template, **keys: Any) -> tuple[str, tuple[str, ...]] | None:
    rendered = render_completion(request, ModelConfig(template=template, **keys), NONE)
    return None if rendered is None else (rendered.prompt, rendered.warnings)


def test_completions_pass_their_template_whatever_writes_the_chats() -> None:
    assert completed(CompletionRequest("Once"), CHATML) == ("Once\n", ())
    shown = Template(chat_template="x", completion="{{.SystemPrompt}}|{{.Input}}|{{.Instruction}}|{{.ReasoningEffort}}")
    assert completed(CompletionRequest("Once"), shown, system_prompt="S") == ("S|Once||", ())
    assert completed(CompletionRequest("Once"), Template(chat="{{.Input}}")) is None
    assert completed(CompletionRequest("Once"), Template(completion="")) is None


def test_token_ids_and_gaps_pass_no_template() -> None:
    assert completed(CompletionRequest((1, 2)), CHATML) is None
    assert completed(CompletionRequest("Once", suffix="end"), CHATML) is None


def test_a_completion_s_template_that_fails_is_done_without_and_told() -> None:
    done = completed(CompletionRequest("Once"), Template(completion="{{-.Input}}"))
    assert done is not None and done[0] == "Once"
    assert done[1][0].startswith("the prompt went to the model without its template: template.completion, line 1, column 3")


def test_edits_pass_their_template() -> None:
    template = Template(edit="{{.Instruction}}: {{.Input}} =>", chat="{{.Input}}")
    assert completed(CompletionRequest("Cat", instruction="rephrase"), template) == ("rephrase: Cat =>", ())
    rendered = render_completion(
        CompletionRequest("Cat", stop=("a",), instruction="x"), ModelConfig(template=template, stopwords=["b"]), Weights(bos="x")
    )
    assert rendered is not None
    assert (rendered.origin, rendered.stops, rendered.bos_in_text) == ("template.edit", ("a", "b"), True)


def test_edits_without_a_template_are_what_a_user_says() -> None:
    chat = ChatRequest((say("user", "rephrase\n\nCat"),))
    assert completed(CompletionRequest("Cat", instruction="rephrase"), CHATML) == (prompt(chat), ())
    done = completed(CompletionRequest("Cat", instruction="rephrase"), Template(chat="{{.Input}}", edit="{{.No}}"))
    assert done is not None and done[0] == "rephrase\n\nCat" and "template.edit, line 1" in done[1][0]
    alone = completed(CompletionRequest("", instruction="Tell a joke."), Template(preset="chatml"))
    assert alone is not None and "<|im_start|>user\nTell a joke.<|im_end|>" in alone[0]


# --- which format ------------------------------------------------------------------------------------------------------------

OWN = Weights("{{ messages[0].content }}", {"tool_use": "tools"})
GO = {"chat": "{{.Input}}"}
ADAPTER = {"user_start": "U", "assistant_start": "A"}


@pytest.mark.parametrize(
    ("template", "weights", "origin"),
    [
        (GO, OWN, "template.chat"),
        ({"chat_message": "x"}, OWN, "template.chat_message"),
        ({"function": "x"}, OWN, "template.function"),
        ({"chat": "", "completion": "x"}, OWN, "the backend's own chat template"),
        ({**GO, "engine": "go"}, OWN, "template.chat"),
        ({**GO, "use_tokenizer_template": True}, OWN, "the backend's own chat template"),
        ({**GO, "use_tokenizer_template": True}, NONE, "template.chat"),
        ({**GO, "chat_template": "x"}, OWN, "template.chat_template"),
        ({**GO, "adapter": ADAPTER}, OWN, "template.adapter"),
        ({**GO, "preset": "chatml"}, OWN, "template.chat"),
        ({"preset": "chatml"}, OWN, "template.preset chatml"),
        ({"preset": "kobold/Vicuna"}, OWN, "template.preset kobold/Vicuna"),
        ({"engine": "gatogpt"}, OWN, "template.engine gatogpt"),
        ({"preset": "gatogpt/chatml"}, OWN, "template.preset gatogpt/chatml"),
        ({}, OWN, "the backend's own chat template"),
        ({}, Weights(clues=Clues(tokens=("<|im_start|>", "<|im_end|>"))), "preset chatml, as the vocabulary has "),
        ({}, NONE, "preset alpaca, as nothing about the weights tells a format"),
    ],
)
def test_the_order_of_the_formats(template: dict[str, Any], weights: Weights, origin: str) -> None:
    model = ModelConfig(template=Template(**template))
    assert pick_format(model, weights).origin.startswith(origin)
    request = ChatRequest((say("user", "Hi"),), adapter=ADAPTER)
    rendered = render_chat(request, model, weights)
    assert (rendered.origin, rendered.prompt) == ("the request's adapter", "UHiA")


def test_a_format_shows_its_texts() -> None:
    assert list(pick_format(ModelConfig(template=CHATML), NONE).texts) == [
        "template.chat_message",
        "template.chat",
        "template.function",
        "template.completion",
    ]
