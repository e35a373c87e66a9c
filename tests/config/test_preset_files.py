"""presets/NAME.yaml beside a model file: what it lends, what the model file keeps for itself, and where faults are told."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st
from jsonschema import Draft202012Validator

from llmgallery.backends.loader import specs
from llmgallery.cli.stack import outside
from llmgallery.config.jsonschema import preset_schema
from llmgallery.config.load import LoadedModel, load_model, load_preset, parse_model
from llmgallery.config.merge import explain
from llmgallery.config.model import LOAD_PARAMETERS, ModelConfig, Parameters
from llmgallery.config.outside import Outside
from llmgallery.config.presets import own_presets, preset_path
from llmgallery.config.problems import Problem

HEAD = "backend: echo\nmodel: w.gguf\n"


def preset(folder: Path, text: str, name: str = "mine") -> Path:
    path = folder / "presets" / f"{name}.yaml"
    path.parent.mkdir(exist_ok=True)
    path.write_text(text)
    return path


def load(folder: Path, text: str = "template: {preset: mine}\n") -> LoadedModel:
    path = folder / "m.yaml"
    path.write_text(HEAD + text)
    return load_model(path, specs(), outside())


def config(folder: Path, text: str = "template: {preset: mine}\n") -> ModelConfig:
    loaded = load(folder, text)
    assert loaded.config is not None, [str(problem) for problem in loaded.problems]
    return loaded.config


def told(problems: tuple[Problem, ...]) -> list[tuple[str, int, int, str]]:
    return [(Path(one.path).name, one.line, one.column, one.key) for one in problems]


# --- what holds --------------------------------------------------------------------------------------------------------------

WHOLE = """\
description: mine
template:
  engine: gatogpt
  chat: "{{ Input }}"
  generation: G
  variables: {InputPrefix: U, InputSuffix: S}
stopwords: [a, b]
system_prompt: Be kind.
parameters: {temperature: 0.1, top_k: 5, samplers: [top_k, temp], logit_bias: {"1": 2, "3": 4}}
"""


def test_all_of_it_holds_where_the_model_file_is_silent(tmp_path: Path) -> None:
    preset(tmp_path, WHOLE)
    found = config(tmp_path)
    assert (found.template.engine, found.template.chat, found.template.preset) == ("gatogpt", "{{ Input }}", None)
    assert (found.template.generation, found.template.variables) == ("G", {"InputPrefix": "U", "InputSuffix": "S"})
    assert (found.stopwords, found.system_prompt, found.description) == (["a", "b"], "Be kind.", None)
    assert (found.parameters.temperature, found.parameters.top_k, found.parameters.samplers) == (0.1, 5, ["top_k", "temp"])


def test_the_model_file_comes_first_key_by_key(tmp_path: Path) -> None:
    preset(tmp_path, WHOLE)
    own = """\
template: {preset: mine, generation: '', variables: {InputSuffix: T}}
stopwords: [c, a]
system_prompt: ''
parameters: {top_k: 0, samplers: [temp], logit_bias: {"3": 5}}
"""
    found = config(tmp_path, own)
    assert (found.template.chat, found.template.generation) == ("{{ Input }}", "")
    assert found.template.variables == {"InputPrefix": "U", "InputSuffix": "T"}
    assert (found.stopwords, found.system_prompt) == (["c", "a", "b"], "")
    assert (found.parameters.temperature, found.parameters.top_k, found.parameters.samplers) == (0.1, 0, ["temp"])
    assert found.parameters.logit_bias == {"1": 2.0, "3": 5.0}


def test_a_key_without_a_value_says_nothing(tmp_path: Path) -> None:
    preset(tmp_path, "system_prompt: Be kind.\nparameters: {top_k: 5, seed: }\n")
    found = config(tmp_path, "template: {preset: mine}\nsystem_prompt:\nparameters: {top_k: ~, seed: 3}\n")
    assert (found.system_prompt, found.parameters.top_k, found.parameters.seed) == ("Be kind.", 5, 3)


def test_it_may_stand_on_a_built_in_preset_and_comes_before_one_of_its_name(tmp_path: Path) -> None:
    preset(tmp_path, "template: {preset: chatml}\nparameters: {top_k: 5}\n", "chatml")
    found = config(tmp_path, "template: {preset: chatml}\n")
    assert (found.template.preset, found.parameters.top_k) == ("chatml", 5)


def test_a_built_in_preset_is_meant_where_there_is_no_file(tmp_path: Path) -> None:
    loaded = load(tmp_path, "template: {preset: chatml}\n")
    assert loaded.config is not None and loaded.config.template.preset == "chatml"
    assert loaded.depends == (tmp_path / "presets" / "chatml.yaml",)
    assert (loaded.preset, loaded.lent) == (None, {})


@pytest.mark.parametrize(
    ("lower", "upper", "expected"),
    [
        ("chat_template: P", "chat_template: M", {"chat_template": "M"}),
        ("chat_template: P", "chat: '{{.Input}}'", {"chat": "{{.Input}}"}),
        ("chat: '{{.Input}}'", "chat_template: M", {"chat_template": "M"}),
        ("preset: chatml", "chat: '{{.Input}}'", {"chat": "{{.Input}}"}),
        ("preset: chatml", "adapter: {user_start: U}", {"adapter": {"user_start": "U"}}),
        ("use_tokenizer_template: true", "chat: '{{.Input}}'", {"chat": "{{.Input}}"}),
        ("chat: '{{.Input}}'", "chat_message: '{{.Content}}'", {"chat": "{{.Input}}", "chat_message": "{{.Content}}"}),
        ("adapter: {user_start: P, user_end: E}", "adapter: {user_start: M}", {"adapter": {"user_start": "M", "user_end": "E"}}),
        ("preset: gatogpt/chatml, engine: gatogpt", "chat: M", {"preset": "gatogpt/chatml", "engine": "gatogpt", "chat": "M"}),
        ("chat: '{{.Input}}'", "use_tokenizer_template: false", {"chat": "{{.Input}}", "use_tokenizer_template": False}),
    ],
)
def test_a_model_that_writes_chats_its_own_way_has_no_other(
    tmp_path: Path, lower: str, upper: str, expected: dict[str, Any]
) -> None:
    preset(tmp_path, f"template: {{{lower}}}\n")
    loaded = load(tmp_path, f"template: {{preset: mine, {upper}}}\n")
    assert loaded.config is not None, loaded.problems
    template = loaded.config.template
    assert {
        key: getattr(template, key) for key in template.__struct_fields__ if getattr(template, key) not in (None, {})
    } == expected
    assert not loaded.warnings


def test_localais_mirostat_at_the_top_counts(tmp_path: Path) -> None:
    preset(tmp_path, "parameters: {mirostat: 2, mirostat_tau: 3}\n")
    found = config(tmp_path, "template: {preset: mine}\nmirostat: 1\n")
    assert (found.mirostat, found.parameters.mirostat, found.parameters.mirostat_tau) == (1, None, 3.0)


# --- templates in files ------------------------------------------------------------------------------------------------------


def test_its_template_files_lie_beside_it(tmp_path: Path) -> None:
    path = preset(tmp_path, "template: {chat_template_file: t.jinja}\n")
    (tmp_path / "t.jinja").write_text("beside the model")
    (path.parent / "t.jinja").write_text("beside the preset")
    loaded = load(tmp_path)
    assert loaded.config is not None and loaded.config.template.chat_template == "beside the preset"
    assert loaded.templates == (("template.chat_template_file", path.parent / "t.jinja"),)
    assert {path, path.parent / "t.jinja"} <= set(loaded.depends)
    assert (
        config(tmp_path, "template: {preset: mine, chat_template_file: t.jinja}\n").template.chat_template == "beside the model"
    )


def test_named_go_templates_lie_beside_it_too(tmp_path: Path) -> None:
    path = preset(tmp_path, "template: {chat: llama-chat}\n")
    (path.parent / "llama-chat.tmpl").write_text("{{.Input}}!")
    assert config(tmp_path).template.chat == "{{.Input}}!"


# --- faults ------------------------------------------------------------------------------------------------------------------

FAULTS = [
    ("parameters: {temperture: 1}\n", (1, 14, "parameters.temperture"), "did you mean parameters.temperature?"),
    ("parameters: {temperature: hot}\n", (1, 27, "parameters.temperature"), "expected a number"),
    ("parameters: {max_tokens: 0}\n", (1, 26, "parameters.max_tokens"), "every answer would be empty"),
    ("parameters: {samplers: [nonsense]}\n", (1, 24, "parameters.samplers"), "nonsense"),
    ("parameters: {logit_bias: {x: 1}}\n", (1, 26, "parameters.logit_bias.x"), "a token id"),
    ("context_size: 5\n", (1, 1, "context_size"), "it belongs in the model's file"),
    ("parameters: {model: x.gguf}\n", (1, 14, "parameters.model"), "write it in the model's file"),
    ("stopwords: [a, '']\n", (1, 16, "stopwords[1]"), "would end every answer"),
    ("template:\n  chat_template: |\n    {% if %}\n", (3, 0, "template.chat_template"), "does not parse"),
    ("template: {chat: '{{foo}}'}\n", (1, 0, "template.chat"), "does not parse"),
    ("template: {preset: chatmll}\n", (1, 20, "template.preset"), "did you mean chatml?"),
    ("template: {preset: mine}\n", (1, 20, "template.preset"), "a preset of your own may name built-in ones only"),
    ("template: {preset: gatogpt/chatml, variables: {X: y}}\n", (1, 47, "template.variables.X"), "no such key"),
    ("template: {adapter: {user_strat: x}}\n", (1, 22, "template.adapter.user_strat"), "user_start"),
    ("template: {chat_template_file: ../t}\n", (1, 32, "template.chat_template_file"), "outside the folder"),
    ("template: {chat_template_file: none}\n", (1, 32, "template.chat_template_file"), "cannot read none"),
    ("- a list\n", (1, 1, ""), "found a list"),
    ("a: [\n", (2, 1, ""), ""),
]  # fmt: skip


@pytest.mark.parametrize(("text", "place", "words"), FAULTS)
def test_faults_are_told_with_their_own_place_for_every_model_and_once_for_the_file(
    tmp_path: Path, text: str, place: tuple[int, int, str], words: str
) -> None:
    path = preset(tmp_path, text)
    loaded, alone = load(tmp_path), load_preset(path, outside())
    assert loaded.config is None
    assert loaded.problems == alone.problems
    (fault,) = alone.problems
    assert (fault.path, fault.line, fault.key) == (path, place[0], place[2])
    assert place[1] in (0, fault.column)
    assert words in f"{fault.message}; {fault.suggestion}"


def test_what_both_files_say_wrong_is_told_of_both(tmp_path: Path) -> None:
    preset(tmp_path, "parameters: {max_tokens: 0}\ntemplate: {engine: gatogpt, variables: {X: y}}\n")
    loaded = load(tmp_path, "template: {preset: mine, variables: {Y: z}}\nparameters: {max_tokens: 0}\n")
    assert told(loaded.problems) == [
        ("m.yaml", 3, 37, "template.variables.Y"),
        ("m.yaml", 4, 26, "parameters.max_tokens"),
        ("mine.yaml", 1, 26, "parameters.max_tokens"),
        ("mine.yaml", 2, 40, "template.variables.X"),
    ]


def test_warnings_too(tmp_path: Path) -> None:
    path = preset(tmp_path, "parameters: {tfz: 0.5}\ntemplate: {engine: gatogpt, chat: '{{Input}}'}\n")
    loaded = load(tmp_path)
    assert loaded.config is not None
    assert told(loaded.warnings) == [("mine.yaml", 1, 14, "parameters.tfz"), ("mine.yaml", 2, 29, "template.chat")]
    assert load_preset(path, outside()).warnings == loaded.warnings


def test_what_only_the_two_together_make_wrong_stands_where_it_is_written(tmp_path: Path) -> None:
    preset(tmp_path, "\nsystem_prompt: Be kind.\n")
    loaded = load(tmp_path, "template: {preset: mine, chat: '{{.Input}}'}\n")
    assert told(loaded.warnings) == [("mine.yaml", 2, 1, "system_prompt")]


def test_an_unknown_name_lists_ones_own(tmp_path: Path) -> None:
    preset(tmp_path, "", "my-format")
    (fault,) = load(tmp_path, "template: {preset: my-fromat}\n").problems
    assert (fault.line, fault.column, fault.suggestion) == (3, 20, "did you mean my-format?")


def test_an_empty_file_says_nothing_and_is_told(tmp_path: Path) -> None:
    preset(tmp_path, "# soon\n")
    loaded = load(tmp_path)
    assert loaded.config is not None
    assert told(loaded.warnings) == [("mine.yaml", 1, 1, "")]


def test_files_that_cannot_be_read_are_told(tmp_path: Path) -> None:
    preset(tmp_path, "").write_bytes(b"a: \xff")
    assert "not UTF-8" in load(tmp_path).problems[0].message
    preset(tmp_path, "").write_bytes(b"#" * (1024 * 1024 + 1))
    assert "bytes" in load(tmp_path).problems[0].message
    (tmp_path / "presets" / "mine.yaml").unlink()
    (tmp_path / "presets" / "mine.yaml").mkdir()
    assert "cannot be read" in load(tmp_path).problems[0].message
    assert "no such file" in load_preset(tmp_path / "presets" / "none.yaml").problems[0].message


# --- names -------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "name", ["../secret", "sub/secret", "/etc/secret", "..", ".hidden", "a\\\\b", "c:x", "", "x" * 201, "a\\0b", " a"]
)
def test_names_do_not_lead_out_of_the_folder(tmp_path: Path, name: str) -> None:
    (tmp_path / "secret.yaml").write_text("parameters: {top_k: 5}\n")
    (tmp_path / "presets" / "sub").mkdir(parents=True)
    (tmp_path / "presets" / "sub" / "secret.yaml").write_text("parameters: {top_k: 5}\n")
    (problem,) = load(tmp_path, f'template: {{preset: "{name}"}}\n').problems
    assert "no preset is called" in problem.message


@given(st.text())
def test_no_name_means_a_file_elsewhere(name: str) -> None:
    path = preset_path(name, Path("/models"))
    assert path is None or (path.parent == Path("/models/presets") and path.name == f"{name}.yaml" and ".." not in path.parts)


def test_links_do_not_lead_out_of_the_folder(tmp_path: Path) -> None:
    (tmp_path / "secret.yaml").write_text("parameters: {top_k: 5}\n")
    inner = tmp_path / "models"
    (inner / "presets").mkdir(parents=True)
    (inner / "presets" / "mine.yaml").symlink_to(tmp_path / "secret.yaml")
    (problem,) = load(inner).problems
    assert "outside of the models folder" in problem.message
    (inner / "presets" / "mine.yaml").unlink()
    (inner / "presets" / "mine.yaml").symlink_to("mine.yaml")
    assert "cannot be read" in load(inner).problems[0].message


def test_ones_own_are_listed(tmp_path: Path) -> None:
    assert own_presets(tmp_path) == []
    paths = [preset(tmp_path, "", name) for name in ("b", "a")]
    preset(tmp_path, "", ".hidden")
    (tmp_path / "presets" / "t.jinja").touch()
    assert own_presets(tmp_path) == sorted(paths)


def test_a_file_that_nobody_can_name_is_told(tmp_path: Path) -> None:
    assert "cannot name a preset" in load_preset(preset(tmp_path, "system_prompt: x\n", ".x")).problems[0].message


def test_files_about_to_be_written_count(tmp_path: Path) -> None:
    pending = Outside(pending={tmp_path / "presets" / "mine.yaml": b"parameters: {top_k: 5}\n"})
    found = parse_model(f"{HEAD}template: {{preset: mine}}\n".encode(), tmp_path / "m.yaml", specs(), pending).config
    assert found is not None and found.parameters.top_k == 5


TEXTS = ["{{.Input}}", "{{ Message }}", "{{x", "name", ""]
VALUES: dict[str, list[Any]] = {
    "preset": ["mine", "chatml", "gatogpt/chatml", "kobold/ChatML", "none", None],
    "engine": ["go", "gatogpt", "ollama", "other"],
    "chat_template": ["{{ messages }}", "{% if %}", "{{ .Input }}", ""],
    "chat_template_file": ["t.jinja", "../t"],
    "adapter": ["AutoGuess", "none", {"user_start": "U"}, {"user": 1}, {"templates": {"user": {"start": "U"}}}],
    "variables": [{"InputPrefix": "U"}, {"Bad": "x"}, {"PrePrompt": 1}, None],
    **dict.fromkeys(("chat", "chat_message", "function", "completion", "generation"), TEXTS),
    "use_tokenizer_template": [True, False, "x"],
}  # fmt: skip
TEMPLATES = st.fixed_dictionaries({}, optional={key: st.sampled_from(values) for key, values in VALUES.items()})
PARAMETERS: dict[str, list[Any]] = {
    "logit_bias": [{"1": 1}, {"x": 1}, {"2": 2}, []], "max_tokens": [0, -1, 5, "x"], "samplers": [["temp"], ["x"], "kx"],
    "mirostat": [1, 2], "dry_sequence_breakers": [[""], ["a"]], "model": ["x.gguf"], "tfz": [1],
}  # fmt: skip
TOP = {
    "template": TEMPLATES,
    "parameters": st.fixed_dictionaries({}, optional={key: st.sampled_from(values) for key, values in PARAMETERS.items()}),
    "stopwords": st.sampled_from([["a", ""], ["b"], [""], "a", None]),
    "system_prompt": st.sampled_from(["x", "", None, 5]),
    "mirostat": st.sampled_from([1, "x"]),
}


@given(upper=st.fixed_dictionaries({}, optional=TOP), lower=st.fixed_dictionaries({}, optional=TOP))
def test_any_two_files_are_read_or_refused_in_words(upper: dict[str, Any], lower: dict[str, Any]) -> None:
    folder = Path("/nowhere")
    here = replace(outside(), pending={folder / "presets" / "mine.yaml": yaml.safe_dump(lower).encode()})
    upper["template"] = {**upper.get("template", {}), "preset": "mine"}
    loaded = parse_model(f"backend: echo\n{yaml.safe_dump(upper)}".encode(), folder / "m.yaml", specs(), here)
    assert (loaded.config is None) == bool(loaded.problems)
    alone = load_preset(folder / "presets" / "mine.yaml", here)
    assert set(alone.problems) <= set(loaded.problems)
    if loaded.config is not None:
        rows = explain(loaded.config, path=loaded.path, places=loaded.places, lent=loaded.lent)
        assert not [row for row in rows if row.source == "recognised"]


@given(st.binary())
def test_any_bytes_are_read_or_refused_in_words(data: bytes) -> None:
    path = Path("/nowhere/presets/mine.yaml")
    assert load_preset(path, replace(outside(), pending={path: data})).path == path


# --- who says so -------------------------------------------------------------------------------------------------------------


def test_explain_tells_the_line_of_the_preset_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    preset(tmp_path, WHOLE)
    loaded = load(tmp_path, "template: {preset: mine, variables: {InputSuffix: T}}\nstopwords: [c]\nparameters: {top_k: 3}\n")
    assert loaded.config is not None
    rows = explain(loaded.config, path=loaded.path, places=loaded.places, lent=loaded.lent)
    sources = {row.key: row.source for row in rows}
    assert (sources["parameters.temperature"], sources["parameters.top_k"]) == ("presets/mine.yaml:9", "m.yaml:5")
    assert (sources["system_prompt"], sources["template.chat"]) == ("presets/mine.yaml:8", "presets/mine.yaml:4")
    assert sources["stopwords"] == "m.yaml:4 and presets/mine.yaml:7"
    assert sources["template.variables"] == "m.yaml:3 and presets/mine.yaml:6"
    assert "template.chat" not in loaded.places and "template.preset" in loaded.places


# --- for editors -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("text", [text for text, _, words in FAULTS[:7] if words not in ("nonsense", "a token id")])
def test_the_schema_refuses_what_the_reader_refuses(text: str) -> None:
    assert not Draft202012Validator(preset_schema()).is_valid(yaml.safe_load(text))


def test_the_schema_takes_what_the_reader_takes() -> None:
    schema = preset_schema()
    Draft202012Validator.check_schema(schema)
    assert Draft202012Validator(schema).is_valid(yaml.safe_load(WHOLE))
    assert set(schema["$defs"]["Parameters"]["properties"]) == set(Parameters.__struct_fields__) - LOAD_PARAMETERS


# --- the documentation -------------------------------------------------------------------------------------------------------


def test_the_example_of_the_docs_does_what_it_says(tmp_path: Path) -> None:
    text = (Path(__file__).parents[2] / "docs" / "templates.md").read_text(encoding="utf-8")
    section = text.partition("## Presets of your own")[2].partition("\n## ")[0]
    own, model = (block.partition("```")[0] for block in section.split("```yaml\n")[1:])
    preset(tmp_path, own, "support")
    (tmp_path / "mistral.yaml").write_text(f"backend: llama-cpp\n{model}")
    loaded = load_model(tmp_path / "mistral.yaml", specs(), outside())
    assert loaded.config is not None and not loaded.warnings
    found = loaded.config
    assert (found.template.preset, found.system_prompt) == ("chatml", "You help customers. Be brief.")
    assert (found.stopwords, found.parameters.temperature, found.parameters.max_tokens) == (["Customer:"], 0.6, 400)
