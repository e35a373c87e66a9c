"""The wire of reranking: Jina's fields, which llama-server, LocalAI, vLLM and Cohere share, and those of Hugging Face's
text-embeddings-inference."""

from __future__ import annotations

from typing import Annotated, Any

import msgspec
from msgspec import Meta

from llmgallery.api import bodies


class Document(msgspec.Struct):
    """A document with more about it than its text."""

    text: str


Documents = Annotated[list[str | Document], Meta(min_length=1)]


class RerankBody(msgspec.Struct, kw_only=True):
    """POST /v1/rerank. `texts` instead of `documents` asks for the answer of text-embeddings-inference, with its `return_text`
    (false unless asked for; Jina's `return_documents` is true). `normalize`: scores from 0 to 1, as everybody but
    llama-server gives them; false, or `raw_scores`: as they come from the model."""

    query: str | Document
    documents: Documents | None = None
    texts: Documents | None = None
    model: str | None = None
    top_n: Annotated[int, Meta(ge=1)] | None = None
    return_documents: bool | None = None
    return_text: bool | None = None
    normalize: bool | None = None
    raw_scores: bool | None = None
    truncate: bool | None = None
    user: str | None = None


def read(data: bytes) -> tuple[RerankBody, dict[str, Any]]:
    """The body, and the fields that it does not know. Raises BadBody, InvalidField (bodies.read)."""
    return bodies.read(data, RerankBody, {})
