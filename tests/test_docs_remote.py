"""What docs/remote.md shows does work: its files load, and its command is answered by an endpoint that gets all that was said."""

from __future__ import annotations

import json
import re
import shlex
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml
from live_server import LiveServer
from loopback_endpoint import LoopbackEndpoint, answered, whole

from llmgallery.backends.loader import specs
from llmgallery.cli.stack import outside
from llmgallery.config.load import load_model
from llmgallery.config.settings import load_settings

TEXT = (Path(__file__).parent.parent / "docs" / "remote.md").read_text(encoding="utf-8")
BASE = "http://127.0.0.1:8080"
FILES = dict(re.findall(r"```yaml\n# ([\w./-]+\.yaml)\n(.*?)```", TEXT, re.DOTALL))


@pytest.fixture
def endpoint() -> Iterator[LoopbackEndpoint]:
    scripted = LoopbackEndpoint()
    yield scripted
    scripted.close()


def test_the_models_are_read_without_a_warning(tmp_path: Path) -> None:
    models = {name: text for name, text in FILES.items() if name.startswith("models/")}
    assert len(models) == 2
    for name, text in models.items():
        path = tmp_path / Path(name).name
        path.write_text(text)
        model = load_model(path, specs(), outside())
        assert not model.problems and not model.warnings


def test_the_settings_are_read(tmp_path: Path) -> None:
    file = tmp_path / "settings.yaml"
    file.write_text(FILES["settings.yaml"])
    assert load_settings({}, {}, file).media_hosts == ["images.internal", "10.0.0.7"]


def test_the_command_is_answered(tmp_path: Path, endpoint: LoopbackEndpoint, monkeypatch: pytest.MonkeyPatch) -> None:
    if shutil.which("curl") is None:
        pytest.skip("no curl")
    monkeypatch.setenv("EXAMPLE_API_KEY", "sk-example")
    monkeypatch.setenv("TEAM", "blue")
    endpoint.reply = whole(answered("hello"))
    model = yaml.safe_load(FILES["models/coder.yaml"])
    model["options"]["base_url"] = endpoint.url
    (command,) = re.findall(r"```sh\n(.*?)```", TEXT, re.DOTALL)
    with LiveServer(tmp_path) as server:
        server.add("coder", **model)
        words = shlex.split(command.replace(BASE, server.url))
        answer = json.loads(subprocess.run(words, capture_output=True, timeout=60, check=True).stdout)
    assert answer["choices"][0]["message"]["content"] == "hello" and answer["model"] == "coder"
    (asked,) = endpoint.asked
    said = json.loads(command.partition(" -d '")[2].rpartition("'")[0])
    assert {name: asked.body[name] for name in ("service_tier", "provider")} == {
        name: said[name] for name in ("service_tier", "provider")
    }
    assert (asked.body["model"], asked.body["temperature"], asked.body["max_tokens"]) == ("owner/coder-32b", 0.2, 2000)
    assert asked.body["messages"][0] == {"role": "system", "content": "You are brief."} and asked.body["stop"] == ["<|end|>"]
    assert asked.headers["x-team"] == "blue" and asked.headers["authorization"] == "Bearer sk-example"


def test_the_smallest_file_asks_the_endpoint_of_the_environment(
    tmp_path: Path, endpoint: LoopbackEndpoint, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", "sk-example")
    monkeypatch.setenv("OPENAI_BASE_URL", endpoint.url)
    endpoint.reply = whole(answered("hello"))
    (tmp_path / "gpt-4o-mini.yaml").write_text(FILES["models/gpt-4o-mini.yaml"])
    with LiveServer(tmp_path) as server, server.http() as http:
        body = {"model": "gpt-4o-mini", "messages": [{"role": "user", "content": "Hi"}]}
        assert http.post("/v1/chat/completions", json=body).json()["choices"][0]["message"]["content"] == "hello"
    (asked,) = endpoint.asked
    assert asked.body["model"] == "gpt-4o-mini" and asked.headers["authorization"] == "Bearer sk-example"
