"""The prompts of imported models are those that the other program wrote."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

import msgspec
import pytest
from importing_scene import SEEDS, imported, written

from llmgallery.backends.loader import specs
from llmgallery.chat.prompt import render_chat, render_completion
from llmgallery.cli.stack import outside
from llmgallery.config.load import load_model, parse_model
from llmgallery.core.clues import Clues
from llmgallery.core.messages import say
from llmgallery.core.requests import ChatRequest, CompletionRequest
from llmgallery.importers.base import save

CHAT = ChatRequest((say("user", "Hi"), say("assistant", "Hello!"), say("user", "Who are you?")))
TOLD = ChatRequest((say("system", "Be brief."), say("user", "Hi")))


@dataclass
class Weights:
    """What a backend would tell of a model's templates: another one, which must not be used."""

    chat_template: str | None = "wrong"
    templates: dict[str, str] = field(default_factory=dict)
    bos: str = ""
    eos: str = ""
    clues: Clues = field(default_factory=Clues)


def config_of(source: Path, name: str, folder: Path, weights: str | None = None):
    [file] = [file for file in imported(source, folder, weights=weights).files if file.model == name]
    loaded = parse_model(file.text.encode(), folder / file.name, specs(), outside())
    assert loaded.config is not None
    return loaded.config


ORCA = """\
<|im_start|>system
Perform the task to the best of your ability.<|im_end|>
<|im_start|>user User:
Hi
<|im_end|>
<|im_start|>assistant Assistant:
Hello!
<|im_end|>
<|im_start|>user User:
Who are you?
<|im_end|>
<|im_start|>assistant Assistant:
"""
ALPACA = "Below is an instruction that describes a task. Write a response that appropriately completes the request."
MISTRAL = f"{ALPACA}[INST]User: Hi\nAssistant: Hello!\nUser: Who are you?\nAssistant: [/INST]"


@pytest.mark.parametrize(
    ("source", "name", "expected"),
    [
        ("gatogpt-two-models", "orca-2-13b", ORCA),
        ("gatogpt-profiles/chatml.json", "chatml", ORCA),
        ("gatogpt-two-models", "mistral-7b-instruct", MISTRAL),
        ("gatogpt-profiles/mistral.json", "mistral", MISTRAL),
        ("gatogpt-full", "mistral-7b-instruct", MISTRAL.removeprefix(ALPACA)),
        ("gatogpt-vision", "bakllava-1", "User: Hi\nAssistant: Hello!\nUser: Who are you?\nAssistant: "),
    ],
)
def test_gatogpts_chats(source, name, expected, tmp_path):
    """By name and written out: its documentation prints the profiles that its presets come to."""
    assert render_chat(CHAT, config_of(SEEDS / source, name, tmp_path, "x.gguf"), Weights()).prompt == expected


def test_a_profile_of_the_users_own_writes_the_same_prompts_from_its_preset_file(tmp_path):
    profile = (SEEDS / "gatogpt-profiles" / "chatml.json").read_text(encoding="utf-8")
    config = f"""{{
      "Resources": {{"LlamaModels": {{"r": {{"Path": "/srv/x.gguf", "Class": "LlamaModel"}}}}}},
      "TextGeneration": {{"m": {{"ModelResourceId": "r", "ProfilePreset": "mine"}}}},
      "DefaultModelProfiles": {{"mine": {profile}}}
    }}"""
    source = written(tmp_path / "source", {"config.json": config}) / "config.json"
    save(imported(source, tmp_path), tmp_path)
    assert (tmp_path / "presets" / "mine.yaml").is_file()
    config = load_model(tmp_path / "m.yaml", specs(), outside()).config
    assert render_chat(CHAT, config, Weights()).prompt == ORCA
    alone = config_of(SEEDS / "gatogpt-profiles/chatml.json", "chatml", tmp_path, "x.gguf")
    assert render_chat(CHAT, config, Weights()).stops == render_chat(CHAT, alone, Weights()).stops
    assert render_chat(TOLD, config, Weights()).prompt == render_chat(TOLD, alone, Weights()).prompt


def test_gatogpts_system_messages_take_the_place_of_its_own(tmp_path):
    for source, name in (("gatogpt-two-models", "orca-2-13b"), ("gatogpt-profiles/chatml.json", "chatml")):
        prompt = render_chat(TOLD, config_of(SEEDS / source, name, tmp_path, "x.gguf"), Weights()).prompt
        assert prompt.startswith("<|im_start|>system\nBe brief.<|im_end|>\n<|im_start|>user User:\nHi\n<|im_end|>")


def test_gatogpts_completions(tmp_path):
    request = CompletionRequest("Say hi.")
    for source, name in (("gatogpt-two-models", "mistral-7b-instruct"), ("gatogpt-profiles/mistral.json", "mistral")):
        rendered = render_completion(request, config_of(SEEDS / source, name, tmp_path, "x.gguf"), Weights())
        assert rendered is not None
        assert rendered.prompt == f"{ALPACA}[INST]Say hi.[/INST]"
        assert "[INST]" in rendered.stops


STARLING = (
    "GPT4 Correct User: Hi\n\n"
    "<|end_of_turn|>GPT4 Correct Assistant: Hello!<|end_of_turn|>\n\n"
    "GPT4 Correct User: Who are you?\n"
    "<|end_of_turn|>GPT4 Correct Assistant:\n"
)
"""Each message's template ends with a line's end, and messages are joined with another."""


def test_localais_chats(tmp_path):
    text = (SEEDS / "localai" / "starling-openvino.yaml").read_text().replace("backend: transformers", "backend: echo")
    config = config_of(written(tmp_path, {"a.yaml": text}) / "a.yaml", "starling-openvino", tmp_path / "out")
    assert render_chat(CHAT, config, Weights()).prompt == STARLING


def test_localais_templates_in_files(tmp_path):
    source = written(
        tmp_path / "localai",
        {
            "a.yaml": "backend: echo\nmodel: a.bin\ntemplate: {chat: wrap, chat_message: '{{.RoleName}}={{.Content}}'}\n",
            "wrap.tmpl": "<{{.Input}}>",
            "a.bin.tmpl": "[{{.Input}}]",
        },
    )
    there, moved = (config_of(source, "a", folder) for folder in (source, tmp_path / "out"))
    for config in (there, moved):
        assert render_chat(CHAT, config, Weights()).prompt == "<user=Hi\nassistant=Hello!\nuser=Who are you?>"
    rendered = render_completion(CompletionRequest("x"), moved, Weights())
    assert rendered is not None and rendered.prompt == "[x]"
    assert msgspec.structs.asdict(there.template)["completion"] == "[{{.Input}}]"
