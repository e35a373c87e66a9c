"""Installs and removes models, one job each however many ask, and goes on with them after a restart."""

from __future__ import annotations

import asyncio
import logging
import time
import uuid
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import msgspec

from llmgallery.catalog.download import disk_error
from llmgallery.catalog.hub import Hub
from llmgallery.catalog.index import file_stem
from llmgallery.catalog.install.fetch import Fetches
from llmgallery.catalog.install.job import Asked, Job
from llmgallery.catalog.install.journal import Journals, Record
from llmgallery.catalog.install.plan import InstallPlan
from llmgallery.catalog.install.removal import Removal
from llmgallery.catalog.install.store import MEND_MODELS, Store, install_folder, planned
from llmgallery.catalog.install.work import Work
from llmgallery.catalog.lock import LockFile
from llmgallery.catalog.locks import FileLock, holding, take
from llmgallery.core.errors import Cancelled, ConfigError, GalleryError, from_info
from llmgallery.core.installs import FileProgress, Install, Phase

log = logging.getLogger(__name__)
Planner = Callable[[Asked], Awaitable[InstallPlan]]
Check = Callable[[InstallPlan], Awaitable[None]]
OnChange = Callable[[Path], Awaitable[None]]


@dataclass
class _Run:
    """A job that is not over, and the task that works on it. `final`: it writes now, which nobody stops half-way."""

    job: Job
    record: Record
    work: asyncio.Task[None] | None = None
    task: asyncio.Task[None] | None = None
    lock: FileLock | None = None
    final: bool = False
    stopped: bool = False

    def stop(self) -> None:
        """Once: what tidies up after a cancel is not to be cancelled."""
        if self.work is not None and not self.final and not self.stopped:
            self.stopped = True
            self.work.cancel()


class Installer:
    """Belongs to one event loop. Jobs are tasks of its own: who waits for one may leave.

    `planner` says what an install will do; `checks` get its plan before the first byte and may raise. `on_change(path)`: a
    model's YAML was written or deleted; awaited before the job is done, so that whoever waited finds the model.
    `models_dir` is where installs go, `data_dir`/models where it cannot be written (`folder`); `folders`: further ones whose
    YAMLs may need files. `keep` jobs that are over are remembered, for `keep_for` seconds.
    """

    def __init__(
        self,
        planner: Planner,
        hub: Hub,
        *,
        models_dir: Path,
        data_dir: Path,
        on_change: OnChange,
        lock: LockFile | None = None,
        checks: Sequence[Check] = (),
        folders: Sequence[Path] = (),
        parallel: int = 3,
        keep: int = 50,
        keep_for: float = 7 * 86_400.0,
        clock: Callable[[], float] = time.time,
        on_state: Callable[[Install], None] | None = None,
    ) -> None:
        self.folder = install_folder(models_dir, data_dir)
        store = Store(self.folder, hub.settings.cache_dir)
        self._journals = Journals(data_dir / "jobs")
        lock = lock or LockFile.of(self.folder)
        yamls = (self.folder, models_dir, *folders)
        self._work = Work(hub, store, Fetches(hub, store), lock, self._journals, yamls, tuple(checks), on_change, parallel)
        self._planner = planner
        self._keep, self._keep_for = keep, keep_for
        self._clock = clock
        self.on_state = on_state
        """Told of every job whose state is another."""
        self._jobs: dict[str, Job] = {}
        self._records: dict[str, Record] = {}
        self._runs: dict[str, _Run] = {}
        self._by_key: dict[str, Job] = {}
        self._by_name: dict[str, Job] = {}
        self._tasks: set[asyncio.Task[None]] = set()
        self._closing = False

    # --- what others call -------------------------------------------------------------------------------------------------

    def install(self, asked: Asked | str) -> Job:
        """The job that installs this: the one that runs already, else a new one. A name that failed before starts anew."""
        asked = Asked(reference=asked) if isinstance(asked, str) else asked
        _check_text(asked)
        return self._begin(asked, asked.key, deletion=False)

    async def settled(self, asked: Asked, name: str) -> Job | None:
        """For who asks for the installed model `name` as it is: a job that is over; None = it is not whole, or not at rest. Who
        asks for the same again gets the same one."""
        model = await asyncio.to_thread(self._work.installed, name)
        if model is None or name in self._by_name or asked.key in self._by_key:
            return None
        for job in self._jobs.values():
            state = job.state
            if job.asked == asked and (state.phase, state.name, state.source) == ("done", name, model.source):
                return job
        now = self._clock()
        files = tuple(FileProgress(planned(file).name, file.size, file.size) for file in model.files)
        state = Install(
            uuid.uuid4().hex, asked.reference, "done", name=name, source=model.source, files=files, created=now, updated=now
        )
        job = self._add(Record(state=state, asked=asked))
        self._tell(state)
        await self._prune()
        return job

    async def remove(self, name: str) -> Job:
        """The job that removes an installed model: its YAML, its lock entry, and the files that nobody else needs. A running
        install of it is cancelled first. `FILE.yaml` removes a file that the user wrote, and none of its weights.
        """
        asked = Asked(reference=name)
        _check_text(asked)
        return self._begin(asked, _removal(asked), deletion=True)

    @property
    def num_running(self) -> int:
        return len(self._runs)

    def is_running(self, asked: Asked) -> bool:
        return asked.key in self._by_key

    def find(self, id: str) -> Job | None:
        return self._jobs.get(id)

    def jobs(self) -> list[Install]:
        """All that run and those that ended lately, in the order in which they began."""
        return sorted((job.state for job in self._jobs.values()), key=lambda state: (state.created, state.id))

    async def cancel(self, id: str) -> Install | None:
        """Stop a job and delete what it has brought, unless somebody else needs it; None = there is no such job. One that
        writes already is waited for and stays done; of a failed one what it left is deleted. A removal cannot be cancelled.
        """
        job, run = self._jobs.get(id), self._runs.get(id)
        if job is None:
            return None
        if run is None:
            if job.state.phase == "failed":
                await self._forget(id)
            return job.state
        if not run.final and not job.state.deletion:
            run.record = msgspec.structs.replace(run.record, cancelled=True)
            self._drop(job, names=False)  # who asks now wants a new one, which waits until this one has tidied up
            run.stop()
        assert run.task is not None
        await asyncio.wait({run.task})
        return job.state

    async def resume(self, only: Asked | None = None) -> None:
        """At the start: go on with the jobs that a server before left unfinished, and list those that are over. `only`: with
        those that were asked for this, for who is no server."""
        for record in await asyncio.to_thread(lambda: list(self._journals.read_all())):
            if record.state.id in self._jobs or (only is not None and record.asked != only):
                continue
            if record.is_open:
                await self._take_up(record)
            else:
                self._add(record)
        await self._prune()

    async def aclose(self) -> None:
        """Stop all jobs; what has come is kept, and they go on at the next start."""
        self._closing = True
        for run in self._runs.values():
            run.stop()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    # --- the life of a job ------------------------------------------------------------------------------------------------

    def _begin(self, asked: Asked, key: str, deletion: bool) -> Job:
        if self._closing:
            raise Cancelled("the server stops: nothing is installed any more")
        if (job := self._by_key.get(key)) is not None:
            return job
        now = self._clock()
        state = Install(uuid.uuid4().hex, asked.reference, deletion=deletion, created=now, updated=now)
        return self._start(Record(state=state, asked=asked))

    def _add(self, record: Record) -> Job:
        job = self._jobs[record.state.id] = Job(record.state, record.asked, self._clock, self._tell)
        self._records[record.state.id] = record
        if record.state.is_over:
            job.restored(record.plan)
        return job

    def _start(self, record: Record, lock: FileLock | None = None) -> Job:
        job = self._add(record)
        run = self._runs[job.id] = _Run(job, record, lock=lock)
        self._by_key.setdefault(_key(job), job)
        run.task = asyncio.create_task(self._live(run), name=f"install {record.asked.reference}")
        self._tasks.add(run.task)
        run.task.add_done_callback(self._tasks.discard)
        return job

    async def _take_up(self, record: Record) -> None:
        """Go on with a job, unless another server is at it."""
        lock = self._journals.lock_job(record.state.id)
        if not await asyncio.to_thread(lock.acquire):
            return
        now = await asyncio.to_thread(self._journals.read, record.state.id)
        if now is None or not now.is_open:
            await asyncio.to_thread(lock.release)
            return
        state = msgspec.structs.replace(now.state, phase="queued", files=())
        self._start(msgspec.structs.replace(now, state=state), lock)

    async def _live(self, run: _Run) -> None:
        """The whole life of a job: whatever happens, it ends in one way, or is left for the next start."""
        job = run.job
        run.work = asyncio.create_task(self._do(run))
        if run.record.cancelled or self._closing:
            run.stop()
        await asyncio.wait({run.work})
        error = None if run.work.cancelled() else _as_ours(run.work.exception(), self.folder)
        try:
            if run.record.cancelled and (error or run.work.cancelled()):
                await self._undo(run)
            elif run.work.cancelled():
                await self._note(run)  # how far it came, for lists
                await self._release(run)
                job.stop()
            else:
                await self._settle(run, "failed" if error else "done", error)
        except Exception as exc:  # noqa: BLE001 - task border: whoever waits must hear of an end
            await self._release(run)
            error = error or _as_ours(exc, self.folder)
            self._end(run, job.at_end("failed", error), error)
        await self._prune()

    async def _undo(self, run: _Run) -> None:
        if run.record.plan is not None:
            await self._note(run)  # a server that is killed now goes on with it
            await self._work.undo(run.record)
        await asyncio.to_thread(self._journals.delete, run.job.id)
        await self._release(run)
        self._end(run, run.job.at_end("cancelled"))

    async def _settle(self, run: _Run, phase: Phase, error: GalleryError | None) -> None:
        """The journal says it first. One that failed before it had a plan is worth none."""
        job = run.job
        state = job.at_end(phase, error)
        record = self._records[job.id] = msgspec.structs.replace(run.record, state=state)
        if record.plan is None and error is not None:
            await asyncio.to_thread(self._journals.delete, job.id)
        else:
            await asyncio.to_thread(self._journals.write, record)
        await self._release(run)
        self._end(run, state, error)

    async def _release(self, run: _Run) -> None:
        if run.lock is not None:
            await asyncio.to_thread(run.lock.release)

    def _end(self, run: _Run, state: Install, error: GalleryError | None = None) -> None:
        """From now on the same name starts a new job."""
        job = run.job
        self._runs.pop(job.id, None)
        self._drop(job)
        if error is not None:
            log.warning("%s is not %s: %s", job.state.asked, "removed" if job.state.deletion else "installed", error.message)
        job.end(state, error)

    def _drop(self, job: Job, names: bool = True) -> None:
        for known in (self._by_key, self._by_name) if names else (self._by_key,):
            for key in [key for key, other in known.items() if other is job]:
                del known[key]

    async def _do(self, run: _Run) -> None:
        job = run.job
        if run.lock is None:
            await asyncio.to_thread(self._journals.prepare)
            lock = self._journals.lock_job(job.id)
            await take(lock)
            run.lock = lock
        await self._note(run)
        if job.state.deletion:
            await self._remove(run)
        else:
            await self._install(run)

    async def _note(self, run: _Run, **changes: object) -> None:
        run.record = msgspec.structs.replace(run.record, state=run.job.state, **changes)
        self._records[run.job.id] = run.record
        await asyncio.to_thread(self._journals.write, run.record)

    # --- installing -------------------------------------------------------------------------------------------------------

    async def _install(self, run: _Run) -> None:
        job, plan = run.job, run.record.plan
        if plan is None:
            job.phase("planning")
            plan = await self._planner(job.asked)
        await self._work.check(plan)
        job.phase(job.state.phase, name=plan.name, source=plan.source)
        if run.record.plan is None:
            await self._claim(run, plan)
        others = [other.record.plan for other in self._runs.values() if other is not run and other.record.plan is not None]
        await self._work.check_space(plan, others)
        job.plan_is(plan)
        while (other := self._by_name.get(plan.name)) is not None and other is not job:
            if await self._joined(run, other):
                return
        self._by_name[plan.name] = job
        async with holding(self._journals.lock_model(file_stem(plan.name)), lambda: self._work.show(job, plan)):
            files = await self._work.bring(job, plan)
            run.final = True
            job.phase("writing")
            await self._work.write(plan, files)

    async def _claim(self, run: _Run, plan: InstallPlan) -> None:
        """Say which files this job needs and which of them it will have brought, before anybody can delete one."""
        async with self._journals.holding_files():
            here = await asyncio.to_thread(self._work.here, plan, run.job.id)
            await self._note(run, plan=plan, here=here)

    async def _joined(self, run: _Run, other: Job) -> bool:
        """Another job is at the same model: its end is ours, unless it is cancelled or a removal; then we go on ourselves."""
        job = run.job
        async for state in other.follow():
            if not other.state.deletion and not state.is_over:
                job.tell(state.files)
                if state.phase != job.state.phase and state.phase in ("downloading", "writing"):
                    job.phase(state.phase)
        if not other.state.is_over:
            raise asyncio.CancelledError
        if other.state.phase == "failed" and other.state.error and not other.state.deletion:
            raise from_info(other.state.error)
        return other.state.phase == "done" and not other.state.deletion

    async def _remove(self, run: _Run) -> None:
        def writes() -> None:
            run.final = True

        removal = Removal(self._work, self._journals, self._by_name, self._jobs, self.cancel, writes)
        await removal.run(run.job)

    # --- what is over -----------------------------------------------------------------------------------------------------

    async def _prune(self) -> None:
        """Forget the oldest of those that are over."""
        over = sorted((job.state for job in self._jobs.values() if job.state.is_over), key=lambda state: state.updated)
        then = self._clock() - self._keep_for
        old = [state.id for index, state in enumerate(over) if index < len(over) - self._keep or state.updated < then]
        for id in old:
            await self._forget(id)

    async def _forget(self, id: str) -> None:
        """A job that is over, and what a failed one has left."""
        job, record = self._jobs.pop(id, None), self._records.pop(id, None)
        if job is not None and record is not None:
            if job.state.phase == "failed" and record.plan is not None:
                await self._work.undo(record)
            await asyncio.to_thread(self._journals.delete, id)

    def _tell(self, state: Install) -> None:
        if self.on_state is not None:
            self.on_state(state)


def _check_text(asked: Asked) -> None:
    """Raises ConfigError for bytes of a command line that are no text: no journal can hold them."""
    for name in (asked.reference, asked.name or ""):
        if any("\ud800" <= sign <= "\udfff" for sign in name):
            raise ConfigError(f"{name!r} is no name: it is not UTF-8", field="name")


def _key(job: Job) -> str:
    return _removal(job.asked) if job.state.deletion else job.asked.key


def _removal(asked: Asked) -> str:
    return f"remove {asked.key}"


def _as_ours(exc: BaseException | None, folder: Path) -> GalleryError | None:
    if exc is None or isinstance(exc, GalleryError):
        return exc
    if isinstance(exc, OSError):
        return disk_error(exc, folder, MEND_MODELS)
    log.error("a job failed over a fault of ours", exc_info=exc)
    return GalleryError(f"the job failed over a fault of ours, which the server's log tells: {type(exc).__name__}: {exc}")
