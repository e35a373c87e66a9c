"""The manager's record of one load key: a worker, or the memory of one. Only the manager writes it."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Mapping
from typing import Literal

import msgspec

from llmgallery.backends.base import Files
from llmgallery.catalog.index import Entry
from llmgallery.config.model import load_options
from llmgallery.config.units import parse_duration
from llmgallery.core.events import Progress
from llmgallery.runtime.handle import Handle
from llmgallery.runtime.keys import is_shared
from llmgallery.runtime.lease import Board
from llmgallery.runtime.policy import Resident as Facts
from llmgallery.wire.frames import Stats

STABLE_SECONDS = 60.0
FIRST_DELAY = 0.5
LONGEST_DELAY = 60.0

State = Literal["unloaded", "downloading", "loading", "ready", "failed"]


class ModelState(msgspec.Struct, frozen=True):
    """One model as lists and metrics show it. `busy`: open leases. `last_use`: Unix time, None = never."""

    name: str
    state: State
    busy: int = 0
    progress: Progress | None = None
    memory_bytes: int = 0
    last_use: float | None = None
    pid: int | None = None
    slots: int = 0
    context_size: int = 0
    stats: Stats | None = None
    error: str | None = None


class Resident:
    """`entries`: the YAMLs that share this worker, by name. `handle`: the live worker; `leaving`: one that is being stopped
    and holds its memory until its process is gone."""

    def __init__(self, key: str, name: str, backend: str, files: Files, keep_alive: float) -> None:
        self.key = key
        self.name = name
        self.backend = backend
        self.files = files
        self.entries: dict[str, Entry] = {}
        self.bytes = 0
        self.leases = 0
        self.handle: Handle | None = None
        self.leaving: Handle | None = None
        self.loading: asyncio.Task[Handle] | None = None
        self.reserved = False
        self.board = Board()
        self.failures = 0
        self.retry_at = 0.0
        self.error: str | None = None
        self._default_keep_alive = keep_alive
        self._last_use = 0.0
        self._last_use_unix: float | None = None
        self._loaded_at = 0.0

    @property
    def live(self) -> Handle | None:
        """The worker that can take requests: one that has said why it must end takes none, though it is still there."""
        handle = self.handle
        return handle if handle is not None and handle.failure is None and not handle.ended.done() else None

    @property
    def holds_memory(self) -> bool:
        return self.handle is not None or self.leaving is not None or self.reserved

    def used(self, now: float) -> None:
        self._last_use = now
        self._last_use_unix = time.time()

    def loaded(self, handle: Handle, now: float) -> None:
        self.handle = handle
        self.error = None
        self._loaded_at = now
        self.used(now)

    def failed(self, error: str, now: float) -> None:
        """The first failure is retried at once, those that follow it soon after later and later."""
        stable = self._loaded_at and now - self._loaded_at > STABLE_SECONDS
        self.failures = 1 if stable else self.failures + 1
        self._loaded_at = 0.0  # one long life excuses one failure
        delay = FIRST_DELAY * 2.0 ** (self.failures - 2) if self.failures > 1 else 0.0
        self.retry_at = now + min(delay, LONGEST_DELAY)
        self.error = error

    def retain(self, entries: Mapping[str, Entry]) -> None:
        """Forget the entries that are gone or that want another load now; the others say from now on when to unload."""
        self.entries = {
            name: entries[name] for name, entry in self.entries.items() if name in entries and self._serves(entries[name], entry)
        }

    def _serves(self, now: Entry, before: Entry) -> bool:
        """Requests bring the configuration of a model that is elsewhere, so it may say what it likes."""
        if is_shared(self.backend):
            return now.backend == before.backend
        return load_options(now.config) == load_options(before.config)

    def facts(self) -> Facts:
        """What policy decides on."""
        return Facts(
            key=self.key,
            bytes=self.bytes,
            busy=self.leases > 0 or self.loading is not None or self.leaving is not None,
            pinned=any(entry.config.pinned for entry in self.entries.values()),
            last_use=self._last_use,
            keep_alive=self._keep_alive(),
            stale=not self.entries,
        )

    def state(self, name: str) -> ModelState:
        """As a list shows it under this name."""
        live = self.live
        ready = live.ready if live is not None and not is_shared(self.backend) else None  # elsewhere nobody knows sizes
        return ModelState(
            name,
            self._state(),
            self.leases,
            self.board.value if self.loading is not None else None,
            self.bytes if self.holds_memory else 0,
            self._last_use_unix,
            live.pid if live is not None else None,
            ready.slots if ready is not None else 0,
            ready.context_size if ready is not None else 0,
            live.stats if live is not None else None,
            self.error,
        )

    def _state(self) -> State:
        if self.live is not None:
            return "ready"
        if self.loading is not None:
            return "loading"
        return "failed" if self.error is not None else "unloaded"

    def _keep_alive(self) -> float:
        """The longest that any of its models asks for."""
        own = [entry.config.keep_alive for entry in self.entries.values()]
        return max((self._default_keep_alive if text is None else parse_duration(text) for text in own), default=0.0)
