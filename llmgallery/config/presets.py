"""Preset files: prompt formats of the user's own, `presets/NAME.yaml` beside the model files that name them.

What such a file says lies below what the model file says. Each key keeps its place, so that faults are told where they stand.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, TypeVar

import msgspec
from msgspec import Meta
from yaml.nodes import MappingNode, Node

from llmgallery.config.model import LOAD_PARAMETERS, ModelConfig, Parameters, Section, Template
from llmgallery.config.nodes import MAX_BYTES, Unreadable, compose, kind, place
from llmgallery.config.outside import Outside
from llmgallery.config.problems import Problem
from llmgallery.config.readers import FAILED, Reading, Source, is_null, struct_reader
from llmgallery.config.regular import open_regular
from llmgallery.config.suggest import adviser, levels_of, model_levels

FOLDER = "presets"
SUFFIX = ".yaml"
LONGEST_NAME = 200

WAYS = (("chat_template", "chat_template_file"), ("adapter",), ("chat", "chat_message", "function"))
"""Keys of `template` that write chats, each group in another way."""

MIROSTAT = ("mirostat", "mirostat_eta", "mirostat_tau")

S = TypeVar("S", bound=Section)


class PresetFile(Section, frozen=True):
    """A preset file: how prompts are written and answers sampled, for any weights."""

    description: Annotated[str | None, Meta(description="what the preset is for")] = None
    template: Annotated[Template, Meta(description="as in a model file; preset names a built-in one")] = Template()
    stopwords: Annotated[list[str], Meta(description="strings that end an answer, beside those of the model file")] = (
        msgspec.field(default_factory=list)
    )
    system_prompt: Annotated[str | None, Meta(description="system message of chats that bring none")] = None
    parameters: Annotated[Parameters, Meta(description="the sampling defaults")] = Parameters()

    @property
    def config(self) -> ModelConfig:
        """The same as a model file would say it."""
        return ModelConfig(
            template=self.template, stopwords=self.stopwords, system_prompt=self.system_prompt, parameters=self.parameters
        )


@dataclass(frozen=True)
class ReadPreset:
    """A preset file that is there. `said`: what of it could be read; `reading`: where it stands, and what is wrong with it."""

    path: Path
    said: PresetFile
    reading: Reading
    text: bytes = b""


Lent = Mapping[str, tuple[Path, int, int]]
"""Dotted key of a model -> the place in a preset file that says it, or a part of it."""


def preset_path(name: str | None, folder: Path) -> Path | None:
    """Where the preset file of this name lies beside the model files of `folder`; None = no file can be meant."""
    if not name or len(name) > LONGEST_NAME or not name.isprintable() or set(name) & set("/\\:") or name != name.strip(" ."):
        return None
    return folder / FOLDER / f"{name}{SUFFIX}"


def own_presets(folder: Path) -> list[Path]:
    """The preset files beside the model files of a folder."""
    try:
        return sorted(path for path in (folder / FOLDER).glob(f"*{SUFFIX}") if preset_path(path.stem, folder) == path)
    except OSError:
        return []


def read_preset(path: Path, outside: Outside) -> ReadPreset | None:
    """Read a preset file; None = there is none. Never raises for what the file says."""
    data = outside.pending.get(path)
    if data is None:
        try:
            data = _bytes(path)
        except FileNotFoundError:
            return None
        except (OSError, RuntimeError) as error:  # RuntimeError: links that go round in a circle
            return _failed(path, Problem(path, 0, 0, "", f"cannot be read: {getattr(error, 'strerror', None) or error}"))
    try:
        root = compose(data, path)
    except Unreadable as error:
        return _failed(path, error.problem)
    reading = Reading(path, _advice)
    if root is None:
        reading.warnings.append(Problem(path, 1, 1, "", "the file is empty: the preset says nothing"))
        return ReadPreset(path, PresetFile(), reading, data)
    if not isinstance(root, MappingNode):
        return _failed(path, Problem(path, *place(root), "", f"expected keys such as `template:`, found {kind(root)}"))
    said = struct_reader(PresetFile).read(root, "", reading)
    for key in sorted(f"parameters.{name}" for name in LOAD_PARAMETERS):
        if key in reading.places:
            at, message = reading.places[key], "a preset says how answers are sampled, not what is loaded"
            reading.problems.append(Problem(path, *at, key, message, "write it in the model's file"))
    return ReadPreset(path, PresetFile() if said is FAILED else said, reading, data)


def _bytes(path: Path) -> bytes:
    """Raises OSError, also for a link that leads out of the models folder."""
    if not path.resolve(strict=True).is_relative_to(path.parent.parent.resolve()):
        raise OSError("it lies outside of the models folder")
    with open_regular(path) as file:
        return file.read(MAX_BYTES + 1)


def _failed(path: Path, problem: Problem) -> ReadPreset:
    reading = Reading(path, _advice)
    reading.problems.append(problem)
    return ReadPreset(path, PresetFile(), reading)


def _advice(key: str, parent: str) -> str:
    if key in model_levels().get(parent, ()):
        return f"it belongs in the model's file: a preset has {', '.join(PresetFile.__struct_fields__)}"
    return adviser(levels_of(PresetFile), fallback="`llmgallery schema --preset` prints all keys")(key, parent)


# --- below the model file ----------------------------------------------------------------------------------------------------


@dataclass
class _Laying:
    """A preset on its way below a model file."""

    reading: Reading
    preset: ReadPreset
    lent: dict[str, tuple[Path, int, int]] = field(default_factory=dict)

    def sections(self, upper: S, lower: S, prefix: str, without: frozenset[str]) -> S:
        changes = {}
        for name in type(upper).__struct_fields__:
            key = f"{prefix}{name}"
            if name in without or not _is_written(key, self.preset.reading):
                continue
            changes[name] = self.value(key, getattr(upper, name), getattr(lower, name))
        return msgspec.structs.replace(upper, **changes) if changes else upper

    def value(self, key: str, upper: Any, lower: Any) -> Any:
        """What holds of the two; a mapping holds both, and so do stop strings."""
        if not _is_written(key, self.reading):
            self.lend(key)
            return lower
        if isinstance(upper, dict) and isinstance(lower, dict):
            self.told(key)
            for name in lower.keys() - upper.keys():
                self.reading.lent[f"{key}.{name}"] = self.source
            return {**lower, **upper}
        if key == "stopwords":
            self.told(key)
            return list(dict.fromkeys([*upper, *filter(None, lower)]))
        return upper

    @property
    def source(self) -> Source:
        return Source(self.preset.path, self.preset.text)

    def lend(self, key: str) -> None:
        """The key stands in the preset file alone."""
        self.reading.lent[key] = self.source
        self.reading.places[key] = self.preset.reading.places[key]
        self.reading.nodes[key] = self.preset.reading.nodes[key]
        self.told(key)

    def told(self, key: str) -> None:
        self.lent[key] = (self.preset.path, *self.preset.reading.places[key])


def lay_below(config: ModelConfig, reading: Reading, preset: ReadPreset) -> tuple[ModelConfig, Lent]:
    """The model with its preset below it, and what of it the preset says. `reading` then knows these keys by their places there.

    A model file that writes chats in a way of its own has none of the preset's other ways.
    """
    laying, said = _Laying(reading, preset), preset.said
    reading.nodes.pop("template.preset", None)
    own = msgspec.structs.replace(config.template, preset=None)
    template = laying.sections(own, said.template, "template.", _displaced(own, said.template))
    at_top = frozenset(name for name in MIROSTAT if getattr(config, name) is not None)
    parameters = laying.sections(config.parameters, said.parameters, "parameters.", LOAD_PARAMETERS | at_top)
    changes: dict[str, Any] = {"template": template, "parameters": parameters}
    for key in ("stopwords", "system_prompt"):
        if _is_written(key, preset.reading):
            changes[key] = laying.value(key, getattr(config, key), getattr(said, key))
    return msgspec.structs.replace(config, **changes), laying.lent


def _displaced(upper: Template, lower: Template) -> frozenset[str]:
    """Keys of the preset's template that do not hold, as the model file writes chats otherwise."""
    own = next((way for way in WAYS if any(getattr(upper, key) for key in way)), None)
    if own is None:
        return frozenset()
    others = {key for way in WAYS if way is not own for key in way} | {"use_tokenizer_template"}
    if own is WAYS[0]:
        others |= set(own)
    if own is not WAYS[-1] or (upper.engine or lower.engine) != "gatogpt":
        others.add("preset")
    return frozenset(others)


def _is_written(key: str, reading: Reading) -> bool:
    node: Node | None = reading.nodes.get(key)
    return node is not None and not is_null(node)
