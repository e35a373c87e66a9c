"""The bytes on the disk against the lock: everything that differs, by name."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path

from llmgallery.catalog.keep.places import Folders, OnBytes, digest
from llmgallery.catalog.lock import LOCK_NAME, Locked, LockedFile
from llmgallery.config.problems import shown


@dataclass(frozen=True)
class Difference:
    """A file that is not what the lock says. `path`: where its bytes lie, or should. `found`: (sha256, size) of what is there
    instead, the digest None when the size is told already to be another; None = nothing can be read there, for `reason`."""

    model: str
    file: LockedFile
    path: Path
    found: tuple[str | None, int] | None = None
    reason: str = ""

    def __str__(self) -> str:
        where = f"{self.model}: {shown(self.path)}"
        if self.found is None:
            return f"{where} {self.reason}: `llmgallery install {self.model}` fetches it again"
        sha256, size = self.found
        what = f"has {size:,} bytes" if sha256 is None else f"has the sha256 {sha256}"
        locked = f"{self.file.size:,} bytes" if sha256 is None else self.file.sha256
        return f"{where} {what}, not {locked}: delete it, then `llmgallery install {self.model}` fetches it again"


@dataclass(frozen=True)
class Verified:
    """`notes`: what is no failure, but no guarantee either. `files` and `size`: what was read."""

    differences: tuple[Difference, ...]
    notes: tuple[str, ...]
    files: int
    size: int


def verify(
    locked: Locked, folders: Folders, served: Collection[str], names: Collection[str] = (), on_bytes: OnBytes | None = None
) -> Verified:
    """Read every file of the locked models, or of those in `names`, which are in the lock. `served`: names of all models in
    the folder. Blocks for as long as the disk takes; a file that several models need is read once."""
    seen: dict[tuple[Path, str, int], tuple[tuple[str | None, int] | None, str] | None] = {}
    differences = []
    for name in sorted(names or locked.models):
        for file in locked.models[name].files:
            place = folders.place(file)
            key = (place, file.sha256, file.size)
            if key not in seen:
                seen[key] = _compare(place, file, on_bytes)
            if (different := seen[key]) is not None:
                differences.append(Difference(name, file, _real(place), *different))
    return Verified(tuple(differences), () if names else _notes(locked, served), len(seen), sum(size for *_, size in seen))


def _compare(place: Path, file: LockedFile, on_bytes: OnBytes | None) -> tuple[tuple[str | None, int] | None, str] | None:
    """None = the same; else what is there, and why it cannot be read."""
    try:
        size = place.stat().st_size
        if size != file.size and place.is_file():
            return (None, size), ""
        found = digest(place, on_bytes)
    except FileNotFoundError:
        return None, "is missing"
    except OSError as error:
        return None, f"cannot be read ({error.strerror or error})"
    return None if found == (file.sha256, file.size) else (found, "")


def _real(place: Path) -> Path:
    """The file behind a link of the Hugging Face cache: it is what must go when its bytes are wrong."""
    return place.resolve() if place.is_symlink() and place.exists() else place


def _notes(locked: Locked, served: Collection[str]) -> tuple[str, ...]:
    unknown = [name for name in sorted(served) if name not in locked.models]
    orphans = [name for name in sorted(locked.models) if name not in served]
    return (
        *(f"{name} is not in {LOCK_NAME}: it was not installed by llmgallery, and was not read" for name in unknown),
        *(f"{name} is in {LOCK_NAME}, but no YAML serves it: `llmgallery gc` lists what can go" for name in orphans),
    )
