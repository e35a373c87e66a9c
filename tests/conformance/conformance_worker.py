"""A backend in its worker process, driven through the server's handle from plain, synchronous tests."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Coroutine
from types import TracebackType
from typing import Any, Self, TypeVar

from conformance_cases import Case, Model

from llmgallery.config.model import ModelConfig
from llmgallery.core.events import Done, Event
from llmgallery.core.requests import Request
from llmgallery.runtime.handle import Handle

SECONDS = 60.0
T = TypeVar("T")


class Worker:
    """A loaded worker, from the block's beginning to its end."""

    def __init__(self, case: Case, model: Model) -> None:
        self._name, self._files = case.name, model.files
        self.config = ModelConfig(name=case.name, **model.keys)
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="loop of a worker's handle", daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        started = Handle.start(self._name, self._name, self.config, self._files, lambda fraction: None)
        try:
            self.handle = self._call(started)
        except BaseException:
            self._end()
            raise
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._call(self.handle.stop())
        self._end()

    def ask(self, request: Request, *, streamed: bool = True, config: ModelConfig | None = None) -> list[Event]:
        """All events of the answer; `config`: of another model that the worker answers for."""
        return self._call(self._answer(request, streamed, config or self.config))

    async def _answer(self, request: Request, streamed: bool, config: ModelConfig) -> list[Event]:
        answer = self.handle.submit(request, config, coalesce=not streamed)
        await answer.accepted()
        return [event async for event in answer]

    def _call(self, work: Coroutine[Any, Any, T]) -> T:
        return asyncio.run_coroutine_threadsafe(work, self._loop).result(SECONDS)

    def _end(self) -> None:
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(SECONDS)
        self._loop.close()


def text_of(events: list[Event]) -> str:
    return "".join(event.text for event in events if hasattr(event, "text"))


def done_of(events: list[Event]) -> Done:
    """The end, which came once and last."""
    ends = [event for event in events if isinstance(event, Done)]
    assert len(ends) == 1 and events[-1] is ends[0], events
    return ends[0]
