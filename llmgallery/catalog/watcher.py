"""Keeps a registry as new as its folders: watchfiles where the system tells of changes, looking again where it is blind.

watchfiles' own polling compares whole seconds, so it misses the second of two quick edits; we compare what stat says.
"""

from __future__ import annotations

import asyncio
import logging
import os
import time
from collections.abc import Callable, Sequence
from contextlib import aclosing
from pathlib import Path
from typing import Literal

from watchfiles import Change, awatch

from llmgallery.catalog.index import Snapshot
from llmgallery.catalog.registry import Registry
from llmgallery.config.presets import FOLDER as PRESETS

log = logging.getLogger(__name__)

BLIND = (
    "nfs",
    "cifs",
    "smb",
    "9p",
    "afs",
    "ceph",
    "fuse",
    "virtiofs",
    "vboxsf",
    "prl_fs",
    "vmhgfs",
    "lustre",
    "gpfs",
    "glusterfs",
)
"""File systems (beginnings of their names) where another machine's changes raise no inotify event."""

MOUNTS = Path("/proc/self/mounts")
HEARTBEAT_MS = 1000
"""How often the folders themselves are looked for, since one may be deleted and made again."""
MAX_FOLDERS = 256

Watched = dict[Path, tuple[int, int]]


async def watch(
    registry: Registry,
    on_change: Callable[[Snapshot], None],
    stop: asyncio.Event,
    *,
    mode: Literal["auto", "poll"] = "auto",
    debounce_ms: int = 200,
    poll_ms: int = 2000,
) -> None:
    """Refresh the registry on every change and tell `on_change`, in the event loop, when the snapshot differs; ends after
    `stop`. The folders need not exist, and may be deleted and come back. Raises what `on_change` raises.
    """
    follower = _Follower(registry, on_change)
    forced = os.environ.get("WATCHFILES_FORCE_POLLING", "").lower() not in ("", "0", "false", "disable", "disabled")
    if mode == "auto" and not forced and not any(is_blind(folder) for folder in registry.folders):
        try:
            await _follow(follower, stop, debounce_ms)
        except OSError as error:
            log.warning("the system does not tell of changes in the models folder (%s): looking for them from now on", error)
    await _poll(follower, stop, poll_ms / 1000)


async def _follow(follower: _Follower, stop: asyncio.Event, debounce_ms: int) -> None:
    """As long as the system tells of changes. Raises OSError when it does not (too many watches, say)."""
    while not stop.is_set():
        watched = await asyncio.to_thread(_watched, follower.folders)
        changes = awatch(
            *watched,
            watch_filter=None,
            debounce=max(debounce_ms, 1),
            step=max(debounce_ms // 2, 1),  # its thread wakes as often, also when nothing changes
            stop_event=stop,
            rust_timeout=HEARTBEAT_MS,
            yield_on_timeout=True,
            force_polling=False,
            recursive=False,
        )
        unread = True  # what happened before this watch began; its first beat comes also without a change
        try:
            async with aclosing(changes):
                async for batch in changes:
                    if batch or unread:
                        unread = False
                        await follower.refresh({Path(path) for _, path in batch})
                    # A folder that was deleted and made again may have its old identity, but nobody watches it.
                    gone = any(change is Change.deleted and Path(path) in watched for change, path in batch)
                    if gone or await asyncio.to_thread(_watched, follower.folders) != watched:
                        break
        except FileNotFoundError:
            continue  # a folder went between the look and the watch


async def _poll(follower: _Follower, stop: asyncio.Event, seconds: float) -> None:
    """Look at every file again and again; a big folder on a slow disk takes a tenth of the time at most."""
    while not stop.is_set():
        begun = time.monotonic()
        await follower.refresh(set())
        await _wait(stop, max(seconds, 10 * (time.monotonic() - begun)))


class _Follower:
    """Refreshes, and tells when that made a difference."""

    def __init__(self, registry: Registry, on_change: Callable[[Snapshot], None]) -> None:
        self._registry = registry
        self._on_change = on_change
        self.folders = registry.folders

    async def refresh(self, paths: set[Path]) -> None:
        before = self._registry.snapshot
        after = await asyncio.to_thread(self._registry.refresh, paths)
        if after != before:
            self._on_change(after)


async def _wait(stop: asyncio.Event, seconds: float) -> None:
    try:
        await asyncio.wait_for(stop.wait(), seconds)
    except TimeoutError:
        return


def _watched(folders: Sequence[Path]) -> Watched:
    """What must be watched now, with its identity: each folder and the folders in it (weights in many files), or, where a
    folder is missing, the nearest one above."""
    found: Watched = {}
    for folder in folders:
        here = folder
        while not here.is_dir() and here != here.parent:
            here = here.parent
        _add(found, here)
        if here == folder:
            for below in _folders_in(here):
                _add(found, below)
    return found


def _folders_in(folder: Path) -> list[Path]:
    """The folders in a folder, the presets' first, then by name; hidden ones are no models, and of very many only the first."""
    try:
        with os.scandir(folder) as items:
            shown = (item.name for item in items if not item.name.startswith(".") and item.is_dir())
            names = sorted(shown, key=lambda name: (name != PRESETS, name))
    except OSError:
        return []
    return [folder / name for name in names[:MAX_FOLDERS]]


def _add(found: Watched, folder: Path) -> None:
    try:
        status = folder.stat()
    except OSError:
        return
    found[folder] = (status.st_dev, status.st_ino)


def is_blind(folder: Path, mounts: Path = MOUNTS) -> bool:
    """The folder lies on a file system that does not tell of other machines' changes. False where that cannot be known."""
    try:
        lines = mounts.read_text(encoding="utf-8", errors="replace").splitlines()
        place = str(folder.resolve())
    except OSError:
        return False
    best, kind = "", ""
    for line in lines:
        fields = line.split(" ")
        point = fields[1].replace("\\040", " ") if len(fields) > 2 else ""
        below = point == "/" or place == point or place.startswith(point + "/")
        if point and below and len(point) >= len(best):
            best, kind = point, fields[2]
    return kind.startswith(BLIND)
