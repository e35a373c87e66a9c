"""The one door for every dialect: a name and requests in, a generation out. Knows no HTTP."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Callable

import msgspec

from llmgallery.catalog.registry import Entry, Registry, Snapshot
from llmgallery.config.merge import merge_sampling, merge_stops
from llmgallery.config.settings import Settings
from llmgallery.core.errors import InvalidField, ModelBroken, ModelNotFound
from llmgallery.core.requests import Request
from llmgallery.core.sampling import Sampling
from llmgallery.metrics import Metrics
from llmgallery.runtime.manager import Manager
from llmgallery.service.demands import Wish, settle
from llmgallery.service.generation import Generation
from llmgallery.service.names import resolve

MOST_ANSWERS = 512


class Ask(msgspec.Struct, frozen=True):
    """What a dialect understood of one call. `prompts`: one request each; every one is answered `copies` times.
    `token`: the bearer token, which may name the model when no API key is configured."""

    model: str | None
    prompts: tuple[Request, ...]
    copies: int = 1
    wishes: tuple[Wish, ...] = ()
    stream: bool = False
    token: str | None = None


class ModelInfo(msgspec.Struct, frozen=True):
    """A model as lists show it. `created`: Unix time of its file."""

    name: str
    created: int
    owned_by: str | None = None
    aliases: tuple[str, ...] = ()
    description: str | None = None


class Gallery:
    """Models by name. `start` returns at once; until the folder has been read, calls wait for it."""

    def __init__(self, settings: Settings, registry: Registry, manager: Manager) -> None:
        self.settings = settings
        self.registry = registry
        self.manager = manager
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
        warnings = settle(ask.wishes, entry.config.on_unsupported, entry.name)
        requests = _spread(ask, entry)
        return Generation(
            entry,
            self.manager.lease(entry),
            requests,
            self.metrics,
            self._running,
            copies=ask.copies,
            coalesce=not ask.stream,
            warnings=warnings,
        )


def _info(entry: Entry) -> ModelInfo:
    config = entry.config
    return ModelInfo(entry.name, entry.created, config.owned_by, tuple(entry.aliases), config.description)


def _spread(ask: Ask, entry: Entry) -> list[Request]:
    """All requests with the model's settings under their own, copies of a prompt together. Copies of a seeded request count
    its seed up, or they would all say the same."""
    if len(ask.prompts) * ask.copies > MOST_ANSWERS:
        raise InvalidField(f"a request may ask for {MOST_ANSWERS} answers at most: prompts x n", field="n")
    merged = [_merged(request, entry) for request in ask.prompts]
    return [_copy(request, copy) for request in merged for copy in range(ask.copies)]


def _merged(request: Request, entry: Entry) -> Request:
    return msgspec.structs.replace(
        request,
        sampling=merge_sampling(request.sampling, entry.config, Sampling()),
        stop=merge_stops(request.stop, entry.config),
    )


def _copy(request: Request, copy: int) -> Request:
    seed = request.sampling.seed
    if copy == 0 or seed is None or seed < 0:
        return request
    return msgspec.structs.replace(request, sampling=msgspec.structs.replace(request.sampling, seed=seed + copy))
