"""The engine without HTTP, beside a bare llama_decode loop of the same batch; and how much of its time is Python's.

python -m benchmarks.engine MODEL --sequences 1,8 --threads 2
"""

from __future__ import annotations

import argparse
import json
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from benchmarks import control
from llmgallery.backends.base import Files, Job, Output, Pooled, StepStats
from llmgallery.backends.llamacpp.backend import LlamaCppBackend
from llmgallery.config.model import ModelConfig, Parameters
from llmgallery.core.sampling import Sampling

WARM_UP = 8  # steps
WAIT_SECONDS = 300.0
SAMPLINGS = {
    "sampled": Sampling(temperature=0.8, top_k=40, top_p=0.95, min_p=0.05, repeat_penalty=1.0, seed=1),
    "greedy": Sampling(temperature=0.0),
}

BARE = {"bare": {control.FLASH_ATTENTION: 0}, "bare_default": control.NO_CHANGES}
"""Loops without an engine: attending as the engine chooses on a CPU, and as llama.cpp does by itself."""
KINDS = (*BARE, *SAMPLINGS)


@dataclass
class Clock:
    """Seconds spent in llama.cpp, by function."""

    spent: dict[str, float] = field(default_factory=dict)

    @property
    def total(self) -> float:
        return sum(self.spent.values())

    def timed(self, name: str, function: Callable[..., Any]) -> Callable[..., Any]:
        self.spent[name] = 0.0
        spent, now = self.spent, time.perf_counter

        def call(*arguments: Any) -> Any:
            began = now()
            try:
                return function(*arguments)
            finally:
                spent[name] += now() - began

        return call

    def wrap(self, bindings: Any) -> None:
        """Every llama_* function that is called through llama-cpp-python's bindings, from now on."""
        for name, function in vars(bindings).copy().items():
            if name.startswith("llama_") and hasattr(function, "argtypes"):
                setattr(bindings, name, self.timed(name, function))


@dataclass
class Watch:
    """The backend's Emit: when each step that decoded one token of every sequence ended, and llama.cpp's seconds by then."""

    sequences: int
    clock: Clock
    steps: list[tuple[float, float]] = field(default_factory=list)
    open: int = 0
    done: threading.Event = field(default_factory=threading.Event)
    error: str = ""

    def __post_init__(self) -> None:
        self.open = self.sequences

    def step(self, outputs: Sequence[Output], stats: StepStats) -> None:
        if stats.sequences == stats.tokens == self.sequences:
            self.steps.append((time.perf_counter(), self.clock.total))
        for output in outputs:
            if output.finish is not None:
                self.open -= 1
                self.error = self.error or output.message
        if self.open == 0:
            self.done.set()

    def progress(self, fraction: float) -> None: ...
    def pooled(self, result: Pooled) -> None: ...

    def fatal(self, error: BaseException) -> None:
        self.error = f"{type(error).__name__}: {error}"
        self.done.set()


@dataclass(frozen=True)
class Measured:
    """`rate`: tokens a second of all sequences together. `python_share`: of a step's time, what was not spent in llama.cpp."""

    rate: float
    python_share: float


def run(model: Path, sampling: Sampling, sequences: int, clock: Clock, given: argparse.Namespace) -> Measured:
    """Raises RuntimeError when the engine tells an error."""
    watch, backend = Watch(sequences, clock), LlamaCppBackend()
    config = ModelConfig(
        name="model",
        parallel=sequences,
        context_size=given.context,
        threads=given.threads,
        parameters=Parameters(batch=control.BATCH),
    )
    backend.load(config, Files(weights=(model,)), watch)
    try:
        for sequence in range(sequences):
            prompt = [300 + place + sequence for place in range(control.PROMPT)]
            limit = Sampling(max_tokens=given.steps + WARM_UP, ignore_eos=False)
            backend.submit(Job(sequence, prompt, limit.over(sampling)))
        if not watch.done.wait(WAIT_SECONDS) or watch.error:
            raise RuntimeError(watch.error or "the engine did not end in time")
    finally:
        backend.close()
    return measured(watch.steps[WARM_UP // 2 :], sequences)


def measured(steps: Sequence[tuple[float, float]], sequences: int) -> Measured:
    """From the times at which steps ended, and llama.cpp's seconds by then. Raises RuntimeError when there are too few."""
    if len(steps) < 2 or steps[-1][1] <= steps[0][1]:
        raise RuntimeError(f"nothing to measure: {len(steps)} steps, of which llama.cpp's share is unknown")
    (began, before), (ended, after) = steps[0], steps[-1]
    seconds = ended - began
    return Measured(sequences * (len(steps) - 1) / seconds, 1 - (after - before) / seconds)


def bare(library: Any, model: Any, sequences: int, given: argparse.Namespace, changes: Mapping[int, int]) -> float:
    return control.decode_rate(library, model, sequences, given.context, given.threads, given.steps, changes)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("model", type=Path)
    parser.add_argument("--sequences", default="1,8")
    parser.add_argument(
        "--kinds", default=",".join(KINDS), help="what is measured; one alone is not slowed down by the others' threads"
    )
    parser.add_argument("--context", type=int, default=1024, help="tokens of each sequence")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--steps", type=int, default=96)
    given = parser.parse_args()
    # Not above: our own bindings come first, as they set the environment that llama.cpp's threads read when they are loaded.
    from llama_cpp import llama_cpp as bindings

    file, clock = given.model.resolve(), Clock()
    library = control.bind(Path(bindings._lib._name))
    clock.wrap(bindings)
    found: dict[str, dict[str, float]] = {}
    for count in map(int, given.sequences.split(",")):
        found[str(count)] = rates = {}
        for kind in given.kinds.split(","):
            if kind in BARE:
                model = library.llama_model_load_from_file(bytes(file), library.llama_model_default_params())
                rates[kind] = bare(library, model, count, given, BARE[kind])
                library.llama_model_free(model)
                continue
            measured = run(file, SAMPLINGS[kind], count, clock, given)
            rates[kind] = measured.rate
            if kind == "sampled":
                rates["python_share"] = measured.python_share
    costly = sorted(clock.spent.items(), key=lambda item: -item[1])
    print(json.dumps({"sequences": found, "spent": {name: seconds for name, seconds in costly[:8] if seconds > 0}}))


if __name__ == "__main__":
    main()
