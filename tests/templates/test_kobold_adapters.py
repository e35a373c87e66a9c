from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from llmgallery.core.errors import InvalidField, TemplateError
from llmgallery.templates import kobold, presets
from llmgallery.templates.kobold import Adapter

ALPACA = "\n### Instruction:\n"


def test_named_adapters_are_koboldcpps() -> None:
    assert set(kobold.adapters()) == {
        *("Alpaca", "ChatML", "Command-R", "Gemma-2", "Llama-2-Chat", "Llama-3", "Metharme"),
        *("Mistral-V1", "Mistral-V2-V3", "Mistral-V3-Tekken", "Phi-3", "Vicuna"),
    }
    assert kobold.named("Metharme").flat() == {
        "system_start": "<|system|>",
        "user_start": "<|user|>",
        "assistant_start": "<|model>",
    }
    assert kobold.named("Mistral-V1").user_start == " [INST] "
    assert kobold.named("Vicuna").assistant_end == "</s>\n"


@pytest.mark.parametrize("name", ["ChatML", "chatml", "CHATML.json", " ChatML "])
def test_names_are_found_as_koboldcpp_finds_files(name: str) -> None:
    assert kobold.named(name) == kobold.adapters()["ChatML"]


@pytest.mark.parametrize(
    ("name", "meant"), [("chatlm", "did you mean ChatML?"), ("llama3", "did you mean Llama-3?"), ("zzz", "known: Alpaca, ChatML")]
)
def test_unknown_names(name: str, meant: str) -> None:
    with pytest.raises(InvalidField) as caught:
        kobold.named(name)
    assert f"adapter: no KoboldCpp adapter is called '{name}'" in caught.value.message
    assert meant in caught.value.message
    assert caught.value.field == "adapter"


@pytest.mark.parametrize("name", list(kobold.adapters()))
def test_all_are_presets(name: str) -> None:
    preset = presets.get(f"kobold/{name}")
    assert preset.kind == "kobold"
    assert kobold.read(preset.data) == kobold.named(name)


def test_defaults() -> None:
    empty = kobold.read({})
    assert empty == Adapter()
    assert (empty.system_start, empty.user_start, empty.assistant_start) == (ALPACA, ALPACA, "\n### Response:\n")
    assert empty.generation == "\n### Response:\n"
    assert empty.stops == ("### Instruction:", "### Response:")
    assert empty.flat() == {}


def test_nested_form_of_the_pull_request() -> None:
    nested = {"templates": {"system": {"start": "a", "end": "b"}, "user": {"start": "c", "end": "d"}, "assistant": {"gen": "e"}}}
    flat = {"system_start": "a", "system_end": "b", "user_start": "c", "user_end": "d", "assistant_gen": "e"}
    assert kobold.read(nested) == kobold.read(flat)
    both = {"chat_start": "x", "templates": {"tool": {"start": "t"}}, "max_length": 7, "user_start": "c"}
    assert kobold.read(both) == Adapter(chat_start="x", tools_start="t", max_length=7, user_start="c")


@pytest.mark.parametrize(
    ("adapter", "field", "message"),
    [
        ({"usr_start": "x"}, "usr_start", "no such key in an adapter; did you mean user_start?"),
        ({"zzz": 1}, "zzz", "no such key in an adapter; known: chat_start, "),
        ({"user_start": 5}, "user_start", "expected text, found 5"),
        ({"user_end": None}, "user_end", "expected text, found null"),
        ({"user_end": ["a" * 100]}, "user_end", 'expected text, found ["aaa'),
        ({"max_length": 0}, "max_length", "expected a number of tokens, at least 1, found 0"),
        ({"max_length": True}, "max_length", "expected a number of tokens, at least 1, found true"),
        ({"templates": []}, "templates", "expected system, user and assistant, each with start and end, found []"),
        ({"templates": {"usr": {}}}, "templates.usr", "no such role in an adapter; did you mean user?"),
        ({"templates": {"user": "x"}}, "templates.user", 'expected start and end, found "x"'),
        ({"templates": {"user": {"strt": "x"}}}, "templates.user.strt", "no such key in an adapter; did you mean user_start?"),
        (
            {"user_start": "a", "templates": {"user": {"start": "b"}}},
            "templates.user.start",
            "user_start is set as well, to another text; keep one of them",
        ),
    ],
)
def test_what_is_wrong_is_named(adapter: dict[str, Any], field: str, message: str) -> None:
    with pytest.raises(InvalidField) as caught:
        kobold.read(adapter)
    assert caught.value.field == f"adapter.{field}"
    assert caught.value.message.startswith(f"adapter.{field}: {message}")


def test_what_is_wrong_is_looked_for_within_bounds() -> None:
    long = "k" * 1_000_000
    [fault] = kobold.examine({long: "x"})[1]
    assert len(fault.key) <= 40
    for many in ({f"k{index}": 1 for index in range(100_000)}, {"templates": {f"k{index}": 1 for index in range(100_000)}}):
        assert len(kobold.examine(many)[1]) == kobold.MOST_FAULTS


def test_keys_about_images_are_known() -> None:
    assert kobold.examine({"add_sd_prompt": "x", "add_sd_negative_prompt": ""}) == (Adapter(), [])


TEXTS = st.text(max_size=5)
FLAT = st.dictionaries(st.sampled_from(["chat_start", "system_end", "user_start", "assistant_gen", "tools_end"]), TEXTS)


@given(FLAT)
def test_flat_keys_come_back(keys: dict[str, str]) -> None:
    adapter = kobold.read(keys)
    assert kobold.read(adapter.flat()) == adapter


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | TEXTS, lambda inner: st.dictionaries(TEXTS, inner) | st.lists(inner)
)


@given(st.dictionaries(st.sampled_from(["templates", "user_start", "max_length", "x"]), JSON))
def test_whatever_comes_is_read_or_refused(adapter: dict[str, Any]) -> None:
    found, faults = kobold.examine(adapter)
    assert isinstance(found, Adapter)
    assert all(fault.message for fault in faults)


@pytest.mark.parametrize(
    ("template", "name"),
    [
        ("{{'<|im_start|>assistant<|im_sep|>' + x + '<|im_end|>'}}", "ChatML (Phi 4)"),
        ("<|im_start|>assistant <|im_end|> You are provided with function signatures within <tools>", "ChatML (Qwen 2.5 based)"),
        ("<|im_user|>user<|im_middle|> <|im_assistant|>assistant<|im_middle|> <|im_end|>", "ChatML (Kimi)"),
        ("raise_exception('System role not supported') <start_of_turn>", "Google Gemma 2"),
        ("<start_of_turn>model <start_of_image> <end_of_turn>", "Google Gemma 3"),
        ("<start_of_turn>model <image_soft_token> <end_of_turn>", "Google Gemma 3n"),
        ("<|start_header_id|>assistant<|end_header_id|>", "Llama 3.x"),
        ("<|header_start|>assistant<|header_end|>", "Llama 4"),
        ("[INST] [/INST] [SYSTEM_PROMPT]", "Mistral Tekken"),
        ('{{ "[INST] " + system_message }} [/INST]', "Mistral Non-Tekken"),
        ("[gMASK]<sop><|system|><|user|>", "GLM-4"),
        ("<|system|> <|user|> <|end|>", "Phi 3.5"),
        ("{{ '<|' + message['role'] + '|>' }}", "Phi 4 (mini)"),
        ("<|START_OF_TURN_TOKEN|>", "Cohere (Aya Expanse 32B based)"),
        ("<｜User｜>", "DeepSeek V2.5"),
        ("<|bom|> is_last_checked_defined", "Jamba"),
        ("<|userprompt|><|endofuserprompt|><|response|><|endofresponse|>", "Dots"),
        ("<|start|>user<|message|> <|channel|> <|end|>", "OpenAI Harmony"),
        ("rwkv_ 'User: '", "RWKV World"),
        ("[INST] [/INST]", "Mistral (Generic)"),
        ("<|im_start|>assistant <|im_end|>", "ChatML (Generic)"),
    ],
)
def test_autoguess_takes_the_first_rule_that_fits(template: str, name: str) -> None:
    found = kobold.guess(f"some {template} template")
    assert found is not None
    assert found.name == name


@pytest.mark.parametrize("template", [None, "", "{{ messages }}", "<|im_start|>user <|im_end|>"])
def test_autoguess_may_find_nothing(template: str | None) -> None:
    assert kobold.guess(template) is None


def test_autoguess_and_names_give_one_adapter() -> None:
    found = kobold.guess("<|START_OF_TURN_TOKEN|>")
    assert found is not None
    assert found.adapter == kobold.named("Command-R")
    assert [kobold.is_auto(name) for name in ("AutoGuess", "autoguess.json", " AUTOGUESS", "Auto")] == [True, True, True, False]


RWKV = Adapter(
    user_start="User: ", user_end="\n\n", assistant_start="A: ", assistant_gen="A:", assistant_end="\n\n", system_start="S:"
)


@pytest.mark.parametrize(
    ("prompt", "filled"),
    [
        ("plain", "plain"),
        ("{{[INPUT]}}hi{{[OUTPUT]}}", "\n\nUser: hiA:"),
        ("{{[INPUT]}}hi{{[OUTPUT]}}yes{{[INPUT]}}so{{[OUTPUT]}} ", "\n\nUser: hi\n\nA: yes\n\nUser: soA: "),
        ("{{[SYSTEM]}}x{{[SYSTEM_END]}}{{[INPUT]}}a{{[INPUT_END]}}{{[OUTPUT]}}b", "S:xUser: a\n\nA: b"),
        ("{{[INPUT]}}a{{[INPUT_END]}}{{[OUTPUT]}}b{{[OUTPUT_END]}}{{[OUTPUT]}}", "User: a\n\nA: b\n\nA:"),
    ],
)
def test_placeholders(prompt: str, filled: str) -> None:
    assert kobold.fill(prompt, RWKV) == filled


def test_the_last_output_is_written_as_generation_begins() -> None:
    jamba = kobold.read({"assistant_start": "<A>", "assistant_gen": "<G>"})
    assert kobold.fill("x<A>y<A>", jamba) == "x<A>y<G>"
    assert kobold.fill("{{[OUTPUT]}}", kobold.read({"user_end": "/", "assistant_start": "<A>"})) == "/<A>"


def test_placeholders_cannot_fill_the_memory() -> None:
    adapter = kobold.read({"user_start": "x" * 1_000_000})
    with pytest.raises(TemplateError, match="the adapter adds 9,000,000 characters to this prompt, more than 8,000,000"):
        kobold.fill("{{[INPUT]}}" * 9, adapter)
