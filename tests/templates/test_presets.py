from __future__ import annotations

import ctypes
import re
import tomllib
from importlib import resources

import pytest
from hypothesis import given
from hypothesis import strategies as st

from llmgallery.core.errors import ConfigError
from llmgallery.templates import presets
from llmgallery.templates.jinja import check, compile_template

TURNS = [
    {"role": "system", "content": "Be brief."},
    {"role": "user", "content": "Hi"},
    {"role": "assistant", "content": "Hello"},
    {"role": "user", "content": "Bye"},
]
# From the formats' public descriptions; presets.toml names those of the later ones.
PROMPTS = {
    "alpaca": "Be brief.\n\n### Instruction:\nHi\n\n### Response:\nHello\n\n### Instruction:\nBye\n\n### Response:\n",
    "chatml": "<|im_start|>system\nBe brief.<|im_end|>\n<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\nHello<|im_end|>\n"
    "<|im_start|>user\nBye<|im_end|>\n<|im_start|>assistant\n",
    "command-r": "<s><|START_OF_TURN_TOKEN|><|SYSTEM_TOKEN|>Be brief.<|END_OF_TURN_TOKEN|>"
    "<|START_OF_TURN_TOKEN|><|USER_TOKEN|>Hi<|END_OF_TURN_TOKEN|><|START_OF_TURN_TOKEN|><|CHATBOT_TOKEN|>Hello<|END_OF_TURN_TOKEN|>"
    "<|START_OF_TURN_TOKEN|><|USER_TOKEN|>Bye<|END_OF_TURN_TOKEN|><|START_OF_TURN_TOKEN|><|CHATBOT_TOKEN|>",
    "deepseek-coder": "<s>Be brief.\n### Instruction:\nHi\n### Response:\nHello\n<|EOT|>\n### Instruction:\nBye\n### Response:\n",
    "deepseek-r1": "<s>Be brief.\n\n<｜User｜>Hi<｜Assistant｜>Hello<｜end▁of▁sentence｜><｜User｜>Bye<｜Assistant｜>",
    "deepseek-v2": "<s>Be brief.\n\nUser: Hi\n\nAssistant: Hello<｜end▁of▁sentence｜>User: Bye\n\nAssistant:",
    "exaone": "<s>[|system|]Be brief.[|endofturn|]\n[|user|]Hi\n[|assistant|]Hello[|endofturn|]\n[|user|]Bye\n[|assistant|]",
    "falcon": "Be brief.\n\nUser: Hi\n\nAssistant: Hello\n\nUser: Bye\n\nAssistant:",
    "gemma": "<s><start_of_turn>user\nBe brief.\n\nHi<end_of_turn>\n<start_of_turn>model\nHello<end_of_turn>\n"
    "<start_of_turn>user\nBye<end_of_turn>\n<start_of_turn>model\n",
    "gemma4": "<s><|turn>system\nBe brief.<turn|>\n<|turn>user\nHi<turn|>\n<|turn>model\nHello<turn|>\n"
    "<|turn>user\nBye<turn|>\n<|turn>model\n<|channel>thought\n<channel|>",
    "glm3": "[gMASK]sop<|system|>\n Be brief.<|user|>\n Hi<|assistant|>\n Hello<|user|>\n Bye<|assistant|>",
    "glm4": "[gMASK]<sop><|system|>\nBe brief.<|user|>\nHi<|assistant|>\n<think></think>\nHello<|user|>\nBye<|assistant|>",
    "glm4-9b": "[gMASK]<sop><|system|>\nBe brief.<|user|>\nHi<|assistant|>\nHello<|user|>\nBye<|assistant|>\n",
    "granite": "<|start_of_role|>system<|end_of_role|>Be brief.<|end_of_text|>\n"
    "<|start_of_role|>user<|end_of_role|>Hi<|end_of_text|>\n<|start_of_role|>assistant<|end_of_role|>Hello<|end_of_text|>\n"
    "<|start_of_role|>user<|end_of_role|>Bye<|end_of_text|>\n<|start_of_role|>assistant<|end_of_role|>",
    "harmony": "<|start|>system<|message|>Be brief.<|end|><|start|>user<|message|>Hi<|end|>"
    "<|start|>assistant<|message|>Hello<|return|><|start|>user<|message|>Bye<|end|><|start|>assistant",
    "kimi-k2": "<|im_system|>system<|im_middle|>Be brief.<|im_end|><|im_user|>user<|im_middle|>Hi<|im_end|>"
    "<|im_assistant|>assistant<|im_middle|>Hello<|im_end|><|im_user|>user<|im_middle|>Bye<|im_end|>"
    "<|im_assistant|>assistant<|im_middle|>",
    "llama2": "<s>[INST] <<SYS>>\nBe brief.\n<</SYS>>\n\nHi [/INST] Hello </s><s>[INST] Bye [/INST]",
    "llama3": "<s><|start_header_id|>system<|end_header_id|>\n\nBe brief.<|eot_id|>"
    "<|start_header_id|>user<|end_header_id|>\n\nHi<|eot_id|><|start_header_id|>assistant<|end_header_id|>\n\nHello<|eot_id|>"
    "<|start_header_id|>user<|end_header_id|>\n\nBye<|eot_id|><|start_header_id|>assistant<|end_header_id|>\n\n",
    "llama4": "<s><|header_start|>system<|header_end|>\n\nBe brief.<|eot|><|header_start|>user<|header_end|>\n\nHi<|eot|>"
    "<|header_start|>assistant<|header_end|>\n\nHello<|eot|><|header_start|>user<|header_end|>\n\nBye<|eot|>"
    "<|header_start|>assistant<|header_end|>\n\n",
    "minicpm": "<s>Be brief.<用户>Hi<AI>Hello<用户>Bye<AI>",
    "mistral": "<s>[INST] Be brief.\n\nHi [/INST] Hello</s>[INST] Bye [/INST]",
    "mistral-tekken": "<s>[INST]Be brief.\n\nHi[/INST]Hello</s>[INST]Bye[/INST]",
    "mistral-v3": "<s>[INST] Be brief.\n\nHi[/INST] Hello</s>[INST] Bye[/INST]",
    "mistral-v7": "<s>[SYSTEM_PROMPT]Be brief.[/SYSTEM_PROMPT][INST]Hi[/INST]Hello</s>[INST]Bye[/INST]",
    "openchat": "<s>Be brief.<|end_of_turn|>GPT4 Correct User: Hi<|end_of_turn|>GPT4 Correct Assistant: Hello<|end_of_turn|>"
    "GPT4 Correct User: Bye<|end_of_turn|>GPT4 Correct Assistant:",
    "orion": "<s>Human: Be brief.\n\nHi\n\nAssistant: </s>Hello</s>Human: Bye\n\nAssistant: </s>",
    "phi2": "Be brief.\nInstruct: Hi\nOutput: Hello\nInstruct: Bye\nOutput:",
    "phi3": "<|system|>\nBe brief.<|end|>\n<|user|>\nHi<|end|>\n<|assistant|>\nHello<|end|>\n"
    "<|user|>\nBye<|end|>\n<|assistant|>\n",
    "phi4": "<|im_start|>system<|im_sep|>Be brief.<|im_end|><|im_start|>user<|im_sep|>Hi<|im_end|>"
    "<|im_start|>assistant<|im_sep|>Hello<|im_end|><|im_start|>user<|im_sep|>Bye<|im_end|><|im_start|>assistant<|im_sep|>",
    "phi4-mini": "<|system|>Be brief.<|end|><|user|>Hi<|end|><|assistant|>Hello<|end|><|user|>Bye<|end|><|assistant|>",
    "phind": "<s>### System Prompt\nBe brief.\n\n### User Message\nHi\n\n### Assistant\nHello\n\n"
    "### User Message\nBye\n\n### Assistant\n",
    "rwkv-world": "System: Be brief.\n\nUser: Hi\n\nAssistant: Hello\n\nUser: Bye\n\nAssistant:",
    "seed-oss": "<seed:bos>system\nBe brief.<seed:eos><seed:bos>user\nHi<seed:eos><seed:bos>assistant\nHello<seed:eos>"
    "<seed:bos>user\nBye<seed:eos><seed:bos>assistant\n",
    "smolvlm": "<|im_start|>Be brief.\n\nUser: Hi<end_of_utterance>\nAssistant: Hello<end_of_utterance>\n"
    "User: Bye<end_of_utterance>\nAssistant:",
    "solar": "<s>### System:\nBe brief.\n\n### User:\nHi\n\n### Assistant:\nHello\n\n### User:\nBye\n\n### Assistant:\n",
    "synthia": "<s>SYSTEM: Be brief.\nUSER: Hi\nASSISTANT: Hello\nUSER: Bye\nASSISTANT:",
    "tulu": "<s><|system|>\nBe brief.\n<|user|>\nHi\n<|assistant|>\nHello</s>\n<|user|>\nBye\n<|assistant|>\n",
    "vicuna": "<s>Be brief. USER: Hi ASSISTANT: Hello</s>USER: Bye ASSISTANT:",
    "zephyr": "<|system|>\nBe brief.</s>\n<|user|>\nHi</s>\n<|assistant|>\nHello</s>\n<|user|>\nBye</s>\n<|assistant|>\n",
}


def test_every_preset_has_a_case() -> None:
    assert presets.names("jinja") == tuple(sorted(PROMPTS))
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


# Presets -> llama.cpp's own names of formats that it writes itself. Not those where its prompts differ from the makers'
# templates in spaces (Llama 2, Mistral 7B, Vicuna) or in the end token, which is the vocabulary's (Zephyr, Falcon 3).
LLAMA_CPP = {
    "chatml": "chatml", "command-r": "command-r", "deepseek-r1": "deepseek3", "deepseek-v2": "deepseek2", "exaone": "exaone3",
    "gemma": "gemma", "glm3": "chatglm3", "glm4-9b": "chatglm4", "granite": "granite", "harmony": "gpt-oss",
    "kimi-k2": "kimi-k2", "llama3": "llama3", "llama4": "llama4", "minicpm": "minicpm", "mistral-tekken": "mistral-v3-tekken",
    "mistral-v3": "mistral-v3", "mistral-v7": "mistral-v7-tekken", "openchat": "openchat", "orion": "orion", "phi3": "phi3",
    "phi4": "phi4", "rwkv-world": "rwkv-world", "seed-oss": "seed_oss", "smolvlm": "smolvlm",
}  # fmt: skip


@pytest.mark.parametrize("name", LLAMA_CPP)
@pytest.mark.parametrize("turns", [TURNS, TURNS[1:], TURNS[:2], TURNS[1:2]], ids=["system", "turns", "one-system", "one"])
def test_llama_cpp_writes_the_same_prompts(name: str, turns: list[dict[str, str]]) -> None:
    llama_cpp = pytest.importorskip("llama_cpp")
    messages = (llama_cpp.llama_chat_message * len(turns))()
    for message, turn in zip(messages, turns, strict=True):
        message.role, message.content = turn["role"].encode(), turn["content"].encode()
    text = ctypes.create_string_buffer(4096)
    length = llama_cpp.llama_chat_apply_template(LLAMA_CPP[name].encode(), messages, len(turns), True, text, 4096)
    variables = {"messages": turns, "add_generation_prompt": True, "bos_token": "", "eos_token": "</s>"}
    assert compile_template(presets.get(name).chat_template).render(variables) == text.raw[:length].decode()


def test_presets_of_other_systems() -> None:
    assert len(presets.names("gatogpt")) == 16 and len(presets.names("kobold")) >= 12
    found = presets.get("gatogpt/chatml")
    assert (found.name, found.kind, found.stopwords) == ("gatogpt/chatml", "gatogpt", ("<|im_start|>", "<|im_end|>"))
    # What a profile leaves out has GatoGPT's defaults; what is no prompt stays with it for importers.
    assert found.data["InferenceParams"]["InstructTemplate"].startswith("{{ PrePromptPrefix }}")
    assert presets.get("gatogpt/vicuna_v1_5_16k").data["LoadParams"] == {"RopeFreqScale": 0.25}
    assert presets.get("gatogpt/codellama_completion").stopwords == ()
    assert presets.get("kobold/ChatML").data["user_start"] == "<|im_start|>user\n"


def test_prefixes_may_be_left_out_where_only_one_has_the_name() -> None:
    assert presets.get("mistral_instruct").name == "gatogpt/mistral_instruct"
    assert presets.get("Metharme").name == "kobold/Metharme"
    assert presets.get("chatml").kind == "jinja"
    assert presets.get("chatml", "gatogpt").name == presets.get("gatogpt/chatml", "gatogpt").name == "gatogpt/chatml"
    assert presets.get("chatml", "jinja").name == "chatml"
    # Names that differ in capitals alone are not taken for each other.
    with pytest.raises(ConfigError, match="did you mean chatml"):
        presets.get("ChatML")
    for name in presets.names("gatogpt") + presets.names("kobold"):
        assert presets.get(name).name == name
    for kind in ("jinja", "gatogpt", "kobold"):
        assert all(presets.get(name).kind == kind for name in presets.names(kind))


def test_families_are_found_by_their_other_names() -> None:
    for alias, name in (("qwen3", "chatml"), ("gpt-oss", "harmony"), ("deepseek-v3", "deepseek-r1"), ("llama3.1", "llama3")):
        assert presets.get(alias) is presets.get(name)
        assert alias in presets.names() and alias not in presets.names("jinja")
    bodies = tomllib.loads((resources.files("llmgallery.templates") / "presets.toml").read_text("utf-8")).values()
    aliases = [alias for body in bodies for alias in body.get("aliases", ())]
    assert len(aliases) == len(set(aliases)) and not set(aliases) & set(presets.names("jinja"))


def test_a_preset_of_another_kind_is_not_taken() -> None:
    with pytest.raises(ConfigError, match="no template preset is called 'llama3'; known: gatogpt/alpaca, "):
        presets.get("llama3", "gatogpt")
    with pytest.raises(ConfigError, match="did you mean gatogpt/zephyr"):
        presets.get("gatogpt/zefyr")


@pytest.mark.parametrize(
    ("path", "profile"),
    [
        # The example of GatoGPT's README.
        ("user://Models/TheBloke/Mistral-7B-Instruct-v0.2-GGUF/mistral-7b-instruct-v0.2.Q5_K_M.gguf", "mistral_instruct"),
        ("user://Models/TheBloke/Orca-2-13B-GGUF/orca-2-13b.Q6_K.gguf", None),
        ("/m/TheBloke/Mixtral-8x7B-Instruct-v0.1-GGUF/x.gguf", "mistral_instruct"),
        ("/m/Mistral-7B-OpenOrca-GGUF/x.gguf", "chatml"),
        ("/m/OpenHermes-2.5-Mistral-7B-GGUF/x.gguf", "chatml"),
        ("/m/dolphin-2.1-mistral-7B-GGUF/x.gguf", "chatml"),
        ("/m/Llama-2-7B-Chat-GGUF/llama-2-7b-chat.Q4.gguf", "metaai_llama_2_chat"),
        ("/m/llama-2-7b-chat-GGUF/llama-2-7b-chat.Q4.gguf", None),
        ("/m/vicuna-13B-v1.5-16K-GGUF/v.q4", "vicuna_v1_5_16k"),
        ("/m/CodeLlama-7B-Python-GGUF/x.gguf", "codellama_instruct"),
        ("/m/CodeLlama-7B-Instruct-GGUF/x.gguf", "codellama_instruct"),
        ("/m/Phind-CodeLlama-34B-v2-GGUF/x.gguf", None),
        ("/m/Phind-CodeLlama-34B-v2-GGUF/sub/x.gguf", "phind_codellama"),
        ("/m/zephyr-7B-beta-GGUF/x.gguf", "zephyr"),
        ("/m/stablelm-zephyr-3b-GGUF/x.gguf", "zephyr"),
        ("/m/deepseek-coder-6.7b-instruct-GGUF/x.gguf", "deepseek_coder"),
        ("/m/phi-2-GGUF/phi-2.Q4.gguf", "phi_2"),
        ("/m/Synthia-7B/x.gguf", "synthia"),
        ("zephyr-7B-beta-GGUF/x.gguf", None),
        ("/m/phi-2-GGUF/phi-2.bin", None),
        ("", None),
    ],
)
def test_the_profile_that_gatogpt_takes_for_a_file(path: str, profile: str | None) -> None:
    assert presets.gatogpt_profile_for(path) == profile


@given(st.lists(st.sampled_from(["a", "b", "/", "*"]), max_size=6).map("".join), st.text(alphabet="ab/", max_size=12))
def test_patterns_fit_as_the_regular_expressions_that_gatogpt_makes_of_them(glob: str, path: str) -> None:
    assert presets.fits(glob, path) == bool(re.fullmatch(".*".join(map(re.escape, glob.split("*"))), path))


def test_patterns_take_time_that_grows_with_the_path() -> None:
    assert not presets.fits("*a" * 20 + "b", "a" * 100_000)


def test_an_unknown_preset_is_told_with_the_nearest() -> None:
    with pytest.raises(ConfigError, match="did you mean chatml") as caught:
        presets.get("chatlm")
    assert caught.value.field == "template.preset"
    assert caught.value.hints == ("chatml",)
    with pytest.raises(ConfigError, match=r"known: alpaca, chatml, command-r.* and those of gatogpt/ and kobold/"):
        presets.get("?")
