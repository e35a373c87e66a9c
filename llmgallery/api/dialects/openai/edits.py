"""OpenAI's edits, which it has given up and LocalAI has kept: a text, and what is to be done with it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import msgspec
from litestar import Request, Response, post
from litestar.di import NamedDependency
from litestar.types import ASGIApp

from llmgallery.api import respond
from llmgallery.api.auth import bearer_token
from llmgallery.api.dialects.openai import convert, encode, schema
from llmgallery.api.errors import JSON
from llmgallery.core.errors import InvalidField, UnsupportedField
from llmgallery.core.requests import CompletionRequest
from llmgallery.service.gallery import Ask, Gallery
from llmgallery.service.generation import Choice, Generation

MOST_INPUTS = 128


class EditBody(schema.Generating, kw_only=True):
    """POST /v1/edits. `input`: a text, or a list of texts that each become choices; nothing = there is only the instruction."""

    instruction: str
    input: str | list[str] | None = None


def edit_ask(body: EditBody, extra: dict[str, Any], token: str | None) -> Ask:
    """Raises InvalidField for what the schema alone cannot refuse, UnsupportedField for streaming, which edits never had."""
    if body.stream:
        raise UnsupportedField("stream: edits are answered as a whole; leave it out", field="stream")
    if not body.instruction.strip():
        raise InvalidField("instruction: expected a text that says what is to be done with the input", field="instruction")
    texts = [body.input or ""] if not isinstance(body.input, list) else body.input
    if not 1 <= len(texts) <= MOST_INPUTS:
        raise InvalidField(f"input: expected 1 to {MOST_INPUTS} texts, got {len(texts)}", field="input")
    shared = {name: getattr(body, name) for name in schema.Generating.__struct_fields__}
    ask = convert.completion_ask(schema.CompletionBody(prompt=texts, **shared), extra, token)
    requests = tuple(msgspec.structs.replace(request, instruction=body.instruction) for request in _completions(ask))
    return msgspec.structs.replace(ask, prompts=requests, unsaid=ask.unsaid & {"n"})


def _completions(ask: Ask) -> list[CompletionRequest]:
    return [request for request in ask.prompts if isinstance(request, CompletionRequest)]


def edit_body(generation: Generation, choices: Sequence[Choice]) -> bytes:
    """LocalAI's answer: CreateEditResponse with what completions have beside it."""
    head = encode.Head(generation, "edit", "edit").fields
    listed = [{"index": index, "text": choice.text, "finish_reason": choice.reason} for index, choice in enumerate(choices)]
    warned = {"warnings": generation.warnings} if generation.warnings else {}
    return msgspec.json.encode({**head, "choices": listed, "usage": encode.usage(generation), **warned})


@post(["/v1/edits", "/edits"], status_code=200)
async def edits(request: Request[Any, Any, Any], gallery: NamedDependency[Gallery]) -> ASGIApp:
    """Texts changed as an instruction says."""
    body, extra = schema.read(await respond.read_body(request.receive), EditBody)
    patience = respond.Patience(request.headers, gallery.settings.load_wait)
    generation = await gallery.generate(edit_ask(body, extra, bearer_token(request.headers)), patience.left)
    data = await respond.while_connected(request.receive, _whole(generation, patience.left))
    headers = {**respond.told(generation), **patience.headers}
    return Response(data, headers=headers, media_type=JSON).to_asgi_response(app=None, request=request)


async def _whole(generation: Generation, wait: float) -> bytes:
    async with generation:
        return edit_body(generation, await respond.whole(generation, wait))
