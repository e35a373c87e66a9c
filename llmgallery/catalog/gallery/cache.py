"""Copies of files of the web on disk, each with what its server said of it. One file a copy, so that the two never differ."""

from __future__ import annotations

import hashlib
import logging
import os
import uuid
from contextlib import suppress
from pathlib import Path

import msgspec

log = logging.getLogger(__name__)
MAX_BYTES = 256 << 20
"""Of all copies; beyond it the oldest go."""

_SUFFIX = ".copy"
_TEMPORARY = ".tmp"
_STALE = 3600.0  # seconds; a temporary file as old as this is one whose writer has died


class Copy(msgspec.Struct, frozen=True):
    """A file of the web. `etag`, `modified`: its validators, as its server wrote them. `fetched`: when the server last said
    that this is it, in Unix seconds."""

    url: str
    body: bytes
    fetched: float
    etag: str | None = None
    modified: str | None = None


class _Head(msgspec.Struct, frozen=True, omit_defaults=True):
    """The first line of a copy's file."""

    url: str
    sha256: str
    etag: str | None = None
    modified: str | None = None


class CopyCache:
    """Copies in a folder, which need not exist. Every method blocks. Several processes may use one folder."""

    def __init__(self, folder: Path, max_bytes: int = MAX_BYTES) -> None:
        self.folder = folder
        self._max_bytes = max_bytes

    def load(self, url: str) -> Copy | None:
        """The copy of `url`; None = there is none, or it is damaged."""
        path = self._path(url)
        try:
            data, fetched = path.read_bytes(), path.stat().st_mtime
            first, _, body = data.partition(b"\n")
            head = msgspec.json.decode(first, type=_Head)
        except (OSError, ValueError, RecursionError):
            return None
        if head.url != url or head.sha256 != hashlib.sha256(body).hexdigest():
            return None
        return Copy(url, body, fetched, head.etag, head.modified)

    def store(self, copy: Copy) -> None:
        """Keep a copy, in place of an earlier one. A disk that cannot is no error: the copy is fetched again next time."""
        path = self._path(copy.url)
        head = _Head(copy.url, hashlib.sha256(copy.body).hexdigest(), copy.etag, copy.modified)
        temporary = path.with_name(f"{path.stem}.{uuid.uuid4().hex[:8]}{_TEMPORARY}")
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            temporary.write_bytes(msgspec.json.encode(head) + b"\n" + copy.body)
            os.utime(temporary, (copy.fetched, copy.fetched))
            temporary.replace(path)
            self._prune(path)
        except OSError as error:
            with suppress(OSError):
                temporary.unlink()
            log.warning("%s is not kept for offline use: %s", copy.url, error)

    def touch(self, copy: Copy) -> None:
        """Its server said at `copy.fetched` that it is still the one."""
        try:
            os.utime(self._path(copy.url), (copy.fetched, copy.fetched))
        except OSError as error:
            log.debug("%s: %s", copy.url, error)

    def _path(self, url: str) -> Path:
        return self.folder / (hashlib.sha256(url.encode()).hexdigest()[:40] + _SUFFIX)

    def _prune(self, newest: Path) -> None:
        """The oldest copies go until the rest is within the bound; `newest` stays, and so do files that are not ours."""
        now = newest.stat().st_mtime
        found = []
        for path in self.folder.iterdir():
            status = path.stat()
            if path.suffix == _TEMPORARY and status.st_mtime < now - _STALE:
                path.unlink(missing_ok=True)
            elif path.suffix == _SUFFIX:
                found.append((status.st_mtime, status.st_size, path))
        total = sum(size for _, size, _ in found)
        for _, size, path in sorted(found):
            if total <= self._max_bytes:
                return
            if path != newest:
                path.unlink(missing_ok=True)
                total -= size
