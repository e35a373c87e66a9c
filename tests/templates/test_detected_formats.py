"""What weights without a template are served with: by their vocabulary, their metadata, their file's name, else alpaca."""

from __future__ import annotations

import tomllib
from importlib import resources

import pytest
from hypothesis import given
from hypothesis import strategies as st

from llmgallery.core.clues import MOST_TOKENS, Clues, control_tokens
from llmgallery.templates import presets
from llmgallery.templates.detect import detect, logical_path

RULES = tomllib.loads((resources.files("llmgallery.templates") / "detect.toml").read_text("utf-8"))


@pytest.mark.parametrize(
    ("preset", "tokens", "architecture", "pre_tokenizer"),
    [
        ("chatml", ("<|endoftext|>", "<|im_start|>", "<|im_end|>"), "qwen2", "qwen2"),
        ("llama3", ("<|begin_of_text|>", "<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>"), "llama", "llama-bpe"),
        ("llama4", ("<|header_start|>", "<|header_end|>", "<|eot|>"), "llama4", "llama4"),
        ("gemma", ("<bos>", "<eos>", "<start_of_turn>", "<end_of_turn>"), "gemma3", "default"),
        ("gemma4", ("<bos>", "<|turn>", "<turn|>"), "gemma4", ""),
        ("mistral-v3", ("<s>", "[INST]", "[/INST]", "[TOOL_CALLS]"), "llama", "default"),
        ("mistral-tekken", ("<s>", "[INST]", "[/INST]"), "llama", "tekken"),
        ("mistral-v7", ("<s>", "[INST]", "[/INST]", "[SYSTEM_PROMPT]"), "llama", "tekken"),
        ("phi3", ("<|user|>", "<|assistant|>", "<|end|>"), "phi3", "default"),
        ("phi4-mini", ("<|user|>", "<|assistant|>", "<|end|>"), "phi3", "gpt-4o"),
        ("phi4", ("<|im_start|>", "<|im_sep|>", "<|im_end|>"), "phi3", "dbrx"),
        ("deepseek-r1", ("<｜begin▁of▁sentence｜>", "<｜User｜>", "<｜Assistant｜>"), "qwen2", "deepseek-r1-qwen"),
        ("deepseek-v2", ("<｜begin▁of▁sentence｜>",), "deepseek2", "deepseek-llm"),
        ("deepseek-coder", ("<｜begin▁of▁sentence｜>", "<|EOT|>"), "llama", "deepseek-coder"),
        ("command-r", ("<|START_OF_TURN_TOKEN|>", "<|USER_TOKEN|>"), "cohere2", "command-r"),
        ("granite", ("<|start_of_role|>", "<|end_of_role|>"), "granite", "refact"),
        ("harmony", ("<|start|>", "<|message|>", "<|channel|>", "<|return|>"), "gpt-oss", "gpt-4o"),
        ("glm4", ("[gMASK]", "<sop>", "<|user|>", "<|assistant|>"), "glm4moe", "glm4"),
        ("glm4-9b", ("[gMASK]", "<sop>", "<|user|>", "<|assistant|>"), "chatglm", "chatglm-bpe"),
        ("exaone", ("[|user|]", "[|endofturn|]"), "exaone", "exaone"),
        ("kimi-k2", ("<|im_user|>", "<|im_middle|>", "<|im_end|>"), "deepseek2", "kimi-k2"),
        ("seed-oss", ("<seed:bos>", "<seed:eos>"), "seed_oss", "seed-coder"),
        ("openchat", ("<s>", "<|end_of_turn|>"), "llama", "default"),
        ("minicpm", ("<s>", "<用户>", "<AI>"), "minicpm", "default"),
        ("smolvlm", ("<|im_start|>", "<end_of_utterance>"), "llama", "smollm"),
        ("tulu", ("<|user|>", "<|assistant|>"), "llama", "falcon3"),
        ("phi2", ("<|endoftext|>",), "phi2", "gpt-2"),
        ("falcon", ("<|endoftext|>",), "falcon", "falcon"),
        ("rwkv-world", (), "rwkv7", ""),
        ("orion", (), "orion", ""),
        ("gemma", (), "gemma", ""),
        ("alpaca", ("<s>", "</s>"), "llama", "default"),
    ],
)
def test_vocabulary_and_metadata_tell(preset: str, tokens: tuple[str, ...], architecture: str, pre_tokenizer: str) -> None:
    found = detect(Clues("/m/x.gguf", architecture, "", pre_tokenizer, tokens))
    assert found.preset is presets.get(preset)


def test_what_speaks_for_it_is_told() -> None:
    assert detect(Clues(tokens=("<|im_start|>", "<|im_end|>"))).why == "the vocabulary has <|im_start|> and <|im_end|>"
    assert detect(Clues(architecture="phi2")).why == "the architecture is phi2"
    tekken = Clues(architecture="llama", pre_tokenizer="tekken", tokens=("[INST]",))
    assert detect(tekken).why == "the vocabulary has [INST], the pre-tokenizer is tekken"
    file = Clues("/m/TheBloke/zephyr-7B-beta-GGUF/z.gguf")
    assert detect(file).why == "the file's path /m/TheBloke/zephyr-7B-beta-GGUF/z.gguf, by which GatoGPT takes zephyr"
    assert detect(Clues("/m/vicuna-7b.gguf")).why == "the name vicuna-7b.gguf"
    assert detect(Clues(name="Vicuna 7B")).why == "the name Vicuna 7B"
    nothing = detect(Clues())
    assert (nothing.preset.name, nothing.why) == (presets.FALLBACK, "nothing about the weights tells a format")


@pytest.mark.parametrize(
    ("file", "preset"),
    [
        # GatoGPT's patterns, with the whole path, and the family's format in place of its profile.
        ("/m/TheBloke/Mistral-7B-Instruct-v0.2-GGUF/mistral-7b-instruct-v0.2.Q5_K_M.gguf", "mistral"),
        ("/m/TheBloke/OpenHermes-2.5-Mistral-7B-GGUF/x.gguf", "chatml"),
        ("/m/TheBloke/Llama-2-7B-Chat-GGUF/x.gguf", "llama2"),
        ("/m/TheBloke/CodeLlama-7B-Instruct-GGUF/x.gguf", "llama2"),
        ("/m/TheBloke/deepseek-coder-6.7b-instruct-GGUF/x.gguf", "deepseek-coder"),
        ("/m/TheBloke/phi-2-GGUF/x.gguf", "phi2"),
        ("/m/TheBloke/Synthia-7B-v1.3-GGUF/x.gguf", "synthia"),
        ("/m/TheBloke/vicuna-13B-v1.5-16K-GGUF/x.gguf", "vicuna"),
        # The first that fits decides, though a later one says more.
        ("/m/dolphin-2.1-mistral-7B-GGUF/Synthia-x/y.gguf", "chatml"),
        # Below the Hub's cache, and as a reference to the Hub.
        ("/c/hub/models--TheBloke--zephyr-7B-beta-GGUF/snapshots/0a1b/zephyr-7b-beta.Q4_K_M.gguf", "zephyr"),
        ("TheBloke/zephyr-7B-beta-GGUF/zephyr-7b-beta.Q4_K_M.gguf", "zephyr"),
        # By the file's own name, which GatoGPT's patterns do not know.
        ("/m/mistral-7b-instruct-v0.2.Q5_K_M.gguf", "mistral"),
        ("/m/Nous-Hermes-2-Mistral-7B-DPO.gguf", "chatml"),
        ("/m/tinyllama-1.1b-chat-v1.0.Q4_K_M.gguf", "zephyr"),
        ("/m/starling-lm-7b-alpha.gguf", "openchat"),
        ("/m/SOLAR-10.7B-Instruct-v1.0.gguf", "solar"),
        ("/m/orca-2-13b.Q6_K.gguf", "chatml"),
        ("/m/Llama-2_7B chat.gguf", "llama2"),
        ("/m/phind-codellama-34b-v2.gguf", "phind"),
        ("/m/stories260K.gguf", "alpaca"),
        # The folder says nothing about the file.
        ("/m/vicuna/stories.gguf", "alpaca"),
        ("", "alpaca"),
    ],
)
def test_names_of_files_tell(file: str, preset: str) -> None:
    assert detect(Clues(file, "llama")).preset.name == preset


def test_the_vocabulary_knows_better_than_the_name() -> None:
    clues = Clues("/m/TheBloke/zephyr-7B-beta-GGUF/z.gguf", "llama", "vicuna", "", ("<|im_start|>", "<|im_end|>"))
    assert detect(clues).preset.name == "chatml"


def test_the_rules_name_presets_that_exist_and_every_profile_of_gatogpts_patterns() -> None:
    wanted = [rule["preset"] for rule in (*RULES["rules"], *RULES["names"])] + list(RULES["profiles"].values())
    assert {presets.get(name).kind for name in wanted} == {"jinja"}
    files = tomllib.loads((resources.files("llmgallery.templates") / "gatogpt.toml").read_text("utf-8"))["files"]
    assert {file["profile"] for file in files} == set(RULES["profiles"])
    assert all(presets.get(f"gatogpt/{name}").kind == "gatogpt" for name in RULES["profiles"])


def test_every_rule_can_decide() -> None:
    """None is hidden by one above it: with its own marks alone it is the first that fits."""
    for rule in RULES["rules"]:
        for architecture in rule.get("architectures", [""]):
            clues = Clues("", architecture, "", rule.get("pre_tokenizers", [""])[0], tuple(rule.get("tokens", ())))
            assert detect(clues).preset.name == rule["preset"]
    for rule in RULES["names"]:
        for pattern in rule["patterns"]:
            assert detect(Clues(name=pattern.replace("*", ""))).preset.name == rule["preset"]


@pytest.mark.parametrize(
    ("file", "path"),
    [
        ("/c/hub/models--A--B-GGUF/snapshots/0a/sub/x.gguf", "/A/B-GGUF/sub/x.gguf"),
        ("models--A--B/snapshots/0a/x.gguf", "/A/B/x.gguf"),
        ("C:\\m\\B\\x.gguf", "/C:/m/B/x.gguf"),
        ("A/B/x.gguf", "/A/B/x.gguf"),
        ("", "/"),
    ],
)
def test_logical_paths(file: str, path: str) -> None:
    assert logical_path(file) == path


def test_tokens_that_stand_for_nothing_are_left_out() -> None:
    spare = [
        "<|reserved_special_token_0|>",
        "<unused7>",
        "<|extra_0|>",
        "<SPECIAL_20>",
        "<｜place▁holder▁no▁3｜>",
        "<|dummy_1|>",
        "▁▁",
        "\n\n",
        "7",
        "",
    ]
    assert control_tokens([*spare, "<s>", "[INST]", "<|extra|>"]) == ("<s>", "[INST]", "<|extra|>")
    assert len(control_tokens(f"<{number}>" for number in range(10_000))) == MOST_TOKENS


@given(st.builds(Clues, st.text(), st.text(), st.text(), st.text(), st.lists(st.text(), max_size=4).map(tuple)))
def test_whatever_weights_say_they_get_a_format(clues: Clues) -> None:
    assert detect(clues).preset.name in presets.names("jinja")
