"""What list and check tell: rows of text over the folder, and what a running server adds."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from pathlib import Path

from llmgallery.backends.loader import specs
from llmgallery.catalog.hub_cache import find_cached
from llmgallery.catalog.hub_settings import HubSettings
from llmgallery.catalog.reference import HubReference
from llmgallery.catalog.registry import Entry, Registry, Snapshot
from llmgallery.catalog.weights import locate
from llmgallery.cli.commands import server
from llmgallery.cli.stack import folder_registry, models_dir, outside
from llmgallery.config.load import load_model
from llmgallery.config.problems import Problem
from llmgallery.config.settings import Settings
from llmgallery.core.errors import LoadError

Row = tuple[str, ...]
WORDS = {"ready": "loaded", "unloaded": "installed"}


def rows(settings: Settings) -> list[Row]:
    """(name, state, backend, weights) of each model; for a broken one the first problem stands for its weights."""
    snapshot = folder_registry(settings).read()
    states = asyncio.run(server_states(settings))
    listed = [_row(entry, _state(entry, states.get(entry.name))) for entry in snapshot.entries.values()]
    listed += [_row(entry, "disabled") for entry in snapshot.disabled.values()]
    for broken in snapshot.broken.values():
        more = f" (and {len(broken.problems) - 1} more)" if len(broken.problems) > 1 else ""
        listed.append((broken.name, "broken", "", f"{broken.problems[0]}{more}"))
    known = {row[0] for row in listed}
    listed += [(name, WORDS.get(state, state), "", "at the server") for name, state in states.items() if name not in known]
    return sorted(listed)


def _row(entry: Entry, state: str) -> Row:
    return (entry.name, state, entry.backend or "", entry.config.weights or "")


def _state(entry: Entry, at_server: str | None) -> str:
    """What the server says of a model that it has touched; else whether its files are here."""
    if at_server is not None and at_server != "unloaded":
        return WORDS.get(at_server, at_server)
    try:
        located = locate(entry.config, entry.folder)
        cached = not isinstance(located, HubReference) or find_cached(HubSettings.from_env().cache_dir, located)
    except LoadError as exc:
        return f"no weights: {exc.message}"
    return "installed" if cached else "not downloaded"


async def server_states(settings: Settings) -> dict[str, str]:
    """State by model at LLMGALLERY_URL, of all that it serves; empty without a server. Raises GalleryError when it refuses."""
    remote = server(settings)
    if remote is None:
        return {}
    async with remote:
        if not await remote.answers():
            return {}
        served = {model["id"]: "unloaded" for model in (await remote.get("/v1/models"))["data"]}
        return served | await remote.states()


@dataclass(frozen=True)
class Checked:
    """What `check` found. `files`: how many model files were read."""

    where: Path
    files: int
    problems: list[Problem]
    warnings: list[Problem]


def checked(settings: Settings, path: Path | None) -> Checked:
    """All problems and warnings of a file, of a folder, or (when none is named) of everything that the server would read."""
    if path is None:
        return _of_snapshot(models_dir(settings), folder_registry(settings).read())
    if path.is_dir():
        return _of_snapshot(path, Registry([path], specs(), outside()).read())
    model = load_model(path, specs(), outside())
    return Checked(path, 1, list(model.problems), list(model.warnings))


def _of_snapshot(where: Path, snapshot: Snapshot) -> Checked:
    entries = [*snapshot.entries.values(), *snapshot.disabled.values()]
    problems = [problem for broken in snapshot.broken.values() for problem in broken.problems]
    warnings = [problem for entry in entries for problem in snapshot.warnings(entry)]
    return Checked(where, len(entries) + len(snapshot.broken), [*snapshot.problems, *problems], warnings)
