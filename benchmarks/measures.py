"""What is measured over HTTP, one sample at a time; who calls alternates between the servers."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import subprocess
import sys
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from statistics import median
from typing import Any

from benchmarks.engine import KINDS
from benchmarks.environments import Environment
from benchmarks.servers import Server
from llmgallery.cli.bench.client import Recording, Trace
from llmgallery.cli.bench.drive import run_wave
from llmgallery.cli.bench.figures import decode_rate, first_token, gaps, percentile, steady_rate
from llmgallery.cli.bench.workload import Workload, prompts

PROMPT = 128
STREAMS = 4  # of the stall
POLL_SECONDS = 0.02
STALL_SECONDS = 300.0
ROOT = Path(__file__).parent.parent
OWN_SPIN = "10000"
"""GOMP_SPINCOUNT as llmgallery's workers set it for themselves."""


@dataclass(frozen=True)
class Lengths:
    """In tokens. `idle_pieces`: how many pieces of each stream make the idle value."""

    answer: int
    prefix: int
    long_prompt: int
    idle_pieces: int


async def decode(server: Server, salt: str, *, streams: int, answer: int) -> dict[str, Any]:
    """Short prompts at once, long answers: tokens a second of all streams, and latencies."""
    texts = prompts(Workload(streams, 1, PROMPT, answer), 0, salt)
    wave = await run_wave(server.client, texts, answer)
    pauses = [pause for trace in wave for pause in gaps(trace)]
    return {
        "tokens_per_second": decode_rate(wave),
        "steady_per_second": steady_rate(wave),
        "tokens": sum(trace.completion_tokens for trace in wave),
        "inter_token_p50": percentile(pauses, 0.5),
        "inter_token_p95": percentile(pauses, 0.95),
        "first_token_p50": median(map(first_token, wave)),
    }


async def prefix(server: Server, salt: str, *, requests: int, shared: int) -> dict[str, Any]:
    """Requests at once whose prompts share a prefix that the server has never seen."""
    workload = Workload(requests, 1, shared + PROMPT, 8, shared)
    wave = await run_wave(server.client, prompts(workload, 0, salt), workload.max_tokens)
    return {
        "first_token_p50": median(map(first_token, wave)),
        "first_tokens": [first_token(trace) for trace in wave],
        "prompt_tokens": sum(trace.prompt_tokens for trace in wave),
        "cached_tokens": sum(trace.cached_tokens or 0 for trace in wave),
    }


async def stall(server: Server, salt: str, *, lengths: Lengths) -> dict[str, Any]:
    """STREAMS that run, and a long prompt that comes: p95 of their inter-token latency before it, and until it has been read."""
    room = lengths.long_prompt
    texts = prompts(Workload(STREAMS, 1, PROMPT, room), 0, salt)
    (long_prompt,) = prompts(Workload(1, 1, lengths.long_prompt, 4), 0, salt)
    async with asyncio.timeout(STALL_SECONDS), streaming(server, texts, room) as recordings:
        await until_pieces(recordings, 8)
        begun = [len(recording.received) for recording in recordings]
        await until_pieces(recordings, max(begun) + lengths.idle_pieces)
        long_trace = await server.client.complete(long_prompt, 4)
        traces = [recording.trace() for recording in recordings]
    return stalled(traces, long_trace)


def stalled(traces: Sequence[Trace], long: Trace) -> dict[str, Any]:
    """`traces`: of the streams; `long`: of the prompt that came while they ran. Idle are the pauses that ended before it was
    sent, but for the first, which other streams' prompts held up; loaded those that touch the time until its first token."""
    begun = max(trace.times[0] for trace in traces)
    steps = [step for trace in traces for step in pairwise(trace.times)]
    idle = [after - before for before, after in steps if begun <= before and after <= long.sent]
    loaded = [after - before for before, after in steps if after > long.sent and before < long.times[0]]
    return {
        "idle_p95": percentile(idle, 0.95),
        "loaded_p95": percentile(loaded, 0.95),
        "loaded_max": max(loaded),
        "loaded_pauses": len(loaded),
        "first_token": first_token(long),
        "prompt_tokens": long.prompt_tokens,
    }


@contextlib.asynccontextmanager
async def streaming(server: Server, texts: Sequence[str], max_tokens: int) -> AsyncIterator[list[Recording]]:
    """Answers that run beside the block; cut off at its end."""
    recordings = [Recording() for _ in texts]
    tasks = [
        asyncio.ensure_future(server.client.complete(text, max_tokens, recording))
        for text, recording in zip(texts, recordings, strict=True)
    ]
    try:
        yield recordings
        if ended := [task for task in tasks if task.done()]:
            await asyncio.gather(*ended)
            raise RuntimeError(f"{server.name}: a stream ended before the measurement did: answers must be longer")
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


async def until_pieces(recordings: Sequence[Recording], count: int) -> None:
    """Until each stream has brought so many pieces."""
    while min(len(recording.received) for recording in recordings) < count:  # noqa: ASYNC110 - an event would be set at each token
        await asyncio.sleep(POLL_SECONDS)


# --- without HTTP ------------------------------------------------------------------------------------------------------------


def control(
    side: Environment, model: Path, sequences: Sequence[int], context: int, threads: int, spin: str | None
) -> dict[str, Any]:
    """The bare loop over one side's libllama."""
    script = Path(__file__).parent / "control.py"
    counts = ",".join(map(str, sequences))
    sizes = ("--sequences", counts, "--context", str(context), "--threads", str(threads))
    return output([str(side.python), str(script), str(side.library), str(model), *sizes], environment(side, spin))


def engine(model: Path, sequences: Sequence[int], threads: int) -> dict[str, Any]:
    """Our engine without HTTP, and bare loops, by the number of sequences. Each in a process of its own: libgomp lets threads
    wait otherwise once those of several teams have been more than there are cores."""
    found: dict[str, Any] = {str(count): {} for count in sequences}
    for kind in KINDS:
        sizes = ("--sequences", ",".join(found), "--threads", str(threads))
        told = output([sys.executable, "-m", "benchmarks.engine", str(model), "--kinds", kind, *sizes], {})
        for count, rates in told["sequences"].items():
            found[count].update(rates)
    return {"sequences": found}


def environment(side: Environment, spin: str | None) -> dict[str, str]:
    """What a side's process has in its environment beside ours. `spin`: GOMP_SPINCOUNT of the peers; None = libgomp's own."""
    if side.name == "llmgallery":
        spin = OWN_SPIN
    return {} if spin is None else {"GOMP_SPINCOUNT": spin, "OMP_WAIT_POLICY": "active"}


def output(command: Sequence[str], more: dict[str, str]) -> dict[str, Any]:
    """The JSON that a command prints last. Raises RuntimeError with what it said."""
    done = subprocess.run(command, capture_output=True, text=True, env={**os.environ, **more}, cwd=ROOT, timeout=600)
    if done.returncode != 0:
        raise RuntimeError(f"{' '.join(command)} failed with {done.returncode}:\n{done.stderr[-2000:]}")
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return found
