"""Embeddings and scores of real files through the running server, as their users ask for them."""

from __future__ import annotations

import base64
import json
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import generated_models
import numpy as np
import openai
import pytest
from server_process import ServerProcess

CASES = Path(__file__).parents[1] / "cases"
VECTORS: list[dict[str, str]] = json.loads((CASES / "minilm_vectors.json").read_text())
SCORES = json.loads((CASES / "rerank_scores.json").read_text())
TEXTS = [case["text"] for case in VECTORS]
EXPECTED = [np.frombuffer(base64.b64decode(case["vector"]), "<f4") for case in VECTORS]


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServerProcess]:
    models = tmp_path_factory.mktemp("models")
    generated_models.minilm(models)
    generated_models.scorer(models)
    (models / "both.yaml").write_text("name: both\nembeddings: true\nparameters: {model: pocket-f16.gguf}\nparallel: 2\n")
    (models / "pocket-f16.gguf").symlink_to(generated_models.POCKET)
    with ServerProcess(models) as running:
        yield running


@pytest.mark.parametrize("encoding", ["float", "base64"])
def test_minilm_by_its_file_s_name(server: ServerProcess, encoding: str) -> None:
    made = server.client.embeddings.create(model="minilm", input=TEXTS, encoding_format=encoding)
    assert [item.index for item in made.data] == list(range(len(TEXTS)))
    for item, expected in zip(made.data, EXPECTED, strict=True):
        given = item.embedding
        vector = np.frombuffer(base64.b64decode(given), "<f4") if isinstance(given, str) else np.array(given, np.float32)
        assert float(vector @ expected) > 0.9999
    assert made.usage.prompt_tokens == made.usage.total_tokens > 500


def test_dimensions_and_token_ids(server: ServerProcess) -> None:
    made = server.client.embeddings.create(model="minilm", input=[[101, 7592, 102], [7592]], dimensions=32)
    assert [len(item.embedding) for item in made.data] == [32, 32]
    assert all(abs(np.linalg.norm(item.embedding) - 1) < 1e-5 for item in made.data)
    assert made.usage.prompt_tokens == 4


def test_many_clients_at_once(server: ServerProcess) -> None:
    with ThreadPoolExecutor(8) as threads:
        asked = [threads.submit(server.client.embeddings.create, model="minilm", input=text) for text in TEXTS]
    for one, expected in zip(asked, EXPECTED, strict=True):
        assert np.array(one.result().data[0].embedding, np.float32) @ expected > 0.9999


def test_what_is_too_long_is_refused_with_its_place(server: ServerProcess) -> None:
    with pytest.raises(openai.BadRequestError) as caught:
        server.client.embeddings.create(model="minilm", input=["fine", "word " * 511])
    assert "input[1] has 513 tokens, but this model takes 512" in caught.value.message
    cut = server.client.embeddings.create(model="minilm", input="word " * 900, extra_body={"truncate": True})
    assert cut.usage.prompt_tokens == 512


def test_an_encoder_gives_no_answers_and_a_chat_model_no_embeddings(server: ServerProcess) -> None:
    with pytest.raises(openai.BadRequestError):
        server.client.chat.completions.create(model="minilm", messages=[{"role": "user", "content": "Hello"}])
    with pytest.raises(openai.BadRequestError, match="embeddings"):
        server.client.embeddings.create(model="pocket", input="Hello")


def test_a_model_that_does_both(server: ServerProcess) -> None:
    made = server.client.embeddings.create(model="both", input=["Paris", "London"])
    assert len(made.data) == 2 and len(made.data[0].embedding) == 192
    question = [{"role": "user", "content": "What is the capital of France?"}]
    answer = server.client.chat.completions.create(model="both", messages=question)
    assert "Paris" in (answer.choices[0].message.content or "")


def test_scores_come_best_first(server: ServerProcess) -> None:
    case = SCORES[0]
    with server.http() as http:
        reply = http.post("/v1/rerank", json={"model": "tiny-bert", "query": case["query"], "documents": case["documents"]})
    assert reply.status_code == 200, reply.text
    order = [item["index"] for item in reply.json()["results"]]
    assert order == sorted(range(len(order)), key=lambda index: -case["scores"][index])
