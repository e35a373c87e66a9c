"""A file that has come in part: its bytes, and the journal that says what they are. Everything here blocks."""

from __future__ import annotations

import hashlib
import os
import re
from contextlib import suppress
from dataclasses import dataclass
from io import FileIO
from pathlib import Path
from typing import Any

import msgspec

from llmgallery.catalog.locks import BlobLock, FileLock, Lock

_READ = 4 << 20
_SHA256 = re.compile(r"[0-9a-f]{64}")


@dataclass(frozen=True)
class Place:
    """Where one file is put together: `final` once it is whole, until then `part` and its `journal`, under the lock.
    `folder`: what an error names, with `mend`, the setting that leads elsewhere. `shared`: the lock is huggingface_hub's."""

    final: Path
    part: Path
    journal: Path
    lock: Path
    folder: Path
    mend: str
    shared: bool = False

    def new_lock(self, wait: float = 0.5) -> Lock:
        return BlobLock(self.lock, wait) if self.shared else FileLock(self.lock, wait)


class Expected(msgspec.Struct, frozen=True):
    """What is to come. `source`: its address, for errors and journals. `etag`: its sha256, its git blob's sha1, or, where
    neither is known, what tells it from others. `size` in bytes, None = not known. `lasting`: what the source names never
    changes, as a file at a commit. `inside`: its name may mean an address inside this network. `most`: bytes after which it
    is not the file that was meant.
    """

    source: str
    etag: str
    size: int | None
    lasting: bool = False
    inside: bool = False
    most: int | None = None

    @property
    def digest(self) -> str | None:
        """What the bytes must hash to, as far as that is known."""
        return self.etag if re.fullmatch(r"[0-9a-f]{40}|[0-9a-f]{64}", self.etag) else None


class Journal(msgspec.Struct, frozen=True):
    """Beside a partial file: what its bytes are the beginning of. `validator`: the strong ETag of the answer that they came
    with (a storage host's own, not the Hub's), for If-Range.
    """

    etag: str
    size: int | None
    validator: str | None = None
    source: str = ""

    def begins(self, expected: Expected) -> bool:
        """The bytes can be gone on with: they are of this file, and will be checked, or cannot be of another state of it."""
        same = self.etag == expected.etag and (expected.size is None or self.size == expected.size)
        return same and bool(expected.digest or expected.lasting or self.validator)


def partial_size(place: Place, expected: Expected) -> int:
    """How many bytes of this file are here from an earlier attempt and can be used."""
    journal = read_journal(place.journal)
    if journal is None or not journal.begins(expected):
        return 0
    with suppress(FileNotFoundError):
        size = place.part.stat().st_size
        return size if journal.size is None or size <= journal.size else 0
    return 0


def read_journal(path: Path) -> Journal | None:
    try:
        return msgspec.json.decode(path.read_bytes(), type=Journal)
    except (OSError, ValueError, RecursionError):
        return None


class Partial:
    """The file as far as it is here, and the digest over all of it. Every method blocks; open comes first, close last.

    `total`: its whole size, None while nobody has said it.
    """

    def __init__(self, place: Place, expected: Expected) -> None:
        self._place = place
        self._expected = expected
        self._digest = self._new_digest()
        self._out: FileIO | None = None
        self._written: Journal | None = None
        self.validator: str | None = None
        self.size = 0
        self.total = expected.size

    @property
    def _file(self) -> FileIO:
        assert self._out is not None
        return self._out

    @property
    def sha256(self) -> str | None:
        """Of what is here; None where the digest is another."""
        return str(self._digest.hexdigest()) if self._digest.name == "sha256" else None

    @property
    def may_go_on(self) -> bool:
        """What comes next can be told to be of the same file."""
        return self._written is not None and self._written.begins(self._expected)

    def open(self) -> None:
        """Take up what an earlier attempt left, and hash it."""
        self._place.part.parent.mkdir(parents=True, exist_ok=True)
        self.size = partial_size(self._place, self._expected)
        self._written = read_journal(self._place.journal) if self.size else None
        if self._written is not None:
            self.validator, self.total = self._written.validator, self._written.size
        self._out = FileIO(self._place.part, "rb+" if self.size else "wb")
        while self.size and (piece := self._out.read(_READ)):
            self._digest.update(piece)

    def restart(self) -> None:
        """Forget all bytes."""
        self._file.seek(0)
        self._file.truncate()
        self.size, self.validator, self.total, self._digest = 0, None, self._expected.size, self._new_digest()
        self._written = None
        self._place.journal.unlink(missing_ok=True)

    def begin(self, validator: str | None, total: int | None) -> None:
        """Write the journal, before the first byte of an answer."""
        self.total = self.total if total is None else total
        journal = Journal(self._expected.etag, self.total, validator, self._expected.source)
        if self._written == journal and self._place.journal.is_file():
            return
        self.validator, self._written = validator, journal
        temporary = self._place.journal.with_name(self._place.journal.name + ".tmp")
        try:
            temporary.write_bytes(msgspec.json.encode(journal))
            temporary.replace(self._place.journal)
        except OSError:
            with suppress(OSError):
                temporary.unlink(missing_ok=True)
            raise

    def write(self, pieces: list[bytes]) -> None:
        for piece in pieces:
            view = memoryview(piece)
            while view:
                written = self._file.write(view)
                self._digest.update(view[:written])
                self.size += written
                view = view[written:]

    def is_right(self) -> bool:
        """The size fits, and the digest does where it is known."""
        if self.total is not None and self.size != self.total:
            return False
        return self._expected.digest is None or self._digest.hexdigest() == self._expected.digest

    def finish(self) -> Path:
        """Put it in its place."""
        os.fsync(self._file.fileno())
        self.close()
        self._place.part.replace(self._place.final)
        self._place.journal.unlink(missing_ok=True)
        return self._place.final

    def discard(self) -> None:
        self.close()
        self._place.part.unlink(missing_ok=True)
        self._place.journal.unlink(missing_ok=True)

    def close(self) -> None:
        if self._out is not None:
            self._out.close()

    def _new_digest(self) -> Any:
        """sha256; for small files of the Hub what git calls a blob's id (git-hash-object: `blob SIZE NUL content`)."""
        digest = self._expected.digest
        if digest is not None and not _SHA256.fullmatch(digest):
            return hashlib.sha1(b"blob %d\0" % (self._expected.size or 0), usedforsecurity=False)
        return hashlib.sha256()
