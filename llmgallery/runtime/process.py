"""A child process and its log: spawned with one end of a socketpair, ended without leaving anything behind."""

from __future__ import annotations

import asyncio
import contextlib
import os
import re
import signal
import socket
from collections import deque
from collections.abc import Mapping

from llmgallery.core.errors import WorkerDied
from llmgallery.runtime.interpreters import Interpreter, own_interpreter
from llmgallery.wire.channel import ParentChannel
from llmgallery.wire.frames import Stop

LOG_LINES = 200
HINT_LINES = 12
CRASH = "Fatal Python error"
STOP_SECONDS = 5.0
SECRET = re.compile(r"TOKEN|SECRET|PASSWORD|PASSWD|CREDENTIAL|_KEYS?$", re.IGNORECASE)


def worker_environment(environment: Mapping[str, str]) -> dict[str, str]:
    """What a worker sees: no keys, and no network through the Hub's libraries."""
    kept = {name: value for name, value in environment.items() if not SECRET.search(name)}
    return {**kept, "HF_HUB_OFFLINE": "1", "PYTHONUNBUFFERED": "1"}


class WorkerProcess:
    """A running child, the channel to it, and its last log lines."""

    def __init__(self, process: asyncio.subprocess.Process, channel: ParentChannel) -> None:
        self._process = process
        self.channel = channel
        self.log: deque[str] = deque(maxlen=LOG_LINES)
        self._drain = asyncio.create_task(self._drain_log(), name=f"log of worker {process.pid}")

    @classmethod
    async def spawn(cls, interpreter: Interpreter | None = None, *, unscrubbed: bool = False) -> WorkerProcess:
        """`interpreter`: another than ours. `unscrubbed`: it sees our whole environment, keys included. Raises OSError when the
        interpreter is not there, or the system has no process or socket left."""
        interpreter = interpreter or own_interpreter()
        environment = {**os.environ, "PYTHONUNBUFFERED": "1"} if unscrubbed else worker_environment(os.environ)
        ours, theirs = socket.socketpair()
        with theirs:
            try:
                process = await asyncio.create_subprocess_exec(
                    interpreter.python,
                    "-P",  # the folder that the server was started in holds no modules of ours
                    "-m",
                    "llmgallery.worker",
                    str(theirs.fileno()),
                    pass_fds=[theirs.fileno()],
                    stdin=asyncio.subprocess.DEVNULL,
                    stdout=asyncio.subprocess.DEVNULL,
                    stderr=asyncio.subprocess.PIPE,
                    env=interpreter.environment(environment),
                    start_new_session=True,  # Ctrl-C in a terminal is the server's to handle
                )
            except BaseException:
                ours.close()
                raise
        try:
            return cls(process, await ParentChannel.open(ours))
        except BaseException:
            ours.close()  # it ends with its connection
            raise

    @property
    def pid(self) -> int:
        return self._process.pid

    async def _drain_log(self) -> None:
        """Always, or a chatty library would block in its write."""
        stream = self._process.stderr
        assert stream is not None
        rest = b""
        while chunk := await stream.read(65536):
            *lines, rest = (rest + chunk).split(b"\n")
            rest = rest[-65536:]  # a progress bar that never ends its line
            self._keep(lines)
        self._keep([rest])

    def _keep(self, lines: list[bytes]) -> None:
        self.log.extend(text for line in lines if (text := line.decode(errors="replace").strip()))

    async def wait(self) -> int:
        """The exit status once the process is gone and its log is read; negative = the signal that ended it."""
        status = await self._process.wait()
        await self._drain
        return status

    async def stop(self) -> None:
        """Returns when the process is gone: asked, then killed."""
        self.channel.send(Stop())
        self.channel.close()  # a worker exits when its parent's end closes, too
        try:
            await asyncio.wait_for(self._process.wait(), STOP_SECONDS)
        except TimeoutError:
            with contextlib.suppress(ProcessLookupError):
                self._process.kill()
            await self._process.wait()
        await self._drain

    def died(self, status: int, name: str) -> WorkerDied:
        """The error of everybody who had a request there."""
        lines = last_words(list(self.log))
        tail = f"; its last words: {lines[0] if lines[0].startswith(CRASH) else lines[-1]}" if lines else ""
        return WorkerDied(f"the process of model {name} ended {describe_status(status)}{tail}", hints=tuple(lines))


def last_words(log: list[str]) -> list[str]:
    """The end of a log; after a native crash, the message and the stack of the thread that crashed."""
    crash = max((index for index, line in enumerate(log) if line.startswith(CRASH)), default=None)
    return log[-HINT_LINES:] if crash is None else log[crash : crash + HINT_LINES]


def describe_status(status: int) -> str:
    """`with exit code 1`, `by signal 11 (SIGSEGV)`; SIGKILL nobody here sent is mostly the system's memory killer."""
    if status >= 0:
        return f"with exit code {status}"
    try:
        name = signal.Signals(-status).name
    except ValueError:
        name = "unknown"
    advice = ": perhaps the system ran out of memory" if -status == signal.SIGKILL else ""
    return f"by signal {-status} ({name}){advice}"
