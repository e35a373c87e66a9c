"""OpenAI's routes: chat completions, completions, models."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, Literal

from litestar import Request, Response, Router, post, route
from litestar.di import NamedDependency
from litestar.params import FromPath
from litestar.types import ASGIApp

from llmgallery.api import respond
from llmgallery.api.auth import bearer_token
from llmgallery.api.dialects.openai import convert, encode, offered, schema
from llmgallery.api.errors import JSON
from llmgallery.service.gallery import Ask, Gallery
from llmgallery.service.generation import Choice, Generation

AnyRequest = Request[Any, Any, Any]


@post("/chat/completions", status_code=200)
async def chat_completions(request: AnyRequest, gallery: NamedDependency[Gallery]) -> ASGIApp:
    """One or more answers to a conversation."""
    body, extra = schema.read(await respond.read_body(request.receive), schema.ChatBody)
    ask = convert.chat_ask(body, extra, bearer_token(request.headers))
    return await _answer(request, gallery, ask, "chat", _includes_usage(body), older_calls=offered.is_older(body))


@post("/completions", status_code=200)
async def completions(request: AnyRequest, gallery: NamedDependency[Gallery]) -> ASGIApp:
    """Continuations of one or more prompts."""
    body, extra = schema.read(await respond.read_body(request.receive), schema.CompletionBody)
    ask = convert.completion_ask(body, extra, bearer_token(request.headers))
    return await _answer(request, gallery, ask, "completion", _includes_usage(body))


@route("/models", http_method=respond.READS)
async def models(gallery: NamedDependency[Gallery]) -> dict[str, Any]:
    """All models by name."""
    return {"object": "list", "data": [encode.model_body(info) for info in await gallery.models()]}


@route("/models/{id:path}", http_method=respond.READS)
async def model(gallery: NamedDependency[Gallery], id: FromPath[str]) -> dict[str, Any]:
    """One model; ids may hold slashes."""
    return encode.model_body(await gallery.model(id.removeprefix("/")))


router = Router("/v1", route_handlers=[chat_completions, completions, models, model])


def _includes_usage(body: schema.Generating) -> bool:
    return body.stream_options is not None and bool(body.stream_options.include_usage)


async def _answer(
    request: AnyRequest,
    gallery: Gallery,
    ask: Ask,
    kind: Literal["chat", "completion"],
    include_usage: bool,
    *,
    older_calls: bool = False,
) -> ASGIApp:
    patience = respond.Patience(request.headers, gallery.settings.load_wait)
    generation = await gallery.generate(ask, patience.left)
    if ask.stream:
        encoder = encode.Chunks(generation, kind, include_usage, older_calls=older_calls)
        return respond.Streaming(generation, encoder, hold=gallery.settings.stream_hold)
    to_body = partial(encode.chat_body, older_calls=older_calls) if kind == "chat" else encode.completion_body
    data = await respond.while_connected(request.receive, _whole(generation, patience.left, to_body))
    headers = {**respond.told(generation), **patience.headers}
    return Response(data, headers=headers, media_type=JSON).to_asgi_response(app=None, request=request)


async def _whole(generation: Generation, wait: float, to_body: Callable[[Generation, Sequence[Choice]], bytes]) -> bytes:
    async with generation:
        return to_body(generation, await respond.whole(generation, wait))
