"""The command line as a user has it: processes, pipes and a pseudo-terminal."""

from __future__ import annotations

import contextlib
import os
import pty
import re
import select
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

CLI = [sys.executable, "-m", "llmgallery"]
DEADLINE = 30.0


def environment(home: Path, **more: str) -> dict[str, str]:
    """Ours without what the outer shell sets for llmgallery, and with a data folder of the test's own."""
    outer = {key: value for key, value in os.environ.items() if not key.startswith(("LLMGALLERY_", "HF_"))}
    return {**outer, "LLMGALLERY_DATA_DIR": str(home / "data"), "HF_HOME": str(home / "hf"), "COLUMNS": "120", **more}


def llmgallery(*arguments: object, cwd: Path, input: str | None = None, **env: str) -> subprocess.CompletedProcess[str]:
    """Runs a command to its end. Without `input`, stdin is empty."""
    return subprocess.run(
        [*CLI, *map(str, arguments)],
        cwd=cwd,
        env=environment(cwd, **env),
        input=input or "",
        capture_output=True,
        text=True,
        timeout=DEADLINE,
    )


@dataclass
class Server:
    """A running `llmgallery serve`. `said`: stdout up to and with the example command."""

    process: subprocess.Popen[str]
    url: str
    said: str
    log: Path


@contextlib.contextmanager
def serving(folder: Path, *flags: object, **env: str) -> Iterator[Server]:
    """`llmgallery serve` on a free port over `folder`; killed at the end when it still runs."""
    log = folder.parent / "serve.log"
    with log.open("w") as errors:
        process = subprocess.Popen(
            [*CLI, "serve", "--port", "0", "--models-dir", str(folder), *map(str, flags)],
            cwd=folder.parent,
            env=environment(folder.parent, **env),
            stdout=subprocess.PIPE,
            stderr=errors,
            text=True,
        )
    try:
        assert process.stdout is not None
        first = process.stdout.readline()
        found = re.search(r"http://[0-9.]+:\d+", first)
        assert found, log.read_text()
        said = first
        for line in process.stdout:
            said += line
            if line.startswith("  -d "):
                break
        yield Server(process, found.group(), said, log)
    finally:
        if process.poll() is None:
            process.kill()
        process.wait()
        process.stdout.close()


class Terminal:
    """A command at a pseudo-terminal."""

    def __init__(self, *arguments: object, cwd: Path, **env: str) -> None:
        self._master, slave = pty.openpty()
        self.process = subprocess.Popen(
            [*CLI, *map(str, arguments)],
            cwd=cwd,
            env=environment(cwd, **{"TERM": "dumb", **env}),
            stdin=slave,
            stdout=slave,
            stderr=slave,
            start_new_session=True,
            preexec_fn=_own_terminal,
        )
        os.close(slave)
        self._seen = ""

    def type(self, text: str) -> None:
        os.write(self._master, text.encode())

    def until(self, text: str) -> str:
        """All output up to `text`, which must come."""
        end = time.monotonic() + DEADLINE
        while text not in self._seen:
            ready, _, _ = select.select([self._master], [], [], max(0.0, end - time.monotonic()))
            assert ready, f"{text!r} did not come: {self._seen!r}"
            try:
                data = os.read(self._master, 65536)
            except OSError:
                data = b""
            assert data, f"the program ended before {text!r}: {self._seen!r}"
            self._seen += data.decode(errors="replace").replace("\r\n", "\n")
        before, _, self._seen = self._seen.partition(text)
        return before

    def close(self) -> int:
        """Waits for the end; the exit code."""
        try:
            return self.process.wait(DEADLINE)
        finally:
            if self.process.poll() is None:
                self.process.kill()
            os.close(self._master)


def _own_terminal() -> None:
    """Makes stdin the controlling terminal, so that a typed Ctrl-C becomes SIGINT."""
    import fcntl
    import termios

    fcntl.ioctl(0, termios.TIOCSCTTY, 0)
