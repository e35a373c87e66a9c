"""From a request for vectors or scores to its job: what can be refused before the backend counts tokens."""

from __future__ import annotations

from llmgallery.backends.base import EmbedJob, Loaded, RerankJob
from llmgallery.core.errors import InvalidField, UnsupportedField
from llmgallery.core.requests import EmbedRequest, RerankRequest
from llmgallery.worker.prepare import LONGEST_TOKEN, check_length, check_tokens


def embed_job(id: int, request: EmbedRequest, loaded: Loaded) -> EmbedJob:
    """Raises UnsupportedField, InvalidField, ContextExceeded; an input at fault is `input[index]`."""
    if "embed" not in loaded.capabilities:
        raise UnsupportedField("this model makes no embeddings", field="model")
    size, wanted = loaded.embedding_size, request.dimensions
    if wanted is not None and wanted > size > 0:
        raise InvalidField(f"dimensions: the model's vectors have {size} numbers, not {wanted}", field="dimensions")
    for index, item in enumerate(request.inputs):
        field = f"input[{index}]"
        if not item:
            raise InvalidField(f"{field} is empty", field=field)
        if not isinstance(item, str):
            check_tokens(item, loaded.vocab_size, field)
        elif not request.truncate:
            check_length(item, loaded.context_size, field)
    most = _most(loaded)
    inputs = tuple(item[:most] for item in request.inputs) if request.truncate else request.inputs
    return EmbedJob(id, inputs, wanted, request.normalize, request.truncate)


def rerank_job(id: int, request: RerankRequest, loaded: Loaded) -> RerankJob:
    """Raises UnsupportedField, InvalidField, ContextExceeded; a document at fault is `documents[index]`."""
    if "rerank" not in loaded.capabilities:
        raise UnsupportedField("this model scores no documents", field="model")
    if not request.query:
        raise InvalidField("query is empty", field="query")
    if not request.truncate:
        check_length(request.query, loaded.context_size, "query")
        for index, document in enumerate(request.documents):
            check_length(document, loaded.context_size, f"documents[{index}]")
    most = _most(loaded)
    documents = tuple(document[:most] for document in request.documents) if request.truncate else request.documents
    return RerankJob(id, request.query, documents, request.truncate)


def _most(loaded: Loaded) -> int:
    """Characters; no time is spent on the tokens of what cannot fit anyway."""
    return loaded.context_size * LONGEST_TOKEN
