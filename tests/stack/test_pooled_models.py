"""Real weights through the whole stack: MiniLM's embeddings, a classifier's scores, and a chat model that makes vectors too."""

from __future__ import annotations

import asyncio
import base64
import json
import math
from array import array
from collections.abc import Iterator
from pathlib import Path

import generated_models
import httpx
import pytest
from live_server import LiveServer, error_of, user
from openai import AsyncOpenAI

from llmgallery import paths

CASES = json.loads((Path(__file__).parents[1] / "cases" / "minilm_vectors.json").read_text())
TEXTS = [case["text"] for case in CASES]
EXPECTED = [array("f", base64.b64decode(case["vector"])).tolist() for case in CASES]
RANKED = json.loads((Path(__file__).parents[1] / "cases" / "rerank_scores.json").read_text())
POCKET = paths.builtin("models") / "pocket-f16.gguf"


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LiveServer]:
    folder = tmp_path_factory.mktemp("models")
    generated_models.scorer(folder)
    with LiveServer(folder) as running:
        running.add("both", backend="llama-cpp", parameters={"model": str(POCKET)}, embeddings=True, parallel=2, threads=1)
        running.add("scorer", backend="llama-cpp", parameters={"model": "tiny-bert.gguf"})
        yield running


@pytest.fixture(scope="module")
def minilm(server: LiveServer) -> str:
    """Without a YAML: what the file is told by its header."""
    generated_models.minilm(server.folder)
    server.stack.registry.refresh()
    return "minilm"


@pytest.fixture(scope="module")
def http(server: LiveServer) -> Iterator[httpx.Client]:
    with server.http() as client:
        yield client


def cosine(one: list[float], other: list[float]) -> float:
    return sum(a * b for a, b in zip(one, other, strict=True)) / math.hypot(*one) / math.hypot(*other)


async def test_concurrent_clients_get_the_vectors_of_transformers(server: LiveServer, minilm: str) -> None:
    async with AsyncOpenAI(base_url=f"{server.url}/v1", api_key="none", max_retries=0) as client:

        async def ask(first: int) -> list[list[float]]:
            reply = await client.embeddings.create(model=minilm, input=TEXTS[first : first + 3])
            return [row.embedding for row in reply.data]

        found = await asyncio.gather(*(ask(first) for first in range(0, len(TEXTS), 3)))
    vectors = [vector for several in found for vector in several]
    assert len(vectors) == len(EXPECTED)
    assert min(map(cosine, vectors, EXPECTED)) > 0.9999
    assert all(math.hypot(*vector) == pytest.approx(1, abs=1e-5) for vector in vectors)


def test_an_encoder_that_lies_here_refuses_what_it_cannot_before_it_is_loaded(server: LiveServer, http: httpx.Client) -> None:
    name = server.add("unloaded", backend="llama-cpp", parameters={"model": "tiny-bert.gguf"}, context_size=50)
    chat = http.post("/v1/chat/completions", json={"model": name, "messages": user("hi")})
    assert (chat.status_code, error_of(chat)["param"]) == (400, "model")
    assert error_of(chat)["message"].startswith(f"model {name} writes no text: its weights (bert) are made for reranking")
    vectors = http.post("/v1/embeddings", json={"model": name, "input": "hi"})
    assert (vectors.status_code, error_of(vectors)["param"]) == (400, "model")
    assert server.state(name) is None


@pytest.mark.parametrize("normalize", [True, False])
def test_scores_are_the_classifier_s(http: httpx.Client, normalize: bool) -> None:
    for case in RANKED:
        body = {"model": "scorer", "query": case["query"], "documents": case["documents"], "normalize": normalize}
        results = http.post("/v1/rerank", json=body).json()["results"]
        expected = [1 / (1 + math.exp(-score)) if normalize else score for score in case["scores"]]
        assert [row["relevance_score"] for row in results] == sorted((row["relevance_score"] for row in results), reverse=True)
        found = {row["index"]: row["relevance_score"] for row in results}
        assert [found[index] for index in range(len(expected))] == pytest.approx(expected, abs=0.02)


def test_a_chat_model_may_chat_and_make_vectors_in_one_process(server: LiveServer, http: httpx.Client) -> None:
    question = {"model": "both", "messages": user("What is the capital of France?")}
    before = http.post("/v1/chat/completions", json=question).json()["choices"][0]["message"]["content"]
    data = http.post("/v1/embeddings", json={"model": "both", "input": ["Paris", "Paris", "Tokyo"]}).json()["data"]
    one, same, other = (row["embedding"] for row in data)
    assert cosine(one, same) == pytest.approx(1, abs=1e-5)
    assert cosine(one, other) < 0.999
    assert http.post("/v1/chat/completions", json=question).json()["choices"][0]["message"]["content"] == before
    assert before == "The capital of France is Paris."
