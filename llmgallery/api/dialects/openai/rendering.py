"""POST /apply-template: the prompt that a request of this dialect would become. Route of llama-server, which answers `prompt`."""

from __future__ import annotations

from typing import Any

import msgspec
from litestar import Request, Response, post
from litestar.di import NamedDependency
from litestar.types import ASGIApp

from llmgallery.api import respond
from llmgallery.api.auth import bearer_token
from llmgallery.api.dialects.openai import convert, schema
from llmgallery.api.errors import JSON
from llmgallery.core.rendering import Rendering
from llmgallery.service.gallery import Ask, Gallery


@post("/apply-template", status_code=200)
async def apply_template(request: Request[Any, Any, Any], gallery: NamedDependency[Gallery]) -> ASGIApp:
    """The prompt that the body of a chat or completion would become, with its tokens. Nothing is generated."""
    ask = read_ask(await respond.read_body(request.receive), bearer_token(request.headers))
    name, rendering = await respond.while_connected(request.receive, gallery.render(ask))
    data = msgspec.json.encode(rendering_body(name, rendering))
    headers = respond.warned(rendering.warnings)
    return Response(data, headers=headers, media_type=JSON).to_asgi_response(app=None, request=request)


def read_ask(data: bytes, token: str | None = None) -> Ask:
    """The body of a chat, or with a `prompt` and no `messages` of a completion, as its own route reads it. Raises BadBody,
    InvalidField."""
    if _is_completion(data):
        return convert.completion_ask(*schema.read(data, schema.CompletionBody), token)
    return convert.chat_ask(*schema.read(data, schema.ChatBody), token)


def _is_completion(data: bytes) -> bool:
    """Of what is no JSON object, reading it as a chat tells what is wrong."""
    try:
        fields = msgspec.json.decode(data, type=dict[str, msgspec.Raw])
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return False
    return "prompt" in fields and "messages" not in fields


def rendering_body(name: str, rendering: Rendering) -> dict[str, Any]:
    """`name`: the model's. `tokens` counts `token_ids`; both are null where nobody knows the vocabulary."""
    ids = rendering.tokens
    body = {
        "model": name,
        "prompt": rendering.prompt,
        "tokens": None if ids is None else len(ids),
        "token_ids": None if ids is None else list(ids),
        "stops": list(rendering.stops),
        "origin": rendering.origin,
        "repairs": list(rendering.repairs),
    }
    return {**body, "warnings": list(rendering.warnings)} if rendering.warnings else body
