"""From traces to figures: throughput of a wave, percentiles of latencies. Pure."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from statistics import median

from llmgallery.cli.bench.client import Trace


@dataclass(frozen=True)
class Spread:
    """Median and 95th percentile, in seconds."""

    p50: float
    p95: float


@dataclass(frozen=True)
class Figures:
    """What a workload's waves came to; throughputs are medians of the waves, latencies are taken over all requests.

    `prefill_tokens_per_second`: prompt tokens that were computed, over the time from sending a wave until each of its answers
    has begun. `decode_tokens_per_second`: of all streams together, the tokens after each answer's first, over the time from the
    wave's first token to its last. `inter_token`: between one piece of text and the next. None = there was nothing to measure.
    """

    concurrency: int
    requests: int
    prompt_tokens: int
    cached_tokens: int | None
    completion_tokens: int
    prefill_tokens_per_second: float | None
    decode_tokens_per_second: float | None
    time_to_first_token: Spread
    inter_token: Spread | None


def percentile(values: Iterable[float], share: float) -> float:
    """With linear interpolation between the two nearest; `share` 0 to 1. Raises ValueError when there is no value."""
    ordered = sorted(values)
    if not ordered:
        raise ValueError("no values")
    place = share * (len(ordered) - 1)
    below, above = ordered[math.floor(place)], ordered[math.ceil(place)]
    return below + (above - below) * (place - math.floor(place))


def spread(values: Sequence[float]) -> Spread:
    return Spread(percentile(values, 0.5), percentile(values, 0.95))


def first_token(trace: Trace) -> float:
    """Seconds from sending to the first text."""
    return trace.times[0] - trace.sent


def gaps(trace: Trace) -> list[float]:
    """Seconds between one piece of text and the next."""
    return [after - before for before, after in pairwise(trace.times)]


def prefill_rate(wave: Sequence[Trace]) -> float | None:
    """Prompt tokens a second; None when the server does not count them."""
    computed = sum(trace.prompt_tokens - (trace.cached_tokens or 0) for trace in wave)
    seconds = max(trace.times[0] for trace in wave) - min(trace.sent for trace in wave)
    return computed / seconds if computed > 0 and seconds > 0 else None


def decode_rate(wave: Sequence[Trace]) -> float | None:
    """Tokens a second of all streams together; None for answers of one token, or that came at once."""
    tokens = sum(trace.completion_tokens - 1 for trace in wave)
    seconds = max(trace.times[-1] for trace in wave) - min(trace.times[0] for trace in wave)
    return tokens / seconds if tokens > 0 and seconds > 0 else None


def steady_rate(wave: Sequence[Trace]) -> float | None:
    """Pieces of text a second of all streams together, while all of them run: from the last one's first to the first one's last.
    None when they never do."""
    begin, end = max(trace.times[0] for trace in wave), min(trace.times[-1] for trace in wave)
    pieces = sum(begin < moment <= end for trace in wave for moment in trace.times)
    return pieces / (end - begin) if end > begin else None


def figures(waves: Sequence[Sequence[Trace]]) -> Figures:
    """`waves`: at least one, each of at least one trace with text."""
    traces = [trace for wave in waves for trace in wave]
    pauses = [pause for trace in traces for pause in gaps(trace)]
    cached = [trace.cached_tokens for trace in traces if trace.cached_tokens is not None]
    return Figures(
        concurrency=len(waves[0]),
        requests=len(traces),
        prompt_tokens=sum(trace.prompt_tokens for trace in traces),
        cached_tokens=sum(cached) if cached else None,
        completion_tokens=sum(trace.completion_tokens for trace in traces),
        prefill_tokens_per_second=_median(prefill_rate(wave) for wave in waves),
        decode_tokens_per_second=_median(decode_rate(wave) for wave in waves),
        time_to_first_token=spread([first_token(trace) for trace in traces]),
        inter_token=spread(pauses) if pauses else None,
    )


def _median(rates: Iterable[float | None]) -> float | None:
    known = [rate for rate in rates if rate is not None]
    return median(known) if known else None
