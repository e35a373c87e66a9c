"""A model file in the making: keys with the places they come from, to a YAML that the server has been asked about."""

from __future__ import annotations

import itertools
import json
import re
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import msgspec
from yaml.nodes import Node

from llmgallery.catalog.install.write import file_name, yaml_text
from llmgallery.catalog.reference import parse_reference
from llmgallery.catalog.weights import local_path
from llmgallery.config.load import LoadedModel, LoadedPreset, load_preset, parse_model
from llmgallery.config.nodes import place
from llmgallery.config.problems import Problem
from llmgallery.config.problems import shown as shown_path
from llmgallery.core.errors import ConfigError, LoadError
from llmgallery.importers.base import Around, Imported, WrittenFile
from llmgallery.importers.ledger import Ledger, Table

_FIRST = ("name", "aliases", "description", "owned_by", "backend", "parameters")
_ROUNDS = 100
_SHOWN = 8000
_SECRET = re.compile(r"(api_?key|password|passwd|secret|((auth|access|bearer|hf|hub)_?|\.)token|authorization)$", re.I)


@dataclass(frozen=True)
class Origin:
    """Where a value was read."""

    path: Path | str
    node: Node | None
    key: str


@dataclass(frozen=True)
class Row:
    """A key of the source (the first of `names` that is written) and the dotted key of a model file that means the same.

    `neutral`: values that say nothing here, such as the program's own word for "as you like"; they are read, and not written.
    `convert`: what our value is; None = the value says nothing, ValueError = why it means nothing here.
    """

    names: tuple[str, ...]
    key: str
    kind: type
    neutral: tuple[Any, ...] = ()
    convert: Callable[[Any], Any] | None = None


@dataclass
class Draft:
    """One model. `within`: the dotted key of its part of the source, "" = all of it. `head`: comments above its keys.

    `file_name`: else by its name. `unchanged`: a text to keep as it is, if nothing had to be left out of it.
    """

    name: str
    ledger: Ledger
    within: str = ""
    head: list[str] = field(default_factory=list)
    config: dict[str, Any] = field(default_factory=dict)
    origins: dict[str, Origin] = field(default_factory=dict)
    file_name: str | None = None
    unchanged: str | None = None

    def set(self, key: str, value: Any, table: Table | None = None, name: str = "") -> None:
        """Write a dotted key; `table` and `name` say where the value was read."""
        if table is not None:
            self.origins[key] = Origin(table.ledger.path, table.place(name), table.path(name))
        *path, last = key.split(".")
        here = self.config
        for step in path:
            here = here.setdefault(step, {})
        here[last] = value

    def get(self, key: str) -> Any:
        """The value of a dotted key; None = not written."""
        here: Any = self.config
        for step in key.split("."):
            here = here.get(step) if isinstance(here, dict) else None
        return here

    def fill(self, table: Table, rows: Sequence[Row]) -> None:
        """Write what `rows` name, where the source says it. Of two names of one thing the first counts."""
        for row in rows:
            for name in row.names:
                value = table.get(name, row.kind)
                if value is None or value in row.neutral:
                    continue
                if self.get(row.key) is not None:
                    if self.get(row.key) != value:
                        table.leave(name, f"{self.origins[row.key].key} says otherwise, which counts")
                    continue
                try:
                    ours = row.convert(value) if row.convert else value
                except ValueError as error:
                    table.leave(name, str(error))
                    continue
                if ours is not None:
                    self.set(row.key, ours, table, name)


def finish(
    drafts: Sequence[Draft],
    ledgers: Sequence[Ledger],
    around: Around,
    *,
    presets: Sequence[Draft] = (),
    files: Sequence[WrittenFile] = (),
    notes: Sequence[str] = (),
    settings: Mapping[str, Any] | None = None,
    default: str | None = None,
    problems: Sequence[Problem] = (),
) -> Imported:
    """The drafts as files, after all has been read from the ledgers. What the server would refuse in a model is left out of it,
    and told; a model that is none without it is a problem. `presets`: drafts of preset files, which models name."""
    warnings = [warning for ledger in ledgers for warning in ledger.close()]
    written: list[WrittenFile] = []
    failed = list(problems)
    below = [file for draft in presets if (file := _FinishingPreset(draft, around, warnings, failed).file(())) is not None]
    pending = {around.folder / file.name: file.text.encode() for file in below}
    around = replace(around, outside=replace(around.outside, pending=pending))
    taken = {file.name for file in files}
    firsts: dict[str, Draft] = {}
    for draft in drafts:
        if (first := firsts.setdefault(draft.name, draft)) is not draft:
            warnings.append(_taken_name(draft, first))
        file = _Finishing(draft, around, warnings, failed).file(taken)
        if file is not None:
            written.append(file)
            taken.add(file.name)
    return Imported((*below, *written, *files), tuple(warnings), tuple(failed), tuple(notes), dict(settings or {}), default)


def _taken_name(draft: Draft, first: Draft) -> Problem:
    """Several models of one name: the server serves the first."""
    origin = draft.origins.get("name")
    path, node = (origin.path, origin.node) if origin is not None else (draft.ledger.path, None)
    of_it = shown_path(first.ledger.path) if first.ledger.path != draft.ledger.path else "this file"
    message = f"{draft.name} is the name of another model in {of_it}, which is served: give one of them another name"
    return Problem(path, *(place(node) if node is not None else (0, 0)), "name", message)


class _Finishing:
    def __init__(self, draft: Draft, around: Around, warnings: list[Problem], problems: list[Problem]) -> None:
        self.draft, self.around, self.warnings, self.problems = draft, around, warnings, problems
        self.outside = replace(around.outside, absent=None)
        self.left = {
            key: value for key, value in draft.ledger.left.items() if not draft.within or key.startswith(f"{draft.within}.")
        }

    def file(self, taken: Collection[str]) -> WrittenFile | None:
        name = self.free_name(taken)
        path = self.around.folder / name
        for _ in range(_ROUNDS):
            text = self.text()
            loaded = self.read(text, path)
            wrong = [problem for problem in loaded.problems if problem.key not in self.later()]
            if not wrong:
                self.told(loaded)
                return WrittenFile(name, text, model=self.draft.name if isinstance(loaded, LoadedModel) else None)
            left = [self.left_out(problem) for problem in _one_of_each_list(wrong)]  # all of them, not only the first
            if not any(left):
                self.problems += [self.in_source(problem, "cannot be imported: ") for problem in wrong]
                return None
        self.problems.append(self.in_source(wrong[0], "cannot be imported: "))
        return None

    def later(self) -> set[str]:
        """Keys whose values a later version has: a backend that is not here, and LocalAI's types for such a one."""
        config = self.draft.config
        is_openvino = str(config.get("type", "")).lower().startswith("ovmodel")
        return {key for key, comes in (("backend", isinstance(config.get("backend"), str)), ("type", is_openvino)) if comes}

    def read(self, text: str, path: Path) -> LoadedModel | LoadedPreset:
        """What the server will read."""
        return parse_model(text.encode(), path, self.around.specs, self.outside)

    def free_name(self, taken: Collection[str]) -> str:
        """The file's name; a second model of one name gets a number, by which it comes after the first in the folder."""
        wanted = self.draft.file_name or file_name(self.draft.name)
        stem = wanted.removesuffix(".yaml")
        others = (f"{stem}_{number}.yaml" for number in itertools.count(2))
        return next(name for name in itertools.chain([wanted], others) if name not in taken)

    def text(self) -> str:
        draft = self.draft
        if draft.unchanged is not None and not self.left:
            return draft.unchanged
        head = [*draft.head, *(f"Not used here: {key} = {_kept(key, value)}" for key, value in self.left.items())]
        return yaml_text(_ordered(draft.config), head)

    def left_out(self, problem: Problem) -> bool:
        """Take the key at fault out of the model; False = there is none to take out."""
        key = _leaf(self.draft.config, problem.key)
        if not key:
            return False
        item = problem.key.removeprefix(key) if problem.key.startswith(f"{key}[") else ""
        value = _take(self.draft.config, key, item)
        origin = self.draft.origins.get(key)
        told = (origin.key if origin is not None else key) + item
        while told in self.left:  # the places in a list change with each that is taken out
            told += "+"
        self.left[told] = value
        self.draft.unchanged = None
        self.warnings.append(self.in_source(problem, "not imported: "))
        return True

    def told(self, loaded: LoadedModel | LoadedPreset) -> None:
        """What the server would say of the file, in words about the source."""
        for problem in loaded.problems:
            self.warnings.append(
                self.in_source(replace(problem, suggestion=""), "", "; the file is written, and served by a version that has it")
            )
        pending = self.outside.pending  # what is wrong with these has been told
        self.warnings += [self.in_source(warning, "") for warning in loaded.warnings if warning.path not in pending]
        config = loaded.config if isinstance(loaded, LoadedModel) else None
        spec = self.around.specs.get(loaded.backend or "") if isinstance(loaded, LoadedModel) else None
        reference = config.weights if config is not None and (spec is None or spec.needs_weights) else None
        if reference and (path := _missing(reference, self.around.folder)) is not None:
            here = Problem(path, 0, 0, "parameters.model", f"there is no file {path}: the model is served once it is there")
            self.warnings.append(self.in_source(here, ""))

    def in_source(self, problem: Problem, before: str, after: str = "") -> Problem:
        """A problem of the YAML, told where the value was read; where that is not known, by the model's name."""
        message = f"{before}{problem.message}{after}"
        if problem.message.startswith("no weights"):
            problem = replace(problem, suggestion="--model REFERENCE names them")
        origin = self.origin(problem.key)
        if origin is None:
            return Problem(self.draft.ledger.path, 0, 0, problem.key, f"{self.draft.name}: {message}", problem.suggestion)
        at = place(origin.node) if origin.node is not None else (0, 0)
        return Problem(origin.path, *at, origin.key, message, problem.suggestion)

    def origin(self, key: str) -> Origin | None:
        """That of the key, of the nearest one above it, or of anything below it."""
        name = key.partition("[")[0]
        while name:
            if name in self.draft.origins:
                return self.draft.origins[name]
            name = name.rpartition(".")[0]
        return None


class _FinishingPreset(_Finishing):
    """The same for a preset file."""

    def read(self, text: str, path: Path) -> LoadedPreset:
        return load_preset(path, replace(self.outside, pending={path: text.encode()}))


def _ordered(config: Mapping[str, Any]) -> dict[str, Any]:
    """As people write it: who it is, what it is loaded from, then the rest."""
    whole = dict(config)
    parameters = whole.get("parameters")
    if isinstance(parameters, Mapping) and "model" in parameters:
        whole["parameters"] = {"model": parameters["model"], **parameters}
    first = {key: whole[key] for key in _FIRST if key in whole}
    return {key: value for key, value in {**first, **whole}.items() if value not in ({}, [])}


def _leaf(config: Mapping[str, Any], key: str) -> str:
    """The part of a dotted key that is written: `stopwords` of `stopwords[0]`; "" = nothing of it is."""
    here: Any = config
    found: list[str] = []
    for step in key.partition("[")[0].split("."):
        if not isinstance(here, Mapping) or step not in here:
            break
        here = here[step]
        found.append(step)
    return ".".join(found)


def _take(config: dict[str, Any], key: str, item: str) -> Any:
    """The value, taken out; `item`: "[2]" = only that of a list."""
    *path, last = key.split(".")
    here: Any = config
    for step in path:
        here = here[step]
    if (match := re.fullmatch(r"\[(\d+)\]", item)) and isinstance(here[last], list) and len(here[last]) > 1:
        here[last] = list(here[last])
        return here[last].pop(int(match[1]))
    return here.pop(last)


def _one_of_each_list(problems: Sequence[Problem]) -> list[Problem]:
    """Of several items of one list only the first: the others' places change when it is gone."""
    return list({problem.key.partition("[")[0]: problem for problem in reversed(problems)}.values())[::-1]


def _missing(reference: str, folder: Path) -> Path | None:
    """The path of a reference that can only be a local one, if nothing is there."""
    try:
        path = local_path(reference, folder)
    except LoadError:
        return None
    try:
        if path is None or path.exists() or parse_reference(reference) is not None:
            return None
    except (OSError, ConfigError):
        pass
    return path


def _kept(key: str, value: Any) -> str:
    """What a comment says of a value. Anybody may read a model file: no secrets."""
    return "(a secret)" if isinstance(value, str) and value and _SECRET.search(key) else shown(value)


def shown(value: Any) -> str:
    """A value in a comment, shortened."""
    try:
        text = msgspec.json.encode(value).decode()
    except UnicodeEncodeError:  # half of a surrogate pair
        text = json.dumps(value)
    return text if len(text) <= _SHOWN else f"{text[:_SHOWN]}..."
