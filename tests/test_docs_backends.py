"""docs/backends.md and the README's tables of backends are true."""

from __future__ import annotations

import json
import re
import shlex
import sys
from pathlib import Path

import pytest
from terminal import llmgallery
from test_docs import ROOT, fenced, load_tool

from llmgallery.backends.loader import specs
from llmgallery.cli.environments import TORCH
from llmgallery.config.settings import load_settings

TEXT = (ROOT / "docs" / "backends.md").read_text(encoding="utf-8")


RECORD = {
    "backend": "echo",
    "versions": {"python": "3.11.7", "llama_cpp_python": "1.2"},
    "date": "2026-11-22",
    "platform": "Linux x86_64",
    "device": "cpu",
    "checks": {"load": "passed", "logprobs": "declared", "embed": "failed"},
}


def test_the_tables_show_what_ran_and_what_did_not(tmp_path):
    tool = load_tool("generate_docs")
    file = tmp_path / "conformance.json"
    file.write_text(json.dumps([RECORD, {"backend": "other", "checks": {"load": "not run"}}]))
    assert tool.what_ran(RECORD) == "python 3.11.7, llama-cpp-python 1.2; Linux x86_64, CPU; 2026-11-22"
    assert tool.what_ran({"backend": "other", "checks": {}}) == tool.what_ran({}) == "**not run**"
    _, _, *rows = [
        [cell.strip() for cell in line.strip("|").split(" | ")] for line in tool.PARTS["conformance"](file).splitlines()
    ]
    shown = {row[0]: row[1:] for row in rows}
    assert shown["loads, and tells what it has loaded"] == ["yes", "not run"]
    assert shown["embeddings are the library's own"] == ["fails", "not run"]
    assert shown["greedy answers are the library's own, token for token"] == ["not run", "not run"]


def test_every_backend_has_its_row_and_the_command_that_adds_it():
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    for name, spec in specs().items():
        (row,) = (line for line in readme.splitlines() if line.startswith(f"| `{name}` |"))
        cells = [cell.strip() for cell in row.strip("|").split(" | ")]
        assert cells[3] == (f"`llmgallery backends install {name}`" if spec.extra else "comes with llmgallery")
        assert cells[4] == "3.11 or newer" and cells[5] == ("an NVIDIA GPU" if spec.hardware else "any")
        assert all(f"`{alias}`" in TEXT for alias in spec.aliases)


def test_the_records_are_of_backends_that_there_are():
    records = json.loads((ROOT / "docs" / "conformance.json").read_text(encoding="utf-8"))
    assert [record["backend"] for record in records] == sorted(specs())
    for record in records:
        states = set(record["checks"].values())
        assert states <= {"passed", "declared", "not run"} and ("date" in record) == (states != {"not run"})


def test_the_settings_example_loads(tmp_path):
    settings, _ = fenced(TEXT, "yaml")
    (tmp_path / "settings.yaml").write_text(settings.replace("/opt/torch/bin/python", sys.executable))
    found = load_settings({}, {}, tmp_path / "settings.yaml", backends=lambda: {name: name for name in specs()})
    assert str(found.backends["transformers"].python) == sys.executable
    written = "transformers=/opt/torch/bin/python"
    assert f"`--backend-python {written}`" in TEXT and f"`LLMGALLERY_BACKENDS={written}`" in TEXT


def test_the_model_of_the_example_is_one():
    _, model = fenced(TEXT, "yaml")
    example = ROOT / "docs" / "examples" / "bigram" / "llmgallery_bigram.py"
    assert re.search(r"backend: bigram\noptions: {text: \S+}\n", model) and "class BigramOptions" in example.read_text()


@pytest.mark.parametrize(
    "command", [line.strip().partition("  #")[0] for line in TEXT.splitlines() if line.startswith("    llmgallery")]
)
def test_its_commands_are_understood(command, tmp_path):
    words = shlex.split(command)[1:]
    if words[1] == "install":
        words.append("--dry-run")
    done = llmgallery(*words, cwd=tmp_path)
    assert done.returncode == (1 if words[1] == "remove" else 0), done.stderr  # there is nothing to remove
    assert "Usage" not in done.stderr


def test_its_flags_are_the_commands_own(tmp_path):
    help_ = llmgallery("backends", "install", "--help", cwd=tmp_path).stdout
    flags = {"--with", "--torch", "--torch-index", "--python", "--here", "--dry-run"}
    assert flags <= set(re.findall(r"--[\w-]+", help_)) and flags <= set(re.findall(r"--[\w-]+", TEXT))


def test_one_torch_is_meant_everywhere():
    for name in ("Dockerfile", "tools/bootstrap.sh"):
        assert f"TORCH=torch=={TORCH}\n" in (ROOT / name).read_text(encoding="utf-8")


def test_an_extra_of_each_backend_is_in_our_metadata():
    from importlib.metadata import metadata

    extras = set(metadata("llmgallery").get_all("Provides-Extra") or ())
    wanted = {spec.extra for spec in specs().values() if spec.extra} | {
        extra for spec in specs().values() for extra in spec.extras_for.values()
    }
    assert wanted <= extras
    assert Path(ROOT / "pyproject.toml").read_text(encoding="utf-8").count("\ntransformers = [") == 1
