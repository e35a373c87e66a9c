"""One request's turn at a model, whatever it asks: within the model's limit, holding its worker, counted from start to end."""

from __future__ import annotations

import time
from collections import Counter

import msgspec

from llmgallery.backends.loader import specs
from llmgallery.catalog.registry import Entry
from llmgallery.config.model import ModelConfig
from llmgallery.core.errors import Overloaded
from llmgallery.core.events import Progress, Usage
from llmgallery.metrics import Metrics
from llmgallery.runtime.handle import Handle
from llmgallery.runtime.lease import Lease
from llmgallery.service.demands import is_elsewhere
from llmgallery.service.uses import Use, check_loaded


class Turn:
    """`begin` once, then `end` once. `running`: open turns by model. `use`: what the model must be able to do. `job`: the id
    of the install that the model came, or still comes, by."""

    def __init__(
        self,
        entry: Entry,
        lease: Lease,
        metrics: Metrics,
        running: Counter[str],
        use: Use = "generate",
        job: str | None = None,
    ) -> None:
        self.entry = entry
        self.use: Use = use
        self.job = job
        self.metrics = metrics
        self._lease = lease
        self._running = running
        self.is_elsewhere = is_elsewhere(specs().get(entry.backend or ""))
        self._started = time.monotonic()

    @property
    def config(self) -> ModelConfig:
        """What the worker is told of the model. One that is elsewhere has a name at least, by which it may be known there."""
        config = self.entry.config
        return msgspec.structs.replace(config, name=self.entry.name) if self.is_elsewhere else config

    @property
    def seconds(self) -> float:
        """Since the request came."""
        return time.monotonic() - self._started

    @property
    def progress(self) -> Progress | None:
        """How far the model is on its way; None once it is ready."""
        return self._lease.progress

    async def changed(self) -> None:
        """Until the progress changes."""
        await self._lease.changed()

    async def begin(self) -> None:
        """Raises Overloaded when the model's limit is reached."""
        self._check_limit()
        await self._lease.__aenter__()
        self.metrics.began(self.entry.name)
        self._running[self.entry.name] += 1

    async def end(self, outcome: str, usage: Usage) -> None:
        """`outcome`: ok, cancelled, or the kind of error."""
        await self._lease.__aexit__(None, None, None)
        self._running[self.entry.name] -= 1
        self.metrics.ended(self.entry.name, outcome, self.seconds, usage)

    async def handle(self) -> Handle:
        """The worker, once it is ready; after its death a new one. Raises what Lease.handle raises, and UnsupportedField for
        a model that turns out not to be made for this."""
        handle = await self._lease.handle()
        if not self.is_elsewhere:  # there its endpoint decides
            check_loaded(self.entry, self.use, handle.ready.capabilities)
        return handle

    def _check_limit(self) -> None:
        """Here, where the count grows: a check that comes earlier lets more in than the limit allows."""
        limits, running = self.entry.config.limits, self._running[self.entry.name]
        if limits.max_concurrent is not None and running >= limits.max_concurrent:
            raise Overloaded(
                f"model {self.entry.name} already answers {running} requests, as many as its limits.max_concurrent allows",
                retry_after=limits.retry_after_seconds if limits.retry_after_seconds is not None else 1,
            )
