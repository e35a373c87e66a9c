"""The commands that look after backends: backends list, install, remove. What they need is imported when they run."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import click

from llmgallery.cli.group import Group, config_option, setting_option, settings_of
from llmgallery.cli.tables import print_rows
from llmgallery.config.settings import setting_rows

PYTHONS = setting_option(next(row for row in setting_rows() if row.name == "backends"))


@click.group(cls=Group)
def backends() -> None:
    """List what runs models, and install what a backend needs."""


@backends.command("list")
@click.option("--json", "as_json", is_flag=True, help="print JSON, with aliases, interpreters and formats that lack something")
@PYTHONS
@config_option
def list_backends(as_json: bool, backends: tuple[str, ...], config: Path | None) -> None:
    """Print each backend, whether it can run here, its weights and its hardware; and if it cannot, what to do."""
    from llmgallery.cli.environments import states
    from llmgallery.cli.stack import interpreters_of

    found = states(interpreters_of(settings_of(config, backends=backends)))
    if as_json:
        click.echo(json.dumps([dataclasses.asdict(state) for state in found], indent=2))
        return
    rows = []
    for state in found:
        by_command: dict[str, list[str]] = {}
        for format, command in state.without.items():
            by_command.setdefault(command, []).append(format)
        details = [state.detail, *(f"for {' and '.join(formats)}: {command}" for command, formats in by_command.items())]
        weights, hardware = ", ".join(state.weights) or "none", ", ".join(state.hardware) or "any"
        rows.append((state.name, state.state, weights, hardware, "; ".join(filter(None, details))))
    print_rows(("NAME", "STATE", "WEIGHTS", "HARDWARE", ""), rows)


@backends.command("install")
@click.argument("name")
@click.option("--with", "more", multiple=True, metavar="EXTRA", help="further packages: gptq, bitsandbytes")
@click.option("--python", metavar="COMMAND", help="the Python that the environment is made with; else the one that runs this")
@click.option("--torch", metavar="VERSION", help="another torch than the one that was tested")
@click.option("--torch-index", metavar="URL", help="where torch is from, such as https://download.pytorch.org/whl/cpu")
@click.option("--here", is_flag=True, help="into the environment that runs this, not into one of its own")
@click.option("--dry-run", is_flag=True, help="print the commands, and run none")
def install_backend(
    name: str, more: tuple[str, ...], python: str | None, torch: str | None, torch_index: str | None, here: bool, dry_run: bool
) -> None:
    """Install what the backend NAME needs, into an environment of its own in the data folder.

    Its workers run there from then on. A second time, packages are brought up to date or added.
    """
    from llmgallery.backends.hardware import lacking
    from llmgallery.cli import environments
    from llmgallery.paths import data_dir

    if here and python is not None:
        raise click.UsageError("--here installs into the environment that runs this: --python has no meaning there")
    spec = environments.spec_of(name)
    recipe = environments.recipe(
        spec, data_dir(), python=python, more=more, torch=torch or environments.TORCH, index=torch_index, here=here
    )
    if dry_run:
        for line in recipe.lines:
            click.echo(line)
        return
    if absent := next(filter(None, map(lacking, spec.hardware)), ""):
        click.echo(f"note: this machine lacks {absent}; backend {spec.name} will not run here without", err=True)
    environments.carry_out(recipe, data_dir())
    click.echo(f"backend {spec.name} is installed in {recipe.folder or 'this environment'}", err=True)


@backends.command("remove")
@click.argument("name")
def remove_backend(name: str) -> None:
    """Delete the environment that `backends install` made for the backend NAME."""
    from llmgallery.cli import environments
    from llmgallery.paths import data_dir

    click.echo(f"deleted {environments.delete(environments.spec_of(name), data_dir())}", err=True)
