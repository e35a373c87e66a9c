"""Prompt formats by name. They are data: presets.toml."""

from __future__ import annotations

import difflib
import functools
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass
from importlib import resources

from llmgallery.core.errors import ConfigError

FALLBACK = "alpaca"
"""What a model gets for which nobody names a format."""


@dataclass(frozen=True)
class Preset:
    """A Jinja chat template, and the strings that end an answer in its format."""

    name: str
    chat_template: str
    stopwords: tuple[str, ...]


def names() -> tuple[str, ...]:
    """All presets, sorted."""
    return tuple(sorted(_presets()))


def get(name: str) -> Preset:
    """The preset of this name. Raises ConfigError, with the nearest name."""
    preset = _presets().get(name)
    if preset is None:
        near = difflib.get_close_matches(name, names(), n=1)
        meant = f"did you mean {near[0]}?" if near else f"known: {', '.join(names())}"
        raise ConfigError(f"no template preset is called {name!r}; {meant}", field="template.preset", hints=tuple(near))
    return preset


@functools.cache
def _presets() -> Mapping[str, Preset]:
    text = (resources.files("llmgallery.templates") / "presets.toml").read_text("utf-8")
    return {name: Preset(name, body["chat_template"], tuple(body["stopwords"])) for name, body in tomllib.loads(text).items()}
