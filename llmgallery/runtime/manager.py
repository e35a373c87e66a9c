"""The one owner of all workers: requests lease models, installs and loads are its own tasks, memory is its to give."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from collections.abc import Awaitable, Callable, Coroutine, Mapping, Sequence
from functools import partial
from typing import Any, Protocol, TypeVar

from llmgallery.backends.base import Files
from llmgallery.catalog.companions import check_companions
from llmgallery.catalog.index import Entry
from llmgallery.config.model import ModelConfig
from llmgallery.core.errors import GalleryError, LoadError, Overloaded
from llmgallery.core.events import Progress
from llmgallery.runtime import memory, policy
from llmgallery.runtime.handle import Handle
from llmgallery.runtime.interpreters import Interpreters
from llmgallery.runtime.keys import backend_of, is_shared, load_key
from llmgallery.runtime.lease import Board, Lease
from llmgallery.runtime.light import LightWorkers
from llmgallery.runtime.resident import ModelState, Resident

_log = logging.getLogger(__name__)
OnBytes = Callable[[int, int], None]
Arrival = Callable[[OnBytes], Awaitable[None]]
"""Waits for the install that brings a model, and tells its bytes; raises why it failed."""
T = TypeVar("T")


class FileSource(Protocol):
    """Where a model's files come from: local ones, or a download that everybody who asks shares."""

    async def ensure(self, entry: Entry, on_bytes: OnBytes) -> Files: ...


class Manager:
    """`memory_budget`: bytes for all models together, None = what the machine has left. `queue_wait`: seconds that a load
    waits for memory. `keep_alive`: seconds, for models that do not say; math.inf = never unload. `interpreters`: which Python
    runs the workers of each backend; None = ours all."""

    def __init__(
        self,
        files: FileSource,
        *,
        memory_budget: int | None = None,
        queue_wait: float = 60.0,
        keep_alive: float = 900.0,
        available: Callable[[], int] = memory.available,
        interpreters: Interpreters | None = None,
    ) -> None:
        self._files = files
        self.interpreters = interpreters or Interpreters()
        self._budget = memory_budget
        self._queue_wait = queue_wait
        self._keep_alive = keep_alive
        self._available = available
        self._residents: dict[str, Resident] = {}
        self._leases: dict[Lease, Resident] = {}
        self._downloads: dict[str, Board] = {}
        self._room = asyncio.Lock()  # first come, first served
        self._change = asyncio.Event()
        self._tasks: set[asyncio.Task[Any]] = set()
        self._reaper: asyncio.Task[None] | None = None
        self._stopping = False
        self.restarts = 0
        self.evictions = 0
        self.light = LightWorkers(interpreters=self.interpreters)

    async def start(self) -> None:
        """Begins to unload idle models."""
        self._spawn(asyncio.to_thread(self.interpreters.warm), "asks interpreters what they have")
        self._reaper = asyncio.create_task(self._reap(), name="unloads idle models")

    async def stop(self, drain: float = 0.0) -> None:
        """No new leases; open ones get `drain` seconds; then every worker ends."""
        self._stopping = True
        self._changed()
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(drain):
                while self._leases:
                    await self._next_change()
        tasks = [*self._tasks, *([self._reaper] if self._reaper else [])]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        await self._unload_each(list(self._residents.values()), _shutting_down())
        await self.light.stop(_shutting_down())

    # --- leases ----------------------------------------------------------------------------------------------------------

    def lease(self, entry: Entry, arrival: Arrival | None = None) -> Lease:
        """A hold on the model of `entry`, to be used with `async with`. `arrival`: of one that is still being installed."""
        return Lease(lambda lease: self._acquire(lease, entry, arrival), self._release)

    async def _acquire(self, lease: Lease, entry: Entry, arrival: Arrival | None) -> Handle:
        self._release(lease)
        self._refuse_when_stopping()
        files = await self._ensure(lease, entry, arrival)
        self._refuse_when_stopping()
        resident = self._resident(entry, files)
        resident.leases += 1  # from here on nobody evicts it, also while it loads
        self._leases[lease] = resident
        resident.used(time.monotonic())
        try:
            return await self._ready(lease, resident, entry)
        except BaseException:
            self._release(lease)
            raise

    def _refuse_when_stopping(self) -> None:
        if self._stopping:
            raise _shutting_down()

    async def _ensure(self, lease: Lease, entry: Entry, arrival: Arrival | None) -> Files:
        """Raises HubError, ConfigError."""
        on_bytes = partial(self._downloading, lease, entry.name)
        try:
            if arrival is not None:
                await arrival(on_bytes)
            return await self._files.ensure(entry, on_bytes)
        finally:
            self._downloads.pop(entry.name, None)

    def _downloading(self, lease: Lease, name: str, done: int, total: int) -> None:
        progress = Progress("downloading", done / total if total else None, done, total)
        lease.board.post(progress)
        self._downloads.setdefault(name, Board()).post(progress)

    async def _ready(self, lease: Lease, resident: Resident, entry: Entry) -> Handle:
        if (live := resident.live) is not None:
            return live
        if resident.loading is None:
            resident.board.post(Progress("queued"))
            resident.loading = self._spawn(self._load(resident, entry), f"load {resident.name}")
            self._changed()
        loading = resident.loading
        follow = asyncio.create_task(lease.board.follow(resident.board))
        try:
            await asyncio.wait({loading})
        finally:
            follow.cancel()
        if loading.cancelled():
            self._refuse_when_stopping()
        return loading.result()

    def _release(self, lease: Lease) -> None:
        resident = self._leases.pop(lease, None)
        if resident is None:
            return
        resident.leases -= 1
        resident.used(time.monotonic())
        self._changed()

    def _resident(self, entry: Entry, files: Files) -> Resident:
        """The record of the entry's load key; five YAMLs over one file share one. Raises LoadError."""
        backend = backend_of(entry, files, self.interpreters.specs())
        key = load_key(backend, entry.config, files)
        resident = self._residents.get(key)
        if resident is None:
            name = f"{backend} (all remote models)" if is_shared(backend) else entry.name
            resident = self._residents[key] = Resident(key, name, backend, files, self._keep_alive)
        for other in self._residents.values():
            other.entries.pop(entry.name, None)  # what the model was before its file or its weights changed
        resident.entries[entry.name] = entry
        return resident

    def loaded(self, key: str) -> Handle | None:
        """The worker of a load key, if it could answer at once. None is started, and none is kept from being unloaded."""
        resident = self._residents.get(key)
        return resident.live if resident is not None else None

    # --- loads: tasks of the manager; no waiter's cancel cancels them ------------------------------------------------------

    async def _load(self, resident: Resident, entry: Entry) -> Handle:
        began = time.monotonic()
        try:
            await self._back_off(resident)
            config = await self._plan(resident, entry)
            resident.board.post(Progress("loading", 0.0))
            handle = await Handle.start(
                resident.name,
                resident.backend,
                config,
                resident.files,
                lambda fraction: resident.board.post(Progress("loading", fraction)),
                interpreter=self.interpreters.of(resident.backend),
            )
        except Overloaded:
            raise
        except Exception as exc:
            resident.failed(str(exc), time.monotonic())
            _log.warning("model %s does not load: %s", resident.name, exc)
            raise
        finally:
            resident.loading = None
            resident.reserved = False
            resident.board.post(None)
            self._changed()
        resident.loaded(handle, time.monotonic())
        ready = handle.ready
        _log.info(
            "model %s is loaded: %.1f s, context %d, %d slots, process %d",
            *(resident.name, time.monotonic() - began, ready.context_size, ready.slots, handle.pid),
        )
        self._spawn(self._watch(resident, handle), f"watch {resident.name}")
        return handle

    async def _plan(self, resident: Resident, entry: Entry) -> ModelConfig:
        """Waits for its turn and for memory; then the memory is promised. A worker for models that are elsewhere takes none that
        is worth counting, and waits for nobody. Raises Overloaded, LoadError."""
        if is_shared(resident.backend):
            return entry.config
        deadline = time.monotonic() + self._queue_wait
        try:
            async with asyncio.timeout(self._queue_wait):
                await self._room.acquire()
        except TimeoutError:
            raise Overloaded(
                f"model {resident.name} waited {self._queue_wait:.0f} s for its turn to load", retry_after=10
            ) from None
        try:
            if (going := resident.leaving or resident.handle) is not None:
                await asyncio.shield(going.ended)
            free = self._free(resident)
            idle = sum(other.bytes for other in self._others(resident) if policy.is_evictable(other.facts()))
            plan = await asyncio.to_thread(_plan, entry.config, resident.files, free, free + idle)
            resident.bytes = plan.bytes
            if plan.shrunk_from is not None:
                _log.warning(
                    "model %s: a context of %d tokens does not fit into memory; it gets %d (context_size in its YAML decides)",
                    *(resident.name, plan.shrunk_from, plan.config.context_size),
                )
            await self._make_room(resident, plan, deadline)
            resident.reserved = True
        finally:
            self._room.release()
        return plan.config

    async def _back_off(self, resident: Resident) -> None:
        """A model that keeps failing is not started at every request."""
        delay = resident.retry_at - time.monotonic()
        if delay > 1.0:
            raise Overloaded(
                f"model {resident.name} failed {resident.failures} times and is tried again in {delay:.0f} s: {resident.error}",
                retry_after=delay,
            )
        if resident.failures:
            self.restarts += 1
        if delay > 0:
            await asyncio.sleep(delay)

    async def _watch(self, resident: Resident, handle: Handle) -> None:
        """Notes the worker's end, expected or not."""
        await asyncio.shield(handle.ended)
        if resident.handle is handle:  # else it was unloaded on purpose
            resident.handle = None
            resident.failed(str(handle.failure), time.monotonic())
            _log.warning("model %s: %s", resident.name, handle.failure)
        self._changed()

    async def _make_room(self, resident: Resident, plan: memory.Plan, deadline: float) -> None:
        """Raises Overloaded when there is no room in time, LoadError when there never will be."""
        while True:
            others = [other.facts() for other in self._others(resident)]
            match policy.make_room(resident.bytes, self._free(resident), others):
                case policy.Fits(evict):
                    self.evictions += len(evict)
                    await asyncio.gather(*(self._unload(self._residents[key]) for key in evict))
                    return
                case policy.Wait(busy):
                    names = ", ".join(sorted(self._residents[key].name for key in busy))
                    await self._wait_for_change(deadline, resident, names)
                case policy.Impossible(most):
                    raise LoadError(
                        f"model {resident.name} needs about {_gib(plan.bytes)}, but at most {_gib(most)} can be had: "
                        f"{plan.advice(most)}"
                    )

    async def _wait_for_change(self, deadline: float, resident: Resident, names: str) -> None:
        try:
            async with asyncio.timeout(max(0.0, deadline - time.monotonic())):
                await self._next_change()
        except TimeoutError:
            raise Overloaded(
                f"no memory for model {resident.name} ({_gib(resident.bytes)}) while {names} answer other requests",
                retry_after=10,
            ) from None

    def room(self) -> tuple[int, int]:
        """Bytes that nobody holds, and those that a new model could have at last: all but what pinned ones keep."""
        free, others = self._free(None), self._others(None)
        return free, free + sum(other.bytes for other in others if not other.facts().pinned)

    def _others(self, resident: Resident | None) -> list[Resident]:
        return [other for other in self._residents.values() if other is not resident and other.holds_memory]

    def _free(self, resident: Resident | None) -> int:
        """Bytes that nobody holds or has been promised."""
        others = self._others(resident)
        if self._budget is not None:
            return self._budget - sum(other.bytes for other in others)
        promised = sum(other.bytes for other in others if other.reserved)
        return int(self._available() * memory.MEASURED_SHARE) - promised

    # --- unloading -------------------------------------------------------------------------------------------------------

    async def unload(self, name: str) -> bool:
        """End the worker of this model, whoever uses it. False = it was not loaded."""
        found = [resident for resident in self._residents.values() if name in resident.entries]
        loaded = [resident for resident in found if resident.handle is not None]
        await asyncio.gather(*(self._unload(resident) for resident in loaded))
        return bool(loaded)

    def _unload(self, resident: Resident, why: GalleryError | None = None) -> Awaitable[None]:
        """From the call on, not only when it is awaited, new requests start a new worker: who decided that this one goes must
        not see it busy again. Awaited, the process is gone and its memory is free."""
        if resident.handle is not None:
            resident.handle, resident.leaving = None, resident.handle
        return self._end(resident, resident.leaving, why)

    async def _unload_each(self, residents: Sequence[Resident], why: GalleryError | None = None) -> None:
        """Whatever goes wrong at the end of one worker: the others end too, and who unloads them goes on."""
        outcomes = await asyncio.gather(*(self._unload(resident, why) for resident in residents), return_exceptions=True)
        for resident, outcome in zip(residents, outcomes, strict=True):
            if outcome is not None:
                _log.error("model %s: its worker did not end as it should", resident.name, exc_info=outcome)

    async def _end(self, resident: Resident, handle: Handle | None, why: GalleryError | None) -> None:
        if handle is None:
            return
        try:
            await handle.stop(why)
        finally:
            if resident.leaving is handle:
                resident.leaving = None
            _log.info("model %s is unloaded", resident.name)
            self._changed()

    def retain(self, entries: Mapping[str, Entry]) -> None:
        """After a change of the folder: workers that no entry wants any more go as soon as they are idle."""
        for resident in self._residents.values():
            resident.retain(entries)
        self._changed()

    async def _reap(self) -> None:
        while True:
            now = time.monotonic()
            facts = [resident.facts() for resident in self._residents.values() if resident.handle is not None]
            await self._unload_each([self._residents[key] for key in policy.expired(facts, now)])
            self._forget()
            due = policy.next_expiry([resident.facts() for resident in self._residents.values() if resident.handle is not None])
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(None if due is None else max(0.0, due - time.monotonic())):
                    await self._next_change()

    def _forget(self) -> None:
        """Records that stand for nothing any more."""
        for key, resident in list(self._residents.items()):
            if not (resident.entries or resident.leases or resident.holds_memory or resident.loading):
                del self._residents[key]

    # --- what is -----------------------------------------------------------------------------------------------------------

    def states(self) -> list[ModelState]:
        """Every model that is or was loaded or is on its way, by name."""
        rows = {name: resident.state(name) for resident in self._residents.values() for name in resident.entries}
        for name, board in self._downloads.items():
            rows[name] = ModelState(name, "downloading", progress=board.value)
        return [rows[name] for name in sorted(rows)]

    # --- plumbing ----------------------------------------------------------------------------------------------------------

    def _changed(self) -> None:
        news, self._change = self._change, asyncio.Event()
        news.set()

    async def _next_change(self) -> None:
        await self._change.wait()

    def _spawn(self, work: Coroutine[Any, Any, T], name: str) -> asyncio.Task[T]:
        task = asyncio.create_task(work, name=name)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        task.add_done_callback(lambda done: done.cancelled() or done.exception())  # retrieved: waiters may have left
        return task


def _plan(config: ModelConfig, files: Files, free: int, most: int) -> memory.Plan:
    """Blocks (files). Raises BadWeights."""
    check_companions(files.weights, files.adapters, files.draft)
    return memory.plan(config, files, free, most)


def _shutting_down() -> Overloaded:
    return Overloaded("the server is shutting down", retry_after=10)


def _gib(size: int) -> str:
    return f"{size / 2**30:.2f} GiB"
