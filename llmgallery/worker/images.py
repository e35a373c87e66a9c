"""Images of a chat: from the parts of its messages to what the backend is given, and back to the place at fault."""

from __future__ import annotations

import re

import msgspec

from llmgallery.backends.base import Backend, Loaded, SeesImages
from llmgallery.config.model import ModelConfig
from llmgallery.core.errors import InvalidField, UnsupportedField
from llmgallery.core.messages import ImagePart, Message
from llmgallery.core.requests import ChatRequest

_BLIND = "this model sees no images"
_NUMBERED = re.compile(r"images\[(\d+)\](?:: )?")


def seen(request: ChatRequest, config: ModelConfig, backend: Backend, loaded: Loaded) -> tuple[ChatRequest, tuple[str, ...]]:
    """The request as this model can read it, and the warnings that the client is owed: without its images where the model is
    blind and `on_unsupported` says so. Raises UnsupportedField."""
    places = _places(request)
    if not places or ("images" in loaded.capabilities and isinstance(backend, SeesImages)):
        return request, ()
    first = next(iter(places))
    demands = config.on_unsupported.demands
    if demands == "error":
        advice = "leave them out, or set `on_unsupported: {demands: warn}` in the model's YAML to have them ignored"
        raise UnsupportedField(f"{first}: {_BLIND}; {advice}", field=first)
    blind = msgspec.structs.replace(request, messages=tuple(map(_without_images, request.messages)))
    return blind, (f"{first} was ignored: {_BLIND}",) if demands == "warn" else ()


def image_files(request: ChatRequest) -> tuple[bytes, ...]:
    """In the order of the messages and their parts. Raises UnsupportedField for one that nobody has fetched."""
    for place, part in _places(request).items():
        if not part.data:
            raise UnsupportedField(f"{place}: only the address of this image came, not the image", field=place)
    return tuple(part.data for part in _places(request).values())


def tokens_with_images(text: str, request: ChatRequest, backend: Backend, *, bos: bool) -> list[int]:
    """The rendered prompt's tokens, with those of its images. Raises InvalidField naming `messages[i].content[j]`."""
    if not isinstance(backend, SeesImages):
        raise UnsupportedField(_BLIND, field="messages")
    try:
        return backend.tokenize_with_images(text, image_files(request), bos=bos)
    except InvalidField as exc:
        if (found := _NUMBERED.fullmatch(exc.field or "")) is None:
            raise
        place = list(_places(request))[int(found[1])]
        raise InvalidField(f"{place}: {_NUMBERED.sub('', exc.message, count=1)}", field=place) from exc


def _places(request: ChatRequest) -> dict[str, ImagePart]:
    return {
        f"messages[{row}].content[{column}]": part
        for row, message in enumerate(request.messages)
        for column, part in enumerate(message.parts)
        if isinstance(part, ImagePart)
    }


def _without_images(message: Message) -> Message:
    return msgspec.structs.replace(message, parts=tuple(part for part in message.parts if not isinstance(part, ImagePart)))
