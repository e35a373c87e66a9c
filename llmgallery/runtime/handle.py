"""A worker, seen from the server: load it, hand it requests, hear of its end."""

from __future__ import annotations

import asyncio
import hashlib
import itertools
import logging
from collections.abc import Callable, Sequence

import msgspec

from llmgallery import __version__
from llmgallery.backends.base import Files
from llmgallery.backends.loader import places
from llmgallery.config.model import ModelConfig
from llmgallery.core.errors import GalleryError, LoadError, from_info
from llmgallery.core.rendering import Rendering
from llmgallery.core.requests import EmbedRequest, Request, RerankRequest
from llmgallery.runtime.answer import Answer
from llmgallery.runtime.interpreters import CLOSURE, Interpreter, own_interpreter
from llmgallery.runtime.keys import is_shared
from llmgallery.runtime.pooled import PooledAnswer
from llmgallery.runtime.process import WorkerProcess, describe_status, last_words
from llmgallery.wire.channel import FrameError
from llmgallery.wire.frames import (
    PROTOCOL,
    Accepted,
    Cancel,
    Command,
    Configure,
    Detokenize,
    Embed,
    Events,
    Fatal,
    Hello,
    Load,
    Loading,
    Ready,
    Rejected,
    Render,
    Report,
    Rerank,
    Result,
    Stats,
    Submit,
    Tokenize,
    Vectors,
)

_log = logging.getLogger(__name__)


class Handle:
    """One loaded model, or (`shared`) all of a backend whose models are elsewhere. Made by `start`; `ended` is done when the
    process is gone."""

    def __init__(
        self,
        name: str,
        process: WorkerProcess,
        on_progress: Callable[[float], None],
        *,
        shared: bool = False,
        interpreter: Interpreter | None = None,
    ) -> None:
        self.name = name
        self._shared = shared
        self._interpreter = interpreter
        self._greeted = False
        self.stats: Stats | None = None
        self.failure: GalleryError | None = None
        loop = asyncio.get_running_loop()
        self.ended: asyncio.Future[None] = loop.create_future()
        self._ready: asyncio.Future[Ready] = loop.create_future()
        self._process = process
        self._on_progress = on_progress
        self._ids = itertools.count(1)
        self._answers: dict[int, Answer | PooledAnswer] = {}
        self._results: dict[int, asyncio.Future[Result]] = {}
        self._configured: set[str] = set()
        self._reader = asyncio.create_task(self._read(), name=f"reader of {name}")

    @classmethod
    async def start(
        cls,
        name: str,
        backend: str,
        config: ModelConfig,
        files: Files,
        on_progress: Callable[[float], None],
        *,
        render: bool = False,
        interpreter: Interpreter | None = None,
    ) -> Handle:
        """Spawns a worker and waits until it has loaded; `render`: what prompts need and no more; `interpreter`: another than
        ours. Raises LoadError, BadWeights, BackendMissing, WorkerDied."""
        interpreter = interpreter or own_interpreter()
        try:
            process = await WorkerProcess.spawn(interpreter, unscrubbed=is_shared(backend))
        except OSError as exc:
            raise LoadError(f"the system does not start {interpreter} for model {name}: {exc.strerror or exc}") from exc
        handle = cls(name, process, on_progress, shared=is_shared(backend), interpreter=interpreter)
        try:
            weights, adapters, draft = ([str(file) for file in group] for group in (files.weights, files.adapters, files.draft))
            place = places().get(backend, "")
            handle._send(Load(config, backend, tuple(weights), tuple(adapters), tuple(draft), render, place))
            await asyncio.shield(handle._ready)
        except BaseException:
            await handle.stop()
            raise
        return handle

    @property
    def ready(self) -> Ready:
        """What the worker said when it had loaded."""
        return self._ready.result()

    @property
    def pid(self) -> int:
        return self._process.pid

    @property
    def log(self) -> tuple[str, ...]:
        """Its last log lines."""
        return tuple(self._process.log)

    @property
    def open_answers(self) -> int:
        """Requests without a Done yet."""
        return len(self._answers)

    def submit(self, request: Request, config: ModelConfig, coalesce: bool = False) -> Answer:
        """Hands the request over; the answer tells whether it was accepted."""
        answer = Answer(next(self._ids), self._cancel)
        if self.ended.done() or self.failure is not None:
            answer.fail(self._death())
            return answer
        self._answers[answer.id] = answer
        self._send(Submit(answer.id, self._configure(config), request, coalesce))
        return answer

    def pool(self, request: EmbedRequest | RerankRequest, config: ModelConfig) -> PooledAnswer:
        """Vectors, one for each input; or scores, one for each document, each a vector of one number."""
        answer = PooledAnswer(next(self._ids), self._cancel)
        if self.ended.done() or self.failure is not None:
            answer.fail(self._death())
            return answer
        self._answers[answer.id] = answer
        digest = self._configure(config)
        if isinstance(request, EmbedRequest):
            self._send(Embed(answer.id, request, digest))
        else:
            self._send(Rerank(answer.id, request, digest))
        return answer

    async def tokenize(self, text: str, *, special: bool = False, bos: bool = False) -> tuple[int, ...]:
        return (await self._ask(Tokenize(next(self._ids), text, special, bos))).tokens

    async def detokenize(self, tokens: Sequence[int]) -> str:
        return (await self._ask(Detokenize(next(self._ids), tuple(tokens)))).text

    async def render(self, request: Request, config: ModelConfig) -> Rendering:
        """The exact prompt of a request. Raises what the worker would refuse it for, if the template does not take it."""
        result = await self._ask(Render(next(self._ids), self._configure(config), request))
        assert result.rendering is not None
        return result.rendering

    async def stop(self, why: GalleryError | None = None) -> None:
        """Returns when the process is gone. Open requests fail with `why`."""
        if not self.ended.done():
            self.failure = self.failure or why or LoadError(f"model {self.name} was unloaded")
        await self._process.stop()
        await self._reader

    # --- frames ----------------------------------------------------------------------------------------------------------

    def _send(self, frame: Command) -> None:
        self._process.channel.send(frame)

    def _configure(self, config: ModelConfig) -> str:
        """The digest under which the worker knows this configuration; sends it the first time."""
        digest = hashlib.sha256(msgspec.msgpack.encode(config)).hexdigest()[:16]
        if digest not in self._configured:
            self._configured.add(digest)
            self._send(Configure(digest, config))
        return digest

    def _cancel(self, id: int) -> None:
        if id in self._answers:
            self._send(Cancel(id))

    async def _ask(self, question: Tokenize | Detokenize | Render) -> Result:
        if self.ended.done() or self.failure is not None:
            raise self._death()
        future: asyncio.Future[Result] = asyncio.get_running_loop().create_future()
        self._results[question.id] = future
        try:
            self._send(question)
            result = await future
        finally:
            del self._results[question.id]
        if result.error is not None:
            raise from_info(result.error)
        return result

    async def _read(self) -> None:
        """Never stops reading a worker: what arrives goes to mailboxes that have their own bounds."""
        try:
            while (report := await self._process.channel.receive()) is not None:
                self._dispatch(report)
        except (FrameError, LoadError) as exc:
            self.failure = self.failure or LoadError(f"the worker of model {self.name} does not speak our protocol: {exc}")
        except Exception as exc:  # noqa: BLE001 - task border: whoever waits for this worker must hear of it
            _log.exception("model %s: what its worker says cannot be heard any more", self.name)
            self.failure = self.failure or LoadError(f"the server lost the worker of model {self.name}: {exc}")
        await self._bury()

    async def _bury(self) -> None:
        await self._process.stop()
        status = await self._process.wait()
        self.failure = self.failure or self._never_began(status) or self._process.died(status, self.name)
        error = self.failure
        self.ended.set_result(None)
        if not self._ready.done():
            self._ready.set_exception(error)
            self._ready.exception()  # retrieved: start() may have been cancelled
        self._mark_started()
        for answer in self._answers.values():
            answer.fail(error)
        self._answers.clear()
        for future in self._results.values():
            if not future.done():
                future.set_exception(error)

    def _never_began(self, status: int) -> LoadError | None:
        """Another interpreter that did not get as far as our first message."""
        if self._greeted or self._interpreter is None or self._interpreter.is_ours:
            return None
        lines = last_words(list(self._process.log))
        said = f": {lines[-1]}" if lines else f": it ended {describe_status(status)}"
        needs = f"it must be Python 3.11 or newer with {', '.join(CLOSURE)} and what the backend needs"
        return LoadError(f"{self._interpreter} does not run a worker for model {self.name}{said} ({needs})", hints=tuple(lines))

    def _mark_started(self) -> None:
        """Slots are given first come, first served, so only the first of the accepted can have been in the last batch. What is
        answered elsewhere may have begun there before anything was heard of it."""
        if self._shared:
            for each in self._answers.values():
                each.started = True
            return
        slots = self._ready.result().slots if self._ready.exception() is None else 0
        accepted = [answer for answer in self._answers.values() if answer.is_accepted]
        for answer in accepted[:slots]:
            answer.started = True

    def _dispatch(self, report: Report) -> None:
        match report:
            case Accepted() | Rejected() | Events() | Vectors():
                self._dispatch_answers(report)
            case Result(id):
                if (future := self._results.get(id)) is not None and not future.done():
                    future.set_result(report)
            case Stats():
                self.stats = report
            case Loading(fraction):
                self._on_progress(fraction)
            case _:
                self._dispatch_life(report)

    def _dispatch_answers(self, report: Accepted | Rejected | Events | Vectors) -> None:
        """Reports of requests that nobody waits for any more are passed over."""
        match report:
            case Events(items):
                for id, event in items:
                    if isinstance(answer := self._answers.get(id), Answer):
                        answer.put(event)
                        if not answer.is_open:
                            del self._answers[id]
            case Vectors(id):
                if isinstance(pooled := self._answers.pop(id, None), PooledAnswer):
                    pooled.put(report)
            case Accepted(id):
                if (taken := self._answers.get(id)) is not None:
                    taken.accept(report)
            case Rejected(id, error):
                if isinstance(refused := self._answers.pop(id, None), Answer):
                    refused.reject(from_info(error))

    def _dispatch_life(self, report: Report) -> None:
        match report:
            case Hello(protocol, version):
                self._greeted = True
                if (protocol, version) != (PROTOCOL, __version__):
                    raise LoadError(f"it is llmgallery {version} with protocol {protocol}, not {__version__} with {PROTOCOL}")
            case Ready():
                if not self._ready.done():
                    self._ready.set_result(report)
            case Fatal(error):
                self.failure = from_info(error)

    def _death(self) -> GalleryError:
        return self.failure or LoadError(f"model {self.name} is not loaded any more")
