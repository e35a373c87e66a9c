from __future__ import annotations

import pytest

from llmgallery.core.errors import ConfigError
from llmgallery.templates import presets
from llmgallery.templates.jinja import check, compile_template

TURNS = [
    {"role": "system", "content": "Be brief."},
    {"role": "user", "content": "Hi"},
    {"role": "assistant", "content": "Hello"},
    {"role": "user", "content": "Bye"},
]
# From the formats' public descriptions.
PROMPTS = {
    "alpaca": "Be brief.\n\n### Instruction:\nHi\n\n### Response:\nHello\n\n### Instruction:\nBye\n\n### Response:\n",
    "chatml": "<|im_start|>system\nBe brief.<|im_end|>\n<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\nHello<|im_end|>\n"
    "<|im_start|>user\nBye<|im_end|>\n<|im_start|>assistant\n",
    "gemma": "<s><start_of_turn>user\nBe brief.\n\nHi<end_of_turn>\n<start_of_turn>model\nHello<end_of_turn>\n"
    "<start_of_turn>user\nBye<end_of_turn>\n<start_of_turn>model\n",
    "llama2": "<s>[INST] <<SYS>>\nBe brief.\n<</SYS>>\n\nHi [/INST] Hello </s><s>[INST] Bye [/INST]",
    "llama3": "<s><|start_header_id|>system<|end_header_id|>\n\nBe brief.<|eot_id|>"
    "<|start_header_id|>user<|end_header_id|>\n\nHi<|eot_id|><|start_header_id|>assistant<|end_header_id|>\n\nHello<|eot_id|>"
    "<|start_header_id|>user<|end_header_id|>\n\nBye<|eot_id|><|start_header_id|>assistant<|end_header_id|>\n\n",
    "mistral": "<s>[INST] Be brief.\n\nHi [/INST] Hello</s>[INST] Bye [/INST]",
    "phi3": "<|system|>\nBe brief.<|end|>\n<|user|>\nHi<|end|>\n<|assistant|>\nHello<|end|>\n"
    "<|user|>\nBye<|end|>\n<|assistant|>\n",
    "vicuna": "<s>Be brief. USER: Hi ASSISTANT: Hello</s>USER: Bye ASSISTANT:",
    "zephyr": "<|system|>\nBe brief.</s>\n<|user|>\nHi</s>\n<|assistant|>\nHello</s>\n<|user|>\nBye</s>\n<|assistant|>\n",
}


def test_every_preset_has_a_case() -> None:
    assert presets.names() == tuple(sorted(PROMPTS))
    assert presets.FALLBACK in PROMPTS


@pytest.mark.parametrize("name", PROMPTS)
def test_prompts(name: str) -> None:
    preset = presets.get(name)
    assert preset.stopwords
    assert check(preset.chat_template) is None
    variables = {"messages": TURNS, "add_generation_prompt": True, "bos_token": "<s>", "eos_token": "</s>"}
    assert compile_template(preset.chat_template).render(variables) == PROMPTS[name]


@pytest.mark.parametrize("name", PROMPTS)
def test_stop_strings_begin_what_follows_an_answer(name: str) -> None:
    rest = PROMPTS[name].split("Hello")[1]
    assert any(stop in rest for stop in presets.get(name).stopwords)


def test_formats_without_a_system_message_have_their_customary_one() -> None:
    variables = {"messages": TURNS[1:2], "add_generation_prompt": True, "bos_token": "", "eos_token": ""}
    assert compile_template(presets.get("alpaca").chat_template).render(variables).startswith("Below is an instruction")
    assert compile_template(presets.get("vicuna").chat_template).render(variables).startswith("A chat between a curious user")


def test_an_unknown_preset_is_told_with_the_nearest() -> None:
    with pytest.raises(ConfigError, match="did you mean chatml") as caught:
        presets.get("chatlm")
    assert caught.value.field == "template.preset"
    assert caught.value.hints == ("chatml",)
    with pytest.raises(ConfigError, match="known: alpaca, chatml"):
        presets.get("?")
