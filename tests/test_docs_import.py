"""The commands of docs/import.md, and those of docs/cli.md by which a prompt is seen, do what they say."""

from __future__ import annotations

import json
import shlex
import shutil
from pathlib import Path

import yaml
from terminal import llmgallery, serving

ROOT = Path(__file__).parents[1]
BODY = '{"messages": [{"role": "user", "content": "Hi"}]}'


def commands(name: str, section: str = "") -> list[str]:
    text = (ROOT / "docs" / name).read_text(encoding="utf-8")
    if section:
        text = text.partition(f"\n## {section}\n")[2].partition("\n## ")[0]
    lines = [line.strip() for line in text.splitlines() if line.startswith(("    llmgallery ", "    echo "))]
    return [line.partition("  #")[0].strip() for line in lines]


def test_the_imports_write_what_they_say(tmp_path: Path):
    shutil.copytree(ROOT / "models", tmp_path / "localai" / "models")
    ours = tmp_path / ".ollama" / "models" / "manifests"
    ours.mkdir(parents=True)
    llm_api = {"model_family": "llama", "setup_params": {"repo_id": "user/repo", "filename": "model.gguf"}, "port": 8123}
    (tmp_path / "config.yaml").write_text(yaml.safe_dump(llm_api))
    shown = commands("import.md")
    dry, wet, settings, serve, ollama = shown
    told = [llmgallery(*_at(command, tmp_path), cwd=tmp_path) for command in (dry, wet, settings)]
    assert [result.returncode for result in told] == [0, 0, 0], [result.stderr for result in told]
    assert told[0].stdout.startswith("--- pocket.yaml\n") and "wrote" in told[1].stdout
    assert yaml.safe_load((tmp_path / "server.yaml").read_text())["port"] == 8123
    assert len(list((tmp_path / "srv" / "models").glob("*.yaml"))) == 1
    assert serve == "llmgallery serve --config config.yaml"
    nothing = llmgallery(*_at(ollama, tmp_path), cwd=tmp_path)
    assert nothing.returncode == 1 and "Traceback" not in nothing.stderr and str(ours.parent) in nothing.stderr


def test_llm_apis_file_is_served_as_it_is(tmp_path: Path):
    weights = ROOT / "models" / "pocket-f16.gguf"
    (tmp_path / "config.yaml").write_text(f"model_family: llama\nsetup_params: {{filename: {weights}}}\nmodels_dir: ./models\n")
    (tmp_path / "models").mkdir()
    with serving(tmp_path / "models", "--config", tmp_path / "config.yaml") as running:
        assert running.said.startswith("llmgallery ")


def _at(command: str, home: Path) -> list[str]:
    words = shlex.split(command)[1:]
    return [word.replace("~", str(home)).replace("/srv/", f"{home}/srv/") for word in words]


def test_a_prompt_is_seen(tmp_path: Path):
    (tmp_path / "body.json").write_text(BODY)
    explain, piped, as_json = commands("cli.md", "Seeing a prompt")
    echo, _, render = piped.partition(" | ")
    assert shlex.split(echo) == ["echo", BODY]
    values = llmgallery(*shlex.split(explain)[1:], cwd=tmp_path)
    prompt = llmgallery(*shlex.split(render)[1:], cwd=tmp_path, input=BODY)
    told = json.loads(llmgallery(*shlex.split(as_json)[1:], cwd=tmp_path).stdout)
    assert (values.returncode, prompt.returncode) == (0, 0) and "template" in values.stdout
    assert prompt.stdout == told["prompt"] and "Hi" in told["prompt"] and told["tokens"] == len(told["token_ids"])
