"""What importers' tests share: reading a source as the command does, and what came of it as plain data."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import yaml

from llmgallery.backends.loader import specs
from llmgallery.cli.stack import outside
from llmgallery.importers.base import Around, Imported
from llmgallery.importers.recognise import importer_for

SEEDS = Path(__file__).parents[1] / "cases" / "seeds"


def imported(source: Path, folder: Path, **more: Any) -> Imported:
    """`more`: of Around."""
    return importer_for(source).read(source, Around(specs(), folder, outside(), **more))


def models(found: Imported) -> dict[str, dict[str, Any]]:
    """Name -> what the YAML says."""
    return {file.model: yaml.safe_load(file.text) for file in found.files if file.model is not None}


def told(found: Imported) -> list[str]:
    """The keys of all warnings."""
    return sorted({warning.key for warning in found.warnings})


def written(folder: Path, files: dict[str, str]) -> Path:
    """`folder` with these files."""
    for name, text in files.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")
    return folder
