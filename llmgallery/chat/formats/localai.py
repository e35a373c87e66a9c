"""LocalAI's prompts: a Go template for each message, one around all of them, and one each for completions and edits.

What is done, and in which order, is that of LocalAI's core/templates/evaluator.go, so that its model files keep their prompts.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace

import msgspec

from llmgallery.chat.formats import localai_data as data
from llmgallery.chat.formats.base import Said, WithTemplates
from llmgallery.config.model import ModelConfig, Template
from llmgallery.core.errors import InvalidField, TemplateError
from llmgallery.core.messages import ImagePart, Message
from llmgallery.core.requests import ChatRequest, CompletionRequest
from llmgallery.templates.account import CHARS_A_STEP
from llmgallery.templates.gotmpl import compile_go
from llmgallery.templates.gotmpl.budget import Limits
from llmgallery.templates.gotmpl.values import Struct

KEYS = ("chat_message", "chat", "function", "completion", "edit", "multimodal")
"""Of `template`, in the order in which they come to act."""

CHAT_KEYS = ("chat", "chat_message", "function")
"""Those that say how chats are written."""

MULTIMODAL = (
    "{{ range .Audio }}<__media__>{{end}}{{ range .Images }}<__media__>{{end}}{{ range .Video }}[vid-{{.ID}}]{{end}}{{.Text}}"
)
"""LocalAI's template.multimodal of models that have none: the marks are llama.cpp's."""

PASSES = 64
"""How often a template may go through all that was said, beyond what every render may do."""

MOST_SECONDS = 10.0
"""For all messages of a chat: each render has its own, shorter limit."""


@dataclass(frozen=True)
class LocalAIFormat:
    """The Go templates of a model file; those that lie in files have been read in with it."""

    template: Template
    stops: tuple[str, ...] = ()

    @property
    def origin(self) -> str:
        return next((f"template.{key}" for key in CHAT_KEYS if getattr(self.template, key)), "template.completion")

    @property
    def texts(self) -> Mapping[str, str]:
        return {f"template.{key}": getattr(self.template, key) for key in KEYS if getattr(self.template, key)}

    def chat(self, request: ChatRequest, config: ModelConfig, loaded: WithTemplates) -> Said:
        continued = ""
        if request.continue_final:
            # The templates end with the beginning of an answer; here that is the message which is to be continued.
            request, continued = _without_last(request)
        said = _Chat(self, request, config).written()
        prefix = self.template.reply_prefix
        if prefix and continued.startswith(prefix):  # the client sends back what it was told
            said = replace(said, prompt=said.prompt.removesuffix(prefix))
        warnings = said.warnings
        if not (request.add_generation_prompt or request.continue_final):
            warnings += ("add_generation_prompt was ignored: LocalAI's templates always begin the answer",)
        return replace(said, prompt=said.prompt + continued, warnings=warnings)

    def completion(self, request: CompletionRequest, config: ModelConfig) -> Said | None:
        key = "completion" if request.instruction is None else "edit"
        if not getattr(self.template, key) or not isinstance(request.prompt, str):
            return None
        values = data.prompt_data(request.prompt, system_prompt=config.system_prompt or "", instruction=request.instruction or "")
        return Said(self.render(key, values, len(request.prompt) + len(request.instruction or "")))

    def render(self, key: str, values: Struct, said: int) -> str:
        """What the template of this key makes of `values`. `said`: characters of them that are the client's, which come on top
        of the bounds. Raises TemplateError."""
        source = getattr(self.template, key) or MULTIMODAL
        return compile_go(source, f"template.{key}").render(values, _limits(said))


def _limits(said: int) -> Limits:
    bounds = Limits()
    return replace(bounds, chars=bounds.chars + 2 * said, steps=bounds.steps + PASSES * said // CHARS_A_STEP)


def _without_last(request: ChatRequest) -> tuple[ChatRequest, str]:
    *before, last = request.messages
    if last.role != "assistant" or not last.text:
        message = "the last message is no assistant's text, which is all that this model's templates let continue"
        raise InvalidField(message, field="messages")
    return msgspec.structs.replace(request, messages=tuple(before)), last.text


@dataclass
class _Chat:
    """One chat on its way to a prompt. What LocalAI only logs, a template that fails, becomes a warning here as well."""

    format: LocalAIFormat
    request: ChatRequest
    config: ModelConfig
    warnings: list[str] = field(default_factory=list)
    failed: dict[str, list[int]] = field(default_factory=dict)
    images: int = 0
    suppress_system_prompt: bool = False

    def written(self) -> Said:
        """Raises TemplateError when all messages together take too long, or make too much text."""
        joint = self.format.template.join_chat_messages_by_character
        joint = "\n" if joint is None else joint
        joined = joint.join(self._pieces(len(joint)))
        self.warnings += [_failed(indices, why) for why, indices in self.failed.items()]
        return Said(self._around(joined), warnings=tuple(self.warnings))

    def _pieces(self, between: int) -> Iterator[str]:
        """`between`: characters that each costs beside its own."""
        end, made = time.monotonic() + MOST_SECONDS, 0
        most = _limits(sum(map(_length, self.request.messages))).chars
        for index, message in enumerate(self.request.messages):
            piece = self._message(index, message)
            made += between + len(piece or "")
            if made > most:
                raise TemplateError(f"template.chat_message makes a text that is too long (limit: {most} characters)")
            if time.monotonic() > end:
                raise TemplateError(f"template.chat_message takes too long: {index + 1} messages took {MOST_SECONDS:g} seconds")
            if piece is not None:
                yield piece

    def _message(self, index: int, message: Message) -> str | None:
        """One message's part of the prompt; None = it has none."""
        role = message.role
        if message.tool_calls and role == "assistant" and self.config.roles.get(data.FUNCTION_CALL_ROLE):
            role_name = data.FUNCTION_CALL_ROLE
        else:
            role_name = role
        renamed = self.config.roles.get(role_name, "")
        text = self._text(message)
        if self.format.template.chat_message:
            last = index == len(self.request.messages) - 1
            values = data.message_data(
                message,
                index,
                text=text,
                role=role_name,
                renamed=renamed,
                system_prompt=self.config.system_prompt or "",
                last=last,
                function=last and data.uses_grammar(self.request, self.config.function),
            )
            try:
                return self.format.render("chat_message", values, _length(message)) or None
            except TemplateError as exc:
                self.failed.setdefault(exc.message, []).append(index)
        self.suppress_system_prompt |= bool(text) and role_name == "system"
        return _plainly(message, renamed, text)

    def _text(self, message: Message) -> str:
        """What the message says; with marks for its images, which count through the chat."""
        count = sum(isinstance(part, ImagePart) for part in message.parts)
        if not count:
            return message.text
        ids = range(self.images, self.images + count)
        self.images += count
        return self.format.render("multimodal", data.media_data(message.text, ids), len(message.text))

    def _around(self, joined: str) -> str:
        request, config = self.request, self.config
        functions = data.uses_functions(request) and bool(self.format.template.function)
        key = "function" if functions else "chat"
        if not getattr(self.format.template, key):
            return joined
        values = data.prompt_data(
            joined,
            system_prompt=config.system_prompt or "",
            suppress_system_prompt=self.suppress_system_prompt,
            functions=data.functions(request, config.function),
            reasoning_effort=request.reasoning_effort or config.reasoning_effort or "",
            metadata=request.metadata,
        )
        try:
            return self.format.render(key, values, len(joined))
        except TemplateError as exc:
            self.warnings.append(f"the messages stand in the prompt without it: {exc.message}")
            return joined


def _failed(indices: list[int], why: str) -> str:
    """What is told of the messages that chat_message failed at in the same way."""
    others = len(indices) - 1
    who = f"messages[{indices[0]}]" + (f" and {others} other{'s' * (others > 1)}" if others else "")
    stand = "stand in the prompt with their roles and texts" if others else "stands in the prompt with its role and text"
    return f"{who} {stand} only: {why}"


def _plainly(message: Message, renamed: str, text: str) -> str:
    """A message that no template wrote: its role, where the YAML's `roles` renames it, its text, and its calls in JSON."""
    written = renamed + text if text else ""
    for calls in data.called(message):
        if calls is not None:
            json = compile_go("{{toJson .}}").render(calls, _limits(_length(message)))
            line = f"{renamed} {json}" if renamed else json
            written = f"{written}\n{line}" if text else line
    return written


def _length(message: Message) -> int:
    return len(message.text) + sum(len(call.name) + len(call.arguments) for call in message.tool_calls)
