"""`llmgallery list`, `explain`, `check`, `schema` and `version`."""

from __future__ import annotations

import json
import os
import re
import shutil
from pathlib import Path

import pytest
from click.testing import CliRunner
from jsonschema import Draft202012Validator
from terminal import Terminal, environment, llmgallery, serving

from llmgallery import __version__, paths
from llmgallery.backends.echo.backend import BATCH, CONTEXT_SIZE, SLOTS
from llmgallery.backends.loader import specs
from llmgallery.cli import main
from llmgallery.cli.stack import Scratch, folder_registry
from llmgallery.config.settings import Settings


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """A models folder; the working directory is above it."""
    for name, value in environment(tmp_path).items():
        monkeypatch.setenv(name, value)
    monkeypatch.chdir(tmp_path)
    folder = tmp_path / "models"
    folder.mkdir()
    (folder / "parrot.yaml").write_text("backend: echo\n")
    return folder


def invoke(*arguments: str):
    return CliRunner().invoke(main, arguments, prog_name="llmgallery")


def listed(output: str) -> dict[str, list[str]]:
    return {line.split("\t")[0]: line.split("\t")[1:] for line in output.splitlines()}


# --- list --------------------------------------------------------------------------------------------------------------------


def test_list_tells_what_is_installed_and_what_is_broken(folder):
    (folder / "remote.yaml").write_text("parameters: {model: owner/repo/file.gguf}\n")
    (folder / "gone.yaml").write_text("backend: llama-cpp\nparameters: {model: /no/such/file.gguf}\n")
    (folder / "off.yaml").write_text("backend: echo\ndisabled: true\n")
    (folder / "bad.yaml").write_text("backend: echo\ntemprature: 1\nnmae: x\n")
    shutil.copy(next(paths.builtin("models").glob("*.gguf")), folder / "loose.gguf")
    for command in ("list", "models"):
        result = invoke(command)
        assert result.exit_code == 0
        rows = listed(result.stdout)
        assert rows["parrot"] == ["installed", "echo", ""]
        assert rows["pocket"][:2] == ["installed", "llama-cpp"]
        assert rows["loose"] == ["installed", "llama-cpp", "loose.gguf"]
        assert rows["remote"] == ["not downloaded", "llama-cpp", "owner/repo/file.gguf"]
        assert rows["gone"][0].startswith("no weights: ")
        assert rows["off"][0] == "disabled"
        assert (
            rows["bad"][0] == "broken" and rows["bad"][2].startswith("models/bad.yaml:2:1") and "(and 1 more)" in rows["bad"][2]
        )


def test_list_reads_the_folder_that_is_named(folder, tmp_path):
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "crow.yaml").write_text("backend: echo\n")
    assert listed(invoke("list", "--models-dir", "other").stdout).keys() == {"crow", "pocket"}
    assert invoke("list", "--models-dir", "nowhere").exit_code == 1


def test_list_tells_what_a_server_has_loaded(folder, tmp_path):
    (folder / "crow.yaml").write_text("backend: echo\n")
    local = tmp_path / "local"
    (local / "models").mkdir(parents=True)
    shutil.copy(folder / "parrot.yaml", local / "models")
    with serving(folder) as server:
        llmgallery("run", "parrot", "Hi", cwd=local, LLMGALLERY_URL=server.url)
        rows = listed(llmgallery("list", cwd=local, LLMGALLERY_URL=server.url).stdout)
    assert rows["parrot"][0] == "loaded"
    assert rows["pocket"][0] == "installed"
    assert rows["crow"] == ["installed", "", "at the server"]
    rows = listed(llmgallery("list", cwd=local, LLMGALLERY_URL=server.url).stdout)
    assert rows["parrot"][0] == "installed" and "crow" not in rows


def test_list_tells_that_no_server_answers(folder):
    result = llmgallery("list", cwd=folder.parent, LLMGALLERY_URL="127.0.0.1:9")
    assert result.returncode == 0 and "parrot" in listed(result.stdout)
    assert result.stderr == "no server answers at http://127.0.0.1:9 (LLMGALLERY_URL): this is what lies on disk\n"


def test_list_is_a_table_at_a_terminal(folder, tmp_path):
    terminal = Terminal("list", cwd=tmp_path)
    assert terminal.until("NAME") == ""
    assert "parrot" in terminal.until("pocket")
    assert terminal.close() == 0


def test_list_says_what_is_wrong_with_weights(folder):
    (folder / "none.yaml").write_text("model: nothing.gguf\n")
    (folder / "junk.gguf").write_text("no weights at all")
    (folder / "text.yaml").write_text("model: junk.gguf\n")
    os.mkfifo(folder / "pipe.yaml")
    rows = listed(llmgallery("list", cwd=folder.parent).stdout)
    assert rows["none"][0].startswith("no weights: there is no nothing.gguf in ")
    assert rows["text"][0].startswith("bad weights: ") and "no format that is known" in rows["text"][0]
    assert rows["pipe"][0] == "broken" and "a FIFO" in rows["pipe"][2]
    shutil.copy(next(paths.builtin("models").glob("*.gguf")), folder / "nothing.gguf")
    assert listed(invoke("list").stdout)["none"] == ["installed", "llama-cpp", "nothing.gguf"]


def test_a_path_to_serve_hides_no_model_of_the_folder_without_a_word(folder, tmp_path):
    (tmp_path / "other").mkdir()
    shutil.copy(next(paths.builtin("models").glob("*.gguf")), tmp_path / "other" / "parrot.gguf")
    with Scratch(tmp_path / "other" / "parrot.gguf") as scratch:
        found = folder_registry(Settings(models_dir=folder), [Path(scratch)]).read()
    assert found.entries["parrot"].config.weights == str(tmp_path / "other" / "parrot.gguf")
    assert "'parrot' is already taken by other/parrot.gguf" in str(found.broken["parrot.yaml"].problems[0])
    (folder / "pocket.yaml").write_text("backend: echo\n")
    assert not folder_registry(Settings(models_dir=folder)).read().broken


# --- explain -----------------------------------------------------------------------------------------------------------------


def shown(*arguments: str) -> dict[str, tuple[str, str]]:
    result = invoke("explain", *arguments)
    assert result.exit_code == 0, result.output
    rows = [line.split("\t") for line in result.stdout.splitlines()]
    return {key: (value, source) for key, value, source in rows}


def test_explain_tells_every_value_and_its_source(folder):
    (folder / "mine.yaml").write_text(
        "aliases: [other]\nbackend: echo\nparameters:\n  top_p: 0.5\nsystem_prompt: |\n  One.\n  Two.\nstopwords: [END]\n"
        "template: {preset: chatml}\n"
    )
    values = shown("mine")
    assert shown("other") == values
    assert invoke("show", "mine").stdout == invoke("explain", "mine").stdout
    assert values["name"] == ("mine", "the file's name")
    assert values["backend"] == ("echo", "models/mine.yaml:2")
    assert values["parameters.top_p"] == ("0.5", "models/mine.yaml:4")
    assert values["parameters.top_k"] == ("40", "default")
    assert values["system_prompt"] == ('"One.\\nTwo.\\n"', "models/mine.yaml:5")
    assert values["keep_alive"] == ("900s", "default")
    assert values["template"][1] == "template.preset chatml (models/mine.yaml:9)" and "<|im_start|>" in values["template"][0]


def test_explain_tells_what_the_weights_say(folder):
    shutil.copy(next(paths.builtin("models").glob("*.gguf")), folder / "loose.gguf")
    values = shown("loose")
    assert values["context_size"] == ("1024", "the weights")
    assert values["backend"] == ("llama-cpp", "recognised")
    assert values["template"][1] == "the weights' chat template"
    assert values["file"][0].endswith("models/loose.gguf")


def test_explain_says_why_a_preset_was_chosen(folder):
    source = next(paths.builtin("models").glob("*.gguf")).read_bytes()
    assert source.count(b"tokenizer.chat_template") == 1
    (folder / "bare.gguf").write_bytes(source.replace(b"tokenizer.chat_template", b"tokenizer.chat_nothings"))
    values = shown("bare")
    assert values["template"][1] == "preset chatml, as the vocabulary has <|im_start|> and <|im_end|>"
    assert "<|im_start|>" in values["template"][0]
    assert all("template.preset" not in source for _, source in values.values())


def test_explain_tells_where_each_template_is_from(folder):
    shutil.copy(next(paths.builtin("models").glob("*.gguf")), folder / "x.gguf")
    (folder / "go.yaml").write_text('model: x.gguf\ntemplate:\n  chat: "{{.Input}}!"\n  chat_message: "[{{.Content}}]"\n')
    values = shown("go")
    assert values["template.chat"] == ("{{.Input}}!", "models/go.yaml:3")
    assert values["template.chat_message"] == ("[{{.Content}}]", "models/go.yaml:4")
    assert not any(key == "template" for key in values)
    (folder / "gato.yaml").write_text("model: x.gguf\ntemplate: {preset: gatogpt/chatml}\n")
    values = shown("gato")
    origin = "template.preset gatogpt/chatml (models/gato.yaml:2)"
    assert values["template.chat_message"][1] == values["template.chat"][1] == origin
    assert values["stopwords"] == ('["<|im_start|>","<|im_end|>"]', "template.preset gatogpt/chatml")
    (folder / "side.yaml").write_text("model: x.gguf\n")
    assert shown("side")["template"][1] == "the weights' chat template"
    (folder / "x.gguf.tmpl").write_text("SIDE {{.Input}}")
    assert shown("side")["template.chat"] == ("SIDE {{.Input}}", "models/x.gguf.tmpl")


def test_explain_recognises_nothing_from_weights_that_are_not_here(folder):
    (folder / "remote.yaml").write_text("model: owner/repo/x.gguf\n")
    (folder / "local.yaml").write_text("model: x.gguf\n")
    shutil.copy(next(paths.builtin("models").glob("*.gguf")), folder / "x.gguf")
    assert shown("remote")["backend"] == ("llama-cpp", "recognised from the weights' name")
    assert shown("local")["backend"] == ("llama-cpp", "recognised from the weights")


def test_explain_needs_no_weights(folder):
    (folder / "gone.yaml").write_text("model: nothing.gguf\nsystem_prompt: Be brief.\ntemplate: {preset: chatml}\n")
    values = shown("gone")
    assert values["system_prompt"] == ("Be brief.", "models/gone.yaml:2")
    assert values["template"][1] == "template.preset chatml (models/gone.yaml:3)"
    assert values["weights"][0].startswith("weights not found: there is no nothing.gguf")
    assert "weights" not in shown("pocket")


def test_explain_heeds_settings(folder, monkeypatch):
    monkeypatch.setenv("LLMGALLERY_KEEP_ALIVE", "1h")
    assert shown("parrot")["keep_alive"] == ("3600s", "settings")


def test_explain_shows_no_secret_of_an_endpoint(folder):
    options = {
        "base_url": "https://me:pass-word-1@far.example/v1?key=query-key-1",
        "api_key": "sk-plain-1",
        "headers": {"x-api-key": "sk-plain-2", "x-other": "${MY_KEY}"},
    }
    (folder / "far.yaml").write_text(json.dumps({"name": "far", "backend": "openai", "options": options}))
    told = invoke("explain", "far").stdout
    assert "far.example/v1" in told and "${MY_KEY}" in told
    assert not [secret for secret in ("pass-word-1", "query-key-1", "sk-plain-1", "sk-plain-2") if secret in told]


def test_explain_of_an_unknown_or_broken_model(folder):
    unknown = invoke("explain", "parot")
    assert unknown.exit_code == 1 and "parrot" in unknown.stderr
    (folder / "bad.yaml").write_text("backend: eco\n")
    broken = invoke("explain", "bad")
    assert broken.exit_code == 1 and "models/bad.yaml:1:10" in broken.stderr and "echo" in broken.stderr


def test_explain_tells_what_nobody_set(folder):
    (folder / "mine.yaml").write_text("backend: echo\noptions: {delay_ms: 1}\nparallel: 2\n")
    values = shown("mine")
    assert values["parallel"] == ("2", "models/mine.yaml:3")
    assert values["options.delay_ms"] == ("1.0", "models/mine.yaml:2")
    assert values["options.load_steps"] == ("1", "backend echo")
    assert values["context_size"] == ("2048", "backend echo")
    assert values["parameters.max_tokens"] == ("until the context is full", "default")
    assert values["pinned"] == ("false", "default")
    assert values["on_unsupported.demands"] == ("error", "default")
    assert values["aliases"] == values["stopwords"] == ("[]", "default")
    values = shown("pocket")
    assert values["gpu_layers"] == ("-1", "backend llama-cpp")
    assert values["parallel"] == ("1 to 8, by free memory", "backend llama-cpp")
    assert values["flash_attention"][1] == "backend llama-cpp"


def test_every_key_of_a_backend_has_a_value_when_nobody_sets_it():
    for spec in specs().values():
        assert set(spec.unset) == spec.keys - {"options"}
    echo = specs()["echo"].unset
    assert (echo["context_size"], echo["parallel"], echo["parameters.batch"]) == (CONTEXT_SIZE, SLOTS, BATCH)


def test_explain_at_a_terminal_breaks_lines_where_the_value_does(folder, tmp_path):
    (folder / "mine.yaml").write_text('backend: echo\nsystem_prompt: "One.\\nTwo.\\e[31m"\nstopwords: [END]\n')
    terminal = Terminal("explain", "mine", cwd=tmp_path)
    output = terminal.until("limits.max_concurrent")
    assert re.search(r"system_prompt +models/mine\.yaml:2\s+    One\.\s+    Two\.\\x1b\[31m\s", output), output
    assert re.search(r'stopwords +\["END"\] +models/mine\.yaml:3\s', output)
    assert terminal.close() == 0


def test_explain_of_a_model_that_is_elsewhere_shows_no_secret_and_no_default_of_ours(folder):
    options = 'options: {api_key: sk-very-secret, headers: {x-key: secret too, x-team: "${TEAM}"}}'
    (folder / "far.yaml").write_text(f"backend: openai\n{options}\nparameters: {{temperature: 0.5}}\n")
    rows = shown("far")
    assert "secret" not in " ".join(value for value, _ in rows.values())
    assert "${TEAM}" in rows["options.headers"][0] and rows["options.connect_retries"][0] == "2"
    assert rows["parameters.temperature"][0] == "0.5" and "parameters.top_k" not in rows
    assert "endpoint" in rows["parameters"][0] and "endpoint" in rows["template"][0]


def test_explain_of_a_server_that_never_unloads(folder, monkeypatch):
    monkeypatch.setenv("LLMGALLERY_KEEP_ALIVE", "-1")
    assert shown("parrot")["keep_alive"] == ("never", "settings")


# --- check -------------------------------------------------------------------------------------------------------------------

MISTAKES = {
    "unknown": ("backend: echo\ntemplte: {}\n", r":2:1: .*template"),
    "too-deep": ("backend: echo\nparameters:\n  context_size: 5\n", r":3:3: .*context_size: .*top level"),
    "too-shallow": ("backend: echo\ntemperature: 0.5\n", r":2:1: temperature: .*under parameters"),
    "wrong-type": ("backend: echo\ncontext_size: large\n", r":2:15: context_size: .*number"),
    "out-of-range": ("backend: echo\nparameters: {top_p: 1.5}\n", r":2:21: parameters\.top_p: "),
    "bad-backend": ("backend: lama-cpp\n", r":1:10: .*llama-cpp"),
    "bad-preset": ("backend: echo\ntemplate: {preset: chatlm}\n", r":2:20: .*chatml"),
    "duplicate-key": ("backend: echo\npinned: true\npinned: false\n", r":3:1: .*pinned"),
    "bad-template": ('backend: echo\ntemplate:\n  chat_template: "{% if %}"\n', r":3:\d+: "),
    "syntax": ("backend: [echo\n", r":\d+:\d+: "),
    "tabs": ("backend: echo\nparameters:\n\ttop_p: 1\n", r":3:1: .*tab"),
    "no-mapping": ("- echo\n", r":1:1: "),
    "twice": ("name: parrot\nbackend: echo\n", r":1:\d: .*parrot\.yaml.*another name"),
    "go-template": ('backend: echo\ntemplate:\n  chat: "{{.Input"\n', r":3:\d+: template\.chat: "),
}


def test_check_names_every_kind_of_mistake_at_once(folder):
    for name, (text, _) in MISTAKES.items():
        (folder / f"{name}.yaml").write_text(text)
    for arguments in ([], ["models"], ["--models-dir", "models"]):
        result = invoke("check", *arguments)
        assert result.exit_code == 1
        for name, (_, expected) in MISTAKES.items():
            assert re.search(rf"^models/{name}\.yaml{expected}", result.stdout, re.MULTILINE), (name, result.stdout)
        assert "problems" in result.stderr


def test_check_of_one_file(folder):
    (folder / "bad.yaml").write_text("backend: eco\nparameters: {top_p: 2}\n")
    result = invoke("check", "models/bad.yaml")
    assert result.exit_code == 1
    assert [line.partition(" ")[0] for line in result.stdout.splitlines()] == ["models/bad.yaml:1:10:", "models/bad.yaml:2:21:"]
    assert result.stderr == "models/bad.yaml: 1 model file, 2 problems\n"


def test_check_passes_what_is_right_and_warns(folder):
    result = invoke("check")
    assert (result.exit_code, result.stdout) == (0, "")
    assert result.stderr.endswith("no problem\n")
    (folder / "warned.yaml").write_text("backend: echo\ngpu_layers: 5\n")
    result = invoke("check")
    assert result.exit_code == 0
    assert result.stdout.startswith("models/warned.yaml:2:1: gpu_layers: ") and result.stdout.endswith(" (warning)\n")


def test_check_of_a_path_that_is_not_there(folder):
    assert invoke("check", "nowhere").exit_code == 2


def test_check_names_weights_that_cannot_be_loaded(folder):
    (folder / "junk.gguf").write_text("no weights at all")
    (folder / "none.yaml").write_text("description: x\nmodel: none.gguf\n")
    (folder / "text.yaml").write_text("parameters:\n  model: junk.gguf\n")
    (folder / "forced.yaml").write_text("backend: llama-cpp\nparameters:\n  model: junk.gguf\n")
    (folder / "at.yaml").write_text('model: "owner/repo/x.gguf@"\n')
    (folder / "remote.yaml").write_text("model: owner/repo/x.gguf\n")
    for arguments in ([], ["models"]):
        result = invoke("check", *arguments)
        assert result.exit_code == 1
        assert re.search(r"^models/none\.yaml:2:1: model: weights not found: ", result.stdout, re.MULTILINE), result.stdout
        assert re.search(r"^models/text\.yaml:2:3: parameters\.model: .*no format that is known", result.stdout, re.MULTILINE)
        assert re.search(r"^models/forced\.yaml:3:3: parameters\.model: .*llama-cpp loads gguf", result.stdout, re.MULTILINE)
        assert re.search(r"^models/at\.yaml:1:8: model: .*nothing follows the @", result.stdout, re.MULTILINE)
        assert "remote" not in result.stdout
        assert result.stderr.endswith("4 problems\n")
    assert invoke("check", "models/none.yaml").stdout.startswith("models/none.yaml:2:1: model: ")
    assert invoke("check", "models/remote.yaml").exit_code == 0


def test_check_prints_problems_and_warnings_as_they_stand_in_the_file(folder):
    (folder / "mixed.yaml").write_text("backend: echo\ngpu_layers: 5\ntempratur: 1\nthreads: 1\n")
    for arguments in (["models/mixed.yaml"], []):
        lines = invoke("check", *arguments).stdout.splitlines()
        found = [(line.split(": ")[0], line.endswith("(warning)")) for line in lines]
        assert found == [(f"models/mixed.yaml:{line}:1", warning) for line, warning in ((2, True), (3, False), (4, True))]


def test_check_of_weights_says_that_they_are_no_yaml(folder):
    (folder / "junk.gguf").write_text("no weights at all")
    result = invoke("check", "models/junk.gguf")
    assert result.exit_code == 1 and "named like a weights file" in result.stdout and "backend" not in result.stdout
    shutil.copy(next(paths.builtin("models").glob("*.gguf")), folder / "fine.gguf")
    assert "a weights file (gguf), not a model's YAML" in invoke("check", "models/fine.gguf").stdout
    os.mkfifo(folder / "pipe.yaml")
    assert "a FIFO, not a regular file" in llmgallery("check", "models/pipe.yaml", cwd=folder.parent).stdout


# --- schema and version ------------------------------------------------------------------------------------------------------


def test_schema_is_a_json_schema_that_tells_right_from_wrong():
    schema = json.loads(invoke("schema").stdout)
    Draft202012Validator.check_schema(schema)
    validator = Draft202012Validator(schema)
    assert validator.is_valid({"backend": "echo", "parameters": {"top_p": 0.5}, "keep_alive": "15m"})
    assert not validator.is_valid({"backend": "echo", "parameters": {"top_p": 2}})
    assert not validator.is_valid({"backend": "echo", "temprature": 1})


def test_help_names_each_command_once():
    shown = invoke("--help").stdout.partition("Commands:\n")[2]
    assert [line.split()[0] for line in shown.splitlines()] == [
        "serve", "run", "bench", "list", "search", "install", "remove", "jobs", "explain", "render", "check", "backends",
        "import", "verify", "gc", "bundle", "unbundle", "schema", "version",
    ]  # fmt: skip
    for alias in ("models", "generate", "api"):
        assert "GatoGPT" in invoke(alias, "--help").stdout
    assert "explain" in invoke("show", "--help").stdout


def test_version_tells_the_versions():
    assert invoke("--version").stdout == f"llmgallery {__version__}\n"
    lines = invoke("version").stdout.splitlines()
    assert lines[0] == f"llmgallery {__version__}"
    assert any(re.fullmatch(r"llama.cpp.python \d+\.\d+\S* \(backend llama-cpp\)", line) for line in lines)
