"""What a conversation is made of. Pure values: ids and storage live elsewhere."""

from __future__ import annotations

from typing import Any, Literal

import msgspec

Role = Literal["system", "developer", "user", "assistant", "tool", "function"]


class TextPart(msgspec.Struct, frozen=True, tag="text"):
    """Text as the client sent it."""

    text: str


class ImagePart(msgspec.Struct, frozen=True, tag="image"):
    """An image: the bytes of a PNG, JPEG, ... file, or the address that names them until they are fetched."""

    data: bytes = b""
    url: str = ""
    detail: str = "auto"


class RefusalPart(msgspec.Struct, frozen=True, tag="refusal"):
    """What an assistant said when it refused."""

    text: str


class RawPart(msgspec.Struct, frozen=True, tag="raw"):
    """A part that nobody here reads (audio, a file), as it came: only models that are elsewhere may know it."""

    value: dict[str, Any]


Part = TextPart | ImagePart | RefusalPart | RawPart


class ToolCall(msgspec.Struct, frozen=True):
    """A call that the assistant made. `arguments` is JSON text, kept as it came; so is `index`, which only some clients send.
    A call without an id came as OpenAI's older `function_call`."""

    id: str
    name: str
    arguments: str
    index: int = 0


class Tool(msgspec.Struct, frozen=True):
    """A function on offer. `parameters` is a JSON schema; None = none came."""

    name: str
    description: str = ""
    parameters: dict[str, Any] | None = None
    strict: bool | None = None


class Message(msgspec.Struct, frozen=True, omit_defaults=True):
    """One turn. `name` is the speaker's, `tool_call_id` says which call a tool's message answers. `extra`: fields that nobody
    here knows, for models that are elsewhere."""

    role: Role
    parts: tuple[Part, ...] = ()
    name: str | None = None
    tool_calls: tuple[ToolCall, ...] = ()
    tool_call_id: str | None = None
    reasoning: str | None = None
    extra: dict[str, Any] = {}

    @property
    def text(self) -> str:
        """All text parts, joined."""
        return "".join(part.text for part in self.parts if isinstance(part, TextPart | RefusalPart))

    @property
    def images(self) -> tuple[ImagePart, ...]:
        """In the order of its parts."""
        return tuple(part for part in self.parts if isinstance(part, ImagePart))


def say(role: Role, text: str) -> Message:
    """A message that is only text."""
    return Message(role, (TextPart(text),))
