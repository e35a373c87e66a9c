"""LocalAI's models folder to model files."""

from __future__ import annotations

import string

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st
from importing_scene import imported, models, told, written

from llmgallery.config.suggest import model_levels
from llmgallery.core.errors import ConfigError
from llmgallery.importers.recognise import importer_for

BASE = """\
name: chatty
license: apache-2.0
urls: [https://example.org/chatty]
config_file: |
  backend: llama-cpp
  parameters:
    temperature: 0.5
    context_size: 4096
  template:
    chat: chatty
    completion: "{{.Input}}"
prompt_templates:
  - name: chatty
    content: "<{{.Input}}>"
  - name: other
    content: "unused"
files:
  - filename: chatty.gguf
    uri: huggingface://owner/repo/chatty.gguf
    sha256: 0000000000000000000000000000000000000000000000000000000000000000
"""


def test_a_folder_with_everything(tmp_path):
    source = written(
        tmp_path / "localai",
        {
            "plain.yaml": "# mine\nname: plain\nbackend: echo\n",
            "list.yaml": "- {name: one, backend: echo}\n- {backend: echo}\n- 3\n",
            "redirect.yaml": "name: gpt-4\nalias: plain\n",
            "lost.yaml": "name: gpt-5\nalias: nobody\n",
            "voice.yaml": "name: voice\nbackend: piper\nparameters: {model: en.onnx}\n",
            "broken.yaml": "name: [\n",
            "compose.yaml": "services: {}\n",
            "odd.tmpl": "{{.Input}}",
            ".hidden.yaml": "backend: echo\n",
            "._gallery_plain.yaml": "name: x\n",
        },
    )
    found = imported(source, tmp_path / "out")
    got = models(found)
    assert got == {
        "list-2": {"name": "list-2", "backend": "echo"},
        "one": {"name": "one", "backend": "echo"},
        "plain": {"name": "plain", "backend": "echo", "aliases": ["gpt-4"]},
    }
    lines = [str(warning).rpartition("/")[2] for warning in found.warnings]
    assert any(line.startswith("lost.yaml:2:1: alias: no model here is called 'nobody'") for line in lines)
    assert any(line.startswith("voice.yaml:2:1: backend: voice is for speech") for line in lines)
    assert any(line.startswith("list.yaml:3:3: [2]: is no model") for line in lines)
    assert any(line.startswith("compose.yaml: is no model file") for line in lines)
    assert any(line.startswith("odd.tmpl: no model names this template") for line in lines)
    [problem] = found.problems
    assert "broken.yaml:2:1: a value is missing here" in str(problem)


def test_weights_stay_where_they_lie(tmp_path):
    text = "name: a\nbackend: llama-cpp\nparameters: {model: sub/a.gguf}\nlora_adapters: [b.gguf, owner/repo/c.gguf]\n"
    source = written(tmp_path / "localai", {"a.yaml": text, "sub/a.gguf": "GGUF", "b.gguf": "GGUF"})
    found = models(imported(source, tmp_path / "out"))["a"]
    assert found["parameters"]["model"] == str(source / "sub" / "a.gguf")
    assert found["lora_adapters"] == [str(source / "b.gguf"), "owner/repo/c.gguf"]
    again = imported(source, source)
    assert again.files[0].text == text


def test_files_to_be_fetched_become_references(tmp_path):
    text = """\
name: a
backend: llama-cpp
parameters: {model: a.gguf}
draft_model: small.gguf
download_files:
  - {filename: a.gguf, uri: "huggingface://owner/repo/dir/a.gguf"}
  - {filename: small.gguf, uri: "https://huggingface.co/owner/repo/resolve/v1/small.gguf"}
"""
    found = imported(written(tmp_path, {"a.yaml": text}) / "a.yaml", tmp_path / "out")
    config = models(found)["a"]
    assert config["parameters"]["model"] == "owner/repo/dir/a.gguf"
    assert config["draft_model"] == "owner/repo/small.gguf@v1"
    assert "# File a.gguf: huggingface://owner/repo/dir/a.gguf" in found.files[0].text


def test_an_address_that_is_not_the_hubs_is_told(tmp_path):
    text = "name: a\nbackend: llama-cpp\nparameters:\n  model: https://example.org/x/a.gguf\n"
    found = imported(written(tmp_path, {"a.yaml": text}) / "a.yaml", tmp_path / "out")
    assert models(found)["a"]["parameters"]["model"] == "a.gguf"
    assert any("is no address of the Hugging Face Hub" in warning.message and warning.line == 4 for warning in found.warnings)


def test_templates_of_files_come_in(tmp_path):
    texts = {
        "a.yaml": "name: a\nbackend: echo\nmodel: a.bin\ntemplate: {chat: mine, chat_message: '{{.Content}}'}\n",
        "b.yaml": "name: b\nbackend: echo\nmodel: b.bin\ntemplate: {use_tokenizer_template: true}\n",
        "mine.tmpl": "<{{.Input}}>",
        "a.bin.tmpl": "[{{.Input}}]",
        "b.bin.tmpl": "never",
    }
    found = imported(written(tmp_path / "localai", texts), tmp_path / "out")
    got = models(found)
    assert got["a"]["template"] == {
        "chat": "<{{.Input}}>", "chat_message": "{{.Content}}", "completion": "[{{.Input}}]", "edit": "[{{.Input}}]",
    }  # fmt: skip
    assert got["b"]["template"] == {"use_tokenizer_template": True}
    assert any(str(warning.path).endswith("b.bin.tmpl") for warning in found.warnings)


def test_files_of_a_folder_that_stays_are_left_where_they_are(tmp_path):
    texts = {
        "a.yaml": "name: a\nbackend: echo\nmodel: a.bin\ntemplate: {chat: mine}\n",
        "b.yaml": "name: b\nbackend: echo\ntemplate: {chat_template_file: b.jinja}\n",
        "mine.tmpl": "<{{.Input}}>",
        "a.bin.tmpl": "[{{.Input}}]",
        "b.jinja": "{{ messages[0].content }}",
    }
    source = written(tmp_path / "localai", texts)
    found = imported(source, source)
    assert {file.name: file.text for file in found.files} == {name: texts[name] for name in ("a.yaml", "b.yaml")}
    assert not [warning for warning in found.warnings if str(warning.path).endswith((".tmpl", ".jinja"))]
    moved = models(imported(source, tmp_path / "out"))
    assert moved["b"]["template"] == {"chat_template": "{{ messages[0].content }}"}


@pytest.mark.parametrize("text", ["main_gpu: cuda.0\n", "stopwords: [x]\n", "f16: true\n", "- backend: echo\n"])
def test_parts_of_a_model_file_are_recognised(text, tmp_path):
    assert importer_for(written(tmp_path, {"a.yaml": text}) / "a.yaml").kind == "localai"


@pytest.mark.parametrize("text", ["services: {}\n", "name: x\non: push\njobs: {}\n", "- 1\n", "text\n", "# nothing\n"])
def test_other_files_are_not(text, tmp_path):
    with pytest.raises(ConfigError, match="is in no format that is known here"):
        importer_for(written(tmp_path, {"a.yaml": text}) / "a.yaml")


def test_a_template_outside_of_the_folder_is_not_taken(tmp_path):
    (tmp_path / "secret.tmpl").write_text("{{.Input}} secret")
    source = written(tmp_path / "localai", {"a.yaml": "name: a\nbackend: echo\ntemplate: {completion: ../secret}\n"})
    assert "secret.tmpl" not in imported(source, tmp_path / "out").files[0].text.replace("../secret", "")
    assert "secret\n" not in imported(source, tmp_path / "out").files[0].text.replace("../secret", "")


def test_a_base_file_needs_its_weights_named(tmp_path):
    source = written(tmp_path, {"chatty.yaml": BASE}) / "chatty.yaml"
    assert "no weights: parameters.model is missing; --model REFERENCE names them" in str(
        imported(source, tmp_path / "out").problems[0]
    )
    found = imported(source, tmp_path / "out", weights="owner/other/x.gguf")
    assert models(found) == {
        "chatty": {
            "name": "chatty",
            "backend": "llama-cpp",
            "parameters": {"model": "owner/other/x.gguf", "temperature": 0.5},
            "template": {"chat": "<{{.Input}}>", "completion": "{{.Input}}"},
            "context_size": 4096,
        }
    }
    assert told(found) == ["prompt_templates.other"]
    assert "# Licence: apache-2.0.\n" in found.files[0].text
    assert any("parameters.context_size has no meaning there" in note for note in found.notes)


def test_a_base_file_that_is_wrong_is_refused_with_its_place(tmp_path):
    source = written(tmp_path, {"x.yaml": "config_file: |\n  backend: echo\n  a: [\n"}) / "x.yaml"
    with pytest.raises(ConfigError, match=r"x\.yaml:4:3: config_file: a value is missing"):
        imported(source, tmp_path / "out")


def test_a_gallerys_index_is_no_models_folder(tmp_path):
    source = written(tmp_path, {"index.yaml": "- {name: a, url: 'github:x', overrides: {backend: echo}, files: []}\n"})
    with pytest.raises(ConfigError, match="is a gallery's index, not models: `llmgallery serve --gallery NAME="):
        imported(source / "index.yaml", tmp_path / "out")


def test_dead_keys_are_lifted_or_told(tmp_path):
    text = (
        "name: a\nbackend: cuda12-llama-cpp\nparameters:\n  model: o/r/a.gguf\n  f16: true\n  voice: x\ntts: {voice: y}\nfoo: 1\n"
    )
    found = imported(written(tmp_path, {"a.yaml": text}) / "a.yaml", tmp_path / "out")
    assert models(found)["a"] == {"name": "a", "backend": "llama-cpp", "parameters": {"model": "o/r/a.gguf"}, "f16": True}
    assert [(warning.line, warning.column, warning.key) for warning in found.warnings] == [
        (6, 3, "parameters.voice"),
        (7, 1, "tts"),
        (8, 1, "foo"),
    ]
    assert '# Not used here: parameters.voice = "x"\n' in found.files[0].text
    assert '# Not used here: tts = {"voice":"y"}\n' in found.files[0].text


def test_yaml_as_go_reads_it(tmp_path):
    text = 'name: a\nbackend: echo\nsystem_prompt: "it\\\'s"\n'
    found = imported(written(tmp_path, {"a.yaml": text}) / "a.yaml", tmp_path / "out")
    assert found.files[0].text == text


def test_a_key_that_is_written_twice_is_told(tmp_path):
    found = imported(
        written(tmp_path, {"a.yaml": "name: a\nbackend: echo\nthreads: 1\nthreads: 2\n"}) / "a.yaml", tmp_path / "out"
    )
    assert models(found)["a"] == {"name": "a", "backend": "echo", "threads": 1}
    assert "the key is already in line 3" in str(found.warnings[0])


@pytest.mark.parametrize("text", ["&a {b: *a}", "&a [*a]", "a: &a [x, x]\nb: &b [*a, *a, *a, *a, *a, *a, *a, *a]\nc: [*b]\n"])
def test_aliases_do_not_run_away(text, tmp_path):
    for _ in range(3):
        text = text.replace("x, x", "x, x, x, x, x, x, x, x, x, x, x, x, x, x, x, x, x, x, x, x, x, x, x, x, x")
    source = (
        written(tmp_path, {"a.yaml": f"backend: echo\nfeature_flags:\n  {text.replace(chr(10), chr(10) + '  ')}\n"}) / "a.yaml"
    )
    try:
        assert imported(source, tmp_path / "out").warnings
    except ConfigError as error:
        assert "a.yaml" in error.message


NAMES = sorted({key for keys in model_levels().values() for key in keys} - {"name", "alias", "backend", "config_file"})
KEYS = st.sampled_from(NAMES) | st.text(string.ascii_lowercase, min_size=1, max_size=6)
LEAVES = st.none() | st.booleans() | st.integers(-5, 9999) | st.floats(-2, 2) | st.text(string.printable, max_size=12)
VALUES = st.recursive(LEAVES, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(KEYS, inner, max_size=3), max_leaves=6)


@settings(max_examples=150, deadline=None)
@given(st.dictionaries(KEYS, VALUES, max_size=6))
def test_nothing_is_lost_in_silence(tmp_path_factory, values):
    folder = tmp_path_factory.mktemp("localai")
    written(folder, {"a.yaml": yaml.safe_dump({"name": "a", "backend": "echo", **values})})
    found = imported(folder / "a.yaml", folder / "out")
    if found.problems or not found.files:  # no weights, or no model of text
        assert found.problems or found.warnings
        return
    said = found.files[0].text + "".join(map(str, (*found.warnings, *found.notes)))
    for key, value in values.items():
        assert says_nothing(value) or key in said


def says_nothing(value):
    """Nothing is written there, or mappings with nothing in them."""
    return value is None or value == [] or (isinstance(value, dict) and all(map(says_nothing, value.values())))
