"""Jinja chat templates: the conversation in OpenAI's shape, as transformers hands it to them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import msgspec

from llmgallery.chat.formats.base import Said, WithTemplates
from llmgallery.chat.formats.repair import caps_of, repair
from llmgallery.config.model import ModelConfig
from llmgallery.core.errors import InvalidField, TemplateError
from llmgallery.core.messages import ImagePart, Message, RawPart, Tool, ToolCall
from llmgallery.core.requests import ChatRequest, CompletionRequest
from llmgallery.templates.account import CHARS_A_STEP
from llmgallery.templates.jinja import ChatTemplate, Limits, check, compile_template

PASSES = 64
"""How often a template may go through all that was said, beyond what every render may do."""

RAG = "rag"
"""The name under which weights may bring a template of their own for chats with documents."""

_CONTINUE = "CONTINUE_FINAL_MESSAGE_TAG "


@dataclass(frozen=True)
class JinjaFormat:
    """A template's text, where it is from, and the strings that end an answer in its format. `named`: further templates of the
    same weights, which a request can ask for."""

    source: str
    origin: str
    stops: tuple[str, ...] = ()
    named: Mapping[str, str] = field(default_factory=dict)

    @property
    def texts(self) -> Mapping[str, str]:
        others = {f"template {name}": text for name, text in self.named.items() if text != self.source}
        repairs = caps_of(self.source).words
        return {"template": self.source, **others, **({"template repairs": "; ".join(repairs)} if repairs else {})}

    def chat(self, request: ChatRequest, config: ModelConfig, loaded: WithTemplates) -> Said:
        asked = _variables(request, config)
        source = self._source(asked, bool(request.tools))
        messages = messages_for_template(request, config.system_prompt)
        if "developer" not in source:
            # Most templates know no developer role, and some refuse roles that they do not know.
            messages = [{**message, "role": "system"} if message["role"] == "developer" else message for message in messages]
        messages, repairs = repair(messages, caps_of(source))
        variables = {
            **asked,
            "messages": _tagged(messages) if request.continue_final else messages,
            "tools": [tool_for_template(tool) for tool in request.tools] or None,
            "documents": asked.get("documents"),
            "add_generation_prompt": request.add_generation_prompt and not request.continue_final,
            "bos_token": bos_text(config, loaded),
            "eos_token": _first(config.template.eos_token, loaded.eos),
        }
        prompt = _compiled(source, self.origin).render(variables, _limits(request))
        if request.continue_final:
            prompt = _continued(prompt, messages[-1]["content"])
        return Said(prompt, self.stops, repairs)

    def _source(self, asked: Mapping[str, Any], tools: bool) -> str:
        """The template that the request asks for by name, else by what it brings (transformers' and Cohere's names)."""
        name = asked.get("chat_template")
        if name is None:
            by_need = None if tools or not asked.get("documents") else self.named.get(RAG)
            return by_need or self.source
        named = {"default": self.source, **self.named}
        if not isinstance(name, str) or name not in named:
            known = ", ".join(sorted(named))
            raise InvalidField(
                f"chat_template_kwargs.chat_template: the model has no template of this name; it has: {known}",
                field="chat_template_kwargs.chat_template",
            )
        return named[name]

    def completion(self, request: CompletionRequest, config: ModelConfig) -> Said | None:
        return None


def _variables(request: ChatRequest, config: ModelConfig) -> dict[str, Any]:
    """What the model's YAML and the request say to the template by name; the request's own words win."""
    effort = request.reasoning_effort or config.reasoning_effort
    return {
        **config.chat_template_kwargs,
        **({"reasoning_effort": effort} if effort else {}),
        **({"metadata": request.metadata} if request.metadata else {}),
        **request.template_vars,
    }


def bos_text(config: ModelConfig, loaded: WithTemplates) -> str:
    """The token that begins every prompt, as templates write it."""
    return _first(config.template.bos_token, loaded.bos)


def _compiled(source: str, origin: str) -> ChatTemplate:
    if problem := check(source):
        place = f"{origin}, line {problem.line}, column {problem.column}"
        advice = "set template.preset or template.chat_template in the model's YAML"
        raise TemplateError(f"{place}: {problem.message}; {advice}")
    return compile_template(source, origin)


def _limits(request: ChatRequest) -> Limits:
    """What the client says is not the template's doing: it comes on top of the bounds, so that a conversation which is far too
    long is refused for its length, and one that fits a huge context is rendered."""
    said = sum(_length(message) for message in request.messages)
    bounds = Limits()
    return replace(bounds, chars=bounds.chars + 2 * said, steps=bounds.steps + PASSES * said // CHARS_A_STEP)


def _length(message: Message) -> int:
    calls = sum(len(call.name) + len(call.arguments) for call in message.tool_calls)
    return len(message.text) + len(message.reasoning or "") + calls


def messages_for_template(request: ChatRequest, system_prompt: str | None = None) -> list[dict[str, Any]]:
    """The conversation in OpenAI's shape, which chat templates expect. `system_prompt` leads when it brings none of its own."""
    messages = [_message(message) for message in request.messages]
    if system_prompt and not any(message.role in ("system", "developer") for message in request.messages):
        messages.insert(0, {"role": "system", "content": system_prompt})
    return messages


def tool_for_template(tool: Tool) -> dict[str, Any]:
    """A function on offer in OpenAI's shape; one without parameters gets an empty schema, which templates look into."""
    function: dict[str, Any] = {"name": tool.name}
    if tool.description:
        function["description"] = tool.description
    function["parameters"] = tool.parameters or {"type": "object", "properties": {}}
    if tool.strict is not None:
        function["strict"] = tool.strict
    return {"type": "function", "function": function}


def _message(message: Message) -> dict[str, Any]:
    role = "tool" if message.role == "function" else message.role
    result: dict[str, Any] = {"role": role, "content": _content(message)}
    if message.name is not None:
        result["name"] = message.name
    if message.tool_call_id is not None:
        result["tool_call_id"] = message.tool_call_id
    if message.tool_calls:
        result["tool_calls"] = [_call(call) for call in message.tool_calls]
    if message.reasoning is None:
        return result
    # The two names that templates know it by, placed as transformers places them.
    return {"thinking": message.reasoning, **result, "reasoning_content": message.reasoning}


def _content(message: Message) -> str | list[dict[str, Any]] | None:
    if message.images:
        said = (part for part in message.parts if not isinstance(part, RawPart))
        return [{"type": "image"} if isinstance(part, ImagePart) else _text_part(part.text) for part in said]
    # Some templates tell a turn that only calls tools by its null content.
    return None if message.tool_calls and not message.text else message.text


def _text_part(text: str) -> dict[str, Any]:
    return {"type": "text", "text": text}


def _call(call: ToolCall) -> dict[str, Any]:
    return {"type": "function", "id": call.id, "function": {"name": call.name, "arguments": _arguments(call.arguments)}}


def _arguments(text: str) -> Any:
    """Templates want an object, to write in their own way; what is none stays the text that came. No text is a call without
    arguments."""
    try:
        return msgspec.json.decode(text or "{}", type=dict[str, Any])
    except (msgspec.DecodeError, RecursionError):
        return text


def _first(configured: str | None, own: str) -> str:
    return own if configured is None else configured


def _tagged(messages: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The messages with a mark at the end of the last one's text, where the prompt is cut (transformers' way)."""
    content = messages[-1].get("content") if messages else None
    if isinstance(content, str):
        return [*messages[:-1], {**messages[-1], "content": content + _CONTINUE}]
    parts = list(content or ())
    last = max((at for at, part in enumerate(parts) if part["type"] == "text"), default=None)
    if last is None:
        raise InvalidField("the last message has no text that could be continued", field="messages")
    parts[last] = _text_part(parts[last]["text"] + _CONTINUE)
    return [*messages[:-1], {**messages[-1], "content": parts}]


def _continued(prompt: str, content: str | list[dict[str, Any]]) -> str:
    """The prompt up to the mark. Raises TemplateError when the last message does not stand before it as it was said, for what
    would be continued is then something else."""
    said = content if isinstance(content, str) else [part["text"] for part in content if part["type"] == "text"][-1]
    at = prompt.rfind(_CONTINUE.strip())
    if at < 0 or said.strip() not in prompt:
        raise TemplateError("the chat template leaves out a part of the last message, so that it cannot be continued")
    # A template that trims contents has eaten the mark's space, and would have eaten the message's own as well.
    kept = prompt.startswith(_CONTINUE, at)
    return prompt[:at] if kept else prompt[:at].rstrip()
