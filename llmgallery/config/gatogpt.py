"""What must hold in a model file with GatoGPT's templates: its keys, and its profiles."""

from __future__ import annotations

import re
from collections.abc import Collection, Iterator

from llmgallery.config.model import Template
from llmgallery.config.problems import Problem
from llmgallery.config.readers import Reading
from llmgallery.config.suggest import did_you_mean

VARIABLES = ("PrePromptPrefix", "PrePrompt", "PrePromptSuffix", "InputPrefix", "InputSuffix")
"""What `template.variables` may hold."""

KEYS = {
    "chat": (*VARIABLES, "Input"),
    "completion": (*VARIABLES, "Input"),
    "chat_message": ("Role", "Name", "Message"),
    "generation": ("AssistantName",),
}
"""What is replaced in each template."""

PREFIX = "gatogpt/"
_LIKE_A_KEY = re.compile(r"\{\{\s*(\w+)\s*\}\}")


def may_be_profile(preset: str | None, presets: Collection[str] | None) -> bool:
    """Whether it is one of GatoGPT's profiles, as far as names tell."""
    return preset is not None and (preset.startswith(PREFIX) or presets is None or f"{PREFIX}{preset}" in presets)


def check(template: Template, reading: Reading, presets: Collection[str] | None) -> list[Problem]:
    """Of `engine: gatogpt`: notes variables that nothing reads and a preset that is no profile of GatoGPT's; warnings for what
    looks like a key and stays in every prompt as it stands."""
    check_variables(template, reading)
    preset, names = template.preset, presets or ()
    if preset is not None and preset in names and f"{PREFIX}{preset.removeprefix(PREFIX)}" not in names:
        known = [name.removeprefix(PREFIX) for name in names if name.startswith(PREFIX)]
        advice = did_you_mean(preset, known) or f"known: {', '.join(sorted(known))}; or leave out template.engine"
        reading.fail(reading.nodes["template.preset"], "template.preset", f"{preset!r} is none of GatoGPT's profiles", advice)
    return [problem for key in KEYS for problem in _strange(key, getattr(template, key) or "", reading)]


def check_variables(template: Template, reading: Reading) -> None:
    for name in template.variables:
        if name not in VARIABLES and f"template.variables.{name}" not in reading.lent:
            advice = did_you_mean(name, VARIABLES) or f"known: {', '.join(VARIABLES)}"
            node = reading.nodes["template.variables"]
            reading.fail(node, f"template.variables.{name}", "GatoGPT's templates have no such key", advice)


def _strange(key: str, text: str, reading: Reading) -> Iterator[Problem]:
    known = KEYS[key]
    for mark, name in dict.fromkeys((found[0], found[1]) for found in _LIKE_A_KEY.finditer(text)):
        if mark in (f"{{{{ {each} }}}}" for each in known):
            continue
        spaced = f"write {{{{ {name} }}}}: one space on each side" if name in known else ""
        advice = spaced or did_you_mean(name, known) or f"known: {', '.join(known)}"
        message = f"{mark} is no key of this template and stays in every prompt as it is"
        yield reading.at(f"template.{key}", message, advice)
