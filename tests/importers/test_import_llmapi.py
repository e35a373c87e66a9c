"""llm-api's config.yaml and its variables."""

from __future__ import annotations

import hashlib
import json

import pytest
from importing_scene import SEEDS, imported, models, told, written

from llmgallery.backends.loader import specs
from llmgallery.cli.llmapi import served
from llmgallery.cli.stack import outside
from llmgallery.config.load import load_model
from llmgallery.core.errors import ConfigError
from llmgallery.importers import llmapi
from llmgallery.importers.base import Around

LLAMA = (SEEDS / "llm-api-llama" / "config.yaml").read_text()


def source_of(tmp_path, text):
    return written(tmp_path, {"config.yaml": text}) / "config.yaml"


def test_variables_lie_over_the_file(tmp_path):
    env = {
        "llm_api_Model_Params": json.dumps({"n_ctx": 700, "n_gpu_layers": 3}),
        "LLM_API_SETUP_PARAMS": '{"filename": "other.gguf"}',
        "LLM_API_PORT": "9001",
        "LLM_API_LOG_LEVEL": "critical",
        "LLM_API_MODELS_DIR": str(tmp_path / "there"),
        "LLM_API_KEY": "somebody else's",
    }
    found = imported(source_of(tmp_path, LLAMA), tmp_path / "out", env=env)
    config = models(found)["repo_id"]
    assert config["parameters"]["model"] == "user/repo_id/other.gguf"
    assert (config["context_size"], config["gpu_layers"], config["threads"]) == (700, 3, 8)
    assert found.default == "repo_id"
    assert dict(found.settings) == {
        "host": "0.0.0.0", "port": 9001, "models_dir": str(tmp_path / "there"), "log_level": "error",
    }  # fmt: skip


def test_maps_in_variables_are_merged_to_the_bottom(tmp_path):
    text = "model_family: huggingface\nsetup_params: {repo_id: o/r, config_params: {a: {b: 1, c: 2}}}\n"
    env = {"LLM_API_SETUP_PARAMS": '{"config_params": {"a": {"c": 3}, "d": [null, true]}}'}
    config = models(imported(source_of(tmp_path, text), tmp_path / "out", env=env))["r"]
    assert config["options"] == {"config_params": {"a": {"b": 1, "c": 3}, "d": [None, True]}}


@pytest.mark.parametrize("value", ["{", "[1]", "n_ctx=1"])
def test_a_variable_that_is_no_json_is_refused(value, tmp_path):
    with pytest.raises(ConfigError, match="LLM_API_MODEL_PARAMS: expected "):
        imported(source_of(tmp_path, LLAMA), tmp_path / "out", env={"LLM_API_MODEL_PARAMS": value})


def test_the_variables_alone_are_enough(tmp_path):
    env = {"LLM_API_SETUP_PARAMS": '{"repo_id": "o/r", "filename": "f.gguf"}', "LLM_API_MODEL_FAMILY": "llama"}
    found = llmapi.from_variables(Around(specs(), tmp_path, outside(), env=env), tmp_path)
    assert models(found)["r"]["parameters"]["model"] == "o/r/f.gguf"
    assert llmapi.from_variables(Around(specs(), tmp_path, outside(), env={"LLM_API_PORT": "1"}), tmp_path) is None


def test_both_spellings_of_threads_and_batch(tmp_path):
    text = "setup_params: {repo_id: o/r, filename: f.gguf}\nmodel_params: {num_threads: 3, batch_size: 9, n_threads: 4}\n"
    found = imported(source_of(tmp_path, text), tmp_path / "out")
    config = models(found)["r"]
    assert (config["threads"], config["parameters"]["batch"]) == (4, 9)
    assert told(found) == ["model_params.num_threads"]


def test_weights_that_llm_api_has_fetched_are_used(tmp_path):
    digits = str(int(hashlib.md5(b"f.gguf").hexdigest(), 16))[:12]
    written(tmp_path, {f"models/llama_{digits}/f.gguf": "GGUF"})
    source = source_of(tmp_path, "model_family: llama\nsetup_params: {repo_id: o/r, filename: f.gguf}\n")
    config = models(imported(source, tmp_path / "out"))["r"]
    assert config["parameters"]["model"] == str(tmp_path / "models" / f"llama_{digits}" / "f.gguf")


def test_what_has_no_counterpart_is_told(tmp_path):
    setup, params = "{repo_id: o/r, filename: f, convert: true}", "{n_parts: 3, foo: 1}"
    text = f"model_family: llama\nextra: 1\nlog_level: loud\nsetup_params: {setup}\nmodel_params: {params}\n"
    found = imported(source_of(tmp_path, text), tmp_path / "out")
    assert told(found) == ["extra", "log_level", "model_params.foo", "model_params.n_parts", "setup_params.convert"]


def test_an_unknown_family_is_refused(tmp_path):
    with pytest.raises(ConfigError, match=r"model_family 'rwkv' is none of llama, "):
        imported(source_of(tmp_path, "model_family: rwkv\n"), tmp_path / "out")


def test_the_model_is_there_while_it_is_served(tmp_path, monkeypatch):
    monkeypatch.setenv("LLM_API_MODELS_DIR", str(tmp_path / "made"))
    monkeypatch.setenv("LLM_API_MODEL_PARAMS", '{"n_ctx": 333}')
    with served(source_of(tmp_path, LLAMA)) as path:
        loaded = load_model(path, specs(), outside())
        assert (loaded.name, loaded.config.context_size) == ("repo_id", 333)
    assert not path.exists()
    assert (tmp_path / "made").is_dir()


def test_our_own_settings_are_not_llm_apis(tmp_path):
    with served(written(tmp_path, {"s.yaml": "port: 1\nhost: localhost\n"}) / "s.yaml") as path:
        assert path is None


def test_a_family_whose_library_is_not_here_is_served_and_told(tmp_path):
    """What is missing is told when the model is asked for, and here."""
    text = LLAMA.replace("model_family: llama", "model_family: gptq_llama")
    found = imported(source_of(tmp_path, text), tmp_path / "out")
    assert [config["backend"] for config in models(found).values()] == ["gptq"]
    lacks = specs()["transformers"].lacks()
    assert [warning.message for warning in found.warnings if warning.key == "model_family"] == [lacks] * bool(lacks)


@pytest.mark.parametrize("value", ['{"a":' + "[" * 3000 + "]" * 3000 + "}", '{"a": "\\ud800"}', "{bad"])
def test_variables_that_are_no_json_are_refused_in_words(tmp_path, value):
    with pytest.raises(ConfigError, match=r"^LLM_API_MODEL_PARAMS: "):
        imported(source_of(tmp_path, LLAMA), tmp_path / "out", env={"LLM_API_MODEL_PARAMS": value})


def test_what_a_variable_says_is_told_of_the_variable(tmp_path):
    found = imported(source_of(tmp_path, LLAMA), tmp_path / "out", env={"LLM_API_PORT": "abc"})
    assert [str(warning) for warning in found.warnings if warning.key == "port"] == [
        "LLM_API_PORT: port: expected a whole number, found the text 'abc': not imported"
    ]


def test_a_port_that_is_none_is_told(tmp_path):
    found = imported(source_of(tmp_path, LLAMA), tmp_path / "out", env={"LLM_API_PORT": "99999"})
    assert found.settings["port"] == 8000
    assert ["expected 1 to 65535" in warning.message for warning in found.warnings if warning.key == "port"] == [True]
