"""Which keys of `template` nobody will use, as another one comes before them. The order is that of docs/templates.md."""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

from llmgallery.config.model import Template

PRESET = "template.preset"
OF_GATOGPT = ("chat", "chat_message", "completion", "generation", "variables", "preset")
OF_LOCALAI = ("chat", "chat_message", "function")


class Way(NamedTuple):
    """One way in which a model file says how chats are written: the key that is named for it, and all that it takes."""

    name: str
    keys: tuple[str, ...]


def ways(template: Template) -> list[Way]:
    """All that it has but the weights' own template, the one that is used first."""
    return list(_ways(template))


def _ways(template: Template) -> Iterator[Way]:
    if template.chat_template_file is not None:
        yield Way("template.chat_template_file", ("chat_template_file",))
    elif template.chat_template is not None:
        yield Way("template.chat_template", ("chat_template",))
    if template.adapter:
        yield Way("template.adapter", ("adapter",))
    if template.engine == "gatogpt":
        yield Way("template.engine: gatogpt", OF_GATOGPT)
        return
    if template.engine == "ollama":
        yield Way("template.chat", ("chat",))
    elif written := [key for key in OF_LOCALAI if getattr(template, key)]:
        yield Way(f"template.{written[0]}", OF_LOCALAI)
    if template.preset is not None:
        yield Way(PRESET, ("preset",))


def unused(template: Template) -> Iterator[tuple[str, str, str]]:
    """Each such key, why it is not used, and what to do."""
    found = ways(template)
    for place, way in enumerate(found):
        if not place and (not template.use_tokenizer_template or way.name == PRESET):
            continue  # a preset alone is what weights without a template are meant to get
        for key in way.keys:
            if getattr(template, key):
                yield f"template.{key}", *_why(bool(template.use_tokenizer_template), found[0].name if place else "")


def _why(weights_first: bool, first: str) -> tuple[str, str]:
    if not weights_first:
        return f"not used: {first} writes the chats", "remove one of them"
    if not first:
        return "not used where the weights bring a template, as use_tokenizer_template is set", ""
    message = f"not used: the weights' template writes the chats, as use_tokenizer_template is set, and without one {first}"
    return message, "remove all but one of them"
