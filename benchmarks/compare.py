"""Runs the same workloads against this server and its peers, alternating, and writes results.json and RESULTS.md.

python -m benchmarks.compare                       # everything, less than half an hour on two cores
python -m benchmarks.compare --quick               # the small model, two samples each: some minutes
python -m benchmarks.compare --only prefix,stall   # these parts anew; the others stay as they are in results.json
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import datetime
import json
import os
import platform
import secrets
import shlex
import sys
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from benchmarks import environments, make_model, measures, results
from benchmarks.environments import Environment
from benchmarks.measures import Lengths
from benchmarks.servers import Server, Setup, check_platform, started

HERE = Path(__file__).parent
PARTS = ("decode", "engine", "prefix", "stall", "memory")
ANSWERS = {"135M": 96, "500M": 48}
LENGTHS = Lengths(answer=64, prefix=2000, long_prompt=4000, idle_pieces=80)
SHARING = 8
MOST_OF_ONE = 8
"""Streams: more would only wait for each other at a server of one sequence."""
SHORT, LONG = 1024, 4608  # tokens of a slot
STREAMS = "1,8,16"
MANY, FEW = 16, 8  # slots


@dataclass(frozen=True)
class Run:
    """What was asked for, and with what."""

    sides: tuple[Environment, ...]
    models: dict[str, Path]
    streams: tuple[int, ...]
    repeats: int
    threads: int
    spin: str | None
    logs: Path

    def samples(self, model: str) -> int:
        """Fewer of the large model, whose samples take three times as long."""
        return self.repeats if model == next(iter(self.models)) else max(2, self.repeats - 2)

    @contextlib.asynccontextmanager
    async def servers(self, model: str, slots: int, context: int, names: tuple[str, ...]) -> AsyncIterator[list[Server]]:
        """The servers of these names, loaded and idle."""
        setup = Setup(self.models[model], slots, context, self.threads)
        async with contextlib.AsyncExitStack() as stack:
            running = []
            for side in self.sides:
                if side.name in names:
                    log = self.logs / f"{side.name}-{model}.log"
                    running.append(
                        await stack.enter_async_context(started(side, setup, log, measures.environment(side, self.spin)))
                    )
            yield running

    async def alternate(
        self, servers: list[Server], sample: Callable[[Server, str], Awaitable[dict[str, Any]]], repeats: int
    ) -> dict[str, list[dict[str, Any]]]:
        """So many samples of each server, in turn, each with text of its own, while the others are stopped."""
        found: dict[str, list[dict[str, Any]]] = {server.name: [] for server in servers}
        for _ in range(repeats):
            for server in servers:
                for other in servers:
                    await other.settle()
                with contextlib.ExitStack() as stack:
                    for other in servers:
                        if other is not server:
                            stack.enter_context(other.asleep())
                    found[server.name].append(await sample(server, secrets.token_hex(8)))
        return found


def say(text: str) -> None:
    print(f"{datetime.datetime.now():%H:%M:%S} {text}", file=sys.stderr, flush=True)


ALL = (results.US, *results.PEERS)
BOTH = (results.US, results.SERVER)


async def decode(run: Run) -> dict[str, Any]:
    """Throughput of all servers, with the bare loops between; and what they took of memory by then."""
    models: dict[str, Any] = {}
    memory: dict[str, Any] = {}
    sides: dict[str, Any] = {}
    for model in run.models:
        async with run.servers(model, MANY, SHORT, ALL) as servers:
            loaded = {server.name: server.memory() for server in servers}
            streams = {}
            for count in run.streams:
                say(f"decode: {model}, {count} streams")
                sample = partial(measures.decode, streams=count, answer=ANSWERS[model])
                able = [server for server in servers if count <= MOST_OF_ONE or server.name != results.PYTHON]
                streams[str(count)] = await run.alternate(able, sample, run.samples(model))
            memory[model] = {server.name: {"loaded": loaded[server.name], "used": server.memory()} for server in servers}
        controls, sides = await asyncio.to_thread(control, run, model)
        models[model] = {"streams": streams, "controls": controls}
    about = {"slots": MANY, "context": SHORT}
    return {"decode": {"about": about, "models": models, "sides": sides}, "memory": {"about": about, "models": memory}}


def control(run: Run, model: str) -> tuple[dict[str, Any], dict[str, Any]]:
    """Rates of the bare loops by number of sequences and side; and what each side's libllama says of itself."""
    controls: dict[str, Any] = {str(count): {side.name: [] for side in run.sides} for count in run.streams}
    sides = {}
    for _ in range(run.samples(model)):
        for side in run.sides:
            say(f"bare loop: {model}, {side.name}")
            found = measures.control(side, run.models[model], run.streams, SHORT, run.threads, run.spin)
            sides[side.name] = {"ggml": found["ggml"], "features": found["features"]}
            for count, rate in found["rates"].items():
                controls[count][side.name].append(rate)
    return controls, sides


async def engine(run: Run) -> dict[str, Any]:
    models: dict[str, list[Any]] = {}
    for model, path in run.models.items():
        for _ in range(run.samples(model)):
            say(f"engine alone: {model}")
            found = await asyncio.to_thread(measures.engine, path, (1, 8), run.threads)
            models.setdefault(model, []).append(found["sequences"])
    return {"engine": {"about": {}, "models": models}}


async def prefix(run: Run) -> dict[str, Any]:
    say("shared prefix")
    async with run.servers("135M", FEW, LONG, BOTH) as servers:
        found = await run.alternate(servers, partial(measures.prefix, requests=SHARING, shared=LENGTHS.prefix), run.repeats)
    return {"prefix": {"about": {"requests": SHARING, "prefix": LENGTHS.prefix}, "models": {"135M": found}}}


async def stall(run: Run) -> dict[str, Any]:
    say("a long prompt among streams")
    async with run.servers("135M", FEW, LONG, BOTH) as servers:
        found = await run.alternate(servers, partial(measures.stall, lengths=LENGTHS), run.repeats)
    return {"stall": {"about": {"streams": measures.STREAMS, "prompt": LENGTHS.long_prompt}, "models": {"135M": found}}}


RUNNERS = {"decode": decode, "memory": decode, "engine": engine, "prefix": prefix, "stall": stall}


async def run_parts(run: Run, wanted: list[str], keep: Callable[[dict[str, Any]], None]) -> None:
    """`keep` gets each part as soon as it is there."""
    for runner in dict.fromkeys(RUNNERS[part] for part in wanted):
        keep(await runner(run))


# --- the command -------------------------------------------------------------------------------------------------------------


def parts_of(text: str) -> list[str]:
    wanted = text.split(",")
    if unknown := set(wanted) - set(PARTS):
        raise argparse.ArgumentTypeError(f"{', '.join(sorted(unknown))}: the parts are {', '.join(PARTS)}")
    return wanted


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.compare", description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--quick", action="store_true", help="the small model only, two samples")
    parser.add_argument(
        "--only", type=parts_of, default=list(PARTS), help=f"of {','.join(PARTS)} (decode and memory are one run)"
    )
    parser.add_argument("--models", default=",".join(make_model.SHAPES), help="which of the models")
    parser.add_argument("--repeats", type=int, help="samples of each figure (5; --quick 2)")
    parser.add_argument("--streams", default=STREAMS, help=f"of the decode part ({STREAMS})")
    parser.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)), help="of every side (one for each core)")
    parser.add_argument(
        "--folder", type=Path, default=HERE.parent / "build" / "benchmarks", help="for models, environments and logs"
    )
    parser.add_argument(
        "--llama-cpp-wheel", type=Path, help="a wheel of llama-cpp-python for its environment; else pip builds it"
    )
    parser.add_argument("--spin-count", help="GOMP_SPINCOUNT of the peers (libgomp's own; llmgallery sets 10000 for itself)")
    parser.add_argument("--output", type=Path, default=HERE, help="the folder of results.json and RESULTS.md")
    return parser.parse_args()


def prepared(given: argparse.Namespace) -> Run:
    """With models and environments made, where they are not there yet."""
    models = {}
    for name, shape in make_model.SHAPES.items():
        if (given.quick and name != "135M") or name not in given.models.split(","):
            continue
        models[name] = given.folder.resolve() / "models" / f"{name}.gguf"
        if not models[name].exists():
            say(f"writing {models[name]}")
            make_model.write(models[name], shape)
    folder = given.folder.resolve() / "environments"
    sides = (environments.own(), environments.xllamacpp(folder), environments.llama_cpp_python(folder, given.llama_cpp_wheel))
    logs = given.folder.resolve() / "logs"
    logs.mkdir(parents=True, exist_ok=True)
    streams = tuple(map(int, given.streams.split(",")))
    return Run(sides, models, streams, given.repeats or (2 if given.quick else 5), given.threads, given.spin_count, logs)


def merged(before: dict[str, Any], found: dict[str, Any], about: dict[str, Any]) -> dict[str, Any]:
    """What a run found of a model in place of what earlier ones did; `about` says how it was made."""
    parts = dict(before.get("parts", {}))
    for name, part in found.items():
        earlier = parts.get(name, {})
        made = {**earlier.get("made", {}), **dict.fromkeys(part["models"], about)}
        parts[name] = {**part, "models": {**earlier.get("models", {}), **part["models"]}, "made": made}
    return {"parts": {name: parts[name] for name in PARTS if name in parts}}


def save(folder: Path, found: dict[str, Any], about: dict[str, Any]) -> None:
    raw = folder / "results.json"
    before = json.loads(raw.read_text(encoding="utf-8")) if raw.exists() else {}
    data = merged(before, found, about)
    folder.mkdir(parents=True, exist_ok=True)
    raw.write_text(json.dumps(data, indent=1) + "\n", encoding="utf-8")
    (folder / "RESULTS.md").write_text(results.render(data), encoding="utf-8")


def command(given: argparse.Namespace) -> str:
    """How the same can be done again: what shapes the figures, without this machine's folders."""
    flags = ["--quick"] * given.quick
    if given.only != list(PARTS):
        flags += ["--only", ",".join(given.only)]
    for flag in ("models", "repeats", "streams", "threads", "spin_count"):
        if (value := getattr(given, flag)) not in (None, STREAMS, ",".join(make_model.SHAPES)):
            flags += [f"--{flag.replace('_', '-')}", str(value)]
    return shlex.join(["python", "-m", "benchmarks.compare", *flags])


def machine() -> str:
    """The processor, by /proc/cpuinfo where it says so."""
    lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return f"{len(os.sched_getaffinity(0))} cores of {names[0] if names else platform.machine()}"


def main() -> None:
    check_platform()
    given = arguments()
    run = prepared(given)
    about = {
        "command": command(given),
        "date": f"{datetime.date.today():%Y-%m-%d}",
        "repeats": run.repeats,
        "threads": run.threads,
        "machine": machine(),
    }
    asyncio.run(run_parts(run, given.only, lambda found: save(given.output, found, about)))
    say(f"written: {given.output / 'RESULTS.md'}")


if __name__ == "__main__":
    main()
