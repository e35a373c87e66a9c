"""Files that llmgallery brought here and nothing needs any more: found first, deleted only when asked to.

What the lock does not know was not installed by us and is never touched, and no link is followed out of the folders.
"""

from __future__ import annotations

import os
import stat
import time
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import msgspec

from llmgallery.catalog.hub_cache import RepoCache
from llmgallery.catalog.index import Snapshot
from llmgallery.catalog.install.plan import STORE
from llmgallery.catalog.keep.needs import Needs, needs
from llmgallery.catalog.keep.places import Folders
from llmgallery.catalog.lock import LockedFile, LockFile, hub_reference
from llmgallery.catalog.locks import BlobLock, FileLock, Lock
from llmgallery.core.installs import OVER

DAY = 86_400.0
"""Seconds that a file without a lock entry stays in any case: somebody may be at work on it."""

GONE = "its model is gone"
PARTIALS = (".llmgallery.part", ".llmgallery.json")


@dataclass(frozen=True)
class Garbage:
    """One thing that nothing needs: a file of `size` bytes, or (`path` None) the entry `name` in the lock of the models folder
    `home`. `guard`: the lock that a download of it would hold."""

    home: Path
    path: Path | None
    size: int
    reason: str
    name: str = ""
    guard: Path | None = None


def collect(
    homes: Sequence[Path], served: Mapping[Path, Snapshot], cache: Path, data_dir: Path, now: float | None = None
) -> list[Garbage]:
    """Everything that may go. `homes`: the models folders that installs go to, and that are looked through; `served`: what
    each models folder that is known holds, theirs among them, since all of them share the cache.

    Raises ConfigError when a YAML or a lock cannot be read: what is needed is not known then.
    """
    locks = {folder: LockFile.of(folder).read() for folder in served}
    needed = needs(served, cache, locks, list(_running(data_dir)))
    then = (time.time() if now is None else now) - DAY
    found: list[Garbage] = []
    for home in homes:
        models = locks[home].models
        stale = [name for name in models if name not in needed.names[home]]
        files = [file for name in stale for file in models[name].files]
        live = {file.path for name in models.keys() - stale for file in models[name].files}
        found += _of_store(home, live, files, needed, then)
        found += _of_cache(Folders(home, cache), files, needed)
        found += [Garbage(home, None, 0, "no YAML serves it", name) for name in sorted(stale)]
    return [*dict.fromkeys(found), *_partials_of_cache(cache, needed, then)]


def sweep(garbage: Iterable[Garbage]) -> list[tuple[Garbage, str]]:
    """Delete it, in this order. What could not be deleted comes back, with the reason. Lock entries stay while files of
    theirs may: without the entry nobody would know them."""
    failed: list[tuple[Garbage, str]] = []
    for item in garbage:
        try:
            if item.path is None and any(other.home == item.home and other.reason == GONE for other, _ in failed):
                failed.append((item, "files of it are still there"))
            elif item.path is None:
                LockFile.of(item.home).update(item.name, None)
            elif not _delete(item.path, item.guard):
                failed.append((item, "it is being downloaded"))
        except OSError as error:
            failed.append((item, error.strerror or str(error)))
    return failed


def _running(data_dir: Path) -> Iterator[str]:
    """The journals of installs that are not over, as text. One that cannot be read counts as running."""
    for path in sorted((data_dir / "jobs").glob("*.json")):
        text = ""
        with suppress(OSError):
            text = path.read_text(encoding="utf-8", errors="replace")
        try:
            data = msgspec.json.decode(text)
        except (ValueError, RecursionError):
            data = None
        state = data.get("state", data) if isinstance(data, dict) else {}
        if not isinstance(state, dict) or state.get("phase") not in OVER:
            yield text


# --- files from elsewhere ----------------------------------------------------------------------------------------------------


def _of_store(
    home: Path, live: Collection[str | None], stale: Sequence[LockedFile], needed: Needs, then: float
) -> Iterator[Garbage]:
    known = {file.path for file in stale}
    for path in _files_below(home / STORE):
        name = path.relative_to(home).as_posix()
        digest = name.split("/")[1]
        if name in live or needed.mentions(digest):
            continue
        found, guard = path.lstat(), _guard(path)
        if name in known:
            yield Garbage(home, path, found.st_size, GONE, guard=guard)
        elif found.st_mtime < then:
            partial = path.name.endswith(PARTIALS)
            reason = "a download that nobody goes on with" if partial else "nothing names it"
            yield Garbage(home, path, found.st_size, reason, guard=guard)


def _guard(path: Path) -> Path:
    """The lock of a download into the store: beside the file (Store.place)."""
    name = path.name
    for suffix in (*PARTIALS, ".lock"):
        name = name.removesuffix(suffix)
    return path.with_name(f"{name}.lock")


def _files_below(folder: Path) -> Iterator[Path]:
    """All regular files, without following a link; a folder that is itself one is left alone."""
    if not _is_real_folder(folder):
        return
    for root, _, names in os.walk(folder):
        for name in sorted(names):
            path = Path(root) / name
            if stat.S_ISREG(path.lstat().st_mode):
                yield path


def _is_real_folder(folder: Path) -> bool:
    try:
        return stat.S_ISDIR(folder.lstat().st_mode)
    except OSError:
        return False


# --- the Hugging Face cache --------------------------------------------------------------------------------------------------


def _of_cache(folders: Folders, stale: Sequence[LockedFile], needed: Needs) -> Iterator[Garbage]:
    """The blobs that only these files' entries in snapshots point to, then the entries, which tell which blobs these are."""
    gone: set[Path] = set()
    blobs: dict[Path, RepoCache] = {}
    for file in stale:
        if file.path is None:
            repo, place = RepoCache(folders.cache, hub_reference(file).repo), folders.place(file)
            wanted = place in needed.places or hub_reference(file).repo in needed.repos
            if wanted or not _is_inside(place.parent, repo.folder):
                continue
            blobs[repo.blob(file.sha256).resolve()] = repo  # who was stopped between the two has left it alone
            if os.path.lexists(place):
                gone.add(place)
                blobs[place.resolve()] = repo
    for blob, repo in blobs.items():
        if blob.is_file() and _is_inside(blob, repo.folder / "blobs") and not _pointers(repo, blob) - gone:
            yield Garbage(folders.models, blob, blob.stat().st_size, GONE, guard=repo.lock(blob.name))
    for place in sorted(gone):
        yield Garbage(folders.models, place, 0 if place.is_symlink() else place.lstat().st_size, GONE)


def _is_inside(path: Path, folder: Path) -> bool:
    """Whatever links there are on the way."""
    return path.resolve().is_relative_to(folder.resolve()) and not folder.is_symlink()


def _pointers(repo: RepoCache, blob: Path) -> set[Path]:
    """All snapshots' entries for a blob."""
    found: set[Path] = set()
    for root, _, names in os.walk(repo.folder / "snapshots"):
        found.update(path for name in names if (path := Path(root) / name).is_symlink() and path.resolve() == blob)
    return found


def _partials_of_cache(cache: Path, needed: Needs, then: float) -> Iterator[Garbage]:
    """Ours, by their suffix; huggingface_hub names its own otherwise."""
    for folder in sorted(cache.glob("models--*/blobs")):
        if not _is_real_folder(folder) or not _is_real_folder(folder.parent):
            continue
        pairs: dict[str, list[Path]] = {}
        for path in sorted(folder.iterdir()):
            for suffix in PARTIALS:
                if path.name.endswith(suffix):
                    pairs.setdefault(path.name.removesuffix(suffix), []).append(path)
        repo = folder.parent.name.removeprefix("models--").replace("--", "/")
        for etag, paths in pairs.items():
            if needed.mentions(etag) or max(path.lstat().st_mtime for path in paths) >= then:
                continue
            guard = RepoCache(cache, repo).lock(etag)
            for path in paths:
                yield Garbage(cache, path, path.lstat().st_size, "a download that nobody goes on with", guard=guard)


# --- deleting ----------------------------------------------------------------------------------------------------------------


def _delete(path: Path, guard: Path | None) -> bool:
    """False: a download holds it. Folders that become empty go too, and what the cache says of a snapshot that is gone."""
    lock: Lock | None = None
    if guard is not None:
        lock = FileLock(guard) if STORE in guard.parts else BlobLock(guard)
    if lock is not None and not lock.acquire():
        return False
    try:
        path.unlink(missing_ok=True)
    finally:
        if lock is not None:
            lock.release()
    parts = path.parts
    if STORE in parts:
        _prune(path.parent, Path(*parts[: parts.index(STORE) + 1]).parent)
    elif "snapshots" in parts:
        _forget_commit(path)
    elif path.parent.name == "blobs":
        _prune(path.parent, path.parent.parent.parent)
    return True


def _prune(folder: Path, stop: Path) -> None:
    """Remove empty folders from `folder` upwards, below `stop`."""
    with suppress(OSError):
        while folder != stop:
            folder.rmdir()
            folder = folder.parent


def _forget_commit(pointer: Path) -> None:
    """Remove the snapshot's empty folders, and the refs to a snapshot that is no more."""
    at = len(pointer.parts) - 1 - pointer.parts[::-1].index("snapshots")
    repo, commit = Path(*pointer.parts[:at]), pointer.parts[at + 1]
    _prune(pointer.parent, repo.parent)
    if (repo / "snapshots" / commit).exists():
        return
    RepoCache.at(repo).forget_listing(commit)
    _prune(repo, repo.parent)
    for ref in _files_below(repo / "refs"):
        if ref.read_text(errors="replace").strip() == commit:
            ref.unlink()
            _prune(ref.parent, repo.parent)
