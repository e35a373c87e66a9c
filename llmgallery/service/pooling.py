"""One request for embeddings or scores: sent to the worker in parts, put together again in the order of its inputs."""

from __future__ import annotations

import asyncio
import math
import re
import struct
from collections.abc import Iterator, Mapping, Sequence
from types import TracebackType
from typing import Self, TypeVar

import msgspec

from llmgallery.catalog.registry import Entry
from llmgallery.core.errors import GalleryError, WorkerDied
from llmgallery.core.events import Progress, Usage
from llmgallery.core.requests import EmbedRequest, RerankRequest
from llmgallery.runtime.handle import Handle
from llmgallery.runtime.pooled import PooledAnswer
from llmgallery.service.demands import Wish
from llmgallery.service.turn import Turn
from llmgallery.service.uses import Use

PART_INPUTS = 256
PART_UNITS = 256 * 1024
"""Characters and token ids of one part: others get their turn between two parts, and no frame comes near its limit."""

PoolRequest = EmbedRequest | RerankRequest
T = TypeVar("T", bound=str | tuple[int, ...])


class PoolAsk(msgspec.Struct, frozen=True):
    """What a dialect understood of one call. `field`: what its inputs or documents came in; `single`: without a list around the
    only one. `token`: the bearer token, as in Ask."""

    model: str | None
    request: PoolRequest
    wishes: tuple[Wish, ...] = ()
    token: str | None = None
    field: str = "input"
    single: bool = False


class Pooled(msgspec.Struct, frozen=True):
    """One vector for each input, little-endian float32; a score is a vector of one."""

    vectors: tuple[bytes, ...]
    prompt_tokens: int


def use_of(request: PoolRequest) -> Use:
    return "embed" if isinstance(request, EmbedRequest) else "rerank"


class Pooling:
    """Used with `async with`: entering starts it (Overloaded when the model's limit is reached), leaving cancels at once what
    still runs. `headers`: what a remote endpoint said with the first part that it answered."""

    def __init__(self, turn: Turn, ask: PoolAsk, warnings: tuple[str, ...] = ()) -> None:
        self.entry: Entry = turn.entry
        self.warnings = warnings
        self.headers: Mapping[str, str] = {}
        self._turn = turn
        self._ask = ask
        self._handle: Handle | None = None
        self._answer: PooledAnswer | None = None
        self._accepted: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._vectors: list[bytes] = []
        self._prompt_tokens = 0
        self._task: asyncio.Task[None] | None = None

    @property
    def name(self) -> str:
        """The model's."""
        return self.entry.name

    @property
    def job(self) -> str | None:
        """The id of the install that the model comes by."""
        return self._turn.job

    @property
    def progress(self) -> Progress | None:
        """How far the model is on its way; None once it is ready."""
        return self._turn.progress

    async def accepted(self) -> None:
        """Until the model is ready. Raises why there is no worker."""
        await asyncio.shield(self._accepted)

    @property
    def is_accepted(self) -> bool:
        return self._accepted.done() and self._accepted.exception() is None

    @property
    def gives_probabilities(self) -> bool:
        """The model's scores lie between 0 and 1 already. Known once there is a result."""
        return self._handle is not None and "probabilities" in self._handle.ready.capabilities

    async def result(self) -> Pooled:
        """Raises GalleryError."""
        if self._task is None:
            raise RuntimeError("the pooling was not entered")
        await asyncio.shield(self._task)
        return Pooled(tuple(self._vectors), self._prompt_tokens)

    async def __aenter__(self) -> Self:
        await self._turn.begin()
        self._task = asyncio.create_task(self._run(), name=f"{self._turn.use} of {self.entry.name}")
        return self

    async def __aexit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        assert self._task is not None
        outcome = self._outcome(self._task)
        try:
            if self._answer is not None:
                self._answer.cancel()
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)
        finally:
            await self._turn.end(outcome, Usage(self._prompt_tokens))

    def _outcome(self, task: asyncio.Task[None]) -> str:
        if not task.done() or task.cancelled():
            return "cancelled"
        error = task.exception()
        return "ok" if error is None else type(error).__name__

    async def _run(self) -> None:
        try:
            for first, part in parts(self._ask.request):
                done = await self._pool(first, part)
                self._vectors += done.vectors
                self._prompt_tokens += done.prompt_tokens
        except Exception as exc:
            if not self._accepted.done():
                self._accepted.set_exception(exc)
                self._accepted.exception()  # retrieved: the client may have left
            raise

    async def _pool(self, first: int, part: PoolRequest) -> Pooled:
        """Submitted once more when its worker died before the part can have had a part in that."""
        dead: Handle | None = None
        while True:
            handle = await self._acquire(dead)
            answer = self._answer = handle.pool(part, self._turn.config)
            try:
                found = await answer.vectors()
                self.headers = self.headers or answer.headers
                return Pooled(found.vectors, found.prompt_tokens)
            except WorkerDied:
                if dead is not None or answer.started:
                    raise
            except GalleryError as exc:
                raise placed(exc, first, self._ask) from exc
            dead = handle

    async def _acquire(self, dead: Handle | None) -> Handle:
        """The worker of the part before, or a new one when it is gone."""
        if self._handle is None or self._handle is dead:
            self._handle = await self._turn.handle()
            if not self._accepted.done():
                self._accepted.set_result(None)
        return self._handle


def parts(request: PoolRequest) -> Iterator[tuple[int, PoolRequest]]:
    """The request cut into parts, each with the index of its first input."""
    if isinstance(request, EmbedRequest):
        for first, end in _cuts(request.inputs):
            yield first, msgspec.structs.replace(request, inputs=request.inputs[first:end])
    else:
        for first, end in _cuts(request.documents):
            yield first, msgspec.structs.replace(request, documents=request.documents[first:end])


def _cuts(items: Sequence[T]) -> Iterator[tuple[int, int]]:
    first = units = 0
    for index, item in enumerate(items):
        if index > first and (index - first == PART_INPUTS or units + len(item) > PART_UNITS):
            yield first, index
            first, units = index, 0
        units += len(item)
    yield first, len(items)


def placed(error: GalleryError, first: int, ask: PoolAsk) -> GalleryError:
    """An error of the part that begins with input `first`, with the place that its input had in the client's request."""

    def place(found: re.Match[str]) -> str:
        return ask.field if ask.single else f"{ask.field}[{int(found[1]) + first}]"

    if error.field is None:
        return error
    message, field = (re.sub(r"\b(?:input|documents)\[(\d+)\]", place, text) for text in (error.message, error.field))
    return type(error)(message, field=field, hints=error.hints, retry_after=error.retry_after, upstream=error.upstream)


def scores(vectors: Sequence[bytes], *, sigmoid: bool) -> list[float]:
    """The numbers of a rerank; `sigmoid`: logits become probabilities."""
    numbers: list[float] = [struct.unpack("<f", vector)[0] for vector in vectors]
    return [_sigmoid(number) for number in numbers] if sigmoid else numbers


def _sigmoid(logit: float) -> float:
    """Without overflow for large numbers of either sign."""
    if logit >= 0:
        return 1 / (1 + math.exp(-logit))
    power = math.exp(logit)
    return power / (1 + power)
