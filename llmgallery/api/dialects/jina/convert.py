"""From the wire of reranking to core and back. Pure functions."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import msgspec

from llmgallery.api.dialects.jina.schema import Document, RerankBody
from llmgallery.core.errors import InvalidField
from llmgallery.core.requests import RerankRequest
from llmgallery.service.demands import Wish
from llmgallery.service.pooling import PoolAsk, Pooled, scores

MOST_DOCUMENTS = 10_000
"""Cohere's."""


def rerank_ask(body: RerankBody, extra: dict[str, Any], token: str | None) -> PoolAsk:
    """Raises InvalidField for what the schema alone cannot refuse."""
    query = _text(body.query)
    if not query:
        raise InvalidField("query: expected text that is not empty", field="query")
    field, given = _documents(body)
    said = {"user": body.user, "truncate": body.truncate, **extra}
    own = {name: value for name, value in said.items() if value is not None}
    request = RerankRequest(query, tuple(map(_text, given)), bool(body.truncate), own)
    hints = [name for name, value in {"user": body.user, **extra}.items() if value is not None]
    return PoolAsk(body.model, request, tuple(Wish(name, name, hint=True) for name in hints), token, field)


def _documents(body: RerankBody) -> tuple[str, list[str | Document]]:
    """The one list of them, with its field."""
    if body.documents is not None and body.texts is not None:
        raise InvalidField("documents and texts mean the same; send one of them", field="texts")
    field, given = ("documents", body.documents) if body.texts is None else ("texts", body.texts)
    if given is None:
        raise InvalidField("documents is missing", field="documents")
    if len(given) > MOST_DOCUMENTS:
        raise InvalidField(f"{field}: expected {MOST_DOCUMENTS} documents at most, got {len(given)}", field=field)
    return field, given


def wants_probabilities(body: RerankBody) -> bool:
    """Raises InvalidField when the two ways to say it differ."""
    if body.normalize is not None and body.raw_scores == body.normalize:
        raise InvalidField("raw_scores is the opposite of normalize; send one of them", field="raw_scores")
    return not body.raw_scores if body.normalize is None else body.normalize


def rerank_body(body: RerankBody, name: str, pooled: Pooled, warnings: Sequence[str], *, sigmoid: bool) -> bytes:
    """The best documents first. A list of {index, score} for who sent `texts`, else Jina's object. `name`: the model's."""
    field, given = _documents(body)
    ranked = sorted(enumerate(scores(pooled.vectors, sigmoid=sigmoid)), key=lambda item: -item[1])[: body.top_n]
    if field == "texts":
        texts = [{"text": _text(document)} if body.return_text else {} for document in given]
        return msgspec.json.encode([{"index": index, **texts[index], "score": score} for index, score in ranked])
    shown = [{"document": {"text": _text(item)}} if body.return_documents is not False else {} for item in given]
    results = [{"index": index, **shown[index], "relevance_score": score} for index, score in ranked]
    usage = {"prompt_tokens": pooled.prompt_tokens, "total_tokens": pooled.prompt_tokens}
    warned = {"warnings": list(warnings)} if warnings else {}
    return msgspec.json.encode({"model": name, "object": "list", "usage": usage, "results": results, **warned})


def _text(item: str | Document) -> str:
    return item if isinstance(item, str) else item.text
