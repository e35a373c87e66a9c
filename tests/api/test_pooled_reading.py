"""Bodies of embeddings and reranking as data: whatever comes is understood or refused by its place."""

from __future__ import annotations

import json
import struct
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from llmgallery.api import bodies
from llmgallery.api.dialects.jina import convert as jina
from llmgallery.api.dialects.jina import schema
from llmgallery.api.dialects.openai.embeddings import CHOICES, EmbeddingBody, embedding_ask
from llmgallery.core.errors import InvalidField
from llmgallery.core.requests import EmbedRequest, RerankRequest
from llmgallery.service.pooling import PoolAsk, Pooled

SMALL = st.recursive(
    st.none() | st.booleans() | st.integers(-2, 5) | st.floats(allow_nan=False, allow_infinity=False) | st.text(max_size=3),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.sampled_from(["text", "id"]), inner, max_size=2),
    max_leaves=8,
)


def embedding(**fields: Any) -> PoolAsk:
    return embedding_ask(*bodies.read(json.dumps(fields).encode(), EmbeddingBody, CHOICES), token=None)


@given(SMALL)
def test_any_input_is_understood_or_refused_by_its_place(value: Any) -> None:
    try:
        ask = embedding(input=value)
    except InvalidField as error:
        assert error.field is not None and error.field.startswith("input")
        return
    request = ask.request
    assert isinstance(request, EmbedRequest) and all(request.inputs)
    back = [item if isinstance(item, str) else list(item) for item in request.inputs]
    assert (back == [value]) if ask.single else (back == value)


@given(SMALL, SMALL, st.sampled_from(["documents", "texts"]))
def test_any_documents_are_understood_or_refused_by_their_place(query: Any, documents: Any, field: str) -> None:
    try:
        body, extra = schema.read(json.dumps({"query": query, field: documents}).encode())
        ask = jina.rerank_ask(body, extra, None)
    except InvalidField as error:
        assert error.field is not None and error.field.startswith(("query", "documents", "texts"))
        return
    request = ask.request
    assert isinstance(request, RerankRequest) and request.query
    assert ask.field == field and len(request.documents) == len(documents)


def test_fields_arrive() -> None:
    ask = embedding(model="m", input=["a"], dimensions=3, normalize=False, truncate=True, user="u", colour=1)
    said = {"user": "u", "normalize": False, "truncate": True, "colour": 1}
    assert (ask.model, ask.request) == ("m", EmbedRequest(("a",), 3, False, True, said))
    assert [(wish.feature, wish.hint) for wish in ask.wishes] == [("user", True), ("colour", True)]


def vectors(*values: float) -> Pooled:
    return Pooled(tuple(struct.pack("<f", value) for value in values), 9)


@pytest.mark.parametrize(
    ("fields", "expected"),
    [
        ({"normalize": True}, True), ({"normalize": False}, False), ({"raw_scores": True}, False), ({"raw_scores": False}, True),
        ({}, True), ({"normalize": True, "raw_scores": False}, True), ({"normalize": False, "raw_scores": True}, False),
    ],
)  # fmt: skip
def test_two_words_for_the_same_wish(fields: dict[str, bool], expected: bool) -> None:
    body, _ = schema.read(json.dumps({"query": "q", "documents": ["d"], **fields}).encode())
    assert jina.wants_probabilities(body) is expected


def test_equal_scores_keep_the_order_of_the_documents() -> None:
    body, _ = schema.read(b'{"query": "q", "documents": ["a", "b", "c", "d"], "return_documents": false}')
    answer = json.loads(jina.rerank_body(body, "m", vectors(0.5, 2.0, 0.5, 2.0), (), sigmoid=False))
    assert [row["index"] for row in answer["results"]] == [1, 3, 0, 2]
    assert answer["usage"] == {"prompt_tokens": 9, "total_tokens": 9} and "warnings" not in answer
