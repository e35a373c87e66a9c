"""backends list, install and remove as a user has them. Packages are not really installed here: that needs a network."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest
from other_python import make_environment
from terminal import llmgallery

from llmgallery.cli import environments
from llmgallery.core.errors import ConfigError

RECORDER = """#!/bin/sh
echo "$*" >> "{log}"
case "$1 $2" in
    "-c import"*) exec "{python}" "$@" ;;
    "-m venv") mkdir -p "$3/bin"; cp "$0" "$3/bin/python"; touch "$3/pyvenv.cfg" ;;
    *) exit "${{STATUS:-0}}" ;;
esac
"""


@pytest.fixture
def python(tmp_path) -> Path:
    """Makes environments in which pip writes down what it is told, and leaves with $STATUS."""
    path = tmp_path / "python"
    path.write_text(RECORDER.format(log=tmp_path / "log", python=sys.executable))
    path.chmod(0o755)
    return path


def states(cwd: Path, *arguments: str, **env: str) -> dict[str, dict]:
    shown = llmgallery("backends", "list", "--json", *arguments, cwd=cwd, **env)
    assert shown.returncode == 0, shown.stderr
    return {row["name"]: row for row in json.loads(shown.stdout)}


def test_list_tells_what_is_here_and_what_is_not(tmp_path):
    found = states(tmp_path)
    assert (found["llama-cpp"]["state"], found["llama-cpp"]["weights"]) == ("installed", ["gguf"])
    assert found["echo"] == {
        "name": "echo", "state": "installed", "detail": "", "weights": [], "hardware": [], "aliases": [],
        "python": sys.executable, "without": {},
    }  # fmt: skip
    for row in llmgallery("backends", "list", cwd=tmp_path).stdout.splitlines():
        name, state, weights, hardware, detail = row.split("\t")
        assert found[name]["state"] == state and (state != "not installed" or f"llmgallery backends install {name}" in detail)
        assert weights == (", ".join(found[name]["weights"]) or "none") and hardware == (
            ", ".join(found[name]["hardware"]) or "any"
        )


def test_list_asks_the_interpreter_of_the_settings(tmp_path):
    bare = make_environment(tmp_path / "environment", ())
    found = states(tmp_path, "--backend-python", f"echo={bare}")["echo"]
    assert found["state"] == "not installed" and found["python"] == str(bare)
    assert found["detail"].endswith(f"{bare} -m pip install msgspec jinja2 numpy")
    full = make_environment(tmp_path / "another")
    found = states(tmp_path, LLMGALLERY_BACKENDS=f"echo={full}")["echo"]
    assert (found["state"], found["detail"]) == ("other interpreter", str(full))
    (tmp_path / "broken").write_text("#!/bin/sh\nexit 1\n")
    (tmp_path / "broken").chmod(0o755)
    assert states(tmp_path, "--backend-python", f"echo={tmp_path}/broken")["echo"]["state"] == "broken"


def test_install_makes_an_environment_and_remove_deletes_it(tmp_path, python):
    done = llmgallery("backends", "install", "HF", "--python", python, "--with", "gptq", cwd=tmp_path)
    assert done.returncode == 0 and done.stdout == "", done.stderr
    folder = tmp_path / "data" / "backends" / "transformers"
    assert f"backend transformers is installed in {folder}" in done.stderr
    _, venv, pip = (tmp_path / "log").read_text().splitlines()
    assert venv == f"-m venv {folder}"
    words = pip.split()
    assert words[:6] == [
        "-m",
        "pip",
        "install",
        "--disable-pip-version-check",
        f"torch=={environments.TORCH}",
        "accelerate<2,>=1.15",
    ]
    assert {"transformers<6,>=5.23", "gptqmodel<8,>=7.6", "optimum<3,>=2.3", "jinja2>=3.1.6", "msgspec>=0.21"} < set(words)
    assert not any(word.startswith(("llmgallery", "litestar", "llama", "pytest")) for word in words)
    stamp = json.loads((folder / "llmgallery.json").read_text())
    assert stamp["backend"] == "transformers" and len(stamp["commands"]) == 2
    gone = llmgallery("backends", "remove", "transformers", cwd=tmp_path)
    assert gone.returncode == 0 and not folder.exists()
    again = llmgallery("backends", "remove", "transformers", cwd=tmp_path)
    assert again.returncode == 1 and "has no environment of its own" in again.stderr


def test_half_an_environment_is_none(tmp_path, python):
    done = llmgallery("backends", "install", "transformers", "--python", python, cwd=tmp_path, STATUS="7")
    assert done.returncode == 1
    assert "backend transformers is not installed: the command above ended with exit code 7" in done.stderr
    folder = tmp_path / "data" / "backends" / "transformers"
    assert (folder / "pyvenv.cfg").exists() and not (folder / "llmgallery.json").exists()
    assert states(tmp_path)["transformers"]["python"] == sys.executable


def test_a_dry_run_prints_the_commands_and_runs_none(tmp_path, python):
    shown = llmgallery("backends", "install", "transformers", "--python", python, "--dry-run", "--torch-index", "https://example.org/cpu",
        "--torch", "2.14.1", cwd=tmp_path)  # fmt: skip
    venv, torch, rest = shown.stdout.splitlines()
    assert venv == f"{python} -m venv {tmp_path}/data/backends/transformers"
    assert torch.endswith("--index-url https://example.org/cpu torch==2.14.1")
    assert " torch==2.14.1 " in rest and "example.org" not in rest
    assert not (tmp_path / "data" / "backends").exists()


def test_here_means_the_environment_that_runs_this(tmp_path):
    shown = llmgallery("backends", "install", "transformers", "--here", "--dry-run", cwd=tmp_path)
    (line,) = shown.stdout.splitlines()
    assert line.startswith(f"{sys.executable} -m pip install ") and "msgspec" not in line
    both = llmgallery("backends", "install", "transformers", "--here", "--python", "python3", cwd=tmp_path)
    assert both.returncode == 2 and "--python has no meaning there" in both.stderr


def test_an_interpreter_that_will_not_do(tmp_path):
    old = tmp_path / "old"
    old.write_text("#!/bin/sh\necho 3 10\n")
    old.chmod(0o755)
    for name, said in (
        ("python9", "--python python9: there is no such command"),
        (old, f"{old} is Python 3.10; workers need 3.11 or newer"),
        ("false", "makes no environments (exit code 1)"),
    ):
        done = llmgallery("backends", "install", "transformers", "--python", name, "--dry-run", cwd=tmp_path)
        assert done.returncode == 1 and said in done.stderr


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("transformer", "there is no backend transformer: did you mean transformers?"),
        ("echo", "backend echo comes with llmgallery, and all that it needs: there is nothing to install"),
        ("llama-cpp", "backend llama-cpp comes with llmgallery, and all that it needs"),
    ],
)
def test_what_cannot_be_installed(tmp_path, name, said):
    done = llmgallery("backends", "install", name, cwd=tmp_path)
    assert done.returncode == 1 and said in done.stderr


def test_an_unknown_extra_is_told_with_those_that_there_are():
    with pytest.raises(ConfigError, match="--with test: there is no such extra; there are bitsandbytes, gptq"):
        environments.requirements(environments.spec_of("transformers"), ["test"])


def test_every_extra_of_a_backend_can_be_read():
    """One that pip would have to judge by a marker, or that names us, would be lost here."""
    from importlib.metadata import requires

    from llmgallery.backends.loader import specs

    for line in requires("llmgallery") or ():
        assert ";" not in line or environments._EXTRA.match(line), line
    for spec in specs().values():
        if spec.extra:
            found = environments.requirements(spec, sorted(set(spec.extras_for.values())), "")
            assert len(found) > 1 and not any(environments._name(what) == "llmgallery" for what in found)
    assert len(environments.closure()) == len(environments.CLOSURE)
