"""OpenAI's embeddings, from body to body."""

from __future__ import annotations

import asyncio
import binascii
from array import array
from typing import Annotated, Any, Literal, get_args

import msgspec
from litestar import Request, Response, post
from litestar.di import NamedDependency
from litestar.types import ASGIApp
from msgspec import Meta

from llmgallery.api import bodies, respond
from llmgallery.api.auth import bearer_token
from llmgallery.api.dialects.openai import convert
from llmgallery.api.errors import JSON
from llmgallery.core.errors import InvalidField
from llmgallery.core.requests import EmbedRequest
from llmgallery.service.demands import Wish
from llmgallery.service.gallery import Gallery
from llmgallery.service.pooling import PoolAsk, Pooled, Pooling

MOST_INPUTS = 2048
"""OpenAI's."""

Format = Literal["float", "base64"]
CHOICES = {"encoding_format": get_args(Format)}


class EmbeddingBody(msgspec.Struct, kw_only=True):
    """POST /v1/embeddings. `input`: text, token ids, or a list of either. `normalize` and `truncate` are
    text-embeddings-inference's."""

    input: Any
    model: str | None = None
    encoding_format: Format | None = None
    dimensions: Annotated[int, Meta(ge=1, le=2**31 - 1)] | None = None
    user: str | None = None
    normalize: bool | None = None
    truncate: bool | None = None


def embedding_ask(body: EmbeddingBody, extra: dict[str, Any], token: str | None) -> PoolAsk:
    """Raises InvalidField for what the schema alone cannot refuse."""
    inputs = convert.read_prompts(body.input, "input")
    single = isinstance(body.input, str) or not isinstance(body.input[0], str | list)
    if len(inputs) > MOST_INPUTS:
        raise InvalidField(f"input: expected {MOST_INPUTS} inputs at most, got {len(inputs)}", field="input")
    for index, item in enumerate(inputs):
        if not item:
            field = "input" if single else f"input[{index}]"
            raise InvalidField(f"{field}: expected text that is not empty", field=field)
    said = {"user": body.user, "normalize": body.normalize, "truncate": body.truncate, **extra}
    own = {name: value for name, value in said.items() if value is not None}
    request = EmbedRequest(tuple(inputs), body.dimensions, body.normalize is not False, bool(body.truncate), own)
    hints = [name for name, value in {"user": body.user, **extra}.items() if value is not None]
    return PoolAsk(body.model, request, tuple(Wish(name, name, hint=True) for name in hints), token, "input", single)


def embedding_body(pooling: Pooling, pooled: Pooled, format: Format) -> bytes:
    """CreateEmbeddingResponse. Takes its time: a thousand vectors are megabytes of digits."""
    data = [
        {"object": "embedding", "index": index, "embedding": _written(vector, format)}
        for index, vector in enumerate(pooled.vectors)
    ]
    usage = {"prompt_tokens": pooled.prompt_tokens, "total_tokens": pooled.prompt_tokens}
    warned = {"warnings": pooling.warnings} if pooling.warnings else {}
    return msgspec.json.encode({"object": "list", "data": data, "model": pooling.name, "usage": usage, **warned})


def _written(vector: bytes, format: Format) -> msgspec.Raw:
    """JSON of one vector: a list of numbers, or base64 of its little-endian float32."""
    if format == "base64":
        return msgspec.Raw(b'"' + binascii.b2a_base64(vector, newline=False) + b'"')
    return msgspec.Raw(msgspec.json.encode(array("f", vector).tolist()))


@post(["/v1/embeddings", "/embeddings"], status_code=200)
async def embeddings(request: Request[Any, Any, Any], gallery: NamedDependency[Gallery]) -> ASGIApp:
    """Vectors for one or more texts."""
    body, extra = bodies.read(await respond.read_body(request.receive), EmbeddingBody, CHOICES)
    patience = respond.Patience(request.headers, gallery.settings.load_wait)
    pooling = await gallery.pool(embedding_ask(body, extra, bearer_token(request.headers)), patience.left)
    pooled = await respond.while_connected(request.receive, respond.pooled(pooling, patience.left))
    data = await asyncio.to_thread(embedding_body, pooling, pooled, body.encoding_format or "float")
    headers = {**respond.told(pooling), **patience.headers}
    return Response(data, headers=headers, media_type=JSON).to_asgi_response(app=None, request=request)
