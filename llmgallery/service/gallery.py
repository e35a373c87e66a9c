"""The one door for every dialect: a name and requests in, a generation out. Knows no HTTP."""

from __future__ import annotations

import asyncio
import math
import time
from collections import Counter
from collections.abc import Callable
from functools import partial
from typing import Literal, get_args

import msgspec

from llmgallery.backends.base import BackendSpec
from llmgallery.backends.loader import specs
from llmgallery.catalog.install.job import Job
from llmgallery.catalog.purpose import Cached, nothing_cached
from llmgallery.catalog.registry import Entry, Registry, Snapshot
from llmgallery.config.settings import Settings
from llmgallery.core.errors import ModelBroken, ModelNotFound, NotAllowed
from llmgallery.core.installs import Phase
from llmgallery.core.rendering import Rendering
from llmgallery.metrics import Metrics
from llmgallery.runtime.manager import Manager
from llmgallery.service.demands import IMAGES, features_of, is_elsewhere, settle
from llmgallery.service.generation import Generation
from llmgallery.service.install.installing import Installing, arrive
from llmgallery.service.media import Media
from llmgallery.service.names import Absent, resolve
from llmgallery.service.pooling import PoolAsk, Pooling, use_of
from llmgallery.service.rendering import Renderer
from llmgallery.service.spread import Ask as Ask
from llmgallery.service.spread import spread
from llmgallery.service.turn import Turn
from llmgallery.service.uses import Use, check_use

Known = Callable[[str], bool]
Unknown = Literal["error", "default"]


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
        self.installing: Installing | None = None
        """None = what is not in the folder does not exist."""
        self.settings = settings
        self.registry = registry
        self.manager = manager
        self.renderer = Renderer(manager, cached)
        self.media = Media(settings.media_hosts)
        self._cached = cached
        self.metrics = Metrics()
        self.metrics.watch(manager.states, lambda: manager.restarts, lambda: manager.evictions)
        self._reading: asyncio.Task[Snapshot] | None = None
        self._running: Counter[str] = Counter()
        self.on_change: Callable[[Snapshot], None] = self.folder_changed
        """Told when a request finds the folder changed, as the watcher tells it otherwise."""

    def install_with(self, installing: Installing) -> None:
        """Before the start. From now on what is absent may be installed."""
        self.installing = installing
        self.metrics.watch_installs(installing.jobs, get_args(Phase))

    async def start(self, *, serves: bool = True) -> None:
        """Begins to read the folder and to unload idle models. `serves`: for long, so that installs that were broken off go on,
        and those that the settings want begin."""
        await self.manager.start()
        self._reading = asyncio.create_task(asyncio.to_thread(self.registry.read), name="reads the models folder")
        if self.installing is not None:
            await self.installing.start(self._reading if serves else None)

    async def stop(self, drain: float = 0.0) -> None:
        """Ends all workers; open requests get `drain` seconds."""
        await self.manager.stop(drain)
        await self.media.aclose()
        if self.installing is not None:
            await self.installing.aclose()
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

    async def could_have(self, name: str | None) -> Entry | None:
        """The model that `name` means; None = it would be installed for who asks for it. Raises as `wanted`, and installs
        nothing."""
        if self.installing is None:
            return await self.entry(name)
        try:
            return await self.entry(name)
        except ModelNotFound:
            await self.installing.ready()
            found = await self._meaning(name, None, self.installing.knows)
        if isinstance(found, Absent):
            self.installing.check_source(found)
            return None
        return found

    async def models(self) -> list[ModelInfo]:
        """All models that can be asked for, by name; broken ones are not among them."""
        snapshot = await self.snapshot()
        return [_info(snapshot.entries[name]) for name in sorted(snapshot.entries)]

    async def model(self, name: str | None) -> ModelInfo:
        """The model that `name` means. Raises ModelNotFound, ModelBroken."""
        return _info(await self.entry(name))

    async def entry(self, name: str | None, token: str | None = None) -> Entry:
        """What a request's model name means; installs nothing. Raises ModelNotFound, ModelBroken."""
        found = await self._meaning(name, token, None)
        assert isinstance(found, Entry)
        return found

    async def wanted(self, name: str | None, token: str | None, wait: float) -> tuple[Entry, Job | None]:
        """The same for who wants to use it: what is not here and may be installed is. `wait`: seconds until the install
        must be planned; then its job goes on, and Overloaded tells of it."""
        if self.installing is None:
            return await self.entry(name, token), None
        began = time.monotonic()
        try:
            found = await self._meaning(name, token, None, "error")
        except ModelNotFound:
            await self.installing.ready(wait)
            try:
                found = await self._meaning(name, token, self.installing.knows)
            except ModelNotFound as error:
                raise self.installing.with_near(error, name) from error
        if isinstance(found, Entry):
            return found, None
        try:
            self.installing.check_source(found)
        except NotAllowed as refusal:
            return await self._instead(name, token, refusal), None
        return await self.installing.entry(found, wait - (time.monotonic() - began))

    async def _instead(self, name: str | None, token: str | None, refusal: NotAllowed) -> Entry:
        """What a name means when it may not be installed. For the client there is no such model, as far as we know."""
        try:
            return await self.entry(name, token)
        except ModelNotFound as error:
            message = f"{error.message} {refusal.message[:1].upper()}{refusal.message[1:]}"
            raise ModelNotFound(message, field="model", hints=(*error.hints, *refusal.hints)) from refusal

    async def _meaning(
        self, name: str | None, token: str | None, known: Known | None, unknown: Unknown | None = None
    ) -> Entry | Absent:
        """Nobody has to wait for the watcher: a file that changed since it was read is read again, and so is a folder that
        changed when the name is not in it, or broken.
        """
        resolved = partial(self._resolve, name, token, known, unknown or self.settings.unknown_model)
        snapshot = await self.snapshot()
        try:
            found = resolved(snapshot)
        except (ModelNotFound, ModelBroken):
            if not await self._may_have_news():
                raise
            return resolved(await self._look())
        if isinstance(found, Absent):
            is_current = not await self._may_have_news()
        else:
            is_current = self.settings.watch == "off" or await asyncio.to_thread(self.registry.is_current, found)
        return found if is_current else resolved(await self._look())

    async def _may_have_news(self) -> bool:
        return self.settings.watch != "off" and await asyncio.to_thread(self.registry.may_have_news)

    def _resolve(
        self, name: str | None, token: str | None, known: Known | None, unknown: Unknown, snapshot: Snapshot
    ) -> Entry | Absent:
        return resolve(
            name,
            snapshot,
            known=known,
            default=self.settings.default_model,
            token=None if self.settings.api_keys else token,
            unknown=unknown,
        )

    async def _look(self) -> Snapshot:
        """The folder as it is this moment."""
        before = self.registry.snapshot
        snapshot = await asyncio.to_thread(self.registry.refresh)
        if snapshot != before:
            self.on_change(snapshot)
        return snapshot

    async def reload(self) -> Snapshot:
        """The folder, read again now. Raises ConfigError when it cannot be read."""
        await self.snapshot()
        return await self._look()

    async def generate(self, ask: Ask, wait: float = math.inf) -> Generation:
        """The answers, to be entered with `async with`. Raises RequestError, ModelNotFound, NotAllowed, ModelBroken, and what
        the planning of an install raises, which may take `wait` seconds; a full model is told on entering, what the worker
        finds by Generation.accepted."""
        entry, job = await self.wanted(ask.model, ask.token, wait)
        spec = specs().get(entry.backend or "")
        features = features_of(spec, entry.config)
        warnings = settle(ask.wishes, entry.config.on_unsupported, entry.name, features)
        if IMAGES in features:
            ask = await self._with_images(ask, spec)
        asked = spread(ask, entry, features, spec)
        return Generation(
            await self._turn(entry, "generate", job),
            asked,
            coalesce=not ask.stream,
            warnings=warnings,
        )

    async def pool(self, ask: PoolAsk, wait: float = math.inf) -> Pooling:
        """Vectors or scores, to be entered with `async with`. Raises as `generate` does."""
        entry, job = await self.wanted(ask.model, ask.token, wait)
        spec = specs().get(entry.backend or "")
        warnings = settle(ask.wishes, entry.config.on_unsupported, entry.name, features_of(spec, entry.config))
        if not is_elsewhere(spec):
            ask = msgspec.structs.replace(ask, request=msgspec.structs.replace(ask.request, extra={}))
        return Pooling(await self._turn(entry, use_of(ask.request), job), ask, warnings)

    async def render(self, ask: Ask) -> tuple[str, Rendering]:
        """The model's name, and the very prompt that one call would become. Nothing is loaded or installed. Raises as
        Renderer.render, ModelNotFound, ModelBroken."""
        entry = await self.entry(ask.model, ask.token)
        spec = specs().get(entry.backend or "")
        if IMAGES in features_of(spec, entry.config):
            ask = await self._with_images(ask, spec)
        return entry.name, await self.renderer.render(entry, ask)

    async def _with_images(self, ask: Ask, spec: BackendSpec | None) -> Ask:
        """With the bytes of its images; as it came for a model that is elsewhere. Raises InvalidField."""
        if is_elsewhere(spec):
            return ask
        return msgspec.structs.replace(ask, prompts=await self.media.brought(ask.prompts))

    async def _turn(self, entry: Entry, use: Use, job: Job | None) -> Turn:
        """Raises UnsupportedField when the model is known not to be made for this use."""
        if not is_elsewhere(specs().get(entry.backend or "")):  # there its endpoint decides
            await asyncio.to_thread(check_use, entry, use, self._cached)
        lease = self.manager.lease(entry, partial(arrive, job) if job is not None else None)
        return Turn(entry, lease, self.metrics, self._running, use, job.id if job is not None else None)


def _info(entry: Entry) -> ModelInfo:
    config = entry.config
    return ModelInfo(entry.name, entry.created, config.owned_by, tuple(entry.aliases), config.description)
