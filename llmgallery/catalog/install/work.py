"""What an install or a removal does, step by step, to the folders. Knows no jobs but the journals' and one to tell."""

from __future__ import annotations

import asyncio
import difflib
import os
from collections.abc import Awaitable, Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from llmgallery.catalog.download import check_space
from llmgallery.catalog.formats import YAML_SUFFIXES
from llmgallery.catalog.hub import Hub
from llmgallery.catalog.hub_cache import RepoCache
from llmgallery.catalog.hub_repo import RepoFile
from llmgallery.catalog.install.fetch import Fetches, bring_all
from llmgallery.catalog.install.job import Job
from llmgallery.catalog.install.journal import Journals, Record
from llmgallery.catalog.install.plan import InstallPlan, PlannedFile
from llmgallery.catalog.install.remove import delete, needs
from llmgallery.catalog.install.store import Store, planned
from llmgallery.catalog.lock import LockedFile, LockedModel, LockFile
from llmgallery.catalog.repo_folder import is_folder
from llmgallery.core.errors import ConfigError, ModelNotFound
from llmgallery.core.installs import FileProgress


@dataclass(frozen=True)
class Work:
    """`yamls`: folders whose YAMLs may need files. `parallel`: files of one job at a time."""

    hub: Hub
    store: Store
    fetches: Fetches
    lock: LockFile
    journals: Journals
    yamls: tuple[Path, ...]
    checks: tuple[Callable[[InstallPlan], Awaitable[None]], ...]
    on_change: Callable[[Path], Awaitable[None]]
    parallel: int

    # --- before the first byte --------------------------------------------------------------------------------------------

    async def check(self, plan: InstallPlan) -> None:
        """Raises what forbids the plan: its files' places, the name of its YAML, the checks that were handed in."""
        for file in plan.files:
            self.store.hub(file)
            self.store.final(file)
        locked = await asyncio.to_thread(self.lock.read)
        await asyncio.to_thread(self.store.check_yaml, plan, locked)
        for check in self.checks:
            await check(plan)

    def installed(self, name: str) -> LockedModel | None:
        """As it is locked; None = it is not, or its YAML or one of its files is gone. Blocks."""
        model = self.lock.read().models.get(name)
        if model is None or not os.path.lexists(self.store.yaml(name)):
            return None
        return model if all(self.store.held(planned(file)) == file.size for file in model.files) else None

    def here(self, plan: InstallPlan, id: str) -> tuple[str, ...]:
        """Uris of the plan's files that are here and that no other unfinished job has brought, who may yet take them away."""
        brought = {uri for record in self.journals.read_all() if record.state.id != id for uri in _unsettled(record)}
        return tuple(file.uri for file in plan.files if self.store.present(file) and file.uri not in brought)

    async def check_space(self, plan: InstallPlan, others: Sequence[InstallPlan]) -> None:
        """All files together, beside what running jobs still have to write to the same disks. Raises NoSpace."""
        await asyncio.to_thread(self._check_space, plan, others)

    def _check_space(self, plan: InstallPlan, others: Sequence[InstallPlan]) -> None:
        places = {self.store.final(file): file for other in (plan, *others) for file in other.files}
        wanted = {_device(self.store.final(file)) for file in plan.files}
        needed: dict[int, int] = {}
        for final, file in places.items():
            needed[_device(final)] = needed.get(_device(final), 0) + max(0, (file.size or 0) - self.store.held(file))
        for file in plan.files:
            device = _device(self.store.final(file))
            if device in wanted:
                wanted.remove(device)
                place = self.store.place(file, "unknown")
                check_space(place.folder, needed[device], self.hub.free_bytes(place.folder), place.mend)

    # --- the files --------------------------------------------------------------------------------------------------------

    def show(self, job: Job, plan: InstallPlan) -> None:
        """Where the files are, whoever brings them. Blocks for moments."""
        job.tell(tuple(FileProgress(file.name, self.store.held(file), file.size) for file in plan.files))

    async def bring(self, job: Job, plan: InstallPlan) -> tuple[LockedFile, ...]:
        """All files, whole and checked. Raises HubError."""
        files = tuple({self.store.final(file): file for file in plan.files}.values())
        held = await asyncio.to_thread(lambda: [self.store.held(file) for file in files])
        shown = {file: FileProgress(file.name, done, file.size) for file, done in zip(files, held, strict=True)}
        job.tell(tuple(shown.values()))
        job.phase("downloading")

        def tell(file: PlannedFile, done: int, total: int | None) -> None:
            shown[file] = FileProgress(file.name, done, file.size if total is None else total)
            job.tell(tuple(shown.values()))

        await asyncio.to_thread(self._list, plan)
        return await bring_all(self.fetches, files, tell, self.parallel)

    def _list(self, plan: InstallPlan) -> None:
        """Of folders of the Hub what belongs to them, so that none counts as whole before it is."""
        found: dict[tuple[str, str], list[RepoFile]] = {}
        for file in plan.files:
            if file.path is None and (ref := self.store.hub(file)) is not None and ref.file is not None:
                found.setdefault((ref.repo, ref.revision), []).append(RepoFile(ref.file, file.size))
        for (repo, commit), files in found.items():
            if is_folder(files):
                RepoCache(self.store.cache, repo).write_listing(commit, files, full=False)

    async def write(self, plan: InstallPlan, files: tuple[LockedFile, ...]) -> None:
        """The YAML and its lock entry. What an earlier install of the name has left over goes."""
        async with self.journals.holding_files():
            path = await asyncio.to_thread(self._write, plan, files)
        await self.on_change(path)

    def _write(self, plan: InstallPlan, files: tuple[LockedFile, ...]) -> Path:
        before = self.lock.read()
        is_new = not os.path.lexists(self.store.yaml(plan.name))
        path = self.store.write_yaml(plan, before)
        try:
            after = self.lock.update(plan.name, LockedModel(source=plan.source, licence=plan.licence, files=files))
        except ConfigError:
            if is_new:
                path.unlink(missing_ok=True)
            raise
        if earlier := before.models.get(plan.name):
            others = needs(self.store, self.yamls, after, self._needed_by_jobs(""), without=None)
            delete(self.store, map(planned, earlier.files), others)
        return path

    # --- taking away ------------------------------------------------------------------------------------------------------

    def removable(self, reference: str) -> str:
        """The model that is to be removed, or the user's file, by its name. Raises ModelNotFound, ConfigError."""
        models = self.lock.read().models
        if reference in models:
            return reference
        path = self.store.folder / reference
        if reference.lower().endswith(YAML_SUFFIXES) and path.parent == self.store.folder and os.path.lexists(path):
            return next((name for name in models if self.store.yaml(name) == path), reference)
        if os.path.lexists(self.store.yaml(reference)):
            path = self.store.yaml(reference)
            message = f"{reference!r} was not installed: {path} is yours; delete it, or ask for {path.name!r} to be removed"
            raise ConfigError(message, field="name")
        near = tuple(difflib.get_close_matches(reference, models, n=3))
        advice = f"; did you mean {' or '.join(map(repr, near))}?" if near else ""
        raise ModelNotFound(f"no model {reference!r} was installed in {self.store.folder}{advice}", field="name", hints=near)

    def is_named(self, name: str, reference: str) -> bool:
        """`reference` is the model's name, or that of its file."""
        return reference == name or self.store.folder / reference == self.store.yaml(name)

    async def remove(self, name: str, reference: str, id: str) -> None:
        """First what would serve it, then its files, its lock entry last: who is killed meanwhile goes on from there."""
        path = await asyncio.to_thread(self._remove_yaml, name)
        await self.on_change(path)
        async with self.journals.holding_files():
            await asyncio.to_thread(self._remove_files, name, id)

    def _remove_yaml(self, name: str) -> Path:
        if name not in self.lock.read().models:
            path = self.store.folder / name
            path.unlink(missing_ok=True)
            return path
        path = self.store.yaml(name)
        path.unlink(missing_ok=True)
        path.with_name(f"{path.name}.bak").unlink(missing_ok=True)
        return path

    def _remove_files(self, name: str, id: str) -> None:
        locked = self.lock.read()
        if (model := locked.models.get(name)) is not None:
            others = needs(self.store, self.yamls, locked, self._needed_by_jobs(id), without=name)
            delete(self.store, map(planned, model.files), others)
            self.lock.update(name, None)

    async def undo(self, record: Record) -> None:
        """Delete what a job has brought, as far as nobody else needs it."""
        async with self.journals.holding_files():
            await asyncio.to_thread(self._undo, record)

    def _undo(self, record: Record) -> None:
        if record.plan is not None:
            others = needs(self.store, self.yamls, self.lock.read(), self._needed_by_jobs(record.state.id), without=None)
            delete(self.store, [file for file in record.plan.files if file.uri in record.brought], others)

    def _needed_by_jobs(self, id: str) -> Iterable[PlannedFile]:
        """The files of all running jobs but this one, of other servers too."""
        for record in self.journals.read_all():
            if record.state.id != id and record.is_open and not record.cancelled and record.plan is not None:
                yield from record.plan.files


def _unsettled(record: Record) -> Iterator[str]:
    if record.state.phase != "done":
        yield from record.brought


def _device(path: Path) -> int:
    while not path.exists() and path != path.parent:
        path = path.parent
    return path.stat().st_dev
