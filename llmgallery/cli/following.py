"""Several jobs followed at once."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence
from typing import TYPE_CHECKING

from llmgallery.core.installs import Install

if TYPE_CHECKING:
    from llmgallery.cli.library import Door


async def merged(door: Door, ids: Sequence[str]) -> AsyncIterator[Install]:
    """The states of all these jobs as they come, until each is over. Raises GalleryError as soon as one cannot be followed."""
    came: asyncio.Queue[Install | None] = asyncio.Queue()

    async def follow(id: str) -> None:
        try:
            async for state in door.follow(id):
                came.put_nowait(state)
        finally:
            came.put_nowait(None)

    tasks = [asyncio.create_task(follow(id), name=f"follows {id}") for id in ids]
    try:
        open_ = len(tasks)
        while open_:
            state = await came.get()
            if state is not None:
                yield state
                continue
            open_ -= 1
            for task in tasks:
                if task.done():
                    task.result()
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
