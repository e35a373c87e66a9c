"""A file that has come in part: its bytes, the journal that says what they are, and the lock. Everything here blocks."""

from __future__ import annotations

import hashlib
import os
import re
from contextlib import AbstractContextManager, suppress
from io import FileIO
from pathlib import Path
from typing import Any

import msgspec

from llmgallery.catalog.hub_cache import RepoCache
from llmgallery.catalog.hub_client import FileMeta

_READ = 4 << 20
_LOCK_WAIT = 0.5


class Journal(msgspec.Struct, frozen=True):
    """Beside a partial file: what its bytes are the beginning of. `validator`: the strong ETag of the answer that they came
    with (a storage host's own, not the Hub's), for If-Range.
    """

    repo: str
    file: str
    commit: str
    etag: str
    size: int
    validator: str | None = None


def partial_size(cache: RepoCache, meta: FileMeta) -> int:
    """How many bytes of this file are here from an earlier attempt and can be used."""
    journal = _read_journal(cache.journal(meta.etag))
    if journal is None or (journal.etag, journal.size) != (meta.etag, meta.size):
        return 0
    with suppress(FileNotFoundError):
        size = cache.partial(meta.etag).stat().st_size
        return size if size <= meta.size else 0
    return 0


def _read_journal(path: Path) -> Journal | None:
    try:
        return msgspec.json.decode(path.read_bytes(), type=Journal)
    except (OSError, msgspec.DecodeError):
        return None


class BlobLock:
    """huggingface_hub's lock on a blob, so that its downloads and ours in other processes wait for each other. Belongs to
    the thread that acquires it.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._held: AbstractContextManager[Any] | None = None

    def acquire(self) -> bool:
        """Wait for it for a moment. False: somebody else still has it."""
        from filelock import Timeout
        from huggingface_hub.utils import WeakFileLock  # type: ignore[attr-defined]

        self._path.parent.mkdir(parents=True, exist_ok=True)
        lock = WeakFileLock(self._path, timeout=_LOCK_WAIT)
        try:
            lock.__enter__()
        except Timeout:
            return False
        self._held = lock
        return True

    def release(self) -> None:
        if self._held is not None:
            self._held.__exit__(None, None, None)
            self._held = None


class Partial:
    """The file as far as it is here, and the digest over all of it. Every method blocks; open comes first, close last."""

    def __init__(self, cache: RepoCache, meta: FileMeta) -> None:
        self._cache = cache
        self._meta = meta
        self._path = cache.partial(meta.etag)
        self._journal = cache.journal(meta.etag)
        self._digest = _digest(meta)
        self._out: FileIO | None = None
        self.validator: str | None = None
        self.size = 0

    @property
    def _file(self) -> FileIO:
        assert self._out is not None
        return self._out

    def open(self) -> None:
        """Take up what an earlier attempt left, and hash it."""
        self._path.parent.mkdir(parents=True, exist_ok=True)
        self.size = partial_size(self._cache, self._meta)
        journal = _read_journal(self._journal) if self.size else None
        self.validator = journal.validator if journal else None
        self._out = FileIO(self._path, "rb+" if self.size else "wb")
        while self.size and (piece := self._out.read(_READ)):
            self._digest.update(piece)

    def restart(self) -> None:
        """Forget all bytes."""
        self._file.seek(0)
        self._file.truncate()
        self.size, self.validator, self._digest = 0, None, _digest(self._meta)
        self._journal.unlink(missing_ok=True)

    def begin(self, validator: str | None) -> None:
        """Write the journal, before the first byte of an answer."""
        if self.validator == validator and self._journal.is_file():
            return
        meta = self._meta
        self.validator = validator
        temporary = self._journal.with_name(self._journal.name + ".tmp")
        temporary.write_bytes(msgspec.json.encode(Journal(meta.repo, meta.file, meta.commit, meta.etag, meta.size, validator)))
        temporary.replace(self._journal)

    def write(self, pieces: list[bytes]) -> None:
        for piece in pieces:
            view = memoryview(piece)
            while view:
                written = self._file.write(view)
                self._digest.update(view[:written])
                self.size += written
                view = view[written:]

    def is_right(self) -> bool:
        """The size fits, and the digest does where the etag is one (sha256 or git blob sha1)."""
        if self.size != self._meta.size:
            return False
        return not _is_digest(self._meta.etag) or self._digest.hexdigest() == self._meta.etag

    def finish(self) -> Path:
        """Put it in the blob's place."""
        os.fsync(self._file.fileno())
        self.close()
        blob = self._cache.blob(self._meta.etag)
        self._path.replace(blob)
        self._journal.unlink(missing_ok=True)
        return blob

    def discard(self) -> None:
        self.close()
        self._path.unlink(missing_ok=True)
        self._journal.unlink(missing_ok=True)

    def close(self) -> None:
        if self._out is not None:
            self._out.close()


def _is_digest(etag: str) -> bool:
    return bool(re.fullmatch(r"[0-9a-f]{40}|[0-9a-f]{64}", etag))


def _digest(meta: FileMeta) -> Any:
    """sha256 for LFS files; for others what git calls a blob's id (git-hash-object: `blob SIZE NUL content`)."""
    if len(meta.etag) == 40:
        return hashlib.sha1(b"blob %d\0" % meta.size, usedforsecurity=False)
    return hashlib.sha256()
