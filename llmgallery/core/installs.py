"""What an install or a removal is doing: one object, seen alike by progress bars, streams, the jobs API and metrics."""

from __future__ import annotations

from typing import Literal

import msgspec

from llmgallery.core.errors import ErrorInfo
from llmgallery.core.events import Progress

Phase = Literal["queued", "planning", "downloading", "writing", "removing", "done", "failed", "cancelled"]
OVER: frozenset[Phase] = frozenset({"done", "failed", "cancelled"})


class FileProgress(msgspec.Struct, frozen=True):
    """One file of an install; `total` None = not known yet. `done` counts bytes that are on the disk."""

    name: str
    done: int = 0
    total: int | None = None


class Install(msgspec.Struct, frozen=True):
    """A job at one moment. `asked`: the name as it was asked for; `name`: the model's, once it is known. `deletion`: it is
    removed. `error`: of a failed one. `created`, `updated`: Unix seconds. `source`: what it came from, `gallery@entry` or a
    Hub reference with its commit, once it is planned."""

    id: str
    asked: str
    phase: Phase = "queued"
    name: str | None = None
    source: str | None = None
    deletion: bool = False
    files: tuple[FileProgress, ...] = ()
    error: ErrorInfo | None = None
    created: float = 0.0
    updated: float = 0.0

    @property
    def is_over(self) -> bool:
        return self.phase in OVER

    @property
    def done_bytes(self) -> int:
        return sum(file.done for file in self.files)

    @property
    def total_bytes(self) -> int | None:
        """None while the size of any file is not known."""
        sizes = [file.total for file in self.files]
        return sum(size for size in sizes if size is not None) if sizes and None not in sizes else None

    @property
    def fraction(self) -> float | None:
        """0 to 1 of the bytes; None while that is not known."""
        if self.phase == "done":
            return 1.0
        return min(1.0, self.done_bytes / self.total_bytes) if self.total_bytes else None

    @property
    def progress(self) -> Progress:
        """As streams and lists show it."""
        if self.phase == "queued" or self.phase == "planning":
            return Progress(self.phase)
        return Progress("downloading", self.fraction, self.done_bytes, self.total_bytes or 0)
