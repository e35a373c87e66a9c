"""A chat without a server: the same stack, in this process, for as long as the command runs."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator
from pathlib import Path

from llmgallery.catalog.install import installer
from llmgallery.cli.given import check_loadable
from llmgallery.cli.stack import Stack, build
from llmgallery.config.settings import Settings
from llmgallery.core.events import Done, Progress, TextDelta, ToolCallDelta
from llmgallery.core.rendering import Rendering
from llmgallery.core.requests import ChatRequest
from llmgallery.service.gallery import Ask
from llmgallery.service.generation import Generation


class Local:
    """Used as `async with`: ends its workers when it is left."""

    def __init__(self, stack: Stack, default: str | None) -> None:
        self._stack = stack
        self.default = default

    @classmethod
    async def build(cls, settings: Settings, path: Path | None) -> Local:
        """`path`: the model to answer, which `default` then names. Raises ConfigError."""
        stack = build(settings, path)
        return cls(stack, stack.settings.default_model if path is not None else None)

    async def __aenter__(self) -> Local:
        """What a server logs of an install that failed is told as the command's own error."""
        installer.log.addHandler(logging.NullHandler())
        await self._stack.gallery.start(serves=False)
        return self

    async def __aexit__(self, *exc: object) -> None:
        await self._stack.close()

    async def check(self, model: str) -> None:
        """As Remote.check."""
        entry = await self._stack.gallery.could_have(model)
        if entry is not None:
            check_loadable(entry)

    async def render(self, ask: Ask) -> tuple[str, Rendering]:
        """The model's name, and the prompt that the call would become. Raises GalleryError."""
        return await self._stack.gallery.render(ask)

    async def ask(self, model: str, request: ChatRequest) -> AsyncIterator[Progress | TextDelta | Done | None]:
        """As Remote.ask."""
        generation = await self._stack.gallery.generate(Ask(model, (request,), stream=True))
        async with generation:
            async for progress in progress_of(generation):
                yield progress
            await generation.accepted()
            yield None
            async for _, event in generation:
                if not isinstance(event, ToolCallDelta):  # nothing is on offer
                    yield event


async def progress_of(generation: Generation) -> AsyncIterator[Progress]:
    """Until the worker has taken the request, or has failed to. Who is slow to show it misses nothing."""
    came: asyncio.Queue[Progress | None] = asyncio.Queue()

    async def watch() -> None:
        while True:
            if (progress := generation.progress) is not None:
                came.put_nowait(progress)
            await generation.changed()

    accepted = asyncio.ensure_future(generation.accepted())
    accepted.add_done_callback(lambda _: came.put_nowait(None))
    watching = asyncio.create_task(watch())
    try:
        while (progress := await came.get()) is not None:
            yield progress
    finally:
        accepted.cancel()
        watching.cancel()
        await asyncio.gather(accepted, watching, return_exceptions=True)  # what was wrong, `accepted` raises for the caller
