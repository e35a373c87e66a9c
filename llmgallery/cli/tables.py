"""Rows of cells for people and for programs. What draws them is imported when they are drawn."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterable

import click

LONGEST = 60
"""Cells in which a value stands beside its key; longer ones, and those of several lines, stand below it."""


def print_values(rows: Iterable[tuple[str, ...]]) -> None:
    """(key, value, source) for people: a template is read in its own lines."""
    from rich.cells import cell_len, set_cell_size

    rows = list(rows)
    short = {key for key, value, _ in rows if value.isprintable() and cell_len(value) <= LONGEST}
    keys = max(cell_len(key) for key, _, _ in rows)
    values = max(cell_len(value) for key, value, _ in rows if key in short)
    click.secho(f"{'KEY':<{keys}}  {'VALUE':<{values}}  FROM", bold=True)
    for key, value, source in rows:
        beside = value if key in short else ""
        click.echo(f"{set_cell_size(key, keys)}  {set_cell_size(beside, values)}  {source}")
        for line in value.splitlines() if key not in short else ():
            click.echo(f"    {''.join(map(_printable, line.expandtabs(4)))}".rstrip())


def _printable(character: str) -> str:
    """Weights' templates are anybody's text: no control character of theirs reaches the terminal."""
    return character if character.isprintable() else character.encode("unicode_escape").decode()


def print_rows(headings: tuple[str, ...], rows: Iterable[tuple[str, ...]]) -> None:
    """A table for people; for programs one line a row, tabs between the cells, and JSON strings for cells of several lines."""
    if not sys.stdout.isatty():
        for row in rows:
            click.echo("\t".join(cell if cell.isprintable() else json.dumps(cell, ensure_ascii=False) for cell in row))
        return
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    table = Table(*headings, box=None, header_style="bold", pad_edge=False)
    for row in rows:
        table.add_row(*(Text(cell) for cell in row))
    Console().print(table)
