"""Ollama's prompts: the TEMPLATE of a Modelfile, over the conversation as Ollama hands it to one.

Source: template/template.go and server/prompt.go of https://github.com/ollama/ollama.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import msgspec

from llmgallery.chat.formats.base import Said, WithTemplates
from llmgallery.config.model import ModelConfig
from llmgallery.core.errors import InvalidField, TemplateError
from llmgallery.core.messages import Message, Tool, ToolCall
from llmgallery.core.requests import ChatRequest, CompletionRequest
from llmgallery.templates.account import CHARS_A_STEP
from llmgallery.templates.gotmpl import Limits
from llmgallery.templates.gotmpl.values import Field, Struct, TypedList, TypedNil
from llmgallery.templates.ollama import JsonList, JsonMap, JsonStruct, OllamaTemplate, compile_ollama

PASSES = 64
"""How often a template may go through all that was said, beyond what every render may do."""

MOST_SECONDS = 10.0
"""For all turns of a chat: each render has its own, shorter limit."""


@dataclass(frozen=True)
class OllamaFormat:
    """A template's text, and where it is from."""

    source: str
    origin: str = "template.chat"

    @property
    def stops(self) -> tuple[str, ...]:
        return ()

    @property
    def texts(self) -> Mapping[str, str]:
        return {self.origin: self.source}

    def chat(self, request: ChatRequest, config: ModelConfig, loaded: WithTemplates) -> Said:
        messages, continued = request.messages, ""
        if request.continue_final:
            # The template ends with the beginning of an answer; here that is the message which is to be continued.
            *before, last = messages
            if last.role != "assistant" or not last.text:
                message = "the last message is no assistant's text, which is all that this model's template lets continue"
                raise InvalidField(message, field="messages")
            messages, continued = tuple(before), last.text
        turns = _collated(messages, config.system_prompt)
        template = compile_ollama(self.source, self.origin)
        write = _whole if template.reads_messages else _by_turns
        prompt = write(template, turns, request, _limits(turns)) + continued
        if request.add_generation_prompt or request.continue_final:
            return Said(prompt)
        return Said(prompt, warnings=("add_generation_prompt was ignored: Ollama's templates always begin the answer",))

    def completion(self, request: CompletionRequest, config: ModelConfig) -> Said | None:
        return None


@dataclass(frozen=True)
class _Turn:
    """Messages of one role that follow each other, as Ollama joins them."""

    role: str
    content: str
    message: Message


def _collated(messages: Sequence[Message], system_prompt: str | None) -> list[_Turn]:
    roles = {"developer": "system", "function": "tool"}
    turns: list[_Turn] = []
    if system_prompt and (not messages or roles.get(messages[0].role, messages[0].role) != "system"):
        turns.append(_Turn("system", system_prompt, Message("system")))
    for message in messages:
        role = roles.get(message.role, message.role)
        if turns and turns[-1].role == role != "tool":
            turns[-1] = replace(turns[-1], content=f"{turns[-1].content}\n\n{message.text}")
        else:
            turns.append(_Turn(role, message.text, message))
    return turns


def _whole(template: OllamaTemplate, turns: Sequence[_Turn], request: ChatRequest, limits: Limits) -> str:
    data = {
        **_thinking(request),
        "System": "\n\n".join(turn.content for turn in turns if turn.role == "system"),
        "Messages": TypedList((_message(turn) for turn in turns), "[]*template.templateMessage"),
        "Tools": JsonList(map(_tool, request.tools)) if request.tools else TypedNil("[]template.templateTool"),
        "Response": "",
    }
    return template.turn.render(data, limits)


def _by_turns(template: OllamaTemplate, turns: Sequence[_Turn], request: ChatRequest, limits: Limits) -> str:
    """A system message, a prompt and a response at a time; the last time only up to the response."""
    end, made = time.monotonic() + MOST_SECONDS, 0
    written: list[str] = []
    said = {"System": "", "Prompt": "", "Response": ""}
    for turn in turns:
        full = {"system": said["Prompt"] or said["Response"], "user": said["Response"]}.get(turn.role)
        if full:
            written.append(template.turn.render({**_thinking(request), **said}, limits))
            said = dict.fromkeys(said, "")
            made += len(written[-1])
            if made > limits.chars:
                raise TemplateError(f"the template makes a text that is too long (limit: {limits.chars} characters)")
            if time.monotonic() > end:
                raise TemplateError(f"the template takes too long: {len(written)} turns took {MOST_SECONDS:g} seconds")
        if key := {"system": "System", "user": "Prompt", "assistant": "Response"}.get(turn.role):
            said[key] = turn.content
    return "".join(written) + template.last.render({**_thinking(request), **said}, limits)


def _thinking(request: ChatRequest) -> dict[str, Any]:
    """What a request says of thinking, as chat_template_kwargs or reasoning_effort."""
    asked = request.template_vars.get("enable_thinking", request.template_vars.get("thinking"))
    level = request.reasoning_effort or ""
    return {"Think": bool(asked) or bool(level), "ThinkLevel": level, "IsThinkSet": asked is not None or bool(level)}


def _message(turn: _Turn) -> Struct:
    calls = [_call(call, index) for index, call in enumerate(turn.message.tool_calls)]
    listed = TypedList(calls, "[]template.templateToolCall") if calls else TypedNil("[]template.templateToolCall")
    return _struct(
        "template.templateMessage",
        Role=turn.role,
        Content=turn.content,
        Thinking=turn.message.reasoning or "",
        Images=TypedNil("[]api.ImageData"),
        ToolCalls=listed,
        ToolName=turn.message.name or "",
        ToolCallID=turn.message.tool_call_id or "",
    )


def _call(call: ToolCall, index: int) -> Struct:
    try:
        arguments = msgspec.json.decode(call.arguments, type=dict[str, Any])
    except (msgspec.DecodeError, RecursionError):
        arguments = {}
    function = _struct("template.templateToolCallFunction", Index=index, Name=call.name, Arguments=JsonMap(arguments))
    return _struct("template.templateToolCall", ID=call.id, Function=function)


def _tool(tool: Tool) -> JsonStruct:
    schema = tool.parameters or {}
    properties = schema.get("properties")
    known = properties if isinstance(properties, dict) else {}
    parameters = (
        Field("Type", schema.get("type", "object"), "type"),
        Field("Defs", schema.get("$defs"), "$defs", omitempty=True),
        Field("Items", schema.get("items"), "items", omitempty=True),
        Field("Required", schema.get("required", []), "required", omitempty=True),
        Field("Properties", JsonMap({name: _property(each) for name, each in known.items()}), "properties"),
    )
    function = (
        Field("Name", tool.name, "name"),
        Field("Description", tool.description, "description"),
        Field("Parameters", JsonStruct(parameters), "parameters"),
    )
    return JsonStruct((Field("Type", "function", "type"), Field("Function", JsonStruct(function), "function")))


def _property(schema: Any) -> JsonStruct:
    keys = ("anyOf", "type", "items", "description", "enum", "properties")
    said = schema if isinstance(schema, dict) else {}
    empty = {"description": ""}
    return JsonStruct([Field(key[:1].upper() + key[1:], said.get(key, empty.get(key)), key, omitempty=True) for key in keys])


def _struct(type_name: str, **values: Any) -> Struct:
    return Struct(type_name, tuple(Field(name, value, name) for name, value in values.items()))


def _limits(turns: Sequence[_Turn]) -> Limits:
    """What the client says is not the template's doing: it comes on top of the bounds."""
    said, bounds = sum(len(turn.content) for turn in turns), Limits()
    return replace(bounds, chars=bounds.chars + 2 * said, steps=bounds.steps + PASSES * said // CHARS_A_STEP)
