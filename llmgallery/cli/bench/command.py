"""`llmgallery bench`. What it needs is imported when it runs."""

from __future__ import annotations

import contextlib
import os
import secrets
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from llmgallery.cli.group import models_dir_option, settings_of

if TYPE_CHECKING:
    from llmgallery.cli.bench.client import Target
    from llmgallery.cli.bench.drive import Row
    from llmgallery.cli.bench.workload import Workload
    from llmgallery.config.settings import Settings


class Counts(click.ParamType[tuple[int, ...]]):
    """1,2,4,8"""

    name = "counts"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> tuple[int, ...]:
        if isinstance(value, tuple):
            return value
        try:
            counts = tuple(int(part) for part in str(value).split(","))
        except ValueError:
            self.fail(f"{value!r} is no list of numbers such as 1,2,4,8", param, ctx)
        if min(counts) < 1:
            self.fail("each number of streams must be at least 1", param, ctx)
        return counts


@click.command()
@click.argument("model")
@click.option("--url", help="the server to measure, any that is OpenAI-compatible; else LLMGALLERY_URL's, else one of its own")
@click.option("-c", "--concurrency", type=Counts(), default="1,2,4,8", help="streams at once, one row each; default 1,2,4,8")
@click.option("--requests", type=click.IntRange(1), default=8, help="requests of each row, in whole waves; default 8")
@click.option("--prompt-tokens", type=click.IntRange(1), default=128, help="length of the prompts; default 128")
@click.option("--max-tokens", type=click.IntRange(2), default=64, help="length of the answers; default 64")
@click.option(
    "--shared-tokens",
    type=click.IntRange(0),
    default=512,
    help="length of the prefix that the prompts of the last two rows have in common; 0 leaves them out; default 512",
)
@click.option("--seed", help="for the same prompts again, which the server may then have cached")
@click.option("--json", "json_", is_flag=True, help="print JSON instead of a table")
@models_dir_option
def bench(
    model: str,
    url: str | None,
    concurrency: tuple[int, ...],
    requests: int,
    prompt_tokens: int,
    max_tokens: int,
    shared_tokens: int,
    seed: str | None,
    json_: bool,
    config: Path | None,
    models_dir: str | None,
) -> None:
    """Measure how fast MODEL answers: prefill and decode tokens/s, time to first token, inter-token latency.

    MODEL is a name, a GGUF file or a model's YAML. Each row sends waves of requests at once, over HTTP, as streams; prompts
    differ, so that nothing comes from a cache, but in the last two rows: there all share a prefix, and the second one repeats
    the prompts. The server at --url or LLMGALLERY_URL is measured (with LLMGALLERY_API_KEY), else one that is started for it.
    """
    from llmgallery.cli.bench.workload import Workload, sweep

    workloads = sweep(concurrency, requests, prompt_tokens, max_tokens)
    shared = Workload(max(concurrency), 1, shared_tokens + prompt_tokens, max_tokens, shared_tokens) if shared_tokens else None
    with target_of(model, url, settings_of(config, models_dir=models_dir), config, models_dir) as target:
        rows = measured(target, workloads, shared, seed or secrets.token_hex(8))
    _print(rows, target, json_)


@contextlib.contextmanager
def target_of(model: str, url: str | None, settings: Settings, config: Path | None, models_dir: str | None) -> Iterator[Target]:
    """The server that is measured: the one that is named, else one of our own. Raises GalleryError."""
    from llmgallery.cli.bench.client import Target
    from llmgallery.cli.bench.own import own_server, serve_flags, served_name
    from llmgallery.cli.given import path_of, server_url

    key = os.environ.get("LLMGALLERY_API_KEY") or next(iter(settings.api_keys), None)
    named = (url or os.environ.get("LLMGALLERY_URL", "")).strip()
    path = None if url else path_of(model)
    if named and path is None:
        yield Target(server_url(named), model, key)
        return
    with own_server(serve_flags(config, models_dir, path)) as own:
        yield Target(own, model if path is None else served_name(path), key)


def measured(target: Target, workloads: list[Workload], shared: Workload | None, salt: str) -> list[Row]:
    """What came of each workload; says on stderr what it is doing. Raises GalleryError."""
    import asyncio

    from llmgallery.cli.bench.client import Client
    from llmgallery.cli.bench.drive import bench as drive

    async def run() -> list[Row]:
        async with Client(target) as client:
            return await drive(client, workloads, shared, salt, lambda text: click.echo(text, err=True))

    return asyncio.run(run())


def _print(rows: list[Row], target: Target, json_: bool) -> None:
    from llmgallery import __version__
    from llmgallery.cli.bench.report import as_json, print_table

    if json_:
        click.echo(as_json(rows, llmgallery=__version__, url=target.base, model=target.model))
    else:
        print_table(rows, f"{target.model} at {target.base}")
