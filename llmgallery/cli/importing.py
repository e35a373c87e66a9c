"""`llmgallery import`: other programs' configurations to model files. What it needs is imported when it runs."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import click

from llmgallery.cli.group import models_dir_option, settings_of

if TYPE_CHECKING:
    from llmgallery.importers.base import Imported

KINDS = ("kobold", "ollama", "gatogpt", "llm-api", "localai")
"""Of importers.recognise, which is imported only when a command needs it; a test compares."""


@click.command("import")
@click.argument("source", type=click.Path(path_type=Path))
@click.option("--to", type=click.Path(file_okay=False, path_type=Path), help="folder for the model files; else the models folder")
@click.option("--dry-run", is_flag=True, help="print what would be written, and write nothing")
@click.option("--from", "kind", type=click.Choice(KINDS), help="what SOURCE is; else recognised")
@click.option("--force", is_flag=True, help="replace files that are there already")
@click.option("--model", "weights", metavar="REFERENCE", help="the weights of a configuration that names none")
@click.option("--name", help="what a model shall be called whose configuration does not say")
@click.option(
    "--user-data",
    type=click.Path(file_okay=False, path_type=Path),
    help="what user:// means in GatoGPT's files; default ~/.local/share/GatoGPT_Data",
)
@click.option(
    "--settings",
    "settings_file",
    type=click.Path(dir_okay=False, path_type=Path),
    help="write SOURCE's server settings there",
)
@models_dir_option
def import_models(
    source: Path,
    to: Path | None,
    dry_run: bool,
    kind: str | None,
    force: bool,
    weights: str | None,
    name: str | None,
    user_data: Path | None,
    settings_file: Path | None,
    config: Path | None,
    models_dir: str | None,
) -> None:
    """Write model files from another program's configuration.

    SOURCE is a folder or file of LocalAI, GatoGPT, llm-api, KoboldCpp or Ollama. Whatever has no counterpart here is told with
    its place; it is not in use. Files that are there already are left alone, unless you say --force. Exit code 1 when a model of
    SOURCE could not be imported.
    """
    from llmgallery.cli.around import around
    from llmgallery.cli.stack import models_dir as models_folder
    from llmgallery.importers.base import save
    from llmgallery.importers.recognise import importer_for, others

    folder = (to or models_folder(settings_of(config, models_dir=models_dir))).absolute()
    importer = importer_for(source, kind)
    imported = importer.read(source, around(folder, weights, name, user_data))
    if settings_file is not None:
        _check_settings(imported, settings_file, force)
    if dry_run:
        click.echo("".join(_texts(imported)), nl=False)
    else:
        for path in save(imported, folder, force=force):
            click.echo(f"wrote {path}")
        if settings_file is not None:
            _save_settings(imported, settings_file, force)
    _tell(imported)
    if kind is None and (more := [other.kind for other in others(source, importer)]):
        click.echo(
            f"{source}: taken as {importer.kind}; it holds files of {', '.join(more)} too, which --from KIND imports", err=True
        )
    if imported.settings and settings_file is None:
        click.echo(f"server settings of {source}, which --settings FILE writes: {_one_line(imported)}", err=True)
    if imported.problems:
        sys.exit(1)


def _texts(imported: Imported) -> Iterator[str]:
    """The files one after the other; a file that only its owner may read is not shown."""
    from llmgallery.importers.base import SECRET

    for file in imported.files:
        yield f"--- {file.name}\n"
        yield file.text if file.mode != SECRET else "(a key)\n"


def _one_line(imported: Imported) -> str:
    from llmgallery.importers.base import server_settings

    return ", ".join(f"{name}: {value}" for name, value in server_settings(imported).items())


def _check_settings(imported: Imported, path: Path, force: bool) -> None:
    """Before anything is written. Raises ConfigError."""
    from llmgallery.core.errors import ConfigError

    if not imported.settings:
        raise ConfigError("the source has no server settings: --settings has nothing to write; nothing was written")
    if os.path.lexists(path) and not force and not _says_the_same(imported, path):
        raise ConfigError(f"{path} is there already, with another text: nothing was written; --force replaces it")


def _says_the_same(imported: Imported, path: Path) -> bool:
    from llmgallery.importers.base import server_settings, settings_text

    try:
        return path.read_bytes() == settings_text(server_settings(imported)).encode()
    except OSError:
        return False


def _save_settings(imported: Imported, path: Path, force: bool) -> None:
    from llmgallery.core.errors import ConfigError
    from llmgallery.importers.base import server_settings, settings_text, write

    if _says_the_same(imported, path):
        return
    try:
        write(path, settings_text(server_settings(imported)), replace=force)
    except FileExistsError as error:
        raise ConfigError(f"{path} is there already; --force replaces it") from error
    except OSError as error:
        raise ConfigError(f"cannot write {path}: {error.strerror or error}") from error
    click.echo(f"wrote {path}")


def _tell(imported: Imported) -> None:
    from llmgallery.cli.display import counted

    for problem in imported.problems:
        click.echo(str(problem), err=True)
    for warning in imported.warnings:
        click.echo(f"{warning} (warning)", err=True)
    for note in imported.notes:
        click.echo(note, err=True)
    models = sum(file.model is not None for file in imported.files)
    told = counted(len(imported.warnings), "warning")
    failed = f", {len(imported.problems)} not imported" if imported.problems else ""
    click.echo(f"{counted(models, 'model')}{failed}, {told}", err=True)
