"""A conversation becomes the text that the model continues: which format writes it, and what ends the answer."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from llmgallery.chat.formats import gatogpt
from llmgallery.chat.formats.base import Format, Said, WithTemplates
from llmgallery.chat.formats.jinja import JinjaFormat, bos_text
from llmgallery.chat.formats.kobold import KoboldFormat, kobold_format
from llmgallery.chat.formats.localai import CHAT_KEYS, LocalAIFormat
from llmgallery.chat.formats.ollama import OllamaFormat
from llmgallery.chat.unread import unread
from llmgallery.config.model import ModelConfig
from llmgallery.core.errors import TemplateError
from llmgallery.core.messages import say
from llmgallery.core.requests import ChatRequest, CompletionRequest
from llmgallery.templates import kobold, presets
from llmgallery.templates.detect import detect
from llmgallery.templates.presets import Preset

TOOL_USE = "tool_use"
"""The name under which weights may bring a second template, for chats with tools."""


@dataclass(frozen=True)
class Rendered:
    """A prompt, to be tokenised with its control tokens recognised; the BOS token is already in it when `bos_in_text`.
    `origin`: where its format is from. `repairs`: what was done to the conversation so that the template takes it.
    `warnings`: what of the request is ignored, and what of the format failed.

    Control tokens that a user wrote into a message are recognised too, as llama-server does: nothing in the text tells
    them from the template's own.
    """

    prompt: str
    stops: tuple[str, ...]
    bos_in_text: bool
    origin: str = ""
    repairs: tuple[str, ...] = ()
    warnings: tuple[str, ...] = ()


def render_chat(request: ChatRequest, config: ModelConfig, loaded: WithTemplates) -> Rendered:
    """The prompt of `request`, and all its stop strings: its own, the model YAML's and the format's.

    Raises TemplateError (the template's refusal or failure), InvalidField (nothing to continue, an adapter that is none), and
    UnsupportedField for what the template does not read.
    """
    format = pick_format(config, loaded, tools=bool(request.tools), adapter=request.adapter)
    warnings = unread(request, format.texts.values(), config.on_unsupported)
    return _rendered(format.chat(request, config, loaded), request.stop, config, loaded, format.origin, warnings)


def render_completion(request: CompletionRequest, config: ModelConfig, loaded: WithTemplates) -> Rendered | None:
    """The prompt of a completion or an edit, if the model's templates write one; None = it goes to the model as it came, as
    token ids and text that is to be filled in always do.

    An edit that no template was made for becomes a chat: its instruction and its text are what the user says. Raises
    TemplateError.
    """
    if not isinstance(request.prompt, str) or request.suffix:
        return None
    said, origin, warnings = _by_template(request, config, loaded)
    if said is None and request.instruction is not None:
        text = f"{request.instruction}\n\n{request.prompt}" if request.prompt else request.instruction
        chat = render_chat(ChatRequest((say("user", text),), stop=request.stop), config, loaded)
        return Rendered(chat.prompt, chat.stops, chat.bos_in_text, chat.origin, chat.repairs, (*warnings, *chat.warnings))
    if said is None:
        return Rendered(request.prompt, _stops(request.stop, config), False, origin, (), warnings) if warnings else None
    return _rendered(said, request.stop, config, loaded, origin, warnings)


def _by_template(
    request: CompletionRequest, config: ModelConfig, loaded: WithTemplates
) -> tuple[Said | None, str, tuple[str, ...]]:
    """What a template makes of the prompt, where it is from, and why it failed: as in LocalAI, the prompt then does without."""
    key = "completion" if request.instruction is None else "edit"
    if getattr(config.template, key) and (key == "edit" or config.template.engine != "gatogpt"):
        origin = f"template.{key}"
        try:
            return LocalAIFormat(config.template).completion(request, config), origin, ()
        except TemplateError as exc:
            return None, origin, (f"the prompt went to the model without its template: {exc.message}",)
    format = pick_format(config, loaded)
    return format.completion(request, config), format.origin, ()


def _rendered(
    said: Said, stop: tuple[str, ...], config: ModelConfig, loaded: WithTemplates, origin: str, warnings: tuple[str, ...]
) -> Rendered:
    bos = bos_text(config, loaded)
    in_text = bool(bos) and said.prompt.startswith(bos)
    return Rendered(said.prompt, _stops(stop, config, said), in_text, origin, said.repairs, (*warnings, *said.warnings))


def _stops(stop: tuple[str, ...], config: ModelConfig, said: Said | None = None) -> tuple[str, ...]:
    return tuple(dict.fromkeys(each for each in (*stop, *config.stopwords, *(said.stops if said else ())) if each))


# --- which format ------------------------------------------------------------------------------------------------------------


def pick_format(
    config: ModelConfig, loaded: WithTemplates, *, tools: bool = False, adapter: dict[str, Any] | str | None = None
) -> Format:
    """What writes the prompts of chats: the request's `adapter`, what the YAML says, the template of the weights (which may have
    one of its own for chats with `tools`), or what the weights are likely to know.

    Raises ConfigError when the YAML names an unknown preset, InvalidField for an adapter that is none.
    """
    if adapter is not None:
        return kobold_format(adapter, loaded, origin="the request's adapter")
    own = _of_weights(config, loaded, tools=tools)
    if own is not None and config.template.use_tokenizer_template:
        return own
    return _written(config, loaded) or own or _detected(config, loaded)


def _written(config: ModelConfig, loaded: WithTemplates) -> Format | None:
    """What the YAML says under `template`."""
    template = config.template
    if template.chat_template is not None:
        # Where a file holds the template, reading the YAML has put its text here.
        return JinjaFormat(template.chat_template, template.chat_template_file or "template.chat_template")
    if template.adapter:
        return kobold_format(template.adapter, loaded, origin="template.adapter", field="template.adapter")
    if template.engine == "gatogpt":
        return gatogpt.from_template(template)
    if template.engine == "ollama" and template.chat:
        return OllamaFormat(template.chat)
    if any(getattr(template, key) for key in CHAT_KEYS):
        return LocalAIFormat(template)
    if template.preset is None:
        return None
    preset = presets.get(template.preset)
    return gatogpt.from_template(template) if preset.kind == "gatogpt" else _of_preset(preset, f"template.preset {preset.name}")


def _of_preset(preset: Preset, origin: str, *, instructs: bool = True) -> Format:
    """`instructs`: whether GatoGPT's ways are wanted with completions, too."""
    match preset.kind:
        case "gatogpt":
            return gatogpt.from_preset(preset, origin, instructs=instructs)
        case "kobold":
            return KoboldFormat(kobold.read(preset.data, "template.preset"), origin)
        case "jinja":
            return JinjaFormat(preset.chat_template, origin, preset.stopwords)


def _of_weights(config: ModelConfig, loaded: WithTemplates, *, tools: bool) -> Format | None:
    """The Jinja template that came with the weights; None = there is none."""
    unnamed = {"default": loaded.chat_template} if loaded.chat_template else {}
    named = {**unnamed, **loaded.templates}
    own = (named.get(TOOL_USE) if tools else None) or loaded.chat_template or named.get("default")
    if own is None:
        return None
    origin = "the weights' chat template" if config.weights else "the backend's own chat template"
    return JinjaFormat(own, origin, named=named)


def _detected(config: ModelConfig, loaded: WithTemplates) -> Format:
    """What suits weights that bring no template."""
    found = detect(loaded.clues)
    return _of_preset(found.preset, f"preset {found.preset.name}, as {found.why}", instructs=False)
