"""KoboldCpp's adapters: fixed texts before and after each message. Source: transform_genparams in KoboldCpp's koboldcpp.py."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from itertools import count
from typing import Any

from llmgallery.chat.formats.base import Said, WithTemplates
from llmgallery.config.model import ModelConfig
from llmgallery.core.errors import InvalidField, TemplateError
from llmgallery.core.messages import ImagePart, Message, RawPart, Tool
from llmgallery.core.requests import ChatRequest, CompletionRequest
from llmgallery.templates import kobold
from llmgallery.templates.jinja_guard import Limits
from llmgallery.templates.kobold import Adapter


@dataclass(frozen=True)
class KoboldFormat:
    """An adapter, and where it is from."""

    adapter: Adapter
    origin: str

    @property
    def stops(self) -> tuple[str, ...]:
        return self.adapter.stops

    @property
    def texts(self) -> Mapping[str, str]:
        return {f"template.adapter.{key}": str(value) for key, value in self.adapter.flat().items()}

    def chat(self, request: ChatRequest, config: ModelConfig, loaded: WithTemplates) -> Said:
        images = count(1)
        turns = [_turn(message, images) for message in request.messages]
        if config.system_prompt and not any(turn.role == "system" for turn in turns):
            turns.insert(0, _Turn("system", config.system_prompt))
        if request.tools:
            turns.insert(0, _Turn("system", f"### Available Tools:\n{_listed(request.tools)}"))
        if request.continue_final and not (turns and turns[-1].text):
            raise InvalidField("the last message has no text that could be continued", field="messages")
        _check_length(self.adapter, turns)
        body = "".join(_around(self.adapter, turn) for turn in turns)
        if request.continue_final:
            prompt = body.removesuffix(_end(self.adapter, turns[-1].role))
        else:
            prompt = body + self.adapter.generation if request.add_generation_prompt else body
        return Said(self.adapter.chat_start + prompt, self.stops)

    def completion(self, request: CompletionRequest, config: ModelConfig) -> Said | None:
        if not isinstance(request.prompt, str):
            return None
        filled = kobold.fill(request.prompt, self.adapter)
        return None if filled == request.prompt else Said(filled)


def kobold_format(
    adapter: Mapping[str, Any] | str, loaded: WithTemplates, *, origin: str, field: str = "adapter"
) -> KoboldFormat:
    """The format of an adapter: its keys, its name, or AutoGuess. `field`: what holds it, for errors.

    Where AutoGuess fits nothing, KoboldCpp's defaults are the answer, as there. Raises InvalidField, with the key at fault.
    """
    if not isinstance(adapter, str):
        return KoboldFormat(kobold.read(adapter, field), origin)
    if not kobold.is_auto(adapter):
        return KoboldFormat(kobold.named(adapter, field), f"{origin} {adapter}")
    found = kobold.guess(loaded.chat_template or loaded.templates.get("default"))
    if found is None:
        return KoboldFormat(Adapter(), f"{origin} {kobold.AUTO} (nothing fits: KoboldCpp's defaults)")
    return KoboldFormat(found.adapter, f"{origin} {kobold.AUTO} ({found.name})")


@dataclass(frozen=True)
class _Turn:
    """A message as KoboldCpp writes it: system, user, assistant or tools, and what stands between its texts."""

    role: str
    text: str


def _turn(message: Message, images: Iterator[int]) -> _Turn:
    content = _content(message, images)
    if message.role in ("tool", "function"):
        id = f" {message.tool_call_id}" if message.tool_call_id else ""
        return _Turn("tools", f"\nReceived results of function call{id}:\n{content}")
    role = "system" if message.role == "developer" else message.role
    return _Turn(role, content or _calls(message))


def _content(message: Message, images: Iterator[int]) -> str:
    """`images` numbers those of the whole chat."""
    said = (part for part in message.parts if not isinstance(part, RawPart))
    return "".join(f"\n(Attached Image {next(images)})\n" if isinstance(part, ImagePart) else part.text for part in said)


def _calls(message: Message) -> str:
    lines = []
    for call in message.tool_calls:
        arguments = f" with arguments={call.arguments}" if call.arguments else ""
        lines.append(f"(Made a function call {call.id} to {call.name}{arguments})\n")
    return "\n" + "".join(lines) if lines else ""


def _listed(tools: tuple[Tool, ...]) -> str:
    return json.dumps([_briefly(tool) for tool in tools], indent=0)


def _briefly(tool: Tool) -> dict[str, Any]:
    properties = (tool.parameters or {}).get("properties")
    types = properties.items() if isinstance(properties, Mapping) else ()
    shown = {name: schema.get("type", "any") if isinstance(schema, Mapping) else "any" for name, schema in types}
    return {"name": tool.name, "description": tool.description, "properties": shown}


def _around(adapter: Adapter, turn: _Turn) -> str:
    return _start(adapter, turn.role) + turn.text + _end(adapter, turn.role)


def _start(adapter: Adapter, role: str) -> str:
    text: str = getattr(adapter, f"{role}_start")
    return text


def _end(adapter: Adapter, role: str) -> str:
    text: str = getattr(adapter, f"{role}_end")
    return text


def _check_length(adapter: Adapter, turns: list[_Turn]) -> None:
    """An adapter comes from a client, and is repeated with each message."""
    added = sum(len(_start(adapter, turn.role)) + len(_end(adapter, turn.role)) for turn in turns)
    most = Limits().chars
    if added > most:
        raise TemplateError(f"the adapter adds {added:,} characters to this chat, more than {most:,}")
