"""One install or removal as those see it who wait for it: its state, its plan, its end. Belongs to one event loop."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from typing import Any

import msgspec

from llmgallery.catalog.install.plan import InstallPlan
from llmgallery.core.errors import Cancelled, GalleryError, from_info
from llmgallery.core.installs import FileProgress, Install, Phase

EVERY = 0.1
"""Seconds; bytes are told at most this often. Phases are told at once."""


class Asked(msgspec.Struct, frozen=True, kw_only=True):
    """What somebody wants installed, as data that a journal keeps. `reference`: a gallery's name, a Hub reference, or the
    address of an entry. `name`: what the model shall be called, None = as the plan says. `overrides`: settings of the
    request, on top of the entry's. `files`: further files of the request, as LocalAI writes them."""

    reference: str
    name: str | None = None
    overrides: dict[str, Any] = {}
    files: tuple[dict[str, Any], ...] = ()

    @property
    def key(self) -> str:
        """Equal for those that ask for the same."""
        return msgspec.json.encode(self, order="deterministic").decode()


class Job:
    """`state` is replaced as a whole. Who waits may leave at any time: only `Installer.cancel` ends a job.

    The job's owner calls `phase`, `tell`, `plan_is` and `end`; everybody else reads, waits and follows.
    """

    def __init__(self, state: Install, asked: Asked, clock: Callable[[], float], listen: Callable[[Install], None]) -> None:
        self.state = state
        self.asked = asked
        self._clock = clock
        self._listen = listen
        self._changed = asyncio.Event()
        self._over = asyncio.Event()
        self._later: asyncio.TimerHandle | None = None
        self._files: tuple[FileProgress, ...] = state.files
        self._told = 0.0
        self._planned: asyncio.Future[InstallPlan] = asyncio.get_running_loop().create_future()
        self._planned.add_done_callback(_retrieved)

    @property
    def id(self) -> str:
        return self.state.id

    @property
    def planned(self) -> asyncio.Future[InstallPlan]:
        """The plan, once it is made and nothing forbids it; raises what stopped the job before. Awaiting it and being
        cancelled harms nobody else. A removal never has one."""
        if self._planned.done():
            return self._planned
        mine = asyncio.shield(self._planned)
        mine.add_done_callback(_retrieved)
        return mine

    async def wait(self) -> Install:
        """Its end. Raises what a failed one failed of, and Cancelled."""
        await self._over.wait()
        if self.state.phase == "cancelled":
            raise Cancelled(f"the job for {self.state.name or self.state.asked} was cancelled; ask again to start it anew")
        if self.state.phase == "failed":
            raise from_info(self.state.error) if self.state.error else GalleryError("the job failed")
        if not self.state.is_over:
            raise Cancelled(_STOPPED)
        return self.state

    async def changed(self, seen: Install) -> Install:
        """The state as soon as it is another than `seen`; at once when it is over, or when the server stops."""
        while self.state is seen and not self._over.is_set():
            await self._changed.wait()
        return self.state

    async def follow(self) -> AsyncIterator[Install]:
        """The state now and each change, the last one included; who is slow gets fewer, never old ones."""
        seen = self.state
        yield seen
        while not seen.is_over and not (self._over.is_set() and self.state is seen):
            seen = await self.changed(seen)
            yield seen

    # For the job's owner

    def plan_is(self, plan: InstallPlan) -> None:
        if not self._planned.done():
            self._planned.set_result(plan)

    def phase(self, phase: Phase, **changes: Any) -> None:
        """Another phase, told at once."""
        self._publish(phase=phase, **changes)

    def tell(self, files: tuple[FileProgress, ...]) -> None:
        """Where the files are, told at once or a little later, with what has come until then."""
        self._files = files
        loop = asyncio.get_running_loop()
        wait = self._told + EVERY - loop.time()
        if wait <= 0:
            self._publish()
        elif self._later is None:
            self._later = loop.call_later(wait, self._publish)

    def at_end(self, phase: Phase, error: GalleryError | None = None) -> Install:
        """What the state will be once it has ended so."""
        info = error.info() if error else None
        return msgspec.structs.replace(self.state, files=self._files, updated=self._clock(), phase=phase, error=info)

    def end(self, state: Install, error: GalleryError | None = None) -> None:
        """It is over: done, failed of `error`, or cancelled, as `at_end` says it."""
        if not self._planned.done():
            self._planned.set_exception(error or Cancelled("the job was cancelled before it was planned"))
        self._set(state)
        self._close()

    def restored(self, plan: InstallPlan | None) -> None:
        """It was over before the server started."""
        if plan is not None:
            self.plan_is(plan)
        self.stop()

    def stop(self) -> None:
        """The server ends: those who wait are told so, the job is not over."""
        if not self._planned.done():
            self._planned.set_exception(Cancelled(_STOPPED))
        self._close()

    def _close(self) -> None:
        if self._later is not None:
            self._later.cancel()
            self._later = None
        self._over.set()
        self._wake()

    def _publish(self, **changes: Any) -> None:
        self._told = asyncio.get_running_loop().time()
        self._set(msgspec.structs.replace(self.state, files=self._files, updated=self._clock(), **changes))

    def _set(self, state: Install) -> None:
        if self._later is not None:
            self._later.cancel()
            self._later = None
        self.state = state
        self._listen(state)
        self._wake()

    def _wake(self) -> None:
        self._changed.set()
        self._changed = asyncio.Event()


_STOPPED = "the server stops; what has come is kept, and the install goes on when it starts again"


def _retrieved(future: asyncio.Future[InstallPlan]) -> None:
    """An error that nobody asked for is no warning: the job's state carries it."""
    if not future.cancelled():
        future.exception()
