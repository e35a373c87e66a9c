"""Presets of one's own at the command line: check, explain, render, schema and import."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from click.testing import CliRunner, Result
from jsonschema import Draft202012Validator
from terminal import environment

from llmgallery.cli import main

PRESET = """\
template:
  chat_template: "{% for message in messages %}[{{ message.content }}]{% endfor %}"
stopwords: ["]"]
parameters: {top_k: 7}
"""


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    for name, value in environment(tmp_path).items():
        monkeypatch.setenv(name, value)
    monkeypatch.chdir(tmp_path)
    folder = tmp_path / "models"
    (folder / "presets").mkdir(parents=True)
    (folder / "presets" / "mine.yaml").write_text(PRESET)
    for name in ("a", "b"):
        (folder / f"{name}.yaml").write_text("backend: echo\ntemplate: {preset: mine}\nstopwords: [x]\n")
    return folder


def invoke(*arguments: str, text: str | None = None) -> Result:
    return CliRunner().invoke(main, arguments, prog_name="llmgallery", input=text)


def test_check_tells_what_is_wrong_with_a_preset_once(folder: Path) -> None:
    (folder / "presets" / "mine.yaml").write_text("parameters: {top_q: 7, tfz: 1}\n")
    (folder / "presets" / "spare.yaml").write_text("stopwords: ['']\n")
    result = invoke("check")
    assert result.exit_code == 1
    assert result.stdout.splitlines() == [
        "models/presets/mine.yaml:1:14: parameters.top_q: unknown key; did you mean parameters.top_k?",
        "models/presets/mine.yaml:1:24: parameters.tfz: no engine uses this key any more: llama.cpp has removed tail-free "
        "sampling; min_p does its work (warning)",
        "models/presets/spare.yaml:1:13: stopwords[0]: an empty text would end every answer",
    ]
    assert "2 problems" in result.stderr
    one = invoke("check", "models/a.yaml")
    assert one.exit_code == 1 and "models/presets/mine.yaml:1:14" in one.stdout


def test_check_of_a_preset_file(folder: Path) -> None:
    result = invoke("check", "models/presets/mine.yaml")
    assert (result.exit_code, result.stderr) == (0, "models/presets/mine.yaml: 1 preset file, no problem\n")


def test_explain_tells_the_presets_lines(folder: Path) -> None:
    rows = {line.split("\t")[0]: line.split("\t")[1:] for line in invoke("explain", "a").stdout.splitlines()}
    assert rows["preset file"] == ["models/presets/mine.yaml", "template.preset (models/a.yaml:2)"]
    assert rows["parameters.top_k"] == ["7", "models/presets/mine.yaml:4"]
    assert rows["stopwords"] == ['["x","]"]', "models/a.yaml:3 and models/presets/mine.yaml:3"]
    assert rows["template"][1] == "template.chat_template (models/presets/mine.yaml:2)"


def test_explain_of_a_preset_on_a_built_in_one(folder: Path) -> None:
    (folder / "presets" / "mine.yaml").write_text("\ntemplate:\n  preset: chatml\n")
    rows = [line.split("\t") for line in invoke("explain", "a").stdout.splitlines()]
    assert ["template.preset", "chatml", "models/presets/mine.yaml:3"] in rows
    assert ["stopwords", '["<|im_end|>"]', "template.preset chatml"] in rows
    assert any(row[0] == "template" and row[-1] == "template.preset chatml (models/presets/mine.yaml:3)" for row in rows)


def test_render_writes_the_presets_prompt(folder: Path) -> None:
    body = json.dumps({"messages": [{"role": "user", "content": "Hi"}]})
    result = invoke("render", "a", "--request", "-", text=body)
    assert (result.exit_code, result.stdout.removesuffix("\n")) == (0, "[Hi]"), result.output


def test_schema_of_presets() -> None:
    schema = json.loads(invoke("schema", "--preset").stdout)
    assert Draft202012Validator(schema).is_valid({"template": {"preset": "chatml"}})
    assert not Draft202012Validator(schema).is_valid({"backend": "echo"})


def test_import_writes_preset_files_once(folder: Path, tmp_path: Path) -> None:
    source = tmp_path / "config.json"
    profile = {"InferenceParams": {"Temp": 0.3, "ChatTemplate": "{{ Input }}"}}
    definition = {"ModelResourceId": "r", "ProfilePreset": "own"}
    source.write_text(
        json.dumps(
            {
                "Resources": {"LlamaModels": {"r": {"Path": "/srv/x.gguf", "Class": "LlamaModel"}}},
                "TextGeneration": {"c": definition, "d": definition},
                "DefaultModelProfiles": {"own": profile},
            }
        )
    )
    first = invoke("import", str(source))
    assert first.exit_code == 0, first.output
    assert [Path(line.removeprefix("wrote ")).relative_to(folder).as_posix() for line in first.stdout.splitlines()] == [
        "presets/own.yaml",
        "c.yaml",
        "d.yaml",
    ]
    assert invoke("import", str(source)).stdout == ""
    rows = [line.split("\t") for line in invoke("explain", "c").stdout.splitlines()]
    assert any(row[:2] == ["parameters.temperature", "0.3"] and "presets/own.yaml" in row[2] for row in rows)
