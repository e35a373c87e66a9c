"""The prompt that is shown is the one that is answered: with the model loaded, without it, and without its weights."""

from __future__ import annotations

import io
import json
import os
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner
from live_server import LiveServer, user
from terminal import environment

from llmgallery import paths
from llmgallery.cli import main

CASES = json.loads((Path(__file__).parents[1] / "cases" / "requests_to_render.json").read_text())
POCKET = paths.builtin("models") / "pocket-f16.gguf"
JINJA = "{{ bos_token }}{{ who or 'nobody' }}: {% for m in messages %}[{{ m.role }}] {{ m.content }}{% endfor %}[answer]"
MODELS: dict[str, dict[str, Any]] = {
    "parrot": {},
    "brief": {"system_prompt": "Be brief.", "stopwords": ["</s>"], "template": {"preset": "chatml"}},
    "own": {"backend": "llama-cpp", "parameters": {"model": str(POCKET)}, "template": {"chat_template": JINJA}},
}
"""Beside the bundled model."""


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LiveServer]:
    with LiveServer(tmp_path_factory.mktemp("models")) as running:
        for name, config in MODELS.items():
            running.add(name, **config)
        yield running


def test_what_is_shown_is_what_is_answered(server: LiveServer) -> None:
    """First by light workers, as nothing is loaded; then by the models' own, which count the prompt's tokens themselves."""
    names = [*MODELS, "pocket"]
    with server.http() as http:

        def shown(name: str, body: dict[str, Any]) -> dict[str, Any]:
            reply = http.post("/apply-template", json={"model": name, **body})
            assert reply.status_code == 200, reply.text
            told: dict[str, Any] = reply.json()
            assert told["tokens"] == len(told["token_ids"]) > 0 and told["model"] == name
            return told

        def counted(name: str, body: dict[str, Any]) -> int:
            route = "/v1/chat/completions" if "messages" in body else "/v1/completions"
            reply = http.post(route, json={"model": name, "max_tokens": 1, **body})
            assert reply.status_code == 200, reply.text
            tokens: int = reply.json()["usage"]["prompt_tokens"]
            return tokens

        before = {(name, case["name"]): shown(name, case["body"]) for name in names for case in CASES}
        assert all(server.state(name) is None for name in names)
        for name in names:
            for case in CASES:
                told = before[name, case["name"]]
                assert (told["tokens"], name, case["name"]) == (counted(name, case["body"]), name, case["name"])
                assert shown(name, case["body"]) == told
        assert all(state.state == "ready" for name in names if (state := server.state(name)) is not None)
    one = before["brief", "one message"]
    assert one["prompt"].startswith("<|im_start|>system\nBe brief.<|im_end|>") and one["origin"] == "template.preset chatml"
    assert {"</s>", "<|im_end|>"} <= set(one["stops"])
    assert before["own", CASES[4]["name"]]["prompt"] == "<|endoftext|>a client: [user] Hi[answer]"
    assert {"END", "\n\n"} <= set(before["own", CASES[4]["name"]]["stops"])
    assert before["pocket", "a completion of token ids"]["token_ids"] == CASES[-1]["body"]["prompt"]


def test_light_workers_are_shared_and_end(server: LiveServer) -> None:
    """No model is counted for them, so that none is ever evicted."""
    assert len(server.stack.gallery.manager.light) == 2


def test_a_model_whose_worker_has_just_died_is_still_shown(server: LiveServer) -> None:
    with server.http() as http:
        assert http.post("/v1/completions", json={"model": "parrot", "prompt": "Hi"}).is_success
        state = server.state("parrot")
        assert state is not None and state.pid is not None
        os.kill(state.pid, signal.SIGKILL)
        assert http.post("/apply-template", json={"model": "parrot", "messages": user("Hi")}).json()["tokens"] == 5


# --- the command -------------------------------------------------------------------------------------------------------------


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    for name, value in environment(tmp_path).items():
        monkeypatch.setenv(name, value)
    monkeypatch.chdir(tmp_path)
    (tmp_path / "models").mkdir()
    return tmp_path / "models"


def invoke(*arguments: str, body: Any) -> Any:
    data = body if isinstance(body, str) else json.dumps(body)
    return CliRunner().invoke(main, ["render", *arguments], input=io.BytesIO(data.encode()), prog_name="llmgallery")


def test_a_template_in_the_yaml_needs_no_weights(folder: Path) -> None:
    text = {"backend": "llama-cpp", "parameters": {"model": "owner/repo/file.gguf"}, "template": {"chat_template": JINJA}}
    (folder / "far.yaml").write_text(json.dumps(text))
    result = invoke("far", "--request", "-", "--json", body={"model": "other", "messages": user("é")})
    told = json.loads(result.stdout)
    assert told == {
        "model": "far", "prompt": "nobody: [user] é[answer]", "tokens": None, "token_ids": None, "stops": [],
        "origin": "template.chat_template", "repairs": [], "warnings": told["warnings"],
    }  # fmt: skip
    assert "the weights of model far are not here" in result.stderr and "set template.bos_token" in result.stderr


def test_the_prompt_is_printed_byte_for_byte(folder: Path, server: LiveServer, monkeypatch: pytest.MonkeyPatch) -> None:
    (folder / "body.json").write_text(json.dumps({"messages": user("Hi")}))
    monkeypatch.setenv("LLMGALLERY_URL", server.url)
    result = invoke("brief", "--request", str(folder / "body.json"), body="")
    assert result.stdout.endswith("<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\n") and not result.stderr


def test_what_cannot_be_rendered_is_told(folder: Path) -> None:
    (folder / "far.yaml").write_text("parameters: {model: owner/repo/file.gguf}\n")
    lacking = "only the model's vocabulary could tell the prompt, and it is not here: the weights of model far are not here: ask"
    told = {
        ("far", '{"messages": [{"role": "user", "content": "Hi"}]}'): "the weights of model far are not here",
        ("fa", '{"messages": [{"role": "user", "content": "Hi"}]}'): "The model 'fa' does not exist; did you mean 'far'?",
        ("far", '{"prompt": [1, 2]}'): f"prompt: {lacking}",
        ("far", '{"prompt": "a", "suffix": "b"}'): f"suffix: {lacking}",
        ("far", "{"): "<stdin>: the body is not valid JSON",
        ("far", '{"messages": []}'): "<stdin>: messages: expected a list that is not empty",
    }
    for (name, body), message in told.items():
        result = invoke(name, "--request", "-", "--models-dir", str(folder), body=body)
        assert result.exit_code == 1 and message in result.stderr, result.stderr
