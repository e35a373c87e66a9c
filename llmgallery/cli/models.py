"""The commands that tell: list, explain, check, schema, version. What they need is imported when they run."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import click

from llmgallery import __version__
from llmgallery.cli.group import models_dir_option, settings_of
from llmgallery.cli.tables import print_rows, print_values


@click.command("list")
@models_dir_option
def list_models(config: Path | None, models_dir: str | None) -> None:
    """List models: installed, loaded, broken, being installed.

    What is loaded is known to the server at LLMGALLERY_URL.
    """
    print_list(config, models_dir)


@click.command(hidden=True)
@models_dir_option
def models(config: Path | None, models_dir: str | None) -> None:
    """GatoGPT's name for list."""
    print_list(config, models_dir)


def print_list(config: Path | None, models_dir: str | None) -> None:
    """Used under two names."""
    from llmgallery.cli import listing

    rows = listing.rows(settings_of(config, models_dir=models_dir))
    print_rows(("NAME", "STATE", "BACKEND", "WEIGHTS"), rows)


@click.command()
@click.argument("name")
@models_dir_option
def explain(name: str, config: Path | None, models_dir: str | None) -> None:
    """Print every effective value of a model and where it came from."""
    print_explained(name, config, models_dir)


@click.command(hidden=True)
@click.argument("name")
@models_dir_option
def show(name: str, config: Path | None, models_dir: str | None) -> None:
    """Another name of explain."""
    print_explained(name, config, models_dir)


def print_explained(name: str, config: Path | None, models_dir: str | None) -> None:
    """Used under two names."""
    from llmgallery.cli.explain import effective

    rows = effective(settings_of(config, models_dir=models_dir), name)
    if sys.stdout.isatty():
        print_values(rows)
    else:
        print_rows(("KEY", "VALUE", "FROM"), rows)


@click.command()
@click.argument("path", required=False, type=click.Path(exists=True, path_type=Path))
@models_dir_option
def check(path: Path | None, config: Path | None, models_dir: str | None) -> None:
    """Validate a folder of model files and the presets beside them, or one file.

    Prints every problem as file:line:column. Exit code 1 when there is one; warnings do not count.
    """
    from llmgallery.cli import listing
    from llmgallery.cli.display import counted

    checked = listing.checked(settings_of(config, models_dir=models_dir), path)
    for problem, warning in checked.in_order():
        click.echo(f"{problem} (warning)" if warning else str(problem))
    found = counted(len(checked.problems), "problem") if checked.problems else "no problem"
    click.echo(f"{checked.where}: {counted(checked.files, checked.kind)}, {found}", err=True)
    if checked.problems:
        sys.exit(1)


@click.command()
@click.option("--preset", is_flag=True, help="of a preset file, presets/NAME.yaml beside the model files")
def schema(preset: bool) -> None:
    """Print the JSON schema of a model file, for editors."""
    from llmgallery.backends.loader import specs
    from llmgallery.config.jsonschema import model_schema, preset_schema

    shape = preset_schema() if preset else model_schema(specs())
    click.echo(json.dumps(shape, indent=2, ensure_ascii=False))


@click.command()
def version() -> None:
    """Print the versions of llmgallery, Python and the backends' libraries."""
    import platform
    from importlib.metadata import packages_distributions
    from importlib.metadata import version as installed

    from llmgallery.backends.loader import specs

    click.echo(f"llmgallery {__version__}")
    click.echo(f"Python {platform.python_version()}")
    distributions = packages_distributions()
    for spec in specs().values():
        for module in spec.requires:
            found = distributions.get(module)
            state = f"{found[0]} {installed(found[0])}" if found else f"{module} is not installed"
            click.echo(f"{state} (backend {spec.name})")
