"""POST /v1/rerank against the running server: Jina's shape, text-embeddings-inference's, scores, what is refused."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import httpx
import pytest
from live_server import LiveServer, error_of
from test_embeddings import fits

URL = "/v1/rerank"
QUERY = "red fox"
DOCUMENTS = ["a bird", "the red fox", "a fox", ""]


@pytest.fixture(scope="module")
def ranker(live: LiveServer) -> str:
    return live.add("ranker", reranking=True, aliases=["jina-reranker*"], context_size=100)


@pytest.fixture(scope="module")
def logits(live: LiveServer) -> str:
    """Scores from -4 to 4, as classifiers give them."""
    return live.add("logits", reranking=True, options={"logits": True})


def ask(http: httpx.Client, model: str, **fields: Any) -> dict[str, Any]:
    reply = http.post(URL, json={"model": model, "query": QUERY, "documents": DOCUMENTS, **fields})
    assert reply.status_code == 200, reply.text
    body: dict[str, Any] = fits("rerank", reply.json())
    return body


def scores(body: dict[str, Any]) -> list[tuple[int, float]]:
    return [(row["index"], row["relevance_score"]) for row in body["results"]]


@pytest.mark.parametrize("path", ["/v1/rerank", "/rerank", "/v1/reranking", "/reranking"])
def test_documents_come_best_first(http: httpx.Client, ranker: str, path: str) -> None:
    reply = http.post(path, json={"model": ranker, "query": QUERY, "documents": DOCUMENTS})
    body = fits("rerank", reply.json())
    assert scores(body) == [(1, 1.0), (2, 0.5), (0, 0.0), (3, 0.0)]
    assert body["model"] == "ranker"
    assert body["usage"]["prompt_tokens"] == sum(len(QUERY) + len(document) for document in DOCUMENTS)


def test_documents_may_be_left_out_and_limited(http: httpx.Client, ranker: str) -> None:
    assert [row["document"]["text"] for row in ask(http, ranker)["results"]] == ["the red fox", "a fox", "a bird", ""]
    short = ask(http, ranker, top_n=2, return_documents=False)
    assert short["results"] == [{"index": 1, "relevance_score": 1.0}, {"index": 2, "relevance_score": 0.5}]
    assert len(ask(http, ranker, top_n=9)["results"]) == 4


def test_documents_may_be_objects_with_a_text(http: httpx.Client, ranker: str) -> None:
    body = ask(http, ranker, query={"text": QUERY}, documents=["bird", {"text": QUERY, "id": 7}])
    assert body["results"][0] == {"index": 1, "document": {"text": QUERY}, "relevance_score": 1.0}


def test_texts_are_answered_as_text_embeddings_inference_does(http: httpx.Client, ranker: str) -> None:
    reply = http.post("/rerank", json={"model": ranker, "query": QUERY, "texts": DOCUMENTS})
    assert fits("ranks", reply.json()) == [
        {"index": 1, "score": 1.0}, {"index": 2, "score": 0.5}, {"index": 0, "score": 0.0}, {"index": 3, "score": 0.0},
    ]  # fmt: skip
    reply = http.post("/rerank", json={"model": ranker, "query": QUERY, "texts": DOCUMENTS, "return_text": True, "top_n": 1})
    assert fits("ranks", reply.json()) == [{"index": 1, "text": "the red fox", "score": 1.0}]


def test_scores_are_probabilities_unless_the_raw_ones_are_asked_for(http: httpx.Client, ranker: str, logits: str) -> None:
    raw = [(1, 4.0), (2, 0.0), (0, -4.0), (3, -4.0)]
    assert scores(ask(http, logits, normalize=False)) == scores(ask(http, logits, raw_scores=True)) == raw
    usual = scores(ask(http, logits))
    assert usual == scores(ask(http, logits, normalize=True))
    assert usual == [(index, pytest.approx(1 / (1 + math.exp(-logit)))) for index, logit in raw]
    texts = http.post(URL, json={"model": logits, "query": QUERY, "texts": DOCUMENTS, "raw_scores": True}).json()
    assert [row["score"] for row in texts] == [score for _, score in raw]
    # What a model says in probabilities is not bent a second time.
    assert scores(ask(http, ranker)) == scores(ask(http, ranker, normalize=False))


def test_ten_thousand_documents_are_ranked(http: httpx.Client, ranker: str) -> None:
    documents = ["x"] * 9_999 + [QUERY]
    body = ask(http, ranker, documents=documents, top_n=1, return_documents=False)
    assert body["results"] == [{"index": 9_999, "relevance_score": 1.0}]


@pytest.mark.parametrize(
    ("fields", "param", "message"),
    [
        ({"documents": ["a"]}, "query", "query is missing"),
        ({"query": "", "documents": ["a"]}, "query", "query: expected text that is not empty"),
        ({"query": "q"}, "documents", "documents is missing"),
        ({"query": "q", "documents": []}, "documents", "documents: expected a list that is not empty"),
        ({"query": "q", "documents": ["a", 5]}, "documents[1]", "documents[1]: expected text or an object, got a whole number"),
        ({"query": "q", "documents": [{"id": 1}]}, "documents[0].text", "documents[0].text is missing"),
        ({"query": "q", "documents": ["a"], "texts": ["a"]}, "texts", "documents and texts mean the same; send one of them"),
        ({"query": "q", "documents": ["a"], "top_n": 0}, "top_n", "top_n: expected a whole number of at least 1"),
        ({"query": "q", "documents": ["a"] * 10_001}, "documents", "documents: expected 10000 documents at most, got 10001"),
        (
            {"query": "q", "documents": ["a"], "normalize": True, "raw_scores": True},
            "raw_scores",
            "raw_scores is the opposite of normalize; send one of them",
        ),
    ],
)
def test_what_is_wrong_is_told_with_its_place(http: httpx.Client, ranker: str, fields: Any, param: str, message: str) -> None:
    reply = http.post(URL, json={"model": ranker, **fields})
    error = error_of(reply)
    assert (reply.status_code, error["param"], error["message"]) == (400, param, message)


def test_long_documents_are_refused_by_their_place_or_cut(http: httpx.Client, ranker: str) -> None:
    for field in ("documents", "texts"):
        fields = {"model": ranker, "query": QUERY, field: ["x"] * 256 + ["y" * 101]}
        error = error_of(http.post(URL, json=fields))
        assert (error["code"], error["param"]) == ("context_length_exceeded", f"{field}[256]")
        assert http.post(URL, json={**fields, "truncate": True}).status_code == 200


def test_hints_are_warned_of(live: LiveServer, http: httpx.Client) -> None:
    name = live.add("warning-ranker", reranking=True, on_unsupported={"hints": "warn"})
    assert [warning.split(" was")[0] for warning in ask(http, name, max_chunks_per_doc=3)["warnings"]] == ["max_chunks_per_doc"]


def test_a_model_without_reranking_says_what_to_set(live: LiveServer, http: httpx.Client) -> None:
    for model in ("pocket", live.add("only-vectors", embeddings=True)):
        reply = http.post(URL, json={"model": model, "query": "q", "documents": ["a"]})
        assert (reply.status_code, error_of(reply)["param"]) == (400, "model")
        assert "`reranking: true`" in error_of(reply)["message"]


def test_a_model_that_still_loads_is_waited_for_as_the_client_prefers(
    live: LiveServer, http: httpx.Client, tmp_path: Path
) -> None:
    gate = tmp_path / "gate"
    name = live.add("slow-ranker", reranking=True, options={"load_gate": str(gate)})
    body = {"model": name, "query": "q", "documents": ["a"]}
    assert http.post(URL, json=body, headers={"prefer": "wait=0"}).status_code == 503
    gate.touch()
    assert http.post(URL, json=body, headers={"prefer": "wait=20"}).status_code == 200
