"""Where a model's weights come from: a folder of this machine, or a download that everybody who asks shares."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from llmgallery.backends.loader import specs
from llmgallery.catalog.hub import Hub
from llmgallery.catalog.index import Entry
from llmgallery.catalog.reference import HubReference
from llmgallery.catalog.weights import locate


class WeightFiles:
    """Implements the manager's `Files`."""

    def __init__(self, hub: Hub) -> None:
        self._hub = hub

    async def ensure(self, entry: Entry, on_bytes: Callable[[int, int], None]) -> list[Path]:
        """The entry's files, fetched if need be; the first is the weights or their first part. Raises HubError, ConfigError,
        BadWeights."""
        if not _needs_weights(entry.backend):
            return []
        located = locate(entry.config, entry.folder)
        if isinstance(located, HubReference):
            return await self._hub.ensure(located, on_bytes)
        return list(located.paths)

    def present(self, entry: Entry) -> bool:
        """No download is needed. Asks no network."""
        if not _needs_weights(entry.backend):
            return True
        located = locate(entry.config, entry.folder)
        return not isinstance(located, HubReference) or self._hub.cached(located) is not None


def _needs_weights(backend: str | None) -> bool:
    """A backend that nobody named is told by the weights, so there are some."""
    spec = specs().get(backend) if backend is not None else None
    return spec is None or spec.needs_weights
