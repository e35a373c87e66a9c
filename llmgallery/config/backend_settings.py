"""The settings of single backends: which interpreter runs the workers of each."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import msgspec
from yaml.nodes import MappingNode, ScalarNode

from llmgallery.config.nodes import place
from llmgallery.config.problems import Problem
from llmgallery.config.readers import Reading
from llmgallery.config.suggest import did_you_mean

BackendNames = Callable[[], Mapping[str, str]]
"""Makes a table of all names of backends, in lower case, and the one that each of them means."""


class BackendSetting(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What holds for one backend. `python`: the interpreter that runs its workers."""

    python: Path


class Places(NamedTuple):
    """Where the names of `backends` stand: in a file with line and column."""

    source: Path | str
    lines: Mapping[str, tuple[int, int]]

    @classmethod
    def of(cls, reading: Reading, path: Path) -> Places:
        node = reading.nodes["backends"]
        pairs = node.value if isinstance(node, MappingNode) else []
        return cls(path, {key.value: place(key) for key, _ in pairs if isinstance(key, ScalarNode)})

    def problem(self, name: str, what: str, advice: str = "") -> Problem:
        return Problem(self.source, *self.lines.get(name, (0, 0)), f"backends.{name}" if self.lines else "", what, advice)


def parted(items: Sequence[str], source: str, problems: list[Problem]) -> dict[str, BackendSetting]:
    """NAME=PYTHON, each."""
    found = {}
    for item in items:
        name, _, python = (part.strip() for part in item.partition("="))
        if name and python:
            found[name] = BackendSetting(Path(python))
        else:
            problems.append(
                Problem(source, 0, 0, "", f"{item!r} names no interpreter", "write it like transformers=/path/to/python")
            )
    return found


def settled(
    found: Mapping[str, BackendSetting],
    places: Places,
    backends: BackendNames | None,
    problems: list[Problem],
    folder: Path = Path(),
) -> dict[str, BackendSetting]:
    """By the backends' own names, with whole paths; a file's start where the file lies. Notes what is wrong with them."""
    known = backends() if backends is not None else {name.lower(): name for name in found}
    named = {}
    for name, setting in found.items():
        own = known.get(name.lower())
        if own is None:
            advice = did_you_mean(name, list(known)) or f"backends: {', '.join(sorted(set(known.values())))}"
            problems.append(places.problem(name, f"there is no backend {name}", advice))
            continue
        python = Path(os.path.abspath(folder / setting.python.expanduser()))  # noqa: PTH100 - a link is what makes it a venv's
        if what := _no_interpreter(python):
            problems.append(places.problem(name, *what))
        named[own] = BackendSetting(python)
    return named


def _no_interpreter(path: Path) -> tuple[str, str] | None:
    """Why it cannot be started as a Python, and advice; None = perhaps it can."""
    if path.is_dir():
        inside = path / "bin" / "python"
        return f"{path} is a folder, not a Python interpreter", f"did you mean {inside}?" if inside.exists() else ""
    if not path.exists():
        return f"there is no Python interpreter {path}", ""
    return None if os.access(path, os.X_OK) else (f"{path} cannot be executed", f"chmod +x {path}")
