"""The one thread that writes to the parent: engine and reader never wait for a full socket."""

from __future__ import annotations

import os
import queue
import threading
import traceback

from llmgallery.wire.channel import ChildChannel
from llmgallery.wire.frames import Report


class Outbox:
    """Frames leave in the order in which `send` was called."""

    def __init__(self, channel: ChildChannel) -> None:
        self._channel = channel
        self._frames: queue.SimpleQueue[Report | threading.Event] = queue.SimpleQueue()
        threading.Thread(target=self._write, name="writer", daemon=True).start()

    def send(self, frame: Report) -> None:
        self._frames.put(frame)

    def flush(self, timeout: float) -> None:
        """Wait until everything sent so far is with the kernel."""
        done = threading.Event()
        self._frames.put(done)
        done.wait(timeout)

    def _write(self) -> None:
        while True:
            frame = self._frames.get()
            if isinstance(frame, threading.Event):
                frame.set()
                continue
            try:
                self._channel.send(frame)
            except OSError:
                os._exit(0)  # the parent is gone
            except Exception:  # noqa: BLE001 - the thread's border: without it the worker would live on and say nothing
                traceback.print_exc()
                os._exit(1)
