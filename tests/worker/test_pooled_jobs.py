"""What a worker refuses of embeddings and reranking before its backend sees them."""

from __future__ import annotations

import pytest

from llmgallery.backends.base import EmbedJob, Loaded, RerankJob
from llmgallery.core.errors import ContextExceeded, GalleryError, InvalidField, UnsupportedField
from llmgallery.core.requests import EmbedRequest, RerankRequest
from llmgallery.worker.pooled import embed_job, rerank_job

BOTH = Loaded(context_size=4, vocab_size=10, capabilities=frozenset({"embed", "rerank"}), embedding_size=8)
LONG = "x" * (4 * 512 + 1)


def test_jobs_say_what_requests_say() -> None:
    request = EmbedRequest(("a", (1, 2)), 8, False, False)
    assert embed_job(3, request, BOTH) == EmbedJob(3, ("a", (1, 2)), 8, False, False)
    assert rerank_job(4, RerankRequest("q", ("a", "")), BOTH) == RerankJob(4, "q", ("a", ""), False)


@pytest.mark.parametrize(
    ("request_", "kind", "field", "words"),
    [
        (EmbedRequest(("a",), 9), InvalidField, "dimensions", "8 numbers, not 9"),
        (EmbedRequest(("a", "")), InvalidField, "input[1]", "is empty"),
        (EmbedRequest(((1,), ())), InvalidField, "input[1]", "is empty"),
        (EmbedRequest(("a", (3, 10))), InvalidField, "input[1]", "token 10 is not in the vocabulary"),
        (EmbedRequest(("a", LONG)), ContextExceeded, "input[1]", "far too many"),
    ],
)
def test_inputs_are_refused_by_their_place(request_: EmbedRequest, kind: type[GalleryError], field: str, words: str) -> None:
    with pytest.raises(kind, match=words) as caught:
        embed_job(1, request_, BOTH)
    assert caught.value.field == field


@pytest.mark.parametrize(
    ("request_", "kind", "field"),
    [
        (RerankRequest("", ("a",)), InvalidField, "query"),
        (RerankRequest(LONG, ("a",)), ContextExceeded, "query"),
        (RerankRequest("q", ("a", LONG)), ContextExceeded, "documents[1]"),
    ],
)
def test_documents_are_refused_by_their_place(request_: RerankRequest, kind: type[GalleryError], field: str) -> None:
    with pytest.raises(kind) as caught:
        rerank_job(1, request_, BOTH)
    assert caught.value.field == field


def test_what_may_be_cut_is_cut_before_it_costs_time() -> None:
    (cut,) = embed_job(1, EmbedRequest((LONG,), truncate=True), BOTH).inputs
    assert len(cut) == 4 * 512
    assert rerank_job(1, RerankRequest("q", (LONG,), truncate=True), BOTH).documents == (cut,)


def test_a_model_without_the_capability_takes_no_job() -> None:
    with pytest.raises(UnsupportedField, match="no embeddings"):
        embed_job(1, EmbedRequest(("a",)), Loaded(context_size=4))
    with pytest.raises(UnsupportedField, match="no documents"):
        rerank_job(1, RerankRequest("q", ("a",)), Loaded(context_size=4))
