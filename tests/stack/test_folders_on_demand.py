"""Models that are folders of weights, by name over HTTP, in an environment without the library that would load them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import httpx
import pytest
from live_server import error_of
from loopback_hub import LoopbackHub
from server_process import ServerProcess
from weight_folders import llama_files, write_folder

from llmgallery.backends.loader import specs

REPO = "tiny/llama"
COMMAND = "llmgallery backends install transformers"

pytestmark = pytest.mark.skipif(not specs()["transformers"].missing(), reason="tests/with_torch installs it for real")


@pytest.fixture
def environment(hub: LoopbackHub, tmp_path: Path) -> dict[str, str]:
    for name, data in llama_files().items():
        hub.add(REPO, name, data, lfs=name.endswith(".safetensors"))
    (tmp_path / "models").mkdir()
    return {"HF_ENDPOINT": hub.url, "HF_HOME": str(tmp_path / "hf"), "LLMGALLERY_DATA_DIR": str(tmp_path / "data")}


def post(server: ServerProcess, model: str, path: str = "chat/completions", **more: Any) -> httpx.Response:
    body = {"model": model, "messages": [{"role": "user", "content": "Hi"}], **more}
    return httpx.post(f"{server.url}/v1/{path}", json=body, timeout=60)


def test_what_is_missing_is_told_before_a_byte_of_the_weights_comes(hub, environment, tmp_path: Path) -> None:
    models = tmp_path / "models"
    (models / "named.yaml").write_text(f"backend: huggingface\nparameters:\n  model: {REPO}\n")
    (models / "cuda.yaml").write_text(f"backend: exllama2\nparameters:\n  model: {REPO}\n")
    with ServerProcess(models, environment=environment) as server:
        for name in (REPO, "named"):
            reply = post(server, name)
            assert COMMAND in error_of(reply)["message"], reply.text
            assert "torch" in error_of(reply)["message"]
            assert 500 < reply.status_code < 600
        assert "exllamav2 needs" in error_of(post(server, "cuda"))["message"]
    assert not [seen for seen in hub.seen("GET") if seen.name.endswith(".safetensors")]
    assert sorted(path.name for path in models.glob("*.yaml")) == ["cuda.yaml", "named.yaml"]


def test_wrong_uses_and_broken_folders_are_told_before_anything_is_started(hub, environment, tmp_path: Path) -> None:
    models = tmp_path / "models"
    files = llama_files()
    write_folder(models / "whole", files)
    write_folder(models / "encoder", {**files, "config.json": b'{"architectures": ["BertModel"], "model_type": "bert"}'})
    with ServerProcess(models, environment=environment) as server:
        chat = error_of(post(server, "encoder"))
        assert "its weights (BertModel) are made for embeddings" in chat["message"]
        refused = post(server, "whole", "embeddings", input="a")
        assert "its weights (LlamaForCausalLM) are made for writing text" in error_of(refused)["message"], refused.text
        assert refused.status_code == 400
        assert COMMAND in error_of(post(server, "whole"))["message"]
