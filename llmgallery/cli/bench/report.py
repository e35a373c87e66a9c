"""What was measured, as a table for people and as JSON for programs. Pure, but for printing."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import msgspec
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table

from llmgallery.cli.bench.drive import Row
from llmgallery.cli.bench.figures import Spread

COLUMNS = ("workload", "streams", "prefill tok/s", "decode tok/s", "per stream", "TTFT p50", "p95", "ITL p50", "p95")
WIDTH = 120
LEGEND = (
    "prefill, decode: tokens/s of all streams together; TTFT: time to first token; ITL: inter-token latency; both in milliseconds"
)


def table(rows: Sequence[Row]) -> list[tuple[str, ...]]:
    """A line of text for each row, under COLUMNS."""
    return [_line(row) for row in rows]


def print_table(rows: Sequence[Row], title: str) -> None:
    """To stdout; as wide as it needs to be where nobody watches."""
    console = Console()
    console = console if console.is_terminal else Console(width=WIDTH)
    drawn = Table(*COLUMNS, box=SIMPLE_HEAD, title=title, title_justify="left", caption=LEGEND, caption_justify="left")
    for column in drawn.columns[1:]:
        column.justify = "right"
    for line in table(rows):
        drawn.add_row(*line)
    console.print(drawn, markup=False)


def as_json(rows: Sequence[Row], **about: Any) -> str:
    """One JSON object: `about`, and the rows with all their figures in tokens and seconds."""
    body = {**about, "rows": [msgspec.to_builtins(row) for row in rows]}
    return msgspec.json.format(msgspec.json.encode(body), indent=2).decode()


def _line(row: Row) -> tuple[str, ...]:
    measured, workload = row.figures, row.workload
    decode = measured.decode_tokens_per_second
    pause = measured.inter_token
    return (
        _name(row),
        str(workload.concurrency),
        _rate(measured.prefill_tokens_per_second),
        _rate(decode),
        _rate(decode / workload.concurrency if decode else None),
        *_spread(measured.time_to_first_token),
        *(_spread(pause) if pause else ("-", "-")),
    )


def _name(row: Row) -> str:
    workload = row.workload
    shared = f" ({workload.shared_tokens} shared{', again' if row.cached else ''})" if workload.shared_tokens else ""
    return f"{workload.prompt_tokens}{shared} + {workload.max_tokens}"


def _rate(value: float | None) -> str:
    return "-" if value is None else f"{value:.1f}"


def _spread(seconds: Spread) -> tuple[str, str]:
    return f"{seconds.p50 * 1000:.1f}", f"{seconds.p95 * 1000:.1f}"
