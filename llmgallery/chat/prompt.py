"""A conversation becomes the text that the model continues."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, Protocol

import msgspec

from llmgallery.config.model import ModelConfig
from llmgallery.core.errors import InvalidField, TemplateError
from llmgallery.core.messages import ImagePart, Message, Tool, ToolCall
from llmgallery.core.requests import ChatRequest
from llmgallery.templates import presets
from llmgallery.templates.jinja import ChatTemplate, Limits, check, compile_template
from llmgallery.templates.jinja_guard import CHARS_A_STEP

TOOL_USE = "tool_use"
"""The name under which weights may bring a second template, for chats with tools."""

PASSES = 64
"""How often a template may go through all that was said, beyond what every render may do."""

_CONTINUE = "CONTINUE_FINAL_MESSAGE_TAG "


class WithTemplates(Protocol):
    """What the weights bring for prompts; backends.base.Loaded is one."""

    @property
    def chat_template(self) -> str | None: ...
    @property
    def templates(self) -> dict[str, str]: ...
    @property
    def bos(self) -> str: ...
    @property
    def eos(self) -> str: ...


@dataclass(frozen=True)
class Choice:
    """A template's text, where it is from ("template.preset chatml"), and the strings that end an answer in its format."""

    source: str
    origin: str
    stops: tuple[str, ...] = ()


@dataclass(frozen=True)
class Rendered:
    """A prompt, to be tokenised with its control tokens recognised; the BOS token is already in it when `bos_in_text`.

    Control tokens that a user wrote into a message are recognised too, as llama-server does: nothing in the text tells
    them from the template's own.
    """

    prompt: str
    stops: tuple[str, ...]
    bos_in_text: bool


def render_chat(request: ChatRequest, config: ModelConfig, loaded: WithTemplates) -> Rendered:
    """The prompt of `request`, and all its stop strings: its own, the model YAML's and the format's.

    Raises TemplateError (the template's refusal or failure) and InvalidField (nothing to continue).
    """
    choice = pick_template(config, loaded, tools=bool(request.tools))
    messages = messages_for_template(request, config.system_prompt)
    if "developer" not in choice.source:
        # Most templates know no developer role, and some refuse roles that they do not know.
        messages = [{**message, "role": "system"} if message["role"] == "developer" else message for message in messages]
    variables = {
        **config.chat_template_kwargs,
        **request.template_vars,
        "messages": _tagged(messages) if request.continue_final else messages,
        "tools": [tool_for_template(tool) for tool in request.tools] or None,
        "documents": request.template_vars.get("documents"),
        "add_generation_prompt": not request.continue_final,
        "bos_token": _first(config.template.bos_token, loaded.bos),
        "eos_token": _first(config.template.eos_token, loaded.eos),
    }
    prompt = _compiled(choice).render(variables, _limits(request))
    if request.continue_final:
        prompt = _cut_at_tag(prompt)
    stops = tuple(dict.fromkeys(stop for stop in (*request.stop, *config.stopwords, *choice.stops) if stop))
    bos = variables["bos_token"]
    return Rendered(prompt, stops, bool(bos) and prompt.startswith(bos))


def pick_template(config: ModelConfig, loaded: WithTemplates, *, tools: bool = False) -> Choice:
    """The model YAML's template, else the one that came with the weights, else the fallback preset.

    Raises ConfigError when the YAML names an unknown preset.
    """
    template = config.template
    if template.chat_template is not None:
        # Where a file holds the template, reading the YAML has put its text here.
        return Choice(template.chat_template, template.chat_template_file or "template.chat_template")
    own = (loaded.templates.get(TOOL_USE) if tools else None) or loaded.chat_template or loaded.templates.get("default")
    if own is not None and (template.use_tokenizer_template or template.preset is None):
        return Choice(own, "the weights' chat template" if config.parameters.model else "the backend's own chat template")
    preset = presets.get(template.preset or presets.FALLBACK)
    return Choice(preset.chat_template, f"template.preset {preset.name}", preset.stopwords)


def _compiled(choice: Choice) -> ChatTemplate:
    if problem := check(choice.source):
        place = f"{choice.origin}, line {problem.line}, column {problem.column}"
        advice = "set template.preset or template.chat_template in the model's YAML"
        raise TemplateError(f"{place}: {problem.message}; {advice}")
    return compile_template(choice.source, choice.origin)


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
    if message.reasoning is not None:
        # The two names that templates know it by, as transformers passes it.
        result["reasoning_content"] = result["thinking"] = message.reasoning
    return result


def _content(message: Message) -> str | list[dict[str, Any]] | None:
    if any(isinstance(part, ImagePart) for part in message.parts):
        return [{"type": "image"} if isinstance(part, ImagePart) else _text_part(part.text) for part in message.parts]
    # Some templates tell a turn that only calls tools by its null content.
    return None if message.tool_calls and not message.text else message.text


def _text_part(text: str) -> dict[str, Any]:
    return {"type": "text", "text": text}


def _call(call: ToolCall) -> dict[str, Any]:
    return {"type": "function", "id": call.id, "function": {"name": call.name, "arguments": _arguments(call.arguments)}}


def _arguments(text: str) -> Any:
    """Templates want an object, to write in their own way; what is none stays the text that came."""
    try:
        return msgspec.json.decode(text, type=dict[str, Any])
    except msgspec.DecodeError:
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


def _cut_at_tag(prompt: str) -> str:
    at = prompt.rfind(_CONTINUE.strip())
    if at < 0:
        raise TemplateError("the chat template leaves out the end of the last message, so that it cannot be continued")
    # A template that trims contents has eaten the mark's space, and would have eaten the message's own as well.
    kept = prompt.startswith(_CONTINUE, at)
    return prompt[:at] if kept else prompt[:at].rstrip()
