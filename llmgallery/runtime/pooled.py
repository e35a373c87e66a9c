"""One Embed or Rerank, seen from the server: given to the backend, then its vectors."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping

from llmgallery.core.errors import GalleryError, from_info
from llmgallery.wire.frames import Accepted, Vectors


class PooledAnswer:
    """Waits for one Vectors. `started`: it may have been in the batch in which its worker died, so it must not be tried
    again. `headers`: as in Answer."""

    def __init__(self, id: int, cancel: Callable[[int], None]) -> None:
        self.id = id
        self.started = False
        self.is_accepted = False
        self.headers: Mapping[str, str] = {}
        self._cancel = cancel
        self._vectors: asyncio.Future[Vectors] = asyncio.get_running_loop().create_future()

    async def vectors(self) -> Vectors:
        """Raises what the worker refused it for, Cancelled after `cancel`, WorkerDied. Whoever stops waiting has to cancel."""
        return await asyncio.shield(self._vectors)

    def cancel(self) -> None:
        """At once and more than once."""
        if not self._vectors.done():
            self._cancel(self.id)

    # --- the worker's side -----------------------------------------------------------------------------------------------

    def accept(self, report: Accepted) -> None:
        self.is_accepted = True
        self.headers = report.headers

    def put(self, report: Vectors) -> None:
        if report.error is not None:
            self.fail(from_info(report.error))
        elif not self._vectors.done():
            self._vectors.set_result(report)

    def fail(self, error: GalleryError) -> None:
        if not self._vectors.done():
            self._vectors.set_exception(error)
            self._vectors.exception()  # retrieved: nobody may be waiting for it
