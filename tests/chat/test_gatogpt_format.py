"""GatoGPT's prompts, derived by hand from what its StatefulChat and TextGenerationBackend do with a profile."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from llmgallery.backends.base import Loaded
from llmgallery.chat.formats.gatogpt import GatoFormat, from_preset, from_template, name_of, title_case
from llmgallery.chat.prompt import pick_format, render_chat, render_completion
from llmgallery.config.model import Function, ModelConfig, Template
from llmgallery.core.clues import Clues
from llmgallery.core.errors import ConfigError, InvalidField, TemplateError
from llmgallery.core.messages import ImagePart, Message, TextPart, Tool, ToolCall, say
from llmgallery.core.requests import ChatRequest, CompletionRequest
from llmgallery.templates import presets

NOTHING = Loaded(context_size=0)
TASK = "Below is an instruction that describes a task. Write a response that appropriately completes the request."
SYSTEM = say("system", "Be brief")
KIND = say("system", "Be kind")
HI = say("user", "Hi")
HELLO = say("assistant", "Hello")
BYE = say("user", "Bye")
BOB = Message("user", (TextPart("Hi"),), name="bob")


def chat(messages: tuple[Message, ...], template: Template, **keys: object) -> tuple[str, tuple[str, ...]]:
    rendered = render_chat(ChatRequest(messages), ModelConfig(template=template, **keys), NOTHING)  # type: ignore[arg-type]
    return rendered.prompt, rendered.stops


def profile(name: str, **keys: object) -> Template:
    return Template(preset=f"gatogpt/{name}", engine="gatogpt", **keys)  # type: ignore[arg-type]


GOLDENS: list[tuple[str, tuple[Message, ...], str, tuple[str, ...]]] = [
    (
        "chatml",
        (SYSTEM, BOB, HELLO, KIND, BYE),
        "<|im_start|>system\nBe brief. Be kind<|im_end|>\n"
        "<|im_start|>user Bob:\nHi\n<|im_end|>\n<|im_start|>assistant Assistant:\nHello\n<|im_end|>\n"
        "<|im_start|>user User:\nBye\n<|im_end|>\n<|im_start|>assistant Assistant:\n",
        ("<|im_start|>", "<|im_end|>", "Bob: ", "User: "),
    ),
    (
        "chatml",
        (HI,),
        "<|im_start|>system\nPerform the task to the best of your ability.<|im_end|>\n"
        "<|im_start|>user User:\nHi\n<|im_end|>\n<|im_start|>assistant Assistant:\n",
        ("<|im_start|>", "<|im_end|>", "User: "),
    ),
    ("alpaca", (HI,), f"{TASK}\n### Instruction:\nUser: Hi\nAssistant: \n### Response:\n", ("### Instruction:", "User: ")),
    (
        "alpaca",
        (SYSTEM, HI, HELLO, BYE),
        "Be brief\n### Instruction:\nUser: Hi\nAssistant: Hello\nUser: Bye\nAssistant: \n### Response:\n",
        ("### Instruction:", "User: "),
    ),
    ("mistral_instruct", (SYSTEM, HI), "Be brief[INST]User: Hi\nAssistant: [/INST]", ("[INST]", "User: ")),
    (
        "mistral_instruct_chat",
        (BOB, HELLO),
        f"{TASK}\nBelow is a chat log:\n<Bob> Hi\n<Assistant> Hello\n<Assistant>",
        ("[INST]", "Bob: "),
    ),
    ("phi_2", (HI,), f"{TASK}Instruct: User: Hi\nAssistant: \nOutput:", ("Instruct:", "Output:", "User: ")),
    (
        "zephyr",
        (SYSTEM, HI),
        "<|system|>\nBe brief\n\n<|user|>\nUser: Hi\nAssistant: \n<|assistant|>\n",
        ("<|system|>", "<|user|>", "<|assistant|>", "User: "),
    ),
    (
        "synthia",
        (HI,),
        "SYSTEM: Always answer without hesitation.\n\n\nUser: Hi\nASSISTANT: ",
        ("SYSTEM:", "USER:", "User: "),
    ),
    (
        "metaai_llama_2_chat",
        (SYSTEM, HI),
        "[INST]<<SYS>>\nBe brief<</SYS>>[/INST]\n[INST]User: Hi\nAssistant: [/INST]\n",
        ("[INST]", "User: "),
    ),
    ("codellama_wizardcoder", (HI,), f"{TASK}\n### Instruction:\nUser: Hi\nAssistant: \n### Response:\n", ("User: ",)),
    # Of no PrePrompt, prefix and suffix go as well; an empty antiprompt is none.
    ("codellama_completion", (HI,), "User: Hi\nAssistant: ", ("User: ",)),
    (
        "obsidian_vision",
        (HI,),
        "<|im_start|>user\nUser: Hi\nAssistant: \n###\n<|im_start|>assistant:",
        ("<|im_start|>", "<|im_end|>", "###", "User: "),
    ),
]


@pytest.mark.parametrize(("name", "messages", "prompt", "stops"), GOLDENS)
def test_chats_of_the_profiles(name: str, messages: tuple[Message, ...], prompt: str, stops: tuple[str, ...]) -> None:
    assert chat(messages, profile(name)) == (prompt, stops)
    # The same without `engine`, by the preset's kind, and with `engine` without the prefix.
    assert chat(messages, Template(preset=f"gatogpt/{name}")) == (prompt, stops)
    assert chat(messages, Template(preset=name, engine="gatogpt")) == (prompt, stops)


def test_every_profile_makes_prompts() -> None:
    for name in presets.names("gatogpt"):
        prompt, stops = chat((HI,), Template(preset=name))
        assert "Hi" in prompt and "{{" not in prompt and "User: " in stops


def test_without_a_preset_the_defaults_of_gatogpt_hold() -> None:
    template = Template(engine="gatogpt")
    assert chat((HI,), template) == (f"{TASK}\n### Instruction:\nUser: Hi\nAssistant: \n### Response:\n", ("User: ",))
    assert pick_format(ModelConfig(template=template), NOTHING).origin == "template.engine gatogpt"


def test_the_yaml_replaces_what_the_profile_says() -> None:
    # The override of bakllava-1 in GatoGPT's README.
    blank = profile("alpaca", variables={"PrePrompt": "", "InputPrefix": "", "InputSuffix": ""})
    assert chat((HI,), blank)[0] == "User: Hi\nAssistant: "
    template = profile(
        "chatml",
        chat_message="<{{ Role }}/{{ Name }}>{{ Message }}",
        generation="<{{ AssistantName }}>",
        chat="{{ PrePrompt }}|{{ Input }}",
    )
    assert chat((BOB,), template)[0] == "Perform the task to the best of your ability.|<user/Bob>Hi\n<Assistant>"


def test_the_clients_system_message_goes_before_the_yamls_before_the_profiles() -> None:
    template = profile("mistral_instruct", variables={"PrePrompt": "P."})
    assert chat((HI,), template)[0].startswith("P.[INST]")
    assert chat((HI,), template, system_prompt="S.")[0].startswith("S.[INST]")
    assert chat((say("developer", "D."), HI), template, system_prompt="S.")[0].startswith("D.[INST]")


@pytest.mark.parametrize("system", [(say("system", ""), HI), (HI,)])
def test_an_empty_pre_prompt_takes_its_prefix_and_suffix_with_it(system: tuple[Message, ...]) -> None:
    prompt, _ = chat(system, profile("chatml"), system_prompt="")
    assert prompt == "<|im_start|>user User:\nHi\n<|im_end|>\n<|im_start|>assistant Assistant:\n"


def test_an_empty_generation_template_continues_the_last_message() -> None:
    template = profile("mistral_instruct_chat", generation="", variables={"PrePrompt": "P"})
    assert chat((HI, HELLO), template)[0] == "P\nBelow is a chat log:\n<User> Hi\n<Assistant> Hello"


def test_a_request_that_continues_its_last_message_ends_with_it() -> None:
    request = ChatRequest((SYSTEM, HI, say("assistant", "It is ")), continue_final=True)
    for name, end in (("chatml", "<|im_start|>assistant Assistant:\nIt is "), ("alpaca", "User: Hi\nAssistant: It is ")):
        assert render_chat(request, ModelConfig(template=profile(name)), NOTHING).prompt.endswith(end)
    with pytest.raises(InvalidField, match="no text that could be continued"):
        render_chat(
            ChatRequest((HI, say("assistant", "")), continue_final=True), ModelConfig(template=profile("chatml")), NOTHING
        )
    with pytest.raises(TemplateError, match=r"ChatTemplate leaves out \{\{ Input \}\}"):
        render_chat(request, ModelConfig(template=profile("chatml", chat="{{ PrePrompt }}")), NOTHING)
    with pytest.raises(TemplateError, match=r"ChatMessageTemplate leaves out \{\{ Message \}\}"):
        render_chat(request, ModelConfig(template=profile("chatml", chat_message="{{ Name }}")), NOTHING)


def test_a_named_assistant_speaks_next_and_the_last_name_holds() -> None:
    messages = (
        HI,
        Message("assistant", (TextPart("Yo"),), name="ann lee"),
        HI,
        Message("assistant", (TextPart("Oi"),), name="EVE"),
        BYE,
    )
    assert chat(messages, profile("alpaca"))[0].endswith("User: Hi\nEVE: Oi\nUser: Bye\nEVE: \n### Response:\n")


def test_a_user_whose_name_is_an_antiprompt_adds_no_stop_string() -> None:
    template = Template(preset="gatogpt/synthia")
    assert chat((Message("user", (TextPart("Hi"),), name="USER:"),), template)[1] == ("SYSTEM:", "USER:")


def test_a_conversation_of_system_messages_only() -> None:
    assert chat((SYSTEM,), profile("mistral_instruct"))[0] == "Be brief[INST]Assistant: [/INST]"


def test_what_a_client_says_is_no_template() -> None:
    messages = (say("system", "{{ Input }}{{ InputPrefix }}"), Message("user", (TextPart("{{ Name }}"),), name="{{ Message }}"))
    prompt, _ = chat(messages, profile("mistral_instruct"))
    assert prompt == "{{ Input }}{{ InputPrefix }}[INST]{{ Message }}: {{ Name }}\nAssistant: [/INST]"
    # The configuration's own texts may hold keys that are replaced later, as they could in GatoGPT.
    nested = profile("mistral_instruct", chat="{{ InputPrefix }}", variables={"InputPrefix": "<{{ Input }}>"})
    assert chat((HI,), nested)[0] == "<User: Hi\nAssistant: >"


def test_all_messages_together_stay_within_the_bounds() -> None:
    template = Template(engine="gatogpt", chat_message="x" * 5_000_000)
    with pytest.raises(TemplateError, match="ChatMessageTemplate makes a text that is too long"):
        chat((HI, HELLO, BYE), template)


def test_completions_pass_instruct_template() -> None:
    def prompt(text: str, template: Template, **keys: object) -> str | None:
        rendered = render_completion(CompletionRequest(text), ModelConfig(template=template, **keys), NOTHING)  # type: ignore[arg-type]
        return rendered.prompt if rendered else None

    assert prompt("Hi", profile("alpaca")) == f"{TASK}\n### Instruction:\nHi\n### Response:\n"
    assert prompt("Hi", profile("chatml"), system_prompt="S") == (
        "<|im_start|>system\nS<|im_end|>\n<|im_start|>user\nHi\n<|im_end|>\n<|im_start|>assistant\n"
    )
    assert prompt("Hi", profile("alpaca", completion="{{ Input }}!")) == "Hi!"
    assert prompt("{{ Input }}", profile("mistral_instruct", variables={"PrePrompt": ""})) == "[INST]{{ Input }}[/INST]"
    rendered = render_completion(CompletionRequest("Hi", stop=("x",)), ModelConfig(template=profile("phi_2")), NOTHING)
    assert rendered is not None and rendered.stops == ("x", "Instruct:", "Output:")
    assert render_completion(CompletionRequest((1, 2)), ModelConfig(template=profile("phi_2")), NOTHING) is None
    # A profile that nobody asked for, but that suits the weights, leaves completions alone.
    assert from_preset(presets.get("gatogpt/phi_2"), instructs=False).completion(CompletionRequest("Hi"), ModelConfig()) is None


def test_functions_are_listed_and_calls_are_shown() -> None:
    schema = {
        "type": "object",
        "properties": {
            "city": {"type": "string", "description": "Which"},
            "unit": {"enum": ["C", 1], "type": ["string", "null"]},
            "any": True,
        },
        "required": ["city"],
    }
    messages = (
        SYSTEM,
        HI,
        Message("assistant", tool_calls=(ToolCall("1", "weather", '{"city": "Ulm"}'),)),
        Message("tool", (TextPart("12"),)),
    )
    request = ChatRequest(messages, tools=(Tool("weather", "Tells it", schema), Tool("none")))
    config = ModelConfig(template=profile("mistral_instruct"), function=Function(function_name_key="function"))
    prompt = pick_format(config, NOTHING).chat(request, config, NOTHING).prompt
    assert prompt == (
        "Be brief. You can call the functions below. To call one, answer with a JSON object and nothing else:\n"
        '{"function": "function_name", "arguments": {"argument_name": "argument_value"}}\n'
        "If no function helps, answer in plain words.\nAvailable functions:\n"
        "  weather (Tells it):\n    city:\n      data_type: string\n      description: Which\n      required: True\n"
        '    unit:\n      data_type: ["string", "null"]\n      allowed_values: C, 1\n      required: False\n'
        "    any:\n      required: False\n  none:"
        '[INST]User: Hi\nAssistant: {"function": "weather", "arguments": {"city": "Ulm"}}\nTool: 12\nAssistant: [/INST]'
    )
    silent = ChatRequest((HI,), tools=(Tool("weather"),), tool_choice="none")
    assert "weather" not in pick_format(config, NOTHING).chat(silent, config, NOTHING).prompt


def test_pictures_are_left_to_who_can_see_them() -> None:
    message = Message("user", (TextPart("What"), ImagePart(url="x"), TextPart(" is it?")))
    assert (
        chat((message,), profile("mistral_instruct", variables={"PrePrompt": ""}))[0]
        == "[INST]User: What is it?\nAssistant: [/INST]"
    )


def test_the_texts_are_shown_under_the_keys_of_a_yaml() -> None:
    format = from_template(profile("chatml", chat="{{ Input }}"))
    assert format.origin == "template.preset gatogpt/chatml"
    assert format.texts["template.chat"] == "{{ Input }}"
    assert format.texts["template.generation"] == "<|im_start|>assistant {{ AssistantName }}:\n"
    assert format.texts["template.variables.PrePromptSuffix"] == "<|im_end|>\n"
    assert len(format.texts) == 9


def test_an_engine_without_such_a_profile_is_told() -> None:
    with pytest.raises(ConfigError, match=r"no template preset is called 'llama3'"):
        from_template(Template(engine="gatogpt", preset="llama3"))


def test_weights_that_gatogpt_knows_by_name_get_the_format_of_their_family() -> None:
    loaded = Loaded(0, clues=Clues("/m/TheBloke/phi-2-GGUF/phi-2.Q4_K_M.gguf"))
    rendered = render_chat(ChatRequest((HI,)), ModelConfig(), loaded)
    assert (rendered.prompt, rendered.stops) == ("Instruct: Hi\nOutput:", ("Instruct:",))
    assert "phi2" in rendered.origin and "GatoGPT takes phi_2" in rendered.origin


@pytest.mark.parametrize(
    ("text", "titled"),
    [
        ("user", "User"),
        ("bob smith", "Bob Smith"),
        ("bob_smith", "Bob_Smith"),
        ("bob-smith", "Bob-Smith"),
        ("NASA", "NASA"),
        ("NASA bot", "NASA Bot"),
        ("mcDonald", "Mcdonald"),
        ("jOHN", "John"),
        ("JOhN", "John"),
        ("o'neil", "O'neil"),
        ("O'NEIL", "O'neil"),
        ("bob2x", "Bob2x"),
        ("2bob", "2Bob"),
        ("gpt-4", "Gpt-4"),
        ("éric", "Éric"),
        ("ßen", "ßen"),
        ("", ""),
        ("日本", "日本"),
        ("a.b", "A.B"),
        ("ǆabc", "ǅabc"),
        ("ΟΔΟσ", "Οδοσ"),
    ],
)
def test_names_are_title_cased_as_dotnet_does(text: str, titled: str) -> None:
    assert title_case(text) == titled


@given(st.text(max_size=20))
def test_title_case_keeps_lengths_of_what_has_no_special_letters(text: str) -> None:
    assert title_case(text).casefold() == title_case(title_case(text)).casefold()
    assert name_of(Message("user", name=text or None)) == (title_case(text) or "User")


@given(st.text(), st.lists(st.tuples(st.sampled_from(["system", "user", "assistant", "tool"]), st.text(max_size=30)), min_size=1))
def test_any_conversation_with_any_template_is_a_prompt(source: str, turns: list[tuple[str, str]]) -> None:
    keys = {
        "ChatTemplate": source + "{{ Input }}",
        "ChatMessageTemplate": source + "{{ Message }}",
        "ChatMessageGenerationTemplate": source,
        "InstructTemplate": source,
    }
    messages = tuple(say(role, text) for role, text in turns)  # type: ignore[arg-type]
    said = GatoFormat(keys, "test").chat(ChatRequest(messages), ModelConfig(), NOTHING)
    assert all(text in said.prompt for role, text in turns if role != "system")
