"""A server with a backend whose workers run under another Python: named in the settings, and made by `backends install`."""

from __future__ import annotations

import os
import signal
import sys
from pathlib import Path

import pytest
from other_python import make_environment
from server_process import ServerProcess


@pytest.fixture
def models(tmp_path) -> Path:
    folder = tmp_path / "models"
    folder.mkdir()
    (folder / "here.yaml").write_text("backend: echo\ndescription: answers with what was said\n")
    return folder


def say(server: ServerProcess, model: str, text: str) -> str:
    with server.client as client:
        answer = client.chat.completions.create(model=model, messages=[{"role": "user", "content": text}])
    return answer.choices[0].message.content or ""


def test_one_model_runs_elsewhere_and_both_survive_the_death_of_the_other(tmp_path, models):
    python = make_environment(tmp_path / "environment")
    (tmp_path / "settings.yaml").write_text("backends:\n  ECHO: {python: environment/bin/python}\n")
    with ServerProcess(models, "--config", str(tmp_path / "settings.yaml")) as server:
        assert say(server, "here", "one") == "one"
        assert say(server, "pocket", "Who are you?").startswith("I am pocket")
        elsewhere, ours = workers_of(server, str(python)), workers_of(server, sys.executable)
        assert (len(elsewhere), len(ours)) == (1, 1)
        kill(elsewhere)
        assert say(server, "pocket", "Who are you?").startswith("I am pocket")
        assert say(server, "here", "two") == "two", "a new worker"
        assert workers_of(server, str(python)) != elsewhere
        kill(ours)
        assert say(server, "here", "three") == "three"
        assert say(server, "pocket", "Who are you?").startswith("I am pocket")


def workers_of(server: ServerProcess, python: str) -> list[int]:
    """Processes of workers under this interpreter."""
    return [pid for pid, command in server.workers().items() if command == python]


def kill(workers: list[int]) -> None:
    for pid in workers:
        os.kill(pid, signal.SIGKILL)


def test_a_wrong_interpreter_is_a_clear_answer(tmp_path, models):
    python = make_environment(tmp_path / "environment", ("jinja2", "markupsafe"))
    with ServerProcess(models, "--backend-python", f"echo={python}") as server, server.http() as http:
        body = {"model": "here", "messages": [{"role": "user", "content": "x"}]}
        answer = http.post("/v1/chat/completions", json=body)
        assert answer.status_code in (500, 503), answer.text
        message = answer.json()["error"]["message"]
        assert f"{python} (backends.echo.python in the settings) does not run a worker" in message
        assert "No module named 'msgspec'" in message
        assert say(server, "pocket", "Who are you?").startswith("I am pocket")
