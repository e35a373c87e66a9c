"""GatoGPT's templates in a model file: what is wrong in them is told when the file is read."""

from __future__ import annotations

from pathlib import Path

import pytest

from llmgallery.backends.loader import specs
from llmgallery.chat.formats import gatogpt as format
from llmgallery.config import gatogpt
from llmgallery.config.load import LoadedModel, load_model
from llmgallery.config.outside import Outside
from llmgallery.templates import presets


def read(folder: Path, template: str) -> LoadedModel:
    file = folder / "m.yaml"
    file.write_text(f"backend: echo\ntemplate:\n{template}")
    return load_model(file, specs(), Outside(presets=presets.names()))


def test_a_profile_with_changes_is_read_without_a_word(tmp_path: Path) -> None:
    text = """\
  engine: gatogpt
  preset: chatml
  chat: "{{ PrePromptPrefix }}{{ PrePrompt }}{{ PrePromptSuffix }}{{ InputPrefix }}{{ Input }}{{ InputSuffix }}"
  chat_message: "{{ Role }} {{ Name }}: {{ Message }}"
  generation: "{{ AssistantName }}: "
  completion: "{{ Input }} {% {{.Go}} { Name }"
  variables: {InputPrefix: "", PrePrompt: P}
"""
    model = read(tmp_path, text)
    assert (model.problems, model.warnings) == ((), ())
    assert model.config is not None and model.config.template.variables == {"InputPrefix": "", "PrePrompt": "P"}
    assert read(tmp_path, "  preset: gatogpt/zephyr\n  variables: {PrePrompt: P}\n").problems == ()


def test_variables_that_nothing_reads_are_told(tmp_path: Path) -> None:
    for head in ("engine: gatogpt", "preset: gatogpt/zephyr"):
        problems = read(tmp_path, f"  {head}\n  variables: {{InputPrefx: a, Input: b, Foo: c}}\n").problems
        assert [(problem.key, problem.line, problem.suggestion) for problem in problems] == [
            ("template.variables.InputPrefx", 4, "did you mean InputPrefix?"),
            ("template.variables.Input", 4, "known: PrePromptPrefix, PrePrompt, PrePromptSuffix, InputPrefix, InputSuffix"),
            ("template.variables.Foo", 4, "known: PrePromptPrefix, PrePrompt, PrePromptSuffix, InputPrefix, InputSuffix"),
        ]


def test_a_preset_that_is_no_profile_is_told(tmp_path: Path) -> None:
    (problem,) = read(tmp_path, "  engine: gatogpt\n  preset: llama3\n").problems
    assert (problem.key, problem.line) == ("template.preset", 4)
    assert problem.message == "'llama3' is none of GatoGPT's profiles"
    assert problem.suggestion.startswith("known: alpaca, chatml, ") and "leave out template.engine" in problem.suggestion
    (problem,) = read(tmp_path, "  engine: gatogpt\n  preset: gatogpt/zefyr\n").problems
    assert problem.suggestion == "did you mean gatogpt/zephyr?"


def test_what_looks_like_a_key_and_is_none_is_a_warning(tmp_path: Path) -> None:
    model = read(tmp_path, '  engine: gatogpt\n  chat: "{{Input}} {{ Inputt }} {{ Inputt }}"\n  generation: "{{ Name }}"\n')
    assert model.problems == ()
    assert [(warning.key, warning.line, warning.message, warning.suggestion) for warning in model.warnings] == [
        ("template.chat", 4, "{{Input}} is no key of this template and stays in every prompt as it is",
         "write {{ Input }}: one space on each side"),
        ("template.chat", 4, "{{ Inputt }} is no key of this template and stays in every prompt as it is",
         "did you mean Input?"),
        ("template.generation", 5, "{{ Name }} is no key of this template and stays in every prompt as it is",
         "known: AssistantName"),
    ]  # fmt: skip


@pytest.mark.parametrize("head", ["preset: llama3", "use_tokenizer_template: true"])
def test_its_keys_without_it_are_a_warning(tmp_path: Path, head: str) -> None:
    model = read(tmp_path, f"  {head}\n  generation: x\n  variables: {{PrePrompt: P}}\n")
    assert model.problems == ()
    assert [warning.key for warning in model.warnings] == ["template.generation", "template.variables"]


def test_the_keys_are_those_that_prompts_are_made_with() -> None:
    assert set(gatogpt.VARIABLES) == set(format.AROUND) - {"Input"}
    assert set(gatogpt.KEYS) == set(format.TEMPLATES.values())
    assert gatogpt.KEYS["chat"] == (*gatogpt.VARIABLES, "Input")
