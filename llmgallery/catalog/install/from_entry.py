"""A gallery's entry to the plan of its install: which bytes, pinned, and the YAML that will serve them. Downloads nothing."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import msgspec

from llmgallery.catalog import formats
from llmgallery.catalog.engines import Engine, check_here
from llmgallery.catalog.gallery.entry import Composed, GalleryEntry
from llmgallery.catalog.gallery.localai import missing_backend, our_backend, without_foreign_draft
from llmgallery.catalog.gallery.sources import may_lead_inside
from llmgallery.catalog.install.entry_files import EntryFiles, Expand, references
from llmgallery.catalog.install.pin import Pin
from llmgallery.catalog.install.plan import InstallPlan
from llmgallery.catalog.install.write import checked, yaml_text
from llmgallery.catalog.reference import Whole
from llmgallery.config.outside import Outside
from llmgallery.config.problems import Problem
from llmgallery.core.errors import ConfigError

__all__ = ["Expand", "Pin", "Surroundings", "engine_of", "plan_entry"]

_FIRST = ("name", "aliases", "description", "backend", "parameters", "context_size")
_DESCRIPTION = 200
_OPERATORS = "code that comes with weights is run where the YAML says so, and no gallery of others writes that"
_MARKUP = re.compile(r"^(#|>|\||!|<|\[!|-{3}|\*{3}|```|\.\.\.)")


@dataclass(frozen=True)
class Surroundings:
    """What planning an entry needs beside it. `folder`: where the YAML will lie. `local`: the gallery is of this machine, and its
    entries may name others of its files by file://."""

    specs: Mapping[str, Engine]
    pin: Pin
    expand: Expand | None = None
    outside: Outside = field(default_factory=Outside)
    folder: Path = Path()
    local: bool = False


async def plan_entry(entry: GalleryEntry, composed: Composed, around: Surroundings, *, name: str | None = None) -> InstallPlan:
    """The plan of one entry under `name`, its own if None. Asks the Hub about each file, and fetches no byte of one.

    Raises BackendMissing (nothing here serves it), ConfigError (its files or keys are wrong, or the Hub has other bytes than
    the entry says), HubError. All name the entry and where it stands.
    """
    engine = engine_of(entry, composed, around.specs)
    is_ours = all(map(may_lead_inside, filter(None, (entry.source, entry.url))))
    if engine.level == "chat" and not is_ours:
        raise _elsewhere(entry, engine)
    expand = _of_folders(around.expand, engine)
    files = EntryFiles(entry, composed.files, around.pin, expand, local=around.local)
    said = {**composed.config, "backend": engine.name}
    kept = said if is_ours else _without_code(said)
    config, left = without_foreign_draft(kept, engine)
    left = [*left, f"trust_remote_code is left out: {_OPERATORS}"] if kept != said else left
    config = await files.settled(config)
    text = yaml_text(_ordered(name or entry.name, composed.description, config), _head(entry, composed, left))
    try:
        # What is not here yet is no fault: it will be when the text is written.
        outside = replace(around.outside, absent=None, trained=None)
        loaded = checked(text, name or entry.name, around.folder, around.specs, outside)
    except ConfigError as error:
        raise ConfigError(f"{entry.where}: {entry.id}: {error.message}", hints=error.hints) from error
    return InstallPlan(
        name=name or entry.name,
        source=entry.id,
        yaml=text,
        files=tuple(files.planned),
        backend=engine.name,
        licence=composed.licence,
        warnings=(*composed.lifted, *composed.warnings, *left, *files.warnings, *map(_said, loaded.warnings)),
    )


def _elsewhere(entry: GalleryEntry, engine: Engine) -> ConfigError:
    """What others write must not have keys of this machine's environment and files sent anywhere, nor what people say to it."""
    message = f"{entry.where}: {entry.id} is a model elsewhere (backend {engine.name}), which would be asked with this machine's"
    advice = "write a model file of your own, or have the entry in a gallery in a folder of this machine"
    return ConfigError(f"{message} keys, and only what is written on it may say where: {advice}", field="backend")


def _without_code(config: Mapping[str, Any]) -> dict[str, Any]:
    """Without the key that has code run, in each of the places that it has."""
    kept = {key: value for key, value in config.items() if not _is_code(key)}
    options = kept.get("options")
    if isinstance(options, Mapping):
        kept["options"] = {key: value for key, value in options.items() if not _is_code(key)}
    elif isinstance(options, list):
        kept["options"] = [item for item in options if not _is_code(str(item).partition(":")[0])]
    return kept


def _is_code(key: str) -> bool:
    return key.strip().lstrip("-").replace("-", "_").lower() == "trust_remote_code"


def engine_of(entry: GalleryEntry, composed: Composed, specs: Mapping[str, Engine]) -> Engine:
    """The backend that serves the entry, with its library. Raises BackendMissing; ConfigError where nothing tells one."""
    subject = f"{entry.where}: {entry.id}"
    named = composed.config.get("backend")
    if named:
        found = our_backend(str(named), specs)
        if found is None:
            raise missing_backend(str(named), subject, specs)
        check_here(specs[found], subject)
        return specs[found]
    names = [*references(composed.config).values(), *(file.filename for file in composed.files)]
    for spec in specs.values():
        if "gguf" in spec.formats and any(".gguf" in name.lower() for name in names):
            check_here(spec, subject, "gguf")
            return spec
    raise ConfigError(
        f"{subject} names no backend, and its files do not tell one: set overrides: {{backend: ...}}", field="backend"
    )


def _of_folders(expand: Expand | None, engine: Engine) -> Expand | None:
    """A repo means its folder of weights, whatever GGUF files it holds too, where the backend loads none."""
    if expand is None or formats.GGUF in engine.formats or not engine.formats:
        return expand
    return lambda ref: expand(msgspec.structs.replace(ref, whole=Whole()))


def _ordered(name: str, description: str, config: Mapping[str, Any]) -> dict[str, Any]:
    """As people write it: who it is, what it is loaded from, then the rest in the entry's order."""
    whole = {**config, "name": name}
    if "description" not in config and (short := _short(description)):
        whole["description"] = short
    parameters = whole.get("parameters")
    if isinstance(parameters, Mapping) and "model" in parameters:
        whole["parameters"] = {"model": parameters["model"], **parameters}
    first = {key: whole[key] for key in _FIRST if key in whole}
    return {key: value for key, value in {**first, **whole}.items() if value not in ({}, [])}


def _short(description: str) -> str:
    """The first sentences of prose in a description that may be pages of Markdown."""
    paragraphs = (" ".join(part.split()) for part in re.split(r"\n\s*\n", description))
    text = next((part for part in paragraphs if part and not _MARKUP.match(part)), "")
    if len(text) <= _DESCRIPTION:
        return text
    cut = text[:_DESCRIPTION]
    sentences = cut.rpartition(". ")[0]
    return f"{sentences}." if len(sentences) > _DESCRIPTION // 4 else f"{cut.rpartition(' ')[0] or cut} ..."


def _head(entry: GalleryEntry, composed: Composed, left: Sequence[str]) -> list[str]:
    """What the YAML says of itself, in paragraphs of comment."""
    lines = [f"Installed by llmgallery from the gallery entry {entry.id}. Files are pinned: this text names the very bytes."]
    lines += [f"Licence: {composed.licence}."] if composed.licence else []
    lines += [f"See {' '.join(composed.urls[:3])}"] if composed.urls else []
    lines += [f"{line}." for line in (*composed.lifted, *left)]
    lines += [f"Not used here: {key} = {_shown(value)}" for key, value in composed.dropped.items()]
    return lines


def _shown(value: Any) -> str:
    text = msgspec.json.encode(value).decode()
    return text if len(text) <= 1000 else f"{text[:1000]}..."


def _said(problem: Problem) -> str:
    """A warning about the text, which lies nowhere yet."""
    advice = f"; {problem.suggestion}" if problem.suggestion else ""
    return f"{problem.key}: {problem.message}{advice}" if problem.key else f"{problem.message}{advice}"
