"""The exposition is read back by Prometheus' own parser."""

from __future__ import annotations

from types import SimpleNamespace
from typing import get_args

from prometheus_client.parser import text_string_to_metric_families

from llmgallery.core.events import Usage
from llmgallery.core.installs import FileProgress, Install, Phase
from llmgallery.metrics import CONTENT_TYPE, Metrics


def samples(metrics: Metrics) -> dict[tuple[str, ...], float]:
    return {
        (sample.name, *(sample.labels[label] for label in sorted(sample.labels))): sample.value
        for family in text_string_to_metric_families(metrics.text().decode())
        for sample in family.samples
    }


def test_generations_are_counted_by_model_and_outcome() -> None:
    metrics = Metrics()
    metrics.began("a")
    metrics.began("a")
    metrics.first_text("a", 0.3)
    metrics.ended("a", "ok", 1.5, Usage(10, 5, 2))
    seen = samples(metrics)
    assert seen["llmgallery_generations_in_progress", "a"] == 1
    assert seen["llmgallery_generations_total", "a", "ok"] == 1
    assert [seen["llmgallery_tokens_total", kind, "a"] for kind in ("prompt", "completion", "cached")] == [10, 5, 2]
    assert seen["llmgallery_time_to_first_token_seconds_bucket", "0.25", "a"] == 0
    assert seen["llmgallery_time_to_first_token_seconds_bucket", "0.5", "a"] == 1
    assert seen["llmgallery_generation_seconds_sum", "a"] == 1.5


def test_models_are_asked_at_each_scrape() -> None:
    stats = SimpleNamespace(step=9, sequences=2, most_sequences=4, waiting=1, tokens=70, guessed=20, met=15)
    models = [
        SimpleNamespace(name="a", state="ready", busy=2, memory_bytes=1000, stats=stats),
        SimpleNamespace(name="b", state="failed", busy=0, memory_bytes=0, stats=None),
    ]
    restarts = [0]
    metrics = Metrics()
    metrics.watch(lambda: models, lambda: restarts[0], lambda: 3)
    restarts[0] = 7
    seen = samples(metrics)
    assert seen[("llmgallery_worker_restarts_total",)] == 7
    assert seen[("llmgallery_evictions_total",)] == 3
    assert seen[("llmgallery_models_loaded",)] == 1
    assert seen["llmgallery_model_state", "b", "failed"] == 1
    assert seen["llmgallery_model_state", "b", "ready"] == 0
    assert seen["llmgallery_model_busy", "a"] == 2
    assert seen["llmgallery_model_memory_bytes", "a"] == 1000
    assert seen["llmgallery_engine_steps_total", "a"] == 9
    assert seen["llmgallery_engine_most_sequences", "a"] == 4
    assert (seen["llmgallery_engine_guessed_tokens_total", "a"], seen["llmgallery_engine_met_tokens_total", "a"]) == (20, 15)
    assert ("llmgallery_engine_steps_total", "b") not in seen
    models.clear()
    assert ("llmgallery_model_busy", "a") not in samples(metrics)


def test_two_servers_do_not_mix() -> None:
    one, two = Metrics(), Metrics()
    one.http("GET", "/v1/models", 200, 0.1)
    assert ("llmgallery_http_requests_total", "GET", "/v1/models", "200") in samples(one)
    assert ("llmgallery_http_requests_total", "GET", "/v1/models", "200") not in samples(two)
    assert CONTENT_TYPE.startswith("text/plain")


def test_installs_by_phase_and_the_bytes_of_those_that_run() -> None:
    metrics = Metrics()
    here = (FileProgress("a", 10, 40), FileProgress("b", 5, 60))
    jobs = [
        Install("1", "qwen", "done", "qwen", files=here),
        Install("2", "gallery@qwen", "downloading", "qwen", files=here),
        Install("3", "owner/repo", "planning"),
    ]
    metrics.watch_installs(lambda: jobs, get_args(Phase))
    seen = samples(metrics)
    counts = {phase: seen["llmgallery_installs", phase] for phase in get_args(Phase)}
    assert {phase: count for phase, count in counts.items() if count} == {"done": 1, "downloading": 1, "planning": 1}
    assert seen["llmgallery_install_bytes", "qwen"] == 15
    assert seen["llmgallery_install_total_bytes", "qwen"] == 100
    assert seen["llmgallery_install_total_bytes", "owner/repo"] == 0  # not known yet
