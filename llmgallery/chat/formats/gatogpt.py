"""GatoGPT's prompts: each message through one template, all of them together through another, keys replaced and nothing else.

Source: https://github.com/elgatopanzon/GatoGPT, StatefulChat.cs and TextGenerationBackend.cs.
"""

from __future__ import annotations

import unicodedata
from collections.abc import Mapping
from dataclasses import dataclass

from llmgallery.chat.formats.base import Said, WithTemplates
from llmgallery.chat.formats.gatogpt_tools import calls_text, tools_text
from llmgallery.config.model import ModelConfig, Template
from llmgallery.core.errors import InvalidField, TemplateError
from llmgallery.core.messages import Message
from llmgallery.core.requests import ChatRequest, CompletionRequest
from llmgallery.templates import keyed, presets

TEMPLATES = {
    "ChatTemplate": "chat",
    "ChatMessageTemplate": "chat_message",
    "ChatMessageGenerationTemplate": "generation",
    "InstructTemplate": "completion",
}
"""GatoGPT's templates, and the keys under `template` that hold them."""

AROUND = ("PrePromptPrefix", "PrePromptSuffix", "PrePrompt", "InputPrefix", "InputSuffix", "Input")
"""What stands in ChatTemplate and InstructTemplate, in the order in which it is replaced."""

_SYSTEM = ("system", "developer")


@dataclass(frozen=True)
class GatoFormat:
    """`keys`: GatoGPT's texts by its own names: TEMPLATES and AROUND without Input. `instructs`: completions pass
    InstructTemplate, as all do in GatoGPT; not so where nobody has asked for GatoGPT's ways."""

    keys: Mapping[str, str]
    origin: str
    stops: tuple[str, ...] = ()
    instructs: bool = True

    @property
    def texts(self) -> Mapping[str, str]:
        return {
            f"template.{TEMPLATES[key]}" if key in TEMPLATES else f"template.variables.{key}": text
            for key, text in self.keys.items()
        }

    def chat(self, request: ChatRequest, config: ModelConfig, loaded: WithTemplates) -> Said:
        """System messages, joined, take PrePrompt's place; the others become one Input."""
        messages = [message for message in request.messages if message.role not in _SYSTEM]
        systems = [message.text for message in request.messages if message.role in _SYSTEM]
        if request.tools and request.tool_choice != "none":
            systems.append(tools_text(request.tools, config.function))
        limit = keyed.MAX_CHARS + 2 * sum(len(_text(message, config)) for message in request.messages)
        texts = [_text(message, config) for message in messages]
        parts = self._parts(messages, texts, limit)
        if request.continue_final:
            if not messages or not messages[-1].text:
                raise InvalidField("the last message has no text that could be continued", field="messages")
            parts[-1] = self._message(messages[-1], messages[-1].text, limit, cut=True)
        elif self.keys["ChatMessageGenerationTemplate"]:
            names = [name_of(message) for message in messages if message.role == "assistant"]
            values = {"AssistantName": (names or ["Assistant"])[-1]}
            parts.append(keyed.fill(self.keys["ChatMessageGenerationTemplate"], values, values, limit=limit))
        system = ". ".join(systems) if systems else None
        prompt = self._around("ChatTemplate", "\n".join(parts), system, config, limit=limit, cut=request.continue_final)
        return Said(prompt, (*self.stops, *self._turns(messages)))

    def completion(self, request: CompletionRequest, config: ModelConfig) -> Said | None:
        if not self.instructs or not isinstance(request.prompt, str) or request.instruction is not None:
            return None
        limit = keyed.MAX_CHARS + 2 * len(request.prompt)
        return Said(self._around("InstructTemplate", request.prompt, None, config, limit=limit), self.stops)

    def _turns(self, messages: list[Message]) -> list[str]:
        """What would begin another turn of one of the users."""
        names = dict.fromkeys(name_of(message) for message in messages if message.role == "user")
        return [f"{name}: " for name in names if name not in self.stops]

    def _parts(self, messages: list[Message], texts: list[str], limit: int) -> list[str]:
        parts, left = [], limit
        for message, text in zip(messages, texts, strict=True):
            parts.append(self._message(message, text, limit))
            left -= len(parts[-1])
            if left < 0:
                raise TemplateError(f"ChatMessageTemplate makes a text that is too long (limit: {limit} characters)")
        return parts

    def _message(self, message: Message, text: str, limit: int, *, cut: bool = False) -> str:
        values = {"Role": message.role, "Name": name_of(message), "Message": text}
        template = self.keys["ChatMessageTemplate"]
        if not cut:
            return keyed.fill(template, values, values, limit=limit)
        return _uncut("ChatMessageTemplate", keyed.fill_to("Message", template, values, values, limit=limit))

    def _around(self, template: str, text: str, system: str | None, config: ModelConfig, *, limit: int, cut: bool = False) -> str:
        """`system`: what the client said; else the model YAML's system prompt, else the profile's PrePrompt."""
        values = {**dict.fromkeys(AROUND, ""), **{key: self.keys[key] for key in AROUND if key in self.keys}, "Input": text}
        if (pre_prompt := config.system_prompt if system is None else system) is not None:
            values["PrePrompt"] = pre_prompt
        if not values["PrePrompt"]:
            values |= {"PrePromptPrefix": "", "PrePromptSuffix": ""}
        said = ["Input"] if system is None else ["Input", "PrePrompt"]
        if not cut:
            return keyed.fill(self.keys[template], values, said, limit=limit)
        return _uncut(template, keyed.fill_to("Input", self.keys[template], values, said, limit=limit))


def from_template(template: Template) -> GatoFormat:
    """What a model YAML says under `template`, over its preset, over GatoGPT's defaults. Raises ConfigError: no such preset."""
    preset = presets.get(template.preset, "gatogpt") if template.preset else None
    base = from_preset(preset or presets.gatogpt_defaults())
    written = {key: text for key, name in TEMPLATES.items() if (text := getattr(template, name)) is not None}
    origin = base.origin if preset else "template.engine gatogpt"
    return GatoFormat({**base.keys, **written, **template.variables}, origin, base.stops)


def from_preset(preset: presets.Preset, origin: str | None = None, *, instructs: bool = True) -> GatoFormat:
    """A preset of kind gatogpt. `origin`: who chose it, for people; else the YAML."""
    inference = preset.data["InferenceParams"]
    keys = {key: inference[key] for key in (*TEMPLATES, *AROUND) if key in inference}
    return GatoFormat(keys, origin or f"template.preset {preset.name}", preset.stopwords, instructs)


def name_of(message: Message) -> str:
    """The speaker, as GatoGPT writes it: the message's name, else its role, title-cased."""
    return title_case(message.name or message.role)


def title_case(text: str) -> str:
    """As .NET's TextInfo.ToTitleCase: words in capitals alone stay, of others the first letter is raised, the rest lowered.

    Digits and marks are parts of words, and so is an apostrophe; other signs end them.
    """
    made, at = [], 0
    while at < len(text):
        if not _is_letter(text[at]):
            made.append(text[at])
            at += 1
            continue
        end = at
        while end < len(text) and _in_word(text[end]):
            end += 1
        made.append(_word(text[at:end]))
        at = end
    return "".join(made)


def _word(word: str) -> str:
    """What follows an apostrophe is lowered, whatever stands before it."""
    raised = word[0].title()
    first, *others = word[1:].split("'")
    has_lower = any(unicodedata.category(char) == "Ll" for char in word[0] + first)
    rest = [_lowered(first) if has_lower else first, *map(_lowered, others)]
    return (raised if len(raised) == 1 else word[0]) + "'".join(rest)


def _lowered(text: str) -> str:
    """Letter by letter: .NET knows no final sigma."""
    return "".join(char.lower() for char in text)


def _is_letter(char: str) -> bool:
    return unicodedata.category(char).startswith("L")


def _in_word(char: str) -> bool:
    category = unicodedata.category(char)
    return char == "'" or category[0] in "LMN" or category in ("Co", "Cn", "Cs")


def _text(message: Message, config: ModelConfig) -> str:
    """What was said, and after it the calls, which GatoGPT itself would leave out."""
    calls = calls_text(message.tool_calls, config.function) if message.tool_calls else ""
    return "\n".join(text for text in (message.text, calls) if text)


def _uncut(template: str, text: str | None) -> str:
    if text is None:
        key = "Input" if template == "ChatTemplate" else "Message"
        raise TemplateError(f"{template} leaves out {{{{ {key} }}}}, so that the last message cannot be continued")
    return text
