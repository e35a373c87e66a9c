"""What is counted, for Prometheus. Knows no model, worker or route: whoever does something says so here."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Protocol

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.exposition import CONTENT_TYPE_LATEST, generate_latest
from prometheus_client.registry import Collector

from llmgallery.core.events import Usage

CONTENT_TYPE = CONTENT_TYPE_LATEST
SECONDS = (0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120, 300, 600)
STATES = ("unloaded", "downloading", "loading", "ready", "failed")


class StepFacts(Protocol):
    """What a worker last said of its engine."""

    @property
    def step(self) -> int: ...
    @property
    def sequences(self) -> int: ...
    @property
    def most_sequences(self) -> int: ...
    @property
    def waiting(self) -> int: ...
    @property
    def tokens(self) -> int: ...
    @property
    def guessed(self) -> int: ...
    @property
    def met(self) -> int: ...


class ModelFacts(Protocol):
    """What is known of one model when somebody looks."""

    @property
    def name(self) -> str: ...
    @property
    def state(self) -> str: ...
    @property
    def busy(self) -> int: ...
    @property
    def memory_bytes(self) -> int: ...
    @property
    def stats(self) -> StepFacts | None: ...


class InstallFacts(Protocol):
    """What is known of one install or removal when somebody looks."""

    @property
    def asked(self) -> str: ...
    @property
    def name(self) -> str | None: ...
    @property
    def phase(self) -> str: ...
    @property
    def is_over(self) -> bool: ...
    @property
    def done_bytes(self) -> int: ...
    @property
    def total_bytes(self) -> int | None: ...


class Metrics:
    """One server's counters, in a registry of their own: two servers in a process do not mix."""

    def __init__(self) -> None:
        self._registry = CollectorRegistry()
        registry = self._registry
        self._http = Counter(
            "llmgallery_http_requests", "HTTP requests answered", ("method", "route", "status"), registry=registry
        )
        self._http_seconds = Histogram(
            "llmgallery_http_request_seconds",
            "From the request to the end of its answer",
            ("route",),
            buckets=SECONDS,
            registry=registry,
        )
        self._outcomes = Counter(
            "llmgallery_generations",
            "Generations that ended; outcome: ok, cancelled, or the kind of error",
            ("model", "outcome"),
            registry=registry,
        )
        self._open = Gauge("llmgallery_generations_in_progress", "Generations that run now", ("model",), registry=registry)
        self._seconds = Histogram(
            "llmgallery_generation_seconds",
            "A generation from its start to its end",
            ("model",),
            buckets=SECONDS,
            registry=registry,
        )
        self._first = Histogram(
            "llmgallery_time_to_first_token_seconds",
            "From the start of a generation, loading included, to its first text",
            ("model",),
            buckets=SECONDS,
            registry=registry,
        )
        self._tokens = Counter(
            "llmgallery_tokens",
            "Tokens of ended generations; kind: prompt, completion, cached",
            ("model", "kind"),
            registry=registry,
        )

    def http(self, method: str, route: str, status: int, seconds: float) -> None:
        """An HTTP request was answered. `route` is the pattern, never the path: its values must stay few."""
        self._http.labels(method, route, str(status)).inc()
        self._http_seconds.labels(route).observe(seconds)

    def began(self, model: str) -> None:
        self._open.labels(model).inc()

    def first_text(self, model: str, seconds: float) -> None:
        self._first.labels(model).observe(seconds)

    def ended(self, model: str, outcome: str, seconds: float, usage: Usage) -> None:
        """Once for each `began`."""
        self._open.labels(model).dec()
        self._outcomes.labels(model, outcome).inc()
        self._seconds.labels(model).observe(seconds)
        self._tokens.labels(model, "prompt").inc(usage.prompt_tokens)
        self._tokens.labels(model, "completion").inc(usage.completion_tokens)
        self._tokens.labels(model, "cached").inc(usage.cached_tokens)

    def watch(
        self, states: Callable[[], Sequence[ModelFacts]], restarts: Callable[[], int], evictions: Callable[[], int]
    ) -> None:
        """Ask these at each scrape: whoever owns the state is never told by us."""
        self._registry.register(_Models(states, restarts, evictions))

    def watch_installs(self, installs: Callable[[], Sequence[InstallFacts]], phases: Sequence[str]) -> None:
        """Ask this at each scrape. `phases`: all that there are, so that none is missing while nothing is in it."""
        self._registry.register(_Installs(installs, phases))

    def text(self) -> bytes:
        """The exposition, in CONTENT_TYPE."""
        return generate_latest(self._registry)


class _Models(Collector):
    def __init__(
        self, states: Callable[[], Sequence[ModelFacts]], restarts: Callable[[], int], evictions: Callable[[], int]
    ) -> None:
        self._states = states
        self._restarts = restarts
        self._evictions = evictions

    def describe(self) -> Iterable[Metric]:
        return []  # else registering would already ask for the states

    def collect(self) -> Iterator[Metric]:
        models = self._states()
        yield _count("llmgallery_worker_restarts", "Workers started again after the death of one", self._restarts())
        yield _count("llmgallery_evictions", "Models unloaded to make room for another", self._evictions())
        state = GaugeMetricFamily("llmgallery_model_state", "1 for the state the model is in", labels=("model", "state"))
        for model in models:
            for name in STATES:
                state.add_metric((model.name, name), float(model.state == name))
        yield state
        loaded = GaugeMetricFamily("llmgallery_models_loaded", "Models that are ready")
        loaded.add_metric((), sum(model.state == "ready" for model in models))
        yield loaded
        yield _gauge("llmgallery_model_busy", "Requests that hold the model", [(m.name, m.busy) for m in models])
        yield _gauge("llmgallery_model_memory_bytes", "Memory the model takes", [(m.name, m.memory_bytes) for m in models])
        yield from _engine([(model.name, model.stats) for model in models if model.stats is not None])


class _Installs(Collector):
    def __init__(self, installs: Callable[[], Sequence[InstallFacts]], phases: Sequence[str]) -> None:
        self._installs = installs
        self._phases = phases

    def describe(self) -> Iterable[Metric]:
        return []

    def collect(self) -> Iterator[Metric]:
        installs = self._installs()
        found = GaugeMetricFamily(
            "llmgallery_installs",
            "Installs and removals by phase; those that ended for as long as they are listed",
            labels=("phase",),
        )
        for phase in self._phases:
            found.add_metric((phase,), sum(install.phase == phase for install in installs))
        yield found
        # Two jobs may be about one model, and a sample's labels must be its own: the newest counts.
        running = {install.name or install.asked: install for install in installs if not install.is_over}
        here = [(name, install.done_bytes) for name, install in running.items()]
        whole = [(name, install.total_bytes or 0) for name, install in running.items()]
        yield _gauge("llmgallery_install_bytes", "Bytes that are here of a model that is being installed", here)
        yield _gauge("llmgallery_install_total_bytes", "Bytes of a model that is being installed; 0 = not known yet", whole)


def _engine(stats: Sequence[tuple[str, StepFacts]]) -> Iterator[Metric]:
    yield _counter("llmgallery_engine_steps", "Engine steps since the load", [(name, s.step) for name, s in stats])
    yield _counter("llmgallery_engine_tokens", "Tokens computed since the load", [(name, s.tokens) for name, s in stats])
    yield _counter("llmgallery_engine_guessed_tokens", "Guesses checked since the load", [(name, s.guessed) for name, s in stats])
    yield _counter("llmgallery_engine_met_tokens", "Guesses that were met", [(name, s.met) for name, s in stats])
    yield _gauge("llmgallery_engine_sequences", "Sequences in the last decode", [(name, s.sequences) for name, s in stats])
    yield _gauge(
        "llmgallery_engine_most_sequences",
        "Most sequences in one decode since the load",
        [(name, s.most_sequences) for name, s in stats],
    )
    yield _gauge("llmgallery_engine_waiting", "Requests that wait for a slot", [(name, s.waiting) for name, s in stats])


def _count(name: str, text: str, value: int) -> Metric:
    family = CounterMetricFamily(name, text)
    family.add_metric((), value)
    return family


def _counter(name: str, text: str, values: Iterable[tuple[str, int]]) -> Metric:
    family = CounterMetricFamily(name, text, labels=("model",))
    for model, value in values:
        family.add_metric((model,), value)
    return family


def _gauge(name: str, text: str, values: Iterable[tuple[str, int]]) -> Metric:
    family = GaugeMetricFamily(name, text, labels=("model",))
    for model, value in values:
        family.add_metric((model,), value)
    return family
