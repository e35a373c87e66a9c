"""What docs/api.md shows does work: its models load, its curl commands and its script answer, models are installed."""

from __future__ import annotations

import json
import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from live_server import LiveServer
from loopback_hub import LoopbackHub

from llmgallery import paths
from llmgallery.backends.loader import specs
from llmgallery.cli.stack import outside
from llmgallery.config.load import load_model

TEXT = (Path(__file__).parent.parent / "docs" / "api.md").read_text(encoding="utf-8")
BASE = "http://127.0.0.1:8080"
WEIGHTS = paths.builtin("models") / "pocket-f16.gguf"


def fenced(language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", TEXT, re.DOTALL)


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LiveServer]:
    """Echo under the names of the document."""
    with LiveServer(tmp_path_factory.mktemp("models")) as running:
        running.add("embedder", embeddings=True)
        running.add("reranker", reranking=True)
        running.add("echo")
        yield running


def curl(command: str, server: LiveServer) -> dict[str, object]:
    assert BASE in command
    if shutil.which("curl") is None:
        pytest.skip("no curl")
    words = shlex.split(command.replace(BASE, server.url))
    answer: dict[str, object] = json.loads(subprocess.run(words, capture_output=True, timeout=60, check=True).stdout)
    return answer


def test_the_models_are_read_without_a_warning(tmp_path: Path) -> None:
    examples = fenced("yaml")
    assert len(examples) == 2
    for text in examples:
        name = re.match(r"# models/(\w+)\.yaml\n", text)
        assert name is not None and f'"{name[1]}"' in TEXT
        path = tmp_path / f"{name[1]}.yaml"
        path.write_text(text)
        model = load_model(path, specs(), outside())
        assert not model.problems and not model.warnings


def test_the_curl_commands_answer(server: LiveServer) -> None:
    embeddings, rerank, *_ = fenced("sh")
    vectors = curl(embeddings, server)
    assert vectors["model"] == "embedder" and len(vectors["data"]) == 2  # type: ignore[arg-type]
    ranked = curl(rerank, server)
    assert ranked["model"] == "reranker"
    assert [row["index"] for row in ranked["results"]] == [1, 0]  # type: ignore[attr-defined]


def test_a_prompt_is_shown_as_documented(server: LiveServer) -> None:
    (command,) = [text for text in fenced("sh") if "/apply-template" in text]
    shown = curl(command, server)
    (example,) = [block for block in TEXT.split("\n\n") if '"token_ids"' in block and block.startswith("    {")]
    for name, value in shown.items():
        assert json.dumps(value) in example or name == "token_ids", name
    assert all(f"`{name}`" in TEXT for name in shown)


def test_an_edit_is_answered_as_documented(server: LiveServer) -> None:
    (command,) = [text for text in fenced("sh") if "/v1/edits" in text]
    edited = curl(command.replace('"pocket"', '"echo"'), server)
    (example,) = [block for block in TEXT.split("\n\n") if '"object": "edit"' in block]
    assert edited["object"] == "edit" and all(f'"{name}": ' in example for name in edited)


def test_the_python_script_answers(server: LiveServer, tmp_path: Path) -> None:
    (text,) = fenced("python")
    assert f"{BASE}/v1" in text
    script = tmp_path / "example.py"
    script.write_text(text.replace(BASE, server.url))
    shown = subprocess.run([sys.executable, script], capture_output=True, text=True, timeout=60)
    assert re.fullmatch(r"2 64 \d+\n", shown.stdout), shown.stderr


def test_a_model_is_installed_and_removed_as_shown(hub: LoopbackHub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    hub.add("lmstudio-community/SmolLM2-135M-Instruct-GGUF", "SmolLM2-135M-Instruct-Q8_0.gguf", WEIGHTS.read_bytes())
    for name, value in (("HF_ENDPOINT", hub.url), ("HF_HOME", str(tmp_path)), ("LLMGALLERY_DATA_DIR", str(tmp_path))):
        monkeypatch.setenv(name, value)
    apply, jobs, events, available, delete = fenced("sh")[2:7]
    (tmp_path / "models").mkdir()
    with LiveServer(tmp_path / "models", auto_install="hub") as server:
        id = curl(apply, server)["uuid"]
        assert id in curl(jobs, server)
        *_, last = told(events.replace("UUID", str(id)), server)
        assert last["message"] == "completed", last
        assert last["name"] in curl(f"curl {BASE}/v1/models", server)["data"][0]["id"]  # type: ignore[index]
        assert all("smollm2" in str(entry).lower() for entry in curl(available, server))
        *_, last = told(events.replace("UUID", str(curl(delete, server)["uuid"])), server)
        assert (last["message"], last["deletion"]) == ("completed", True)


def told(command: str, server: LiveServer) -> list[dict[str, object]]:
    words = shlex.split(command.replace(BASE, server.url))
    shown = subprocess.run(words, capture_output=True, text=True, timeout=60, check=True).stdout
    return [json.loads(line.removeprefix("data: ")) for line in shown.splitlines() if line.startswith("data: ")]


def test_every_field_of_installs_is_explained() -> None:
    from llmgallery.api.dialects.localai.convert import JobBody
    from llmgallery.api.dialects.localai.schema import ApplyBody

    _, apply, rest = re.split("## POST /models/apply|## Jobs", TEXT)
    for text, body in ((apply, ApplyBody), (rest, JobBody)):
        for field in body.__struct_fields__:
            assert f"`{field}`" in text, field


def test_every_field_of_the_doors_is_explained() -> None:
    from llmgallery.api.dialects.jina.schema import RerankBody
    from llmgallery.api.dialects.openai.embeddings import EmbeddingBody

    doors = TEXT.partition("# Installing models")[0].split("## POST /v1/rerank")
    for door, body in zip(doors, (EmbeddingBody, RerankBody), strict=True):
        for field in set(body.__struct_fields__) - {"user", "model"}:
            assert f"`{field}`" in door, field
