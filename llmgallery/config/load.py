"""One model file to a ModelConfig and everything that is wrong with it. Knows no folder, and of other files only templates and
the preset that it names."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import msgspec
from yaml.nodes import MappingNode, SequenceNode

from llmgallery.config import answers, checks, ignored
from llmgallery.config.model import ModelConfig
from llmgallery.config.nodes import MAX_BYTES, Unreadable, compose, kind, place
from llmgallery.config.outside import Outside, Spec, backend_of_format
from llmgallery.config.presets import Lent, ReadPreset, lay_below, preset_path, read_preset
from llmgallery.config.problems import Problem
from llmgallery.config.readers import FAILED, Reading, struct_reader
from llmgallery.config.regular import open_regular
from llmgallery.config.suggest import adviser, levels_of, model_levels
from llmgallery.config.templates import Templates

FIRST = 16 * 1024


@dataclass(frozen=True)
class LoadedModel:
    """What a file says. `config` is None when there are problems. `backend`: canonical name; None = not told by the file.

    `name` is set in any case. `places`: dotted key -> (line, column) of everything written. `depends`: other files that it
    means something by, be they there or not. `templates`: of these the templates that were read in, each with its key.
    `preset`: the file of the user's own preset below it, named at `preset_at`; `lent`: dotted key -> the place in that file
    that says it, or a part of it.
    """

    path: Path
    name: str
    config: ModelConfig | None = None
    backend: str | None = None
    problems: tuple[Problem, ...] = ()
    warnings: tuple[Problem, ...] = ()
    places: Mapping[str, tuple[int, int]] = field(default_factory=dict)
    depends: tuple[Path, ...] = ()
    templates: tuple[tuple[str, Path], ...] = ()
    preset: Path | None = None
    preset_at: tuple[int, int] = (0, 0)
    lent: Lent = field(default_factory=dict)


@dataclass(frozen=True)
class LoadedPreset:
    """What is wrong with a preset file by itself; good when there are no `problems`."""

    path: Path
    problems: tuple[Problem, ...] = ()
    warnings: tuple[Problem, ...] = ()


def load_model(path: Path, specs: Mapping[str, Spec], outside: Outside | None = None) -> LoadedModel:
    """Read a model file. Never raises for what the file says, nor for a file that cannot be opened."""
    try:
        with open_regular(path) as file:
            data = file.read(FIRST)
            if len(data) == FIRST:  # a buffer for the most that is read would cost more than most files' reading
                data += file.read(MAX_BYTES + 1 - FIRST)
    except OSError as error:
        problem = Problem(path, 0, 0, "", f"cannot be read: {error.strerror or error}")
        return LoadedModel(path, path.stem, problems=(problem,))
    return parse_model(data, path, specs, outside)


def parse_model(data: bytes, path: Path, specs: Mapping[str, Spec], outside: Outside | None = None) -> LoadedModel:
    """The same for bytes at hand; `path` names them in messages and is where a template file is looked for."""
    outside = outside or Outside()
    try:
        root = compose(data, path)
    except Unreadable as error:
        return LoadedModel(path, path.stem, problems=(error.problem,))
    if root is None:
        problem = Problem(path, 1, 1, "", "the file is empty", "write at least parameters: {model: ...}")
        return LoadedModel(path, path.stem, problems=(problem,))
    if not isinstance(root, MappingNode):
        message = f"expected keys such as `backend: llama-cpp`, found {kind(root)}"
        advice = "a file is one model: remove the -" if isinstance(root, SequenceNode) else "write `key: value` lines"
        problem = Problem(path, *place(root), "", message, advice)
        return LoadedModel(path, path.stem, problems=(problem,))
    return _Model(path, specs, outside, data).read(root)


def load_preset(path: Path, outside: Outside | None = None) -> LoadedPreset:
    """Read a preset file of the user's own, `presets/NAME.yaml`, whether a model names it or not."""
    outside = outside or Outside()
    read = read_preset(path, outside)
    if read is None:
        return LoadedPreset(path, (Problem(path, 0, 0, "", "cannot be read: there is no such file"),))
    if preset_path(path.stem, path.parent.parent) is None:
        read.reading.problems.append(Problem(path, 0, 0, "", f"{path.stem!r} cannot name a preset: no model file could mean it"))
    alone = _Alone(read, outside)
    warnings = [*read.reading.warnings, *alone.warnings]
    return LoadedPreset(path, _in_order(read.reading.problems, path), _in_order(warnings, path))


class _Alone:
    """A preset file by itself: what is wrong with it whatever model names it. Notes problems in its reading."""

    def __init__(self, preset: ReadPreset, outside: Outside) -> None:
        reading = preset.reading
        templates = Templates(reading, preset.path.parent, outside, preset.text, preset.path.parent.parent)
        checks.sampling(preset.said.config, reading)
        templates.read(preset.said.config)
        self.warnings = [*checks.not_yet(reading), *templates.warnings]
        self.depends, self.templates = templates.depends, templates.files


def _in_order(problems: Iterable[Problem], path: Path) -> tuple[Problem, ...]:
    """Each once, by place; those in `path` first."""
    return tuple(sorted(dict.fromkeys(problems), key=lambda one: (one.path != path, one.line, one.column)))


def _whole(folder: Path, file: str) -> Path:
    try:
        return folder / Path(file).expanduser()
    except RuntimeError:  # nobody of that name has a home
        return folder / file


class _Model:
    """One file on its way: the keys first, then what holds between them."""

    def __init__(self, path: Path, specs: Mapping[str, Spec], outside: Outside, text: bytes) -> None:
        self.path, self.specs, self.outside, self.text = path, specs, outside, text
        self.reading = Reading(path, lambda key, parent: adviser(self.levels)(key, parent), ignored.told)
        self.levels: Mapping[str, tuple[str, ...]] = model_levels()
        self.warnings = self.reading.warnings
        self.depends: list[Path] = []
        self.templates: list[tuple[str, Path]] = []
        self.preset: ReadPreset | None = None
        self.preset_at = (0, 0)
        self.lent: Lent = {}

    def read(self, root: MappingNode) -> LoadedModel:
        config = struct_reader(ModelConfig).read(root, "", self.reading)
        self.redirect()
        if config is FAILED:
            return self.result(self.path.stem, None, None)
        backend = self.backend(config)
        if backend is not None:
            config = self.options(config, self.specs[backend])
            self.judge(config, self.specs[backend])
            self.warnings += checks.unheeded(self.reading, self.specs[backend])
            self.library(config, backend)
        config = self.below(config)
        checks.values(config, self.reading, self.path.stem)
        checks.weights(config, self.reading, self.specs[backend] if backend else None)
        self.reference(config, backend)
        self.companions(config, backend)
        self.context(config)
        self.warnings += answers.check(config, self.reading, self.outside.regexp)
        self.warnings += checks.not_yet(self.reading)
        config = self.template(config)
        return self.result(config.name or self.path.stem, config, backend)

    def result(self, name: str, config: ModelConfig | None, backend: str | None) -> LoadedModel:
        problems, found = _in_order(self.reading.problems, self.path), tuple(dict.fromkeys(self.warnings))
        depends, templates = tuple(dict.fromkeys(self.depends)), tuple(dict.fromkeys(self.templates))
        lent, places = self.lent, self.reading.places
        own = {key: place for key, place in places.items() if key not in self.reading.lent} if lent else places
        config = None if problems else config
        preset = self.preset.path if self.preset is not None else None
        return LoadedModel(
            self.path, name, config, backend, problems, found, own, depends, templates, preset, self.preset_at, lent
        )

    def below(self, config: ModelConfig) -> ModelConfig:
        """The config with the preset of the user's own below it that template.preset means, where there is its file."""
        path = preset_path(config.template.preset, self.path.parent)
        if path is None:
            return config
        self.depends.append(path)
        self.preset = read_preset(path, self.outside)
        if self.preset is None:
            return config
        alone = _Alone(self.preset, self.outside)
        self.reading.problems += self.preset.reading.problems
        self.warnings += [*self.preset.reading.warnings, *alone.warnings]
        self.depends += alone.depends
        self.templates += alone.templates
        self.preset_at = self.reading.places["template.preset"]
        config, self.lent = lay_below(config, self.reading, self.preset)
        return config

    def redirect(self) -> None:
        """LocalAI's `alias` names one other model: a list under it was meant for `aliases`."""
        if isinstance(self.reading.nodes.get("alias"), SequenceNode):
            found = self.reading.problems
            found[:] = [replace(one, suggestion="did you mean aliases?") if one.key == "alias" else one for one in found]

    def backend(self, config: ModelConfig) -> str | None:
        """The backend that the file names, else the one for the weights' format; notes one that is not here."""
        if config.backend is not None:
            return checks.backend(config.backend, self.reading, self.specs)
        if not config.weights or self.outside.recognise is None:
            return None
        format_ = self.outside.recognise(config.weights, self.path.parent)
        spec = backend_of_format(format_, self.specs, self.outside.lacks)
        return spec.name if spec is not None else None

    def library(self, config: ModelConfig, backend: str) -> None:
        """Warn of a backend that cannot run here: the file may be meant for another machine."""
        if self.outside.lacks is None:
            return
        recognise, weights = self.outside.recognise, config.weights
        format_ = recognise(weights, self.path.parent) if weights and recognise is not None else None
        if fault := self.outside.lacks(self.specs[backend], format_):
            key = next(key for key in ("backend", "parameters.model", "model") if key in self.reading.places)
            self.warnings.append(Problem(self.path, *self.reading.places[key], key, fault))

    def reference(self, config: ModelConfig, backend: str | None) -> None:
        """Note a weights reference that can mean nothing. A file of that name, once it is there, would mean something."""
        key = "model" if config.parameters.model is None else "parameters.model"
        noted = any(problem.key == key for problem in self.reading.problems)
        needed = backend is None or self.specs[backend].needs_weights
        if not config.weights or self.outside.malformed is None or noted or not needed:
            return
        if fault := self.outside.malformed(config.weights, self.path.parent):
            self.reading.fail(self.reading.nodes[key], key, fault)
            self.depends.append(self.path.parent / config.weights.removeprefix("file://"))

    def companions(self, config: ModelConfig, backend: str | None) -> None:
        """Adapters and draft model, where the backend uses them. The file means the same again once they are there."""
        if backend is not None and "lora_adapters" not in self.specs[backend].keys:
            return
        named = [config.draft_model, config.lora_adapter, *config.lora_adapters]
        self.depends += [self.path.parent / one.removeprefix("file://") for one in named if one and "\0" not in one]
        self.warnings += checks.companions(config, self.reading, self.path.parent, self.outside)

    def context(self, config: ModelConfig) -> None:
        """Warn of a context that is longer than what the weights know, unless RoPE is told to stretch it."""
        if config.context_size is None or not config.weights or self.outside.trained is None or checks.stretches(config):
            return
        self.depends.append(self.path.parent / config.weights.removeprefix("file://"))
        trained = self.outside.trained(config.weights, self.path.parent)
        if trained is not None and config.context_size > trained:
            message = f"{config.context_size} is more than the {trained} tokens that the weights were trained for"
            advice = f"answers get worse beyond them: write {trained} or less, or set rope_scaling"
            at = self.reading.places["context_size"]
            self.warnings.append(Problem(self.path, *at, "context_size", message, advice))

    def options(self, config: ModelConfig, spec: Spec) -> ModelConfig:
        """The config with its options checked against the backend's own keys."""
        node = self.reading.nodes.get("options")
        if node is None or not config.options:
            return config
        self.levels = {**model_levels(), **levels_of(spec.options, "options")}
        if isinstance(config.options, list):
            values, above, warnings = checks.listed_options(config.options, node, spec, self.reading)
            self.warnings += warnings
            unset = {key: value for key, value in above.items() if getattr(config, key) is None}
            config = msgspec.structs.replace(config, **unset)
        else:
            # The keys have been read as plain data; the places of unknown ones come from this second reading.
            values = struct_reader(spec.options).values(node, "options", self.reading)
        return config if values is FAILED else msgspec.structs.replace(config, options=self.beside(values, spec))

    def beside(self, options: dict[str, Any], spec: Spec) -> dict[str, Any]:
        """The options with whole paths: a worker does not know where the model file is."""
        folder = self.path.parent.absolute()
        files = {key: value for key, value in options.items() if key in spec.beside and isinstance(value, str)}
        return {**options, **{key: str(_whole(folder, file)) for key, file in files.items()}}

    def judge(self, config: ModelConfig, spec: Spec) -> None:
        """Note what the backend says of keys whose types are right."""
        if any(problem.key.partition(".")[0].partition("[")[0] == "options" for problem in self.reading.problems):
            return
        for key, message, suggestion, is_warning in spec.judge(config):
            problem = self.reading.at(self.written(key), message, suggestion)
            (self.warnings if is_warning else self.reading.problems).append(problem)

    def written(self, key: str) -> str:
        """The key that the file has of this one: itself, the option of the same name, or what they lie in."""
        parents = [key.rsplit(".", count)[0] for count in range(key.count(".") + 1)]
        return next((name for name in (*parents, f"options.{key}") if name in self.reading.places), "options")

    def template(self, config: ModelConfig) -> ModelConfig:
        """The config with the texts of its template files; notes what is wrong with templates."""
        templates = Templates(self.reading, self.path.parent, self.outside, self.text)
        config = templates.read(config)
        self.warnings += templates.warnings
        self.depends += templates.depends
        self.templates += templates.files
        return config
