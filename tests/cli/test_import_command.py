"""`llmgallery import`, and llm-api's configuration in place of a settings file."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import yaml
from click.testing import CliRunner
from terminal import environment

from llmgallery.cli import main
from llmgallery.cli.group import settings_of

LLM_API = "models_dir: ./kept\nmodel_family: llama\nport: 8001\nsetup_params: {repo_id: o/r, filename: f.gguf}\nextra: 1\n"


@pytest.fixture
def here(tmp_path, monkeypatch):
    for name, value in environment(tmp_path).items():
        monkeypatch.setenv(name, value)
    monkeypatch.chdir(tmp_path)
    (tmp_path / "models").mkdir()
    (tmp_path / "config.yaml").write_text(LLM_API)
    return tmp_path


def invoke(*arguments: str):
    return CliRunner().invoke(main, ["import", *arguments], prog_name="llmgallery")


def test_a_source_is_written_to_the_models_folder_and_what_is_left_is_told(here):
    result = invoke("config.yaml", "--settings", "settings.yaml")
    assert result.exit_code == 0, result.output
    assert yaml.safe_load((here / "models" / "r.yaml").read_text())["parameters"] == {"model": "o/r/f.gguf"}
    assert result.stdout.splitlines() == [f"wrote {here / 'models' / 'r.yaml'}", "wrote settings.yaml"]
    assert "config.yaml:5:1: extra: has no counterpart here: not imported (warning)\n" in result.stderr
    assert result.stderr.endswith("1 model, 1 warning\n")
    settings = settings_of(Path("settings.yaml"), models_dir=str(here))
    assert (settings.host, settings.port, settings.default_model) == ("0.0.0.0", 8001, "r")


def test_a_second_import_writes_nothing_and_a_changed_file_is_kept(here):
    assert invoke("config.yaml").exit_code == 0
    assert invoke("config.yaml").stdout == ""
    (here / "models" / "r.yaml").write_text("name: mine\nbackend: echo\n")
    result = invoke("config.yaml")
    assert result.exit_code == 1
    assert "is there already, with another text: nothing was written; --force replaces" in result.stderr
    assert invoke("config.yaml", "--force").exit_code == 0
    assert yaml.safe_load((here / "models" / "r.yaml").read_text())["name"] == "r"


def test_a_dry_run_prints_and_writes_nothing(here):
    result = invoke("config.yaml", "--dry-run", "--to", "elsewhere", "--name", "other")
    assert result.exit_code == 0
    assert result.stdout.startswith(
        "--- other.yaml\n# Imported by llmgallery from llm-api's config.yaml.\n# Not used here: extra = 1\nname: other\n"
    )
    assert not (here / "elsewhere").exists()
    assert not list((here / "models").iterdir())


def test_a_dry_run_shows_no_key(here):
    (here / "gato").mkdir()
    (here / "gato" / "a.json").write_text(json.dumps({"TextGeneration": {"gpt": {"Backend": "openai"}}}))
    (here / "gato" / "b.json").write_text(json.dumps({"OpenAIConfig": {"APIKey": "sk-secret"}}))
    assert "sk-secret" not in invoke("gato", "--dry-run").output
    assert invoke("gato").exit_code == 0
    assert (here / "models" / "openai.key").stat().st_mode & 0o777 == 0o600


def test_models_that_could_not_be_imported_end_with_1(here):
    (here / "base.yaml").write_text("config_file: |\n  backend: llama-cpp\n")
    result = invoke("base.yaml")
    assert result.exit_code == 1
    assert "--model REFERENCE names them" in result.stderr
    assert "0 models, 1 not imported, 0 warnings" in result.stderr
    assert invoke("base.yaml", "--model", "o/r:Q4_K_M").exit_code == 0
    assert yaml.safe_load((here / "models" / "base.yaml").read_text())["parameters"] == {"model": "o/r:Q4_K_M"}


def test_a_kind_can_be_named(here):
    result = invoke("config.yaml", "--from", "localai")
    assert result.exit_code == 0
    assert "is no model file: not imported" in result.stderr
    assert invoke("config.yaml", "--from", "nonsense").exit_code == 2
    assert "there is no file or folder gone" in invoke("gone").stderr


def test_settings_are_only_written_where_there_are_some(here):
    (here / "a.yaml").write_text("name: a\nbackend: echo\n")
    assert "--settings has nothing to write" in invoke("a.yaml", "--settings", "s.yaml").stderr


def test_an_llm_api_configuration_is_a_settings_file_too(here, monkeypatch):
    settings = settings_of(Path("config.yaml"))
    assert (settings.host, settings.port, settings.models_dir) == ("0.0.0.0", 8001, None)
    (here / "kept").mkdir()
    monkeypatch.setenv("LLM_API_PORT", "8002")
    settings = settings_of(Path("config.yaml"))
    assert (settings.port, settings.models_dir) == (8002, here / "kept")
    monkeypatch.setenv("LLMGALLERY_PORT", "8003")
    assert settings_of(Path("config.yaml")).port == 8003
    assert settings_of(Path("config.yaml"), port="8004").port == 8004


def test_llm_apis_variables_alone_are_a_configuration_too(here, monkeypatch):
    monkeypatch.setenv("LLM_API_PORT", "8002")
    assert settings_of(None).port == 8080
    monkeypatch.setenv("LLM_API_SETUP_PARAMS", '{"repo_id": "o/r", "filename": "f.gguf"}')
    assert settings_of(None).port == 8002


def test_settings_that_are_there_stop_the_import_before_anything_is_written(here):
    Path("settings.yaml").write_text("port: 1\n")
    result = invoke("config.yaml", "--settings", "settings.yaml")
    assert result.exit_code == 1 and "nothing was written; --force replaces it" in result.stderr
    assert not (here / "models" / "r.yaml").exists()
    assert invoke("config.yaml", "--settings", "settings.yaml", "--force").exit_code == 0
    again = invoke("config.yaml", "--settings", "settings.yaml")
    assert (again.exit_code, again.stdout) == (0, "")


def test_a_folder_of_several_kinds_says_so(here):
    (here / "mine.kcpps").write_text('{"model_param": "x.gguf"}')
    (here / "Modelfile").write_text("FROM hf.co/a/b:Q4_0")
    result = invoke(".", "--dry-run")
    assert "taken as kobold; it holds files of ollama too, which --from KIND imports" in result.stderr
