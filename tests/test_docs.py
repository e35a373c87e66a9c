"""What we publish is true: generated parts are up to date, examples load, and every command of the README runs."""

from __future__ import annotations

import importlib.util
import json
import os
import re
import shlex
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest
from terminal import llmgallery, serving

from llmgallery.backends.loader import specs
from llmgallery.cli import main
from llmgallery.cli.stack import outside
from llmgallery.config.load import load_model
from llmgallery.config.merge import config_sampling
from llmgallery.config.settings import load_settings
from llmgallery.core.sampling import SAMPLERS, sampler_order
from llmgallery.service.demands import Wish, settle

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text(encoding="utf-8")


def documents() -> list[Path]:
    return [ROOT / "README.md", ROOT / "CHANGELOG.md", *sorted((ROOT / "docs").glob("*.md"))]


def load_tool(name: str):
    spec = importlib.util.spec_from_file_location(name, ROOT / "tools" / f"{name}.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def fenced(text: str, language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", text, re.DOTALL)


def commands() -> list[str]:
    """The README's command lines: indented blocks, without their comments."""
    lines = [line.strip() for line in README.splitlines() if line.startswith("    ")]
    python = "\n".join(fenced(README, "python") + fenced(README, "yaml"))
    return [re.sub(r"\s+#.*", "", line).removeprefix(".venv/bin/") for line in lines if line not in python]


def test_generated_parts_are_up_to_date():
    tool = load_tool("generate_docs")
    for name in tool.FILES:
        text = (ROOT / name).read_text(encoding="utf-8")
        assert tool.generated(text) == text, f"{name} is out of date: run `make docs`"
    used = {name for file in tool.FILES for _, name, _ in tool.PART.findall((ROOT / file).read_text(encoding="utf-8"))}
    assert used == set(tool.PARTS)


def test_links_lead_somewhere():
    for document in documents():
        for target in re.findall(r"\]\(([^)#]+)\)", document.read_text(encoding="utf-8")):
            assert target.startswith("https://") or (document.parent / target).exists(), f"{document.name}: {target}"


def test_every_command_has_its_help():
    shown = (ROOT / "docs" / "cli.md").read_text(encoding="utf-8")
    for name, command in main.commands.items():
        assert f"## {name}\n" in shown
        assert command.help and all(param.help for param in command.params if param.param_type_name == "option")


# --- examples ----------------------------------------------------------------------------------------------------------------


def test_model_examples_load_without_a_warning(tmp_path):
    examples = fenced(README, "yaml")
    assert len(examples) == 4
    for number, text in enumerate(examples):
        path = tmp_path / f"example{number}.yaml"
        path.write_text(text)
        model = load_model(path, specs(), outside())
        assert not model.problems and not model.warnings
        named = "openai" if "backend: openai" in text else "llama-cpp"
        assert model.backend == (None if "my-model" in text else named)  # a file's own bytes tell, once it is there


def test_the_readmes_own_model_is_served_under_its_yamls_name(tmp_path):
    example, *_ = fenced(README, "yaml")
    folder = tmp_path / "models"
    folder.mkdir()
    shutil.copy(next((ROOT / "models").glob("*.gguf")), folder / "my-model.gguf")
    assert "my-model\tinstalled" in llmgallery("list", cwd=tmp_path).stdout
    (folder / "brief.yaml").write_text(example)
    rows = [line.split("\t") for line in llmgallery("list", cwd=tmp_path).stdout.splitlines()]
    assert [row[0] for row in rows] == ["brief", "pocket"] and rows[0][1:3] == ["installed", "llama-cpp"]
    assert llmgallery("show", "assistant", cwd=tmp_path).stdout.startswith("name\tbrief\t")


def test_the_example_of_hints_does_what_the_docs_say():
    text = example_of("on_unsupported")
    wish = Wish("user", "user", hint=True)
    policies = {text: ("user was ignored: model m does not support it",), "on_unsupported: {}": ()}
    for written, warnings in policies.items():
        model = load_text(written)
        assert settle([wish], model.on_unsupported, "m") == warnings


def test_the_example_of_samplers_means_what_the_docs_say():
    asked = config_sampling(load_text(example_of("samplers")))
    assert asked.samplers == ("penalties", "dry", "top_p", "xtc", "temperature")
    prose = (ROOT / "docs" / "models.md").read_text(encoding="utf-8").replace("\n", " ")
    assert f"in its order: {', '.join(SAMPLERS)}." in prose
    assert sampler_order("edskypmxt") == tuple(SAMPLERS) and "`edskypmxt` is the order above" in prose


def example_of(key: str) -> str:
    """The one example of docs/models.md that sets the key."""
    texts = fenced((ROOT / "docs" / "models.md").read_text(encoding="utf-8"), "yaml")
    (text,) = (text for text in texts if f"{key}:" in text)
    return text


def load_text(text: str):
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "m.yaml"
        path.write_text(f"backend: echo\n{text}")
        model = load_model(path, specs(), outside())
    assert model.config is not None and not model.warnings
    return model.config


def test_the_settings_example_loads(tmp_path):
    (text,) = fenced((ROOT / "docs" / "settings.md").read_text(encoding="utf-8"), "yaml")
    (tmp_path / "settings.yaml").write_text(text)
    settings = load_settings({}, {}, tmp_path / "settings.yaml")
    assert (settings.port, settings.keep_alive, settings.memory_budget) == (8181, 1800.0, 12 * 2**30)


def test_the_layers_of_the_docs_are_those_of_the_test():
    layers = load_layers()
    _, _, after = (ROOT / "docs" / "architecture.md").read_text(encoding="utf-8").partition("<!-- layers -->\n")
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in after.splitlines() if line.startswith("| ")][2:]
    shown = {}
    for names, allowed in rows:
        names = {"a backend's implementation": "backends.*", "backends (base, loader, each spec.py)": "backends"}.get(
            names, names
        )
        for name in names.split(", "):
            shown[name] = set() if allowed == "nothing of ours" else set(allowed.split(", "))
    assert {name: allowed for name, allowed in shown.items() if allowed != {"anything"}} == {
        name: allowed for name, allowed in layers.ALLOWED.items() if name != "ui"
    }


def load_layers():
    spec = importlib.util.spec_from_file_location("layers_table", Path(__file__).parent / "test_layers.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


# --- commands ----------------------------------------------------------------------------------------------------------------

NO_ENGINE_HERE = {"docker"}
"""Not run: they need a container engine. Their files are checked below."""


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    """The server as the README starts it, over the models that ship with us."""
    folder = tmp_path_factory.mktemp("readme") / "models"
    folder.mkdir()
    with serving(folder) as running:
        yield running


def test_the_readme_shows_nothing_unknown():
    assert {shlex.split(command)[0] for command in commands()} == {"make", "llmgallery", "docker"}
    assert commands()[:3] == ["make run", "make test", 'llmgallery run pocket "Who are you?"']
    assert "    .venv/bin/llmgallery run pocket" in README.partition("\n## ")[0]


@pytest.mark.parametrize("command", [line for line in commands() if line.startswith("make")])
def test_make_targets_exist(command):
    """test_make.py runs the targets; make run ASK=... is run below."""
    clean = {key: value for key, value in os.environ.items() if not key.startswith("MAKE") and key != "MFLAGS"}
    planned = subprocess.run(["make", "-n", *shlex.split(command)[1:]], cwd=ROOT, env=clean, capture_output=True, text=True)
    assert planned.returncode == 0, planned.stderr


@pytest.mark.parametrize("command", [line for line in commands() if line.startswith("llmgallery") and " serve" not in line])
def test_the_readmes_commands_run(command, tmp_path):
    if "check models" in command:
        shutil.copytree(ROOT / "models", tmp_path / "models")
    if "~/localai" in command:
        shutil.copytree(ROOT / "models", tmp_path / "localai" / "models")
        command = command.replace("~", str(tmp_path))
    (tmp_path / "chat.json").write_text(json.dumps({"messages": [{"role": "user", "content": "Hi"}]}))
    result = llmgallery(*shlex.split(command)[1:], cwd=tmp_path)
    assert result.returncode == 0, result.stderr
    assert "Traceback" not in result.stderr
    if " run " in command:
        assert "I am pocket" in result.stdout


@pytest.mark.parametrize("command", [line for line in commands() if line.startswith("llmgallery serve")])
def test_the_readmes_servers_start(command, tmp_path):
    """On a free port, as others may be taken."""
    flags = re.sub(r"--port \d+", "", command.removeprefix("llmgallery serve")).split()
    (tmp_path / "models").mkdir()
    with serving(tmp_path / "models", *flags) as running:
        assert running.said.startswith("llmgallery ")


def test_the_curl_command_answers(server):
    (text,) = fenced(README, "sh")
    assert "http://127.0.0.1:8080" in text
    words = shlex.split(text.replace("http://127.0.0.1:8080", server.url).replace("\\\n", ""))
    if shutil.which("curl") is None:
        pytest.skip("no curl")
    shown = subprocess.run(words, capture_output=True, text=True, timeout=60, check=True).stdout
    pieces = [json.loads(line[6:]) for line in shown.splitlines() if line.startswith("data: {")]
    answer = "".join(choice["delta"].get("content") or "" for piece in pieces for choice in piece["choices"])
    assert "llmgallery is a server for language models" in answer
    assert shown.rstrip().endswith("data: [DONE]")


def test_make_run_prints_the_readmes_curl(server):
    (shown,) = fenced(README, "sh")
    assert shown.replace("http://127.0.0.1:8080", server.url).strip() in server.said


def test_the_python_example_answers(server, tmp_path):
    (text,) = fenced(README, "python")
    assert "http://127.0.0.1:8080/v1" in text
    script = tmp_path / "example.py"
    script.write_text(text.replace("http://127.0.0.1:8080", server.url))
    shown = subprocess.run([sys.executable, script], capture_output=True, text=True, timeout=60)
    assert "Paris" in shown.stdout, shown.stderr


def test_make_run_ask_answers(tmp_path):
    """The whole way: make, a server on a free port, HTTP, the bundled model, and the end of the server."""
    (tmp_path / ".installed-run").touch()
    os.utime(tmp_path / ".installed-run", (4e9, 4e9))
    clean = {key: value for key, value in os.environ.items() if not key.startswith(("MAKE", "LLMGALLERY_")) and key != "MFLAGS"}
    result = subprocess.run(
        ["make", "run", f"VENV={tmp_path}", f"PY={sys.executable}", "ASK=What is the capital of France?"],
        cwd=ROOT,
        env=clean,
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert result.returncode == 0, result.stderr
    assert "Paris" in result.stdout and "http" not in result.stdout


# --- Docker ------------------------------------------------------------------------------------------------------------------


def test_the_dockerfile_names_what_is_there():
    text = (ROOT / "Dockerfile").read_text(encoding="utf-8")
    env = dict(re.findall(r"\b(LLMGALLERY_\w+)=(\S+)", text))
    settings = load_settings({}, env, None)
    assert (settings.host, settings.port, str(settings.models_dir)) == ("0.0.0.0", 8080, "/models")
    assert "USER llmgallery" in text and "HEALTHCHECK" in text and "/healthz" in text
    assert 'ENTRYPOINT ["llmgallery"]\nCMD ["serve"]' in text
    needed = ["llmgallery", "models", "gallery", "pyproject.toml", "README.md", "LICENSE"]
    assert all(f"!{name}\n" in (ROOT / ".dockerignore").read_text(encoding="utf-8") for name in needed)
    variables = re.findall(r"-e (\w+)=(\w+)", README)
    assert load_settings({}, dict(variables), None).api_keys == ["secret"]
