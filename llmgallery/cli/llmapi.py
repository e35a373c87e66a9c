"""llm-api's config.yaml and LLM_API_ variables in place of a settings file: its settings, and its one model."""

from __future__ import annotations

import contextlib
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

if TYPE_CHECKING:
    from llmgallery.importers.base import Imported


def settings(config: Path | None) -> dict[str, Any] | None:
    """Of the server, by their names here; None when neither the file nor the variables are llm-api's. Raises ConfigError."""
    imported = _imported(config, Path.cwd())
    if imported is None:
        return None
    values = dict(imported.settings)
    folder = Path(values.pop("models_dir", ""))
    # llm-api's folder may be one of its container: what is not here holds no models.
    return {**values, "models_dir": folder} if folder.is_dir() and "models_dir" in imported.settings else values


@contextlib.contextmanager
def served(config: Path | None) -> Iterator[Path | None]:
    """llm-api's model as a model file, for as long as it is served; None where there is none. What has no counterpart is told.
    Raises ConfigError."""
    from llmgallery.config.problems import as_error

    with tempfile.TemporaryDirectory(prefix="llmgallery-") as scratch:
        imported = _imported(config, Path(scratch))
        if imported is None:
            yield None
            return
        if imported.problems:
            raise as_error(imported.problems, str(config or "LLM_API_ variables"))
        for warning in imported.warnings:
            click.echo(f"{warning} (warning)", err=True)
        _make_folder(imported)
        [file] = imported.files
        path = Path(scratch) / file.name
        path.write_text(file.text, encoding="utf-8")
        _check(path, str(config or "LLM_API_ variables"))
        yield path


def _check(path: Path, source: str) -> None:
    """Raises ConfigError for a model that this version cannot serve, in words about the source."""
    from llmgallery.backends.loader import specs
    from llmgallery.cli.stack import outside
    from llmgallery.config.load import load_model
    from llmgallery.core.errors import ConfigError

    if problems := load_model(path, specs(), outside()).problems:
        told = "; ".join(f"{problem.message} ({problem.suggestion})" for problem in problems)
        raise ConfigError(f"{source}: its model cannot be served: {told}")


def _imported(config: Path | None, folder: Path) -> Imported | None:
    from llmgallery.cli.around import around
    from llmgallery.importers import llmapi

    if config is not None:
        return llmapi.read(config, around(folder)) if llmapi.recognises(config) else None
    return llmapi.from_variables(around(folder), Path.cwd())


def _make_folder(imported: Imported) -> None:
    """As llm-api does, where it can be."""
    folder = imported.settings.get("models_dir")
    if folder is not None:
        try:
            Path(folder).mkdir(parents=True, exist_ok=True)
        except OSError as error:
            click.echo(f"models_dir {folder} cannot be made ({error.strerror or error}): not used (warning)", err=True)
