"""A folder of many model files: how soon the server listens, lists them, and sees that one has changed.

python -m benchmarks.folder --models 10000 --repeats 5
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from statistics import median
from typing import Any

import httpx

from benchmarks.results import table

HERE = Path(__file__).parent
DEADLINE = 60.0
GOALS = {"start": 2.0, "ready": None, "list": 0.1, "change": 1.0}
MEANING = {
    "start": "from starting the command until it answers /healthz",
    "ready": "until /readyz says that the folder has been read",
    "list": "GET /v1/models, all models, the median of 20",
    "change": "from writing one file anew until /v1/models shows it",
}
BODY = """\
name: model-{number}
description: {words}
backend: echo
aliases: [m{number}, "team-{number}/chat"]
context_size: {context}
system_prompt: You are assistant number {number}.
parameters:
  temperature: 0.{digit}
  top_p: 0.95
  max_tokens: 512
stopwords: ["</s>", "<|im_end|>"]
"""


def write(folder: Path, count: int) -> None:
    for number in range(count):
        text = BODY.format(number=number, words=f"model number {number}", context=1024 * (1 + number % 8), digit=number % 10)
        (folder / f"model-{number:05d}.yaml").write_text(text, encoding="utf-8")


@contextlib.contextmanager
def serving(folder: Path) -> Iterator[tuple[httpx.Client, float, float]]:
    """A server over the folder: a client, and the seconds it took to start and to be ready."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [sys.executable, "-m", "llmgallery", "serve", "--port", str(port), "--models-dir", str(folder)]
    environment = {name: value for name, value in os.environ.items() if not name.startswith("LLMGALLERY_")}
    began = time.perf_counter()
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, env=environment)
    try:
        with httpx.Client(base_url=f"http://127.0.0.1:{port}", timeout=DEADLINE, trust_env=False) as client:
            started = until(lambda: answers(client, "/healthz")) - began
            yield client, started, until(lambda: answers(client, "/readyz")) - began
    finally:
        process.terminate()
        process.wait(DEADLINE)


def answers(client: httpx.Client, path: str) -> bool:
    try:
        return client.get(path).is_success
    except httpx.TransportError:
        return False


def until(holds: Callable[[], bool]) -> float:
    """The moment at which it holds. Raises TimeoutError."""
    end = time.perf_counter() + DEADLINE
    while time.perf_counter() < end:
        if holds():
            return time.perf_counter()
        time.sleep(0.02)
    raise TimeoutError("the server does not come so far")


def sample(folder: Path, count: int, salt: int) -> dict[str, float]:
    with serving(folder) as (client, started, ready):
        names = {model["id"] for model in client.get("/v1/models").json()["data"]}
        if missing := count - sum(name.startswith("model-") for name in names):
            raise RuntimeError(f"{missing} of {count} models are not listed")
        times = []
        for _ in range(20):
            began = time.perf_counter()
            client.get("/v1/models").raise_for_status()
            times.append(time.perf_counter() - began)
        changed = folder / "model-00007.yaml"
        text = f"changed {salt}"
        changed.write_text(BODY.format(number=7, words=text, context=1024, digit=7), encoding="utf-8")
        began = time.perf_counter()
        seen = until(lambda: description(client, "model-7") == text) - began
    return {"start": started, "ready": ready, "list": median(times), "change": seen}


def description(client: httpx.Client, name: str) -> str | None:
    models: list[dict[str, Any]] = client.get("/v1/models").json()["data"]
    return next((model.get("description") for model in models if model["id"] == name), None)


def render(data: dict[str, Any]) -> str:
    """FOLDER.md. `data`: folder.json."""
    rows = []
    for key, goal in GOALS.items():
        found = median(entry[key] for entry in data["samples"])
        rows.append((MEANING[key], f"{found:.3f} s", "-" if goal is None else f"{goal:g} s", verdict(found, goal)))
    return (
        f"# A folder of {data['models']:,} model files\n\n"
        "Written by `python -m benchmarks.folder` from [folder.json](folder.json), with every sample; not edited by hand.\n"
        f"Medians of {len(data['samples'])} starts of the server, files in the system's cache.\n\n"
        + table(("what", "median", "goal", "reached"), rows, numbers=False)
    )


def verdict(found: float, goal: float | None) -> str:
    return "-" if goal is None else "yes" if found <= goal else "**no**"


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--models", type=int, default=10_000)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--output", type=Path, default=HERE, help="the folder of folder.json and FOLDER.md")
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        write(folder, given.models)
        samples = [sample(folder, given.models, salt) for salt in range(given.repeats)]
    data = {"models": given.models, "samples": samples}
    (given.output / "folder.json").write_text(json.dumps(data, indent=1) + "\n", encoding="utf-8")
    (given.output / "FOLDER.md").write_text(render(data), encoding="utf-8")
    print(render(data))


if __name__ == "__main__":
    main()
