"""Which importer reads a source."""

from __future__ import annotations

import importlib
from pathlib import Path

from llmgallery.catalog.formats import YAML_SUFFIXES
from llmgallery.core.errors import ConfigError
from llmgallery.importers.base import Importer
from llmgallery.importers.jsontext import read_json
from llmgallery.importers.ledger import Ledger, read_yaml

MODULES = ("kobold", "ollama", "gatogpt", "llmapi", "localai")
"""In the order in which they are asked; localai takes any YAML that names weights, so it is the last."""


def importers() -> list[Importer]:
    """All of them."""
    found: list[Importer] = [importlib.import_module(f"llmgallery.importers.{name}").IMPORTER for name in MODULES]
    return found


def recognise(source: Path) -> Importer | None:
    """The importer of a file or folder; None = nobody knows it."""
    return next((importer for importer in importers() if importer.recognises(source)), None)


def others(source: Path, taken: Importer) -> list[Importer]:
    """Those beside `taken` who would read a folder as well."""
    return [each for each in importers() if each.kind != taken.kind and each.recognises(source)] if source.is_dir() else []


def importer_for(source: Path, kind: str | None = None) -> Importer:
    """The importer of a source, or the one that is called `kind`. Raises ConfigError for a source that nobody reads."""
    if not source.exists():
        raise ConfigError(f"there is no file or folder {source}")
    if kind is not None:
        return next(importer for importer in importers() if importer.kind == kind)
    found = recognise(source)
    if found is None:
        _read(source)
        known = "; ".join(f"{importer.kind}: {importer.title}" for importer in importers())
        raise ConfigError(f"{source} is in no format that is known here. These are: {known}. --from KIND names one")
    return found


def _read(source: Path) -> None:
    """Raises ConfigError, with its place, for a file that nobody recognises as it cannot be read at all."""
    if source.suffix.lower() in YAML_SUFFIXES:
        read_yaml(source)
    elif source.suffix.lower() == ".json":
        read_json(source, Ledger(source))
