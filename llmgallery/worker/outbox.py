"""What the worker says to its parent: at once where the kernel takes it, or else through a thread that waits for it."""

from __future__ import annotations

import os
import queue
import threading
import traceback

from llmgallery.wire.channel import ChildChannel, encode
from llmgallery.wire.frames import Report


class Outbox:
    """Frames leave in the order in which `send` was called; it never waits for a full socket.

    A frame is written by the thread that sends it, as long as nothing is left from before: waking another one for each step
    of the engine cost several times as much, of cores that llama.cpp's threads need.
    """

    def __init__(self, channel: ChildChannel) -> None:
        self._channel = channel
        self._lock = threading.Lock()
        self._waiting = 0
        self._rests: queue.SimpleQueue[bytes | threading.Event] = queue.SimpleQueue()
        threading.Thread(target=self._write, name="writer", daemon=True).start()

    def send(self, frame: Report) -> None:
        """From any thread. When the parent is gone, so is this process."""
        try:
            data = encode(frame)
            with self._lock:
                rest = data if self._waiting else self._channel.send_some(data)
                if rest:
                    self._waiting += 1
                    self._rests.put(rest)
        except OSError:
            os._exit(0)  # the parent is gone
        except Exception:  # noqa: BLE001 - a worker that lost a frame would live on with answers that never end
            traceback.print_exc()
            os._exit(1)

    def flush(self, timeout: float) -> None:
        """Wait until everything sent so far is with the kernel."""
        done = threading.Event()
        self._rests.put(done)
        done.wait(timeout)

    def _write(self) -> None:
        while True:
            rest = self._rests.get()
            if isinstance(rest, threading.Event):
                rest.set()
                continue
            try:
                self._channel.send(rest)
            except OSError:
                os._exit(0)
            with self._lock:
                self._waiting -= 1
