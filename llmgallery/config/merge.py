"""What holds for a request: defaults < backend < preset < model YAML < request. Stop lists are united. Pure."""

from __future__ import annotations

from collections.abc import Container, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import msgspec

from llmgallery.config.model import ModelConfig, OnUnsupported, Section
from llmgallery.config.presets import Lent
from llmgallery.config.problems import shown
from llmgallery.core.sampling import DEFAULTS, Sampling, sampler_order

_UNSET: dict[str, Any] = {
    "aliases": [],
    "parameters.seed": "random",
    "parameters.max_tokens": "until the context is full",
    "parameters.n": 1,
    "parameters.echo": False,
    "parameters.logprobs": False,
    "parameters.top_logprobs": 0,
    "pinned": False,
    "disabled": False,
    "system_prompt": "none",
    "stopwords": [],
    "on_unsupported.demands": OnUnsupported().demands,
    "on_unsupported.hints": OnUnsupported().hints,
    "limits.max_concurrent": "no limit",
}
"""What holds, as a value or in words, where nobody says anything."""

_KEYS = tuple(name for name in Sampling.__struct_fields__ if name not in ("extra", "logit_bias"))
_TOP_LEVEL = ("mirostat", "mirostat_eta", "mirostat_tau")
"""LocalAI's places of what we also read below `parameters`."""


class EffectiveValue(NamedTuple):
    """A value that holds, and where it comes from: `models/x.yaml:5`, `preset chatml`, `default`, ..."""

    key: str
    value: Any
    source: str


def config_sampling(config: ModelConfig) -> Sampling:
    """The sampling parameters that a model's YAML sets."""
    parameters = config.parameters
    values = {name: getattr(parameters, name) for name in _KEYS}
    for name in _TOP_LEVEL:
        if values[name] is None:
            values[name] = getattr(config, name)
    if parameters.samplers is not None:
        values["samplers"] = sampler_order(parameters.samplers)
    if parameters.dry_sequence_breakers is not None:
        values["dry_sequence_breakers"] = tuple(parameters.dry_sequence_breakers)
    if parameters.logit_bias is not None:
        values["logit_bias"] = {int(token): value for token, value in parameters.logit_bias.items()}
    return Sampling(**values)


def merge_sampling(request: Sampling, config: ModelConfig, below: Sampling | None = None) -> Sampling:
    """The sampling of a request to this model. `below`: what its preset and backend say.

    max_tokens is None when the answer may go on until the context is full, which -1 asks for.
    """
    asked = request.over(config_sampling(config))
    merged = asked.over(below or Sampling()).over(DEFAULTS)
    return msgspec.structs.replace(merged, max_tokens=None) if merged.max_tokens == -1 else merged


def merge_stops(request: Sequence[str], config: ModelConfig, below: Sequence[str] = ()) -> tuple[str, ...]:
    """All stop strings, each once: the request's, the YAML's, then those of the preset."""
    return tuple(dict.fromkeys(stop for stop in (*request, *config.stopwords, *below) if stop))


def explain(
    config: ModelConfig,
    *,
    path: Path | None = None,
    places: Mapping[str, tuple[int, int]] | None = None,
    lent: Lent | None = None,
    below: Sequence[tuple[str, Sampling]] = (),
    more: Sequence[EffectiveValue] = (),
) -> list[EffectiveValue]:
    """Every value that holds for a model, set or not, in the order of the structs.

    `places`: where the YAML at `path` sets what (LoadedModel.places). `lent`: the same of its preset file.
    `below`: (source, sampling) of preset and backend, the stronger first. `more`: what others say of keys that the YAML does
    not set, the stronger first.
    """
    places, lent = places or {}, lent or {}
    written = _set_values(config, "", {*places, *lent})
    found = {key: EffectiveValue(key, value, _source(key, path, places, lent)) for key, value in written}
    for source, sampling in (*below, ("default", DEFAULTS)):
        for name in (*_KEYS, "logit_bias"):
            key, value = f"parameters.{name}", getattr(sampling, name)
            if value is not None and key not in found and not (name in _TOP_LEVEL and name in found):
                found[key] = EffectiveValue(key, value, source)
    for item in (*more, *(EffectiveValue(key, value, "default") for key, value in _UNSET.items())):
        found.setdefault(item.key, item)
    return sorted(found.values(), key=_order)


def _set_values(section: Section, prefix: str, places: Container[str]) -> Iterator[tuple[str, Any]]:
    """(dotted key, value) of all that is written, or differs from the struct's default."""
    for field in msgspec.structs.fields(type(section)):
        value = getattr(section, field.name)
        if isinstance(value, Section):
            yield from _set_values(value, f"{prefix}{field.name}.", places)
        elif value not in (None, [], {}) and (value != field.default or prefix + field.name in places):
            yield prefix + field.name, value


def _source(key: str, path: Path | None, places: Mapping[str, tuple[int, int]], lent: Lent) -> str:
    """The places that say it: one, or two where what they say is united."""
    if key == "template.chat_template" and key not in {*places, *lent}:
        key = "template.chat_template_file"
    said = [f"{shown(path)}:{places[key][0]}"] if path is not None and key in places else []
    said += [f"{shown(lent[key][0])}:{lent[key][1]}"] if key in lent else []
    return " and ".join(said) or "recognised"


def _order(value: EffectiveValue) -> tuple[int, int]:
    top, _, below = value.key.partition(".")
    names = ModelConfig.__struct_fields__
    section = getattr(ModelConfig(), top)
    inner = type(section).__struct_fields__ if isinstance(section, Section) else ()
    name = below.partition(".")[0]
    return names.index(top), inner.index(name) if name in inner else -1
