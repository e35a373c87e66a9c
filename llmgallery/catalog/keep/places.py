"""Where locked files lie, and what their bytes are. Downloads nothing."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from llmgallery.catalog.hub_cache import RepoCache
from llmgallery.catalog.lock import LockedFile, hub_reference
from llmgallery.config.regular import open_regular

PIECE = 4 << 20
OnBytes = Callable[[int], None]
"""Told how many more bytes were read."""


@dataclass(frozen=True)
class Folders:
    """`models`: of YAMLs and of files from elsewhere; `cache`: the Hugging Face cache."""

    models: Path
    cache: Path

    def place(self, file: LockedFile) -> Path:
        """Where a locked file lies, or would. Raises ConfigError for what no lock holds."""
        if file.path is not None:
            return self.models / file.path
        found = hub_reference(file)
        assert found.file is not None
        return RepoCache(self.cache, found.repo).pointer(found.revision, found.file)


def pieces(path: Path) -> Iterator[bytes]:
    """A regular file's bytes. Raises OSError."""
    with open_regular(path) as file:
        while piece := file.read(PIECE):
            yield piece


def digest(path: Path, on_bytes: OnBytes | None = None) -> tuple[str, int]:
    """The sha256 of a file and its size. Raises OSError, also for what is no regular file."""
    found, size = hashlib.sha256(), 0
    for piece in pieces(path):
        found.update(piece)
        size += len(piece)
        if on_bytes is not None:
            on_bytes(len(piece))
    return found.hexdigest(), size
