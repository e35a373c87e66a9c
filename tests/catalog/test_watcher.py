"""The watcher against real folders. Nothing sleeps: every wait ends with the event, or fails at a deadline."""

import asyncio
import shutil
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Literal

import pytest

from llmgallery.backends.loader import specs
from llmgallery.catalog import watcher
from llmgallery.catalog.index import Snapshot
from llmgallery.catalog.registry import Registry

DEADLINE = 20


class Seen:
    """Every snapshot that was told, and a wait for one that fits."""

    def __init__(self) -> None:
        self.snapshots: list[Snapshot] = []
        self._news = asyncio.Event()

    def tell(self, snapshot: Snapshot) -> None:
        self.snapshots.append(snapshot)
        self._news.set()

    async def until(self, fits: Callable[[Snapshot], bool]) -> Snapshot:
        async with asyncio.timeout(DEADLINE):
            while not (self.snapshots and fits(self.snapshots[-1])):
                self._news.clear()
                await self._news.wait()
        return self.snapshots[-1]


@asynccontextmanager
async def watching(registry: Registry, mode: Literal["auto", "poll"] = "auto") -> AsyncIterator[Seen]:
    seen, stop = Seen(), asyncio.Event()
    task = asyncio.create_task(watcher.watch(registry, seen.tell, stop, mode=mode, debounce_ms=20, poll_ms=20))
    try:
        yield seen
    finally:
        stop.set()
        async with asyncio.timeout(DEADLINE):
            await task


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(watcher, "HEARTBEAT_MS", 50)


def write(folder: Path, stem: str, text: str = "") -> None:
    (folder / f"{stem}.yaml").write_text(f"backend: echo\n{text}\n")


def models(folder: Path) -> Registry:
    registry = Registry([folder], specs())
    registry.read()
    return registry


@pytest.mark.parametrize("mode", ["auto", "poll"])
async def test_adding_editing_and_deleting_are_seen(tmp_path: Path, mode: Literal["auto", "poll"]) -> None:
    write(tmp_path, "a")
    registry = models(tmp_path)
    first = registry.snapshot.entries["a"]
    async with watching(registry, mode) as seen:
        write(tmp_path, "b")
        await seen.until(lambda found: set(found.entries) == {"a", "b"})
        write(tmp_path, "b", "description: new")
        await seen.until(lambda found: found.entries["b"].config.description == "new")
        write(tmp_path, "b", "descriptoin: new")
        await seen.until(lambda found: "b" in found.broken)
        (tmp_path / "b.yaml").unlink()
        last = await seen.until(lambda found: set(found.entries) == {"a"} and not found.broken)
    assert last.entries["a"] is first
    assert registry.snapshot is last


async def test_what_happened_before_the_watch_began_is_seen(tmp_path: Path) -> None:
    registry = models(tmp_path)
    write(tmp_path, "early")
    async with watching(registry) as seen:
        await seen.until(lambda found: "early" in found.entries)


async def test_a_rename_over_a_file_is_an_edit(tmp_path: Path) -> None:
    write(tmp_path, "a", "description: one")
    async with watching(models(tmp_path)) as seen:
        (tmp_path / ".a.yaml.new").write_text("backend: echo\ndescription: two\n")
        (tmp_path / ".a.yaml.new").rename(tmp_path / "a.yaml")
        await seen.until(lambda found: found.entries["a"].config.description == "two")


async def test_a_folder_that_comes_late_goes_and_comes_back(tmp_path: Path) -> None:
    folder = tmp_path / "not" / "yet"
    async with watching(models(folder)) as seen:
        folder.mkdir(parents=True)
        write(folder, "a")
        await seen.until(lambda found: set(found.entries) == {"a"})
        shutil.rmtree(folder)
        await seen.until(lambda found: not found.entries)
        folder.mkdir()
        write(folder, "b")
        await seen.until(lambda found: set(found.entries) == {"b"})


async def test_a_folder_that_is_there_again_before_anybody_looked_is_followed(tmp_path: Path) -> None:
    """Where the file system gives it the number of the deleted one, it looks as if it had never gone."""
    folder = tmp_path / "models"
    folder.mkdir()
    write(folder, "a")
    registry, stop, came = models(folder), asyncio.Event(), asyncio.Event()

    def tell(found: Snapshot) -> None:
        if not folder.exists():
            folder.mkdir()
            write(folder, "b")
        if "c" in found.entries:  # a little later, when the watcher waits again
            asyncio.get_running_loop().call_later(0.1, shutil.rmtree, folder)
        if "b" in found.entries:
            came.set()

    watch = asyncio.create_task(watcher.watch(registry, tell, stop, debounce_ms=20))
    write(folder, "c")
    async with asyncio.timeout(DEADLINE):
        await came.wait()
        stop.set()
        await watch


async def test_files_that_come_into_a_folder_of_weights_are_seen(tmp_path: Path) -> None:
    async with watching(models(tmp_path)) as seen:
        folder = tmp_path / "repo"
        folder.mkdir()
        (folder / "weights").write_bytes(b"GGUF\x03\x00\x00\x00" + bytes(16))
        await seen.until(lambda found: "repo" in found.entries)


async def test_writes_that_change_no_model_tell_nobody(tmp_path: Path) -> None:
    write(tmp_path, "a")
    async with watching(models(tmp_path)) as seen:
        (tmp_path / "notes.txt").write_text("x")
        write(tmp_path, "a")
        write(tmp_path, "b")
        await seen.until(lambda found: "b" in found.entries)
    assert all("b" in snapshot.entries for snapshot in seen.snapshots)


async def test_stop_ends_the_watch_also_without_a_folder(tmp_path: Path) -> None:
    stop = asyncio.Event()
    stop.set()
    async with asyncio.timeout(DEADLINE):
        await watcher.watch(models(tmp_path / "gone"), lambda _: None, stop)
    async with watching(models(tmp_path)):
        pass


@pytest.mark.parametrize(
    ("place", "blind"),
    [("/home/me", False), ("/mnt/share/models", True), ("/mnt/share", True), ("/mnt/shared", False), ("/mnt/my disk/x", True)],
)
def test_network_mounts_are_blind(tmp_path: Path, place: str, blind: bool) -> None:
    mounts = tmp_path / "mounts"
    mounts.write_text(
        "rootfs / ext4 rw 0 0\nserver:/x /mnt/share nfs4 rw 0 0\n"
        "/dev/sda1 /mnt/share/local ext4 rw 0 0\n//s/d /mnt/my\\040disk cifs rw 0 0\n"
    )
    assert watcher.is_blind(Path(place), mounts) is blind
    assert not watcher.is_blind(Path("/mnt/share/local/x"), mounts)
    assert not watcher.is_blind(Path(place), tmp_path / "none")
