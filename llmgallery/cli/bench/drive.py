"""Sends a workload's waves to a server."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from llmgallery.cli.bench.client import Client, Trace
from llmgallery.cli.bench.figures import Figures, figures
from llmgallery.cli.bench.workload import Workload, prompts, words

PROBE_WORDS = 256


@dataclass(frozen=True)
class Row:
    """One line of the report. `cached`: the wave repeats prompts that the server has just seen."""

    workload: Workload
    figures: Figures
    cached: bool = False


async def tokens_per_word(client: Client) -> float:
    """What a word of a prompt costs with this model's vocabulary. Loads the model. Raises GalleryError."""
    few, many = (words(count, random.Random(count)) for count in (1, 1 + PROBE_WORDS))
    return max(0.1, (await client.count_tokens(many) - await client.count_tokens(few)) / PROBE_WORDS)


async def run_wave(client: Client, texts: Sequence[str], max_tokens: int) -> list[Trace]:
    """Answers to prompts that are sent at once. The first failure ends all. Raises GalleryError."""
    tasks = [asyncio.ensure_future(client.complete(text, max_tokens)) for text in texts]
    try:
        return await asyncio.gather(*tasks)
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


async def measure(client: Client, workload: Workload, salt: str, cost: float) -> Figures:
    """`cost`: tokens per word. Raises GalleryError."""
    waves = []
    for wave in range(workload.waves):
        waves.append(await run_wave(client, prompts(workload, wave, salt, cost), workload.max_tokens))
    return figures(waves)


async def bench(
    client: Client, workloads: Sequence[Workload], shared: Workload | None, salt: str, tell: Callable[[str], None]
) -> list[Row]:
    """A row for each workload; for `shared` two, the second with the prompts of the first. Raises GalleryError."""
    tell("loading the model, and counting its tokens")
    cost = await tokens_per_word(client)
    rows = []
    for workload in workloads:
        tell(f"{workload.concurrency} at once: {workload.requests} requests")
        rows.append(Row(workload, await measure(client, workload, salt, cost)))
    if shared is not None:
        for cached in (False, True):
            tell(f"{shared.concurrency} at once with {shared.shared_tokens} tokens in common{', again' if cached else ''}")
            rows.append(Row(shared, await measure(client, shared, salt, cost), cached))
    return rows
