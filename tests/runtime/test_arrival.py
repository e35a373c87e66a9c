"""A lease of a model that is still being installed: what it tells meanwhile, and what a failed install becomes."""

import asyncio
from pathlib import Path

import pytest

from llmgallery.backends.base import Files
from llmgallery.catalog.index import Entry
from llmgallery.config.model import ModelConfig
from llmgallery.core.errors import HubCorrupt
from llmgallery.core.events import Progress
from llmgallery.runtime.manager import Manager, OnBytes

ENTRY = Entry("m", Path("m.yaml"), Path(), ModelConfig(name="m"), "echo")


class Here:
    """Files that are there as soon as the install is over."""

    def __init__(self) -> None:
        self.arrived = False

    async def ensure(self, entry: Entry, on_bytes: OnBytes) -> Files:
        assert self.arrived
        return Files()


async def test_the_files_are_asked_for_once_the_install_is_over() -> None:
    files, over = Here(), asyncio.Event()

    async def arrive(on_bytes: OnBytes) -> None:
        on_bytes(1, 4)
        await over.wait()
        files.arrived = True

    manager = Manager(files)
    try:
        async with asyncio.timeout(20), manager.lease(ENTRY, arrive) as lease:
            asking = asyncio.create_task(lease.handle())
            while lease.progress != Progress("downloading", 0.25, 1, 4):
                await lease.changed()
            assert [(state.name, state.state) for state in manager.states()] == [("m", "downloading")]
            over.set()
            await asking
            assert lease.progress is None
    finally:
        await manager.stop()


async def test_a_failed_install_is_the_leases_error_and_leaves_nothing() -> None:
    async def arrive(on_bytes: OnBytes) -> None:
        raise HubCorrupt("came twice with a wrong checksum")

    manager = Manager(Here())
    async with manager.lease(ENTRY, arrive) as lease:
        with pytest.raises(HubCorrupt):
            await lease.handle()
    assert manager.states() == []
    await manager.stop()


async def test_room_is_what_a_model_could_have_at_last(tmp_path: Path) -> None:
    class Weights:
        async def ensure(self, entry: Entry, on_bytes: OnBytes) -> Files:
            file = tmp_path / f"{entry.name}.weights"
            file.write_bytes(bytes(1000))
            return Files((file,))

    manager = Manager(Weights(), memory_budget=5000)
    assert manager.room() == (5000, 5000)
    try:
        async with asyncio.timeout(20):
            async with manager.lease(ENTRY) as lease:
                await lease.handle()
                assert manager.room() == (3900, 5000)  # who is busy now will be idle
            pinned = Entry("p", Path("p.yaml"), Path(), ModelConfig(name="p", pinned=True), "echo")
            async with manager.lease(pinned) as lease:
                await lease.handle()
            assert manager.room() == (2800, 3900)  # but what is pinned stays
    finally:
        await manager.stop()
