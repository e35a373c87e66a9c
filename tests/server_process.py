"""The real server as its users start it: `llmgallery serve` in a process of its own."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import threading
from pathlib import Path
from types import TracebackType
from typing import Self

import httpx
from openai import OpenAI

DEADLINE = 60.0
DATA_DIR = "LLMGALLERY_DATA_DIR"


class ServerProcess:
    """Serves `models` on a free port of loopback until the block ends. `environment` is added to this one's."""

    def __init__(self, models: Path, *options: str, environment: dict[str, str] | None = None) -> None:
        self.url = ""
        self._command = [
            *(sys.executable, "-m", "llmgallery", "serve", "--host", "127.0.0.1", "--port", "0"),
            *("--models-dir", str(models), *options),
        ]
        ours = ("LLMGALLERY_", "HF_", "PRELOAD_MODELS")
        clean = {name: value for name, value in os.environ.items() if name == DATA_DIR or not name.startswith(ours)}
        self._environment = {**clean, "HF_HUB_DISABLE_TELEMETRY": "1", **(environment or {})}
        self._output: list[str] = []
        self._served = threading.Event()

    def __enter__(self) -> Self:
        self.process = subprocess.Popen(
            self._command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, env=self._environment
        )
        self._reader = threading.Thread(target=self._read)
        self._reader.start()
        if not self._served.wait(DEADLINE) or not self.url:
            self.kill()
            raise AssertionError(f"the server did not start:\n{self.output}")
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.stop()

    @property
    def output(self) -> str:
        """What it has printed."""
        return "".join(self._output)

    @property
    def client(self) -> OpenAI:
        """The official client, which does not try again by itself."""
        return OpenAI(base_url=f"{self.url}/v1", api_key="none", max_retries=0, timeout=DEADLINE)

    def http(self) -> httpx.Client:
        return httpx.Client(base_url=self.url, timeout=DEADLINE)

    def workers(self) -> dict[int, str]:
        """The processes of its models, and the interpreter that each was started with."""
        shown = subprocess.run(
            ["ps", "-A", "-ww", "-o", "pid=,ppid=,command="], capture_output=True, text=True, check=True
        ).stdout
        rows = [line.split() for line in shown.splitlines() if "llmgallery.worker" in line]
        return {int(pid): command for pid, parent, command, *_ in rows if int(parent) == self.process.pid}

    def stop(self) -> int:
        """Asks it to end, as a service manager does; its exit status."""
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGTERM)
        return self._end()

    def kill(self) -> None:
        """As a crash does: without a chance to tidy up."""
        self.process.kill()
        self._end()

    def _end(self) -> int:
        try:
            status = self.process.wait(DEADLINE)
        except subprocess.TimeoutExpired:
            self.process.kill()
            raise
        self._reader.join(DEADLINE)
        assert self.process.stdout is not None
        self.process.stdout.close()
        return status

    def _read(self) -> None:
        assert self.process.stdout is not None
        for line in self.process.stdout:
            self._output.append(line)
            if not self.url and (found := re.search(r"https?://[\w.:\[\]]+", line)):
                self.url = found.group()
                self._served.set()
        self._served.set()
