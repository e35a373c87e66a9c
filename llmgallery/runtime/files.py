"""Where a model's files come from: a folder of this machine, or a download that everybody who asks shares."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path

from llmgallery.backends.base import BackendSpec, Files
from llmgallery.backends.loader import specs
from llmgallery.catalog.companions import Located, Place, locate_all
from llmgallery.catalog.engines import check_here
from llmgallery.catalog.hub import Hub
from llmgallery.catalog.index import Entry
from llmgallery.catalog.purpose import Cached
from llmgallery.catalog.reference import HubReference

OnBytes = Callable[[int, int], None]


class WeightFiles:
    """Implements the manager's `FileSource`. `known`: the backends, as they can run here."""

    def __init__(self, hub: Hub, known: Callable[[], Mapping[str, BackendSpec]] = specs) -> None:
        self._hub = hub
        self._known = known

    async def ensure(self, entry: Entry, on_bytes: OnBytes) -> Files:
        """The entry's files, fetched if need be, all at once; none for a backend that cannot run here. Raises HubError,
        ConfigError, LoadError, BadWeights, BackendMissing."""
        located = _locate(entry)
        if located is None:
            return Files()
        await asyncio.to_thread(self._check_backend, entry, located)
        count = _Count(on_bytes)
        tasks = [asyncio.ensure_future(self._bring(place, partial(count.tell, place))) for place in dict.fromkeys(located.places)]
        try:
            found = dict(await asyncio.gather(*tasks))
        finally:
            for task in tasks:  # one failed: the downloads of the others go on, for the next who asks
                task.cancel()
        return Files(
            found[located.weights],
            tuple(file for place in located.adapters for file in found[place]),
            found[located.draft] if located.draft else (),
        )

    def _check_backend(self, entry: Entry, located: Located) -> None:
        """A worker would say which of its imports fails first, and not that no install can help without the hardware."""
        spec = self._known().get(entry.backend) if entry.backend is not None else None
        if spec is None:
            return
        wanted = [place for place in located.places if isinstance(place, HubReference)]
        becomes = "loaded" if all(self._hub.cached(place) for place in wanted) else "fetched"
        check_here(spec, f"model {entry.name} is not {becomes}")

    async def _bring(self, place: Place, on_bytes: OnBytes) -> tuple[Place, tuple[Path, ...]]:
        if isinstance(place, HubReference):
            return place, tuple(await self._hub.ensure(place, on_bytes))
        return place, place.paths

    def present(self, entry: Entry) -> bool:
        """No download is needed. Asks no network."""
        return here(entry, self._hub.cached) is not None


def here(entry: Entry, cached: Cached) -> Files | None:
    """The entry's files as they lie on this machine; None = some would have to be downloaded. Asks no network. Blocks. Raises
    LoadError, BadWeights."""
    located = _locate(entry)
    if located is None:
        return Files()
    found = {place: cached(place) if isinstance(place, HubReference) else place.paths for place in located.places}
    paths = {place: tuple(files) for place, files in found.items() if files is not None}
    if len(paths) < len(found):
        return None
    adapters = tuple(file for place in located.adapters for file in paths[place])
    return Files(paths[located.weights], adapters, paths[located.draft] if located.draft else ())


class _Count:
    """Progress of several downloads as one."""

    def __init__(self, on_bytes: OnBytes) -> None:
        self._on_bytes = on_bytes
        self._told: dict[Place, tuple[int, int]] = {}

    def tell(self, place: Place, done: int, total: int) -> None:
        self._told[place] = (done, total)
        self._on_bytes(sum(done for done, _ in self._told.values()), sum(total for _, total in self._told.values()))


def _locate(entry: Entry) -> Located | None:
    """None = the backend needs no weights. One that nobody named is told by the weights, so there are some."""
    spec: BackendSpec | None = specs().get(entry.backend) if entry.backend is not None else None
    if spec is not None and not spec.needs_weights:
        return None
    if spec is None:
        return locate_all(entry.config, entry.folder)
    return locate_all(entry.config, entry.folder, spec.keys, spec.formats)
