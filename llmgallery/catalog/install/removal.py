"""One removal of an installed model, among the jobs of an installer."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass

from llmgallery.catalog.index import file_stem
from llmgallery.catalog.install.job import Job
from llmgallery.catalog.install.journal import Journals
from llmgallery.catalog.install.work import Work
from llmgallery.catalog.locks import holding
from llmgallery.core.errors import ModelNotFound
from llmgallery.core.installs import Install


@dataclass(frozen=True)
class Removal:
    """`by_name`: the job that is at each model now, the installer's own table. `jobs`: all by id. `cancel`: one of them.
    `writes`: called before what nobody stops half-way."""

    work: Work
    journals: Journals
    by_name: dict[str, Job]
    jobs: Mapping[str, Job]
    cancel: Callable[[str], Awaitable[Install | None]]
    writes: Callable[[], None]

    async def run(self, job: Job) -> None:
        """A running install of the model ends first. Raises ModelNotFound, ConfigError."""
        try:
            name = await asyncio.to_thread(self.work.removable, job.asked.reference)
        except ModelNotFound:
            if self._is_removed_meanwhile(job):
                return
            raise
        job.phase("removing", name=name)
        while (other := self.by_name.get(name)) is not None and other is not job:
            await self.cancel(other.id)
        self.by_name[name] = job
        async with holding(self.journals.lock_model(file_stem(name))):
            try:
                await asyncio.to_thread(self.work.removable, job.asked.reference)
            except ModelNotFound:
                return  # somebody else has removed it meanwhile
            self.writes()
            await self.work.remove(name, job.asked.reference, job.id)

    def _is_removed_meanwhile(self, job: Job) -> bool:
        """Since this job began, another removal has taken the model away, asked for by another of its names."""
        others = (other.state for other in self.jobs.values() if other is not job and other.state.deletion)
        since = [state for state in others if state.phase in ("removing", "done") and state.updated >= job.state.created]
        return any(self.work.is_named(state.name, job.asked.reference) for state in since if state.name)
