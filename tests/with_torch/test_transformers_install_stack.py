"""A model of the Hub in safetensors: installed by its name on the first request, loaded and answered, over HTTP."""

from __future__ import annotations

from pathlib import Path

import httpx
import pytest
import yaml
from loopback_hub import LoopbackHub
from server_process import ServerProcess
from tiny_transformers import make_bert, make_llama

REPO, ENCODER = "tiny/llama", "tiny/bert"


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("made")
    return {REPO: make_llama(folder / "llama"), ENCODER: make_bert(folder / "bert")}


@pytest.fixture
def environment(hub: LoopbackHub, made: dict[str, Path], tmp_path: Path) -> dict[str, str]:
    for repo, folder in made.items():
        for path in sorted(folder.rglob("*")):
            if path.is_file():
                hub.add(repo, path.relative_to(folder).as_posix(), path.read_bytes(), lfs=path.suffix == ".safetensors")
        hub.add(repo, "pytorch_model.bin", b"PK")
    (tmp_path / "models").mkdir()
    return {
        "HF_ENDPOINT": hub.url,
        "HF_HOME": str(tmp_path / "hf"),
        "LLMGALLERY_DATA_DIR": str(tmp_path / "data"),
        "OMP_NUM_THREADS": "1",
        "LLMGALLERY_GALLERIES": "",
    }


def test_the_first_request_installs_and_every_other_answers(
    hub: LoopbackHub, environment: dict[str, str], tmp_path: Path
) -> None:
    models = tmp_path / "models"
    body = {"model": REPO, "messages": [{"role": "user", "content": "Hi"}], "temperature": 0, "max_tokens": 8}
    with ServerProcess(models, environment=environment) as server:
        first = httpx.post(f"{server.url}/v1/chat/completions", json=body, timeout=120)
        assert first.status_code == 200, first.text + server.output
        sent = hub.sent(f"{REPO}/model.safetensors")
        again = httpx.post(f"{server.url}/v1/chat/completions", json=body, timeout=120).json()
        assert again["choices"] == first.json()["choices"]
        assert again["usage"]["completion_tokens"] == 8
        vector = httpx.post(f"{server.url}/v1/embeddings", json={"model": ENCODER, "input": "a fox"}, timeout=120)
        assert vector.status_code == 200, vector.text + server.output
        assert len(vector.json()["data"][0]["embedding"]) > 8
        refused = httpx.post(f"{server.url}/v1/embeddings", json={"model": REPO, "input": "a fox"}, timeout=120)
        assert refused.status_code == 400, refused.text
    written = {path.stem: yaml.safe_load(path.read_text()) for path in models.glob("*.yaml")}
    assert written["tiny__llama"]["backend"] == "transformers"
    assert written["tiny__llama"]["parameters"]["model"] == f"{REPO}@{hub.commit(REPO)}"
    assert written["tiny__bert"]["embeddings"] is True
    assert hub.sent("pytorch_model.bin") == 0
    before = len(hub.requests)
    with ServerProcess(models, environment=environment) as server:
        once_more = httpx.post(f"{server.url}/v1/chat/completions", json=body, timeout=120).json()
        assert once_more["choices"] == first.json()["choices"]
    assert (hub.sent(f"{REPO}/model.safetensors"), len(hub.requests)) == (sent, before)
