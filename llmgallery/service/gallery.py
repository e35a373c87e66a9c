"""The one door for every dialect: a name and requests in, a generation out. Knows no HTTP."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Callable

import msgspec

from llmgallery.backends.loader import specs
from llmgallery.catalog.purpose import Cached, nothing_cached
from llmgallery.catalog.registry import Entry, Registry, Snapshot
from llmgallery.config.settings import Settings
from llmgallery.core.errors import ModelBroken, ModelNotFound
from llmgallery.metrics import Metrics
from llmgallery.runtime.manager import Manager
from llmgallery.service.demands import features_of, settle
from llmgallery.service.generation import Generation
from llmgallery.service.names import resolve
from llmgallery.service.pooling import PoolAsk, Pooling, use_of
from llmgallery.service.spread import Ask as Ask
from llmgallery.service.spread import spread
from llmgallery.service.turn import Turn
from llmgallery.service.uses import Use, check_use


class ModelInfo(msgspec.Struct, frozen=True):
    """A model as lists show it. `created`: Unix time of its file."""

    name: str
    created: int
    owned_by: str | None = None
    aliases: tuple[str, ...] = ()
    description: str | None = None


class Gallery:
    """Models by name. `start` returns at once; until the folder has been read, calls wait for it."""

    def __init__(self, settings: Settings, registry: Registry, manager: Manager, cached: Cached = nothing_cached) -> None:
        self.settings = settings
        self.registry = registry
        self.manager = manager
        self._cached = cached
        self.metrics = Metrics()
        self.metrics.watch(manager.states, lambda: manager.restarts, lambda: manager.evictions)
        self._reading: asyncio.Task[Snapshot] | None = None
        self._running: Counter[str] = Counter()
        self.on_change: Callable[[Snapshot], None] = self.folder_changed
        """Told when a request finds the folder changed, as the watcher tells it otherwise."""

    async def start(self) -> None:
        """Begins to read the folder and to unload idle models."""
        await self.manager.start()
        self._reading = asyncio.create_task(asyncio.to_thread(self.registry.read), name="reads the models folder")

    async def stop(self, drain: float = 0.0) -> None:
        """Ends all workers; open requests get `drain` seconds."""
        await self.manager.stop(drain)
        if self._reading is not None:
            await asyncio.gather(self._reading, return_exceptions=True)

    @property
    def is_ready(self) -> bool:
        """The folder has been read."""
        return self.registry.ready

    def folder_changed(self, snapshot: Snapshot) -> None:
        """For the watcher: workers that no model file wants any more go once they are idle."""
        self.manager.retain(snapshot.entries)

    async def snapshot(self) -> Snapshot:
        """The folder as it is now; waits for the first reading. Raises ConfigError when it cannot be read."""
        if self._reading is None:
            raise RuntimeError("the gallery was not started")
        await asyncio.shield(self._reading)
        return self.registry.snapshot

    async def models(self) -> list[ModelInfo]:
        """All models that can be asked for, by name; broken ones are not among them."""
        snapshot = await self.snapshot()
        return [_info(snapshot.entries[name]) for name in sorted(snapshot.entries)]

    async def model(self, name: str | None) -> ModelInfo:
        """The model that `name` means. Raises ModelNotFound, ModelBroken."""
        return _info(await self.entry(name))

    async def entry(self, name: str | None, token: str | None = None) -> Entry:
        """What a request's model name means. Raises ModelNotFound, ModelBroken.

        Nobody has to wait for the watcher: a file that changed since it was read is read again, and so is a folder that
        changed when the name is unknown or broken.
        """
        snapshot = await self.snapshot()
        try:
            entry = self._resolve(snapshot, name, token)
        except (ModelNotFound, ModelBroken):
            if self.settings.watch == "off" or not await asyncio.to_thread(self.registry.may_have_news):
                raise
            return self._resolve(await self._look(), name, token)
        if self.settings.watch == "off" or await asyncio.to_thread(self.registry.is_current, entry):
            return entry
        return self._resolve(await self._look(), name, token)

    def _resolve(self, snapshot: Snapshot, name: str | None, token: str | None) -> Entry:
        return resolve(
            name,
            snapshot,
            default=self.settings.default_model,
            token=None if self.settings.api_keys else token,
            unknown=self.settings.unknown_model,
        )

    async def _look(self) -> Snapshot:
        """The folder as it is this moment."""
        before = self.registry.snapshot
        snapshot = await asyncio.to_thread(self.registry.refresh)
        if snapshot != before:
            self.on_change(snapshot)
        return snapshot

    async def generate(self, ask: Ask) -> Generation:
        """The answers, to be entered with `async with`. Raises RequestError, ModelNotFound, ModelBroken; a
        full model is told on entering, what the worker finds by Generation.accepted."""
        entry = await self.entry(ask.model, ask.token)
        features = features_of(specs().get(entry.backend or ""))
        warnings = settle(ask.wishes, entry.config.on_unsupported, entry.name, features)
        asked = spread(ask, entry, features)
        return Generation(
            await self._turn(entry, "generate"),
            asked,
            coalesce=not ask.stream,
            warnings=warnings,
        )

    async def pool(self, ask: PoolAsk) -> Pooling:
        """Vectors or scores, to be entered with `async with`. Raises as `generate` does."""
        entry = await self.entry(ask.model, ask.token)
        warnings = settle(ask.wishes, entry.config.on_unsupported, entry.name)
        return Pooling(await self._turn(entry, use_of(ask.request)), ask, warnings)

    async def _turn(self, entry: Entry, use: Use) -> Turn:
        """Raises UnsupportedField when the model is known not to be made for this use."""
        await asyncio.to_thread(check_use, entry, use, self._cached)
        return Turn(entry, self.manager.lease(entry), self.metrics, self._running, use)


def _info(entry: Entry) -> ModelInfo:
    config = entry.config
    return ModelInfo(entry.name, entry.created, config.owned_by, tuple(entry.aliases), config.description)
