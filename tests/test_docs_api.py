"""What docs/api.md shows does work: its models load, its curl commands and its script answer."""

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

from llmgallery.backends.loader import specs
from llmgallery.cli.stack import outside
from llmgallery.config.load import load_model

TEXT = (Path(__file__).parent.parent / "docs" / "api.md").read_text(encoding="utf-8")
BASE = "http://127.0.0.1:8080"


def fenced(language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", TEXT, re.DOTALL)


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LiveServer]:
    """Echo under the names of the document."""
    with LiveServer(tmp_path_factory.mktemp("models")) as running:
        running.add("embedder", embeddings=True)
        running.add("reranker", reranking=True)
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
    embeddings, rerank = fenced("sh")
    vectors = curl(embeddings, server)
    assert vectors["model"] == "embedder" and len(vectors["data"]) == 2  # type: ignore[arg-type]
    ranked = curl(rerank, server)
    assert ranked["model"] == "reranker"
    assert [row["index"] for row in ranked["results"]] == [1, 0]  # type: ignore[attr-defined]


def test_the_python_script_answers(server: LiveServer, tmp_path: Path) -> None:
    (text,) = fenced("python")
    assert f"{BASE}/v1" in text
    script = tmp_path / "example.py"
    script.write_text(text.replace(BASE, server.url))
    shown = subprocess.run([sys.executable, script], capture_output=True, text=True, timeout=60)
    assert re.fullmatch(r"2 64 \d+\n", shown.stdout), shown.stderr


def test_every_field_of_the_doors_is_explained() -> None:
    from llmgallery.api.dialects.jina.schema import RerankBody
    from llmgallery.api.dialects.openai.embeddings import EmbeddingBody

    doors = TEXT.split("## POST /v1/rerank")
    for door, body in zip(doors, (EmbeddingBody, RerankBody), strict=True):
        for field in set(body.__struct_fields__) - {"user", "model"}:
            assert f"`{field}`" in door, field
