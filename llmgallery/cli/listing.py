"""What list and check tell: rows of text over the folder, and what a running server adds."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import click

from llmgallery.backends.loader import specs
from llmgallery.catalog.formats import detect
from llmgallery.catalog.registry import WEIGHTS_SUFFIXES, YAML_SUFFIXES, Entry, Registry, Snapshot
from llmgallery.cli.commands import server
from llmgallery.cli.installs import state_of
from llmgallery.cli.library import AtServer, noted_jobs
from llmgallery.cli.stack import files_here, folder_registry, interpreters_of, loader, models_dir, outside
from llmgallery.config.load import load_model, load_preset
from llmgallery.config.presets import FOLDER as PRESETS
from llmgallery.config.presets import own_presets
from llmgallery.config.problems import Problem
from llmgallery.config.settings import Settings
from llmgallery.core.errors import BadWeights, LoadError
from llmgallery.core.installs import Install

Row = tuple[str, ...]
WORDS = {"ready": "loaded", "unloaded": "installed"}


def rows(settings: Settings) -> list[Row]:
    """(name, state, backend, weights) of each model; for a broken one the first problem stands for its weights, for one that
    is being installed what it comes from."""
    snapshot = folder_registry(settings).read()
    states, jobs = asyncio.run(server_states(settings))
    listed = [_row(entry, *_state(entry, states.get(entry.name))) for entry in snapshot.entries.values()]
    listed += [_row(entry, "disabled", entry.backend) for entry in snapshot.disabled.values()]
    for broken in snapshot.broken.values():
        more = f" (and {len(broken.problems) - 1} more)" if len(broken.problems) > 1 else ""
        listed.append((broken.name, "broken", "", f"{broken.problems[0]}{more}"))
    known = {row[0] for row in listed}
    listed += [(name, WORDS.get(state, state), "", "at the server") for name, state in states.items() if name not in known]
    installing = {job.name or job.asked: job for job in jobs if not job.is_over}
    listed = [row for row in listed if row[0] not in installing]
    return sorted(listed + [(name, state_of(job), "", job.source or "") for name, job in installing.items()])


def _row(entry: Entry, state: str, backend: str | None) -> Row:
    return (entry.name, state, backend or "", entry.config.weights or "")


def _state(entry: Entry, at_server: str | None) -> tuple[str, str | None]:
    """What the server says of a model that it has touched, else whether its files are here and can be loaded; its backend."""
    if at_server is not None and at_server != "unloaded":
        return WORDS.get(at_server, at_server), entry.backend
    try:
        files = _files(entry)
        return ("not downloaded", entry.backend) if files is None else ("installed", loader(entry, files))
    except BadWeights as exc:
        return f"bad weights: {exc.message}", entry.backend
    except LoadError as exc:
        return f"no weights: {exc.message.removeprefix('weights not found: ')}", entry.backend


def _files(entry: Entry) -> list[Path] | None:
    """As files_here, of a backend that needs any."""
    needs = entry.backend is None or specs()[entry.backend].needs_weights
    return files_here(entry) if needs else []


async def server_states(settings: Settings) -> tuple[dict[str, str], list[Install]]:
    """State by model at LLMGALLERY_URL, of all that it serves, and its installs; without a server no states, and the installs
    that are noted here. Raises GalleryError when it refuses."""
    remote = server(settings)
    if remote is None:
        return {}, noted_jobs()
    async with remote:
        if not await remote.answers():
            click.echo(f"no server answers at {remote.url} (LLMGALLERY_URL): this is what lies on disk", err=True)
            return {}, noted_jobs()
        served = {model["id"]: "unloaded" for model in (await remote.get("/v1/models"))["data"]}
        return served | await remote.states(), await AtServer(remote).jobs()


@dataclass(frozen=True)
class Checked:
    """What `check` found. `files`: how many model files were read."""

    where: Path
    files: int
    problems: list[Problem]
    warnings: list[Problem]
    kind: str = "model file"

    def in_order(self) -> list[tuple[Problem, bool]]:
        """(problem, whether it is a mere warning), as they stand in the files."""
        every = [*((problem, False) for problem in self.problems), *((problem, True) for problem in self.warnings)]
        return sorted(every, key=lambda item: (str(item[0].path), item[0].line, item[0].column))


def checked(settings: Settings, path: Path | None) -> Checked:
    """All problems and warnings of a file, of a folder, or (when none is named) of everything that the server would read."""
    if path is None:
        registry = folder_registry(settings)
        return _of_snapshot(models_dir(settings), registry.read(), registry.folders)
    if path.is_dir():
        return _of_snapshot(path, Registry([path], interpreters_of(settings).specs(), outside()).read(), [path])
    if (fault := _no_model_file(path)) is not None:
        return Checked(path, 1, [fault], [])
    if path.absolute().parent.name == PRESETS:
        preset = load_preset(path.absolute(), outside())
        return Checked(path, 1, list(preset.problems), list(preset.warnings), "preset file")
    model = load_model(path, interpreters_of(settings).specs(), outside())
    unusable: list[Problem] = []
    if model.config is not None:
        unusable = _unusable(Entry(model.name, path, path.parent, model.config, model.backend, places=model.places))
    return Checked(path, 1, [*model.problems, *unusable], list(model.warnings))


def _of_snapshot(where: Path, snapshot: Snapshot, folders: Sequence[Path]) -> Checked:
    """Of the models, and of the presets beside them: what is wrong with one of these is told once, not for every model."""
    presets = [load_preset(path, outside()) for folder in folders for path in own_presets(folder.absolute())]
    entries = [*snapshot.entries.values(), *snapshot.disabled.values()]
    problems = [problem for broken in snapshot.broken.values() for problem in broken.problems]
    problems += [problem for entry in snapshot.entries.values() for problem in _unusable(entry)]
    warnings = [problem for entry in entries for problem in snapshot.warnings(entry)]
    warnings += [problem for broken in snapshot.broken.values() for problem in broken.warnings]
    problems = [*snapshot.problems, *problems, *(problem for preset in presets for problem in preset.problems)]
    warnings += [warning for preset in presets for warning in preset.warnings]
    return Checked(where, len(entries) + len(snapshot.broken), list(dict.fromkeys(problems)), list(dict.fromkeys(warnings)))


def _unusable(entry: Entry) -> list[Problem]:
    """Why a model could not be loaded now, although its YAML is sound: its weights are not there, or are none."""
    key = next((key for key in ("parameters.model", "model") if key in entry.places), "")
    try:
        if (files := _files(entry)) is not None:
            loader(entry, files)
    except LoadError as exc:
        return [Problem(entry.path, *entry.places.get(key, (0, 0)), key, exc.message)]
    return []


def _no_model_file(path: Path) -> Problem | None:
    """A weights file that `check` was given in a YAML's place."""
    if path.suffix.lower() in YAML_SUFFIXES:
        return None
    try:
        found = detect(path)
    except OSError:
        return None  # reading it as a model file says why
    if found is None and not path.name.lower().endswith(WEIGHTS_SUFFIXES):
        return None
    message = f"a weights file ({found}), not a model's YAML" if found else "named like a weights file, but holds no weights"
    return Problem(path, 0, 0, "", message, "check reads YAML files, and folders of them")
