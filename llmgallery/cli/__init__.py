"""The command line. Importing it stays quick: commands import what they need when they run."""

from __future__ import annotations

import click

from llmgallery import __version__
from llmgallery.cli import backends, commands, importing, installs, keep, models, rendering
from llmgallery.cli.bench import command as bench
from llmgallery.cli.group import Group


@click.group(cls=Group, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 120})
@click.version_option(__version__, message="%(prog)s %(version)s")
def main() -> None:
    """A folder of YAML files, one per language model, behind the APIs that your tools already speak."""


for command in (
    commands.serve,
    commands.run,
    bench.bench,
    models.list_models,
    installs.search,
    installs.install,
    installs.remove,
    installs.jobs,
    models.explain,
    models.show,
    rendering.render,
    models.check,
    backends.backends,
    importing.import_models,
    keep.verify,
    keep.gc,
    keep.bundle,
    keep.unbundle,
    models.schema,
    models.version,
    models.models,
    commands.generate,
    commands.api,
):
    main.add_command(command)
