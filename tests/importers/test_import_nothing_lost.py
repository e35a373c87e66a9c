"""No value that the documents print is lost in silence: another one makes something else, or its line is told."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
from importing_scene import SEEDS, imported, models

from llmgallery.core.errors import ConfigError
from llmgallery.importers.base import Imported

CASES = json.loads((SEEDS / "table.json").read_text("utf-8"))
VALUE = re.compile(
    r"""(?P<key>"(?:[^"\\\n]|\\.)*"(?=\s*:))
      | (?P<text>"(?:[^"\\\n]|\\.)*")
      | (?<=[:\[,])[ ]*(?P<number>-?\d+(?:\.\d+)?)(?=[ ]*[,\]}#]|[ ]*$)
      | (?<=:)[ ]*(?P<word>[A-Za-z/<][^\n"{}\[\],#]*?)(?=[ ]*[,\]}#]|[ ]*$)
      | ^[ ]*-[ ]+(?P<item>[^\s"-][^\n]*)$
      | (?P<comment>\#[^\n]*)
    """,
    re.VERBOSE | re.MULTILINE,
)
OPPOSITE = {"true": "false", "false": "true", "True": "False", "False": "True"}


def files_of(source: Path) -> list[Path]:
    return [source] if source.is_file() else sorted(path for path in source.rglob("*") if path.is_file())


def others(text: str) -> Iterator[tuple[int, str]]:
    """(line, the text with one value in it changed) for each value that stands in one line."""
    for match in VALUE.finditer(text):
        kind = str(match.lastgroup)
        if kind in ("key", "comment"):
            continue
        before = text[: match.start(kind)]
        yield before.count("\n") + 1, before + other(kind, match[kind]) + text[match.end(kind) :]


def other(kind: str, value: str) -> str:
    """Another value of the same kind, such as a person might have written."""
    if kind == "number":
        return str(float(value) + 0.25) if "." in value else str(int(value) + 1)
    return f'{value[:-1]}Q"' if kind == "text" else OPPOSITE.get(value, f"{value}Q")


def read(source: Path, folder: Path, weights: str | None) -> Imported | str:
    try:
        return imported(source, folder, weights=weights, user_data=Path("/data"))
    except ConfigError as error:
        return str(error)


def made(found: Imported | str) -> object:
    """What the server gets of it, and what people read in files that are written anew."""
    if isinstance(found, str):
        return found
    comments = [file.text for file in found.files if file.text.startswith("# Imported")]
    return models(found), comments, found.settings, found.default, found.problems


def told(found: Imported | str) -> set[tuple[object, int]]:
    """The files and lines of all warnings."""
    return set() if isinstance(found, str) else {(warning.path, warning.line) for warning in found.warnings}


def above(line: int, lines: list[str]) -> int:
    """The line of the section that a line belongs to; 0 = of none."""
    indents = [len(one) - len(one.lstrip()) for one in lines]
    return next((upper for upper in range(line - 1, 0, -1) if indents[upper - 1] < indents[line - 1]), 0)


@pytest.mark.parametrize("case", CASES, ids=lambda case: case["source"])
def test_every_value_counts_or_is_told(case: dict[str, str], tmp_path: Path) -> None:
    source, original = tmp_path / case["source"], SEEDS / case["source"]
    source.parent.mkdir(exist_ok=True)
    (shutil.copytree if original.is_dir() else shutil.copy)(original, source)
    first = read(source, tmp_path / "to", case.get("weights"))
    silent, seen = [], 0
    for path in files_of(source):
        text = path.read_text("utf-8")
        for line, changed in others(text):
            path.write_text(changed, "utf-8")
            found = read(source, tmp_path / "to", case.get("weights"))
            places = {(path, line), (path, above(line, text.splitlines()))}
            if made(found) == made(first) and not places & (told(found) | told(first)):
                silent.append(f"{path.name}:{line}: {changed.splitlines()[line - 1].strip()}")
            seen += 1
        path.write_text(text, "utf-8")
    assert silent == [] and seen
