"""The route of reranking."""

from __future__ import annotations

from typing import Any

from litestar import Request, Response, post
from litestar.di import NamedDependency
from litestar.types import ASGIApp

from llmgallery.api import respond
from llmgallery.api.auth import bearer_token
from llmgallery.api.dialects.jina import convert, schema
from llmgallery.api.errors import JSON
from llmgallery.service.gallery import Gallery


@post(["/v1/rerank", "/rerank", "/v1/reranking", "/reranking"], status_code=200)
async def rerank(request: Request[Any, Any, Any], gallery: NamedDependency[Gallery]) -> ASGIApp:
    """Documents in the order in which they answer a query, with scores."""
    body, extra = schema.read(await respond.read_body(request.receive))
    probabilities = convert.wants_probabilities(body)
    patience = respond.Patience(request.headers, gallery.settings.load_wait)
    pooling = await gallery.pool(convert.rerank_ask(body, extra, bearer_token(request.headers)), patience.left)
    pooled = await respond.while_connected(request.receive, respond.pooled(pooling, patience.left))
    sigmoid = probabilities and not pooling.gives_probabilities
    data = convert.rerank_body(body, pooling.name, pooled, pooling.warnings, sigmoid=sigmoid)
    headers = {**respond.told(pooling), **patience.headers}
    return Response(data, headers=headers, media_type=JSON).to_asgi_response(app=None, request=request)
