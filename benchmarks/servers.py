"""The servers that are compared, each a process of its own, with the same settings."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import IO

import httpx

from benchmarks.environments import Environment
from llmgallery.cli.bench.client import BODY, Client, Target

START_SECONDS = 120.0
STOP_SECONDS = 20.0
SETTLE_SECONDS = 20.0
IDLE_SHARE = 0.1  # of one core
LOOK_SECONDS = 0.2


@dataclass(frozen=True)
class Setup:
    """What all sides are given. `context`: tokens of each slot."""

    model: Path
    slots: int
    context: int
    threads: int
    batch: int = 512

    def fields(self, port: int) -> str:
        return json.dumps({**asdict(self), "model": str(self.model), "port": port})


@dataclass
class Server:
    """A running server, and a client for it."""

    name: str
    process: subprocess.Popen[bytes]
    client: Client

    async def settle(self) -> None:
        """Returns when its processes do nothing any more. Raises RuntimeError."""
        end = time.monotonic() + SETTLE_SECONDS
        while time.monotonic() < end:
            before = self._cpu_seconds()
            await asyncio.sleep(LOOK_SECONDS)
            if self._cpu_seconds() - before < IDLE_SHARE * LOOK_SECONDS:
                return
        raise RuntimeError(f"{self.name} still works {SETTLE_SECONDS:g} s after its last answer")

    @contextlib.contextmanager
    def asleep(self) -> Iterator[None]:
        """Its processes get no time until the block ends: that of an idle server may cost another one more than its own."""
        pids = list(_tree(self.process.pid))
        _signal(pids, signal.SIGSTOP)
        try:
            yield
        finally:
            _signal(pids, signal.SIGCONT)

    def memory(self) -> int:
        """RssAnon in bytes of the process that holds the model: of its processes the one with most."""
        return max(_rss_anon(pid) for pid in _tree(self.process.pid))

    def _cpu_seconds(self) -> float:
        return sum(_cpu_seconds(pid) for pid in _tree(self.process.pid))


def _signal(pids: list[int], number: signal.Signals) -> None:
    for pid in pids:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, number)


def command(side: Environment, setup: Setup, port: int, scratch: Path) -> list[str]:
    """How a server is started on a port."""
    if side.name == "llama-server":
        script = Path(__file__).parent / "xllama_server.py"
        return [str(side.python), str(script), setup.fields(port)]
    if side.name == "llama-cpp-python":
        flags = {
            "model": setup.model,
            "model_alias": "model",
            "n_ctx": setup.context,
            "n_batch": setup.batch,
            "n_ubatch": setup.batch,
            "n_threads": setup.threads,
            "n_threads_batch": setup.threads,
            "flash_attn": True,  # what llama.cpp chooses by itself, and this server does not
            "interrupt_requests": False,
            "host": "127.0.0.1",
            "port": port,
        }
        return [
            str(side.python),
            "-m",
            "llama_cpp.server",
            *(str(part) for key, value in flags.items() for part in (f"--{key}", value)),
        ]
    model = {
        "name": "model",
        "parameters": {"model": str(setup.model), "batch": setup.batch},
        "context_size": setup.context,
        "parallel": setup.slots,
        "threads": setup.threads,
    }
    (scratch / "model.yaml").write_text(json.dumps(model), encoding="utf-8")
    flags_ = ("--models-dir", scratch, "--host", "127.0.0.1", "--port", port, "--keep-alive", "-1", "--watch", "off")
    return [str(side.python), "-m", "llmgallery", "serve", *map(str, flags_)]


@contextlib.asynccontextmanager
async def started(side: Environment, setup: Setup, log: Path, environment: dict[str, str]) -> AsyncIterator[Server]:
    """A server that has loaded its model; ended with the block. Raises RuntimeError with its log's end."""
    port = _free_port()
    with tempfile.TemporaryDirectory() as scratch, log.open("wb") as output:
        arguments = command(side, setup, port, Path(scratch))
        process = _spawn(arguments, output, environment)
        try:
            async with Client(Target(f"http://127.0.0.1:{port}", "model", body=_body(side))) as client:
                await _until_ready(client, process, log)
                yield Server(side.name, process, client)
        finally:
            _stop(process)


def _body(side: Environment) -> dict[str, object]:
    """What every side is asked; llama-cpp-python's server knows no ignore_eos, and the models here never end."""
    return {key: value for key, value in BODY.items() if key != "ignore_eos" or side.name != "llama-cpp-python"}


async def _until_ready(client: Client, process: subprocess.Popen[bytes], log: Path) -> None:
    end = time.monotonic() + START_SECONDS
    async with httpx.AsyncClient(base_url=client.target.base, trust_env=False) as http:
        while time.monotonic() < end and process.poll() is None:
            with contextlib.suppress(httpx.HTTPError):
                if (await http.get("/v1/models", timeout=5)).is_success:
                    await client.count_tokens("ab cd")
                    return
            await asyncio.sleep(0.1)
    state = "does not answer" if process.poll() is None else f"ended with {process.returncode}"
    raise RuntimeError(f"a server {state}; its log ends so:\n{_tail(log)}")


def _spawn(arguments: list[str], output: IO[bytes], environment: dict[str, str]) -> subprocess.Popen[bytes]:
    more = {**os.environ, **environment}
    return subprocess.Popen(arguments, stdin=subprocess.DEVNULL, stdout=output, stderr=output, env=more)


def _tail(log: Path) -> str:
    return log.read_text(encoding="utf-8", errors="replace")[-2000:]


def _stop(process: subprocess.Popen[bytes]) -> None:
    process.terminate()
    try:
        process.wait(STOP_SECONDS)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()


def _free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        return int(listener.getsockname()[1])


# --- /proc -------------------------------------------------------------------------------------------------------------------


def _tree(pid: int) -> Iterator[int]:
    """A process and those that it started, as far as they run."""
    yield pid
    for task in _entries(Path(f"/proc/{pid}/task")):
        with contextlib.suppress(OSError):
            for child in (task / "children").read_text().split():
                yield from _tree(int(child))


def _entries(folder: Path) -> list[Path]:
    try:
        return list(folder.iterdir())
    except OSError:
        return []


def _rss_anon(pid: int) -> int:
    with contextlib.suppress(OSError):
        for line in Path(f"/proc/{pid}/status").read_text().splitlines():
            if line.startswith("RssAnon:"):
                return int(line.split()[1]) * 1024
    return 0


def _cpu_seconds(pid: int) -> float:
    with contextlib.suppress(OSError):
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
        return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")
    return 0.0


def check_platform() -> None:
    """Raises SystemExit where /proc is not what we read."""
    if not sys.platform.startswith("linux"):
        raise SystemExit("benchmarks.compare reads /proc: it runs on Linux only; `llmgallery bench` runs everywhere")
