"""Installs on behalf of requests, of the jobs' routes and of the settings: what may be is begun, joined and waited for."""

from __future__ import annotations

import asyncio
import logging
import math
from collections.abc import Awaitable, Sequence
from typing import Any

from llmgallery.backends.loader import specs
from llmgallery.catalog.gallery.library import Library
from llmgallery.catalog.gallery.search import Found
from llmgallery.catalog.install.installer import Installer
from llmgallery.catalog.install.job import Asked, Job
from llmgallery.catalog.install.plan import InstallPlan
from llmgallery.catalog.install.write import checked
from llmgallery.catalog.lock import LockFile
from llmgallery.catalog.reference import HubReference, parse_reference
from llmgallery.catalog.registry import Entry, Registry, Snapshot
from llmgallery.config.outside import Outside
from llmgallery.config.settings import Settings
from llmgallery.core.errors import ConfigError, GalleryError, ModelBroken, ModelNotFound, Overloaded
from llmgallery.core.installs import Install
from llmgallery.runtime.manager import OnBytes
from llmgallery.service.install import policy
from llmgallery.service.install.brought import check_brought
from llmgallery.service.install.planning import is_address
from llmgallery.service.install.policy import Origin
from llmgallery.service.install.unchanged import is_unchanged
from llmgallery.service.names import Absent, lookup

log = logging.getLogger(__name__)

SHORTEST_WAIT = 0.25
"""Seconds. A plan that is there already is found within this time, whatever the client prefers."""
MOST_RUNNING = 64
"""Jobs at once that requests may begin. Each costs requests to the Hub, and memory, however few files are fetched at a time."""
AGAIN_SECONDS = 2.0
"""When to ask again for what is still being planned: that takes a few requests to the Hub."""


class Installing:
    """Knows what could be installed, asks the policy, and hands the work to the installer, whose jobs nobody's leaving ends.

    `preload`: what is installed at the start, by the operator's word.
    """

    def __init__(
        self,
        settings: Settings,
        registry: Registry,
        library: Library,
        installer: Installer,
        lock: LockFile,
        outside: Outside,
        preload: Sequence[Asked] = (),
    ) -> None:
        self.library = library
        self.installer = installer
        self._settings = settings
        self._registry = registry
        self._lock = lock
        self._outside = outside
        self._preload = tuple(preload)
        self._starting: asyncio.Task[None] | None = None
        self._preloading: asyncio.Task[None] | None = None
        self._noted = asyncio.Event()
        self._change = asyncio.Event()
        installer.on_state = self._changed

    async def start(self, reading: Awaitable[Any] | None) -> None:
        """Begins to read the galleries and, once the folder is read (`reading`), to go on with what was broken off and to
        install what the settings want; None = none of these, and the galleries are read when a name is looked up in them.
        Returns at once."""
        if reading is not None:
            self._start_reading()
            self._preloading = asyncio.create_task(self._begin(reading), name="goes on with installs")

    def _start_reading(self) -> asyncio.Task[None]:
        if self._starting is None:
            self._starting = asyncio.create_task(self._start(), name="reads the galleries")
        return self._starting

    async def _start(self) -> None:
        try:
            await self.library.start()
        except GalleryError as error:
            log.warning("the galleries cannot be read: %s", error.message)

    async def _begin(self, reading: Awaitable[Any]) -> None:
        try:
            await asyncio.shield(reading)
            await self.installer.resume()
            self._noted.set()  # before the galleries are read, which may take a while: most jobs know their files
            await self.ready()
            await asyncio.gather(*map(self._preloaded, self._preload))
        except Exception:
            log.exception("what was to be installed at the start is not")
        finally:
            self._noted.set()

    async def noted(self) -> None:
        """To be awaited before jobs are looked up or begun: until those of the server before are known again."""
        if self._preloading is not None:
            await self._noted.wait()

    async def _preloaded(self, asked: Asked) -> None:
        """Nobody waits for it: what goes wrong is logged. A model that is here stays as it is, unless it was installed and is
        now wanted with other settings."""
        name = asked.name or asked.reference
        try:
            if (entry := await self.here(asked)) is None or await self._is_to_change(entry, asked):
                await self.begin(asked, "operator").wait()
        except GalleryError as error:
            log.warning("preload: %s is not installed: %s", name, error.message)

    async def _is_to_change(self, entry: Entry, asked: Asked) -> bool:
        if not asked.overrides and not asked.files:
            return False
        locked = await asyncio.to_thread(self._lock.read)
        return entry.name in locked.models and await self.unchanged(asked) is None

    async def aclose(self) -> None:
        """Stops all jobs; what has come is kept, and they go on at the next start."""
        tasks = [task for task in (self._starting, self._preloading) if task is not None]
        for task in tasks:
            task.cancel()
        await self.installer.aclose()
        await self.library.aclose()
        await asyncio.gather(*tasks, return_exceptions=True)

    # --- what could be ----------------------------------------------------------------------------------------------------

    async def ready(self, wait: float = math.inf) -> None:
        """To be awaited before a name is looked up in the galleries, which may be read for the first time now. Raises Overloaded
        when that takes longer than `wait` seconds."""
        try:
            async with asyncio.timeout(_bounded(wait)):
                await asyncio.shield(self._start_reading())
                await self.library.ready()
        except TimeoutError:
            raise Overloaded("the galleries are still being read: ask again", retry_after=AGAIN_SECONDS) from None

    def knows(self, name: str) -> bool:
        """A gallery has an entry of this name."""
        return self.library.find(name) is not None

    def with_near(self, error: ModelNotFound, name: str | None) -> ModelNotFound:
        """The error, with names of the galleries' entries where the folder has none that is near."""
        near = tuple(self.library.near(name)) if name and not error.hints and self._settings.installable() != "off" else ()
        if not near:
            return error
        message = f"{error.message} The galleries have {' and '.join(map(repr, near))}, installed on request."
        return ModelNotFound(message, field="model", hints=near)

    def check_source(self, absent: Absent) -> None:
        """Raises NotAllowed when requests may install nothing of this kind."""
        policy.check_source(self._settings, absent.name, "gallery" if absent.reference is None else "hub")

    # --- installs ---------------------------------------------------------------------------------------------------------

    async def entry(self, absent: Absent, wait: float = math.inf) -> tuple[Entry, Job | None]:
        """The model as it will be, as soon as its install is planned, and its job. Raises NotAllowed, what the planning
        failed of, and Overloaded, which tells the job, when that takes longer than `wait` seconds."""
        asked = Asked(reference=absent.name)
        await self.noted()
        if (here := await self.here(asked)) is not None:
            return here, None
        job = self.begin(asked)
        try:
            async with asyncio.timeout(_bounded(wait)):
                plan = await job.planned
        except TimeoutError:
            message = f"model {absent.name} is still being planned; that goes on: ask again"
            raise Overloaded(message, retry_after=AGAIN_SECONDS, job=job.id) from None
        return self._future(plan), job

    async def begun(self, asked: Asked, origin: Origin, *, update: bool) -> Job:
        """As `begin`; where just this is installed, and it is not to be brought up to date, a job that is over."""
        self._check(asked, origin)
        name = await self.unchanged(asked) if not update else None
        settled = await self.installer.settled(asked, name) if name is not None else None
        return settled or self.installer.install(asked)

    def begin(self, asked: Asked, origin: Origin = "request") -> Job:
        """The job that installs this: a new one, or the one that runs already. Raises NotAllowed and InvalidField, and
        ModelNotFound for what nobody knows, Overloaded when too many run."""
        self._check(asked, origin)
        return self.installer.install(asked)

    def _check(self, asked: Asked, origin: Origin) -> None:
        source, owner = self._where(asked.reference)
        policy.check_asked(self._settings, asked.reference, source, owner, origin)
        if origin == "request":
            check_brought(self._settings, asked)
            if self.installer.num_running >= MOST_RUNNING and not self.installer.is_running(asked):
                raise Overloaded(f"{MOST_RUNNING} installs are under way: ask again when some are over", retry_after=10)

    async def here(self, asked: Asked) -> Entry | None:
        """The model, where it has been installed, perhaps under another of its names. Asks no network."""
        name = asked.name or asked.reference
        if (entry := lookup(name, self._registry.snapshot)) is not None:
            return entry
        found = self.library.find(asked.reference)
        if found is None or asked.name is not None or asked.overrides or asked.files or found.quant is not None:
            return None
        sources = self._sources(found)
        locked = await asyncio.to_thread(self._lock.read)
        snapshot = self._registry.snapshot  # an install may have ended meanwhile
        names = [name for name, model in locked.models.items() if model.source in sources]
        return lookup(name, snapshot) or next((snapshot.entries[name] for name in names if name in snapshot.entries), None)

    async def own_name(self, name: str) -> str:
        """The name of the installed model that has this alias, as one has that was asked for in another way; else `name`."""
        snapshot = self._registry.snapshot
        entry = snapshot.aliases.get(name) if name not in snapshot.entries else None
        locked = await asyncio.to_thread(self._lock.read)
        return entry.name if entry is not None and entry.name in locked.models and name not in locked.models else name

    async def unchanged(self, asked: Asked) -> str | None:
        """The installed model that is just what is asked for, by its name; None = there is something to do, or that cannot be
        told offline. Its YAML counts as it is now. Asks no network."""
        found, locked = self.library.find(asked.reference), await asyncio.to_thread(self._lock.read)
        snapshot, sources = self._registry.snapshot, self._sources(found) if found is not None else frozenset()
        for name in _names(asked, found):
            entry = _present(name, snapshot)
            model = locked.models.get(entry.name) if entry is not None else None
            if entry is None or model is None:
                continue
            text = await asyncio.to_thread(_text, entry)
            if is_unchanged(asked, found, sources, model, text):
                return entry.name
        return None

    def _sources(self, found: Found) -> frozenset[str]:
        """What installs of it may have come from."""
        variants = () if found.chosen else self.library.contents.variants(found.entry)
        return frozenset(entry.id for entry in (found.entry, *variants))

    def installed(self) -> tuple[frozenset[str], frozenset[str]]:
        """The sources of all models that were installed and are here, and the names of all models. Blocks (a file)."""
        names = frozenset(self._registry.snapshot.entries)
        locked = self._lock.read()
        return frozenset(model.source for name, model in locked.models.items() if name in names), names

    def jobs(self) -> list[Install]:
        """Those that run, and the last ones that ended."""
        return self.installer.jobs()

    @property
    def change(self) -> asyncio.Event:
        """Set as soon as a job's state is another than now, or there is a new one."""
        return self._change

    def _changed(self, state: Install) -> None:
        self._change.set()
        self._change = asyncio.Event()

    def _where(self, reference: str) -> tuple[policy.Source, str | None]:
        """Raises ModelNotFound."""
        if self.knows(reference):
            return "gallery", None
        hub = _hub(reference)
        if hub is None and not is_address(reference):
            near = tuple(self.library.near(reference))
            advice = f"; did you mean {' or '.join(map(repr, near[:3]))}?" if near else ""
            message = f"no gallery has {reference!r}, and it is no Hub id (owner/repo){advice}"
            raise ModelNotFound(message, field="model", hints=near)
        return "hub", hub.repo.partition("/")[0] if hub is not None else None

    def _future(self, plan: InstallPlan) -> Entry:
        """What the registry will read once the plan's YAML is written."""
        loaded = checked(plan.yaml, plan.name, self.installer.folder, specs(), self._outside)
        assert loaded.config is not None
        backend = loaded.backend or plan.backend
        aliases = tuple(loaded.config.aliases)
        path = loaded.path
        return Entry(loaded.name, path, path.parent, loaded.config, backend, aliases, loaded.warnings, places=loaded.places)


async def arrive(job: Job, on_bytes: OnBytes) -> None:
    """Until the model is installed. Raises what its job failed of."""
    async for state in job.follow():
        if state.phase == "downloading":
            on_bytes(state.done_bytes, state.total_bytes or 0)
    await job.wait()


def _names(asked: Asked, found: Found | None) -> list[str]:
    """What an earlier install of the same may have called it."""
    if asked.name is not None:
        return [asked.name]
    names = [asked.reference]
    if found is not None:
        names += [asked.reference.removeprefix(f"{found.entry.gallery}@")]
        names += [found.entry.name, found.entry.id] if found.quant is None else []
    elif (reference := _hub(asked.reference)) is not None:
        names += [str(reference)]
    return list(dict.fromkeys(names))


def _present(name: str, snapshot: Snapshot) -> Entry | None:
    """The model of this name, also one that the user has switched off."""
    try:
        return lookup(name, snapshot)
    except ModelBroken:
        return None
    except ModelNotFound:
        return snapshot.disabled.get(name)


def _text(entry: Entry) -> str:
    try:
        return entry.path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError):
        return ""  # it is gone meanwhile


def _bounded(wait: float) -> float | None:
    return None if wait == math.inf else max(wait, SHORTEST_WAIT)


def _hub(reference: str) -> HubReference | None:
    try:
        return parse_reference(reference)
    except ConfigError as error:
        raise ModelNotFound(f"{reference!r} names no model: {error.message}", field="model") from error
