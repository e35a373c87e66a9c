"""A worker of models that are elsewhere: conversations go to the backend whole, and what it tells goes to the parent."""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence

import msgspec

from llmgallery.backends.base import Conversation, Files, Loaded, Pooled, RemoteBackend
from llmgallery.chat.parser import AnswerParser
from llmgallery.config.model import ModelConfig
from llmgallery.core.errors import ErrorInfo, GalleryError, LoadError, UnsupportedField
from llmgallery.core.events import Done, Event, TextDelta
from llmgallery.wire.frames import Accepted, Embed, Events, Loading, Rejected, Report, Rerank, Submit, Vectors
from llmgallery.worker.answers import describe


class Cutting:
    """Answers of models whose file has keys that cut them. In a thread of its own: expressions take time, and all endpoints'
    answers come through one loop."""

    def __init__(self, send: Callable[[Report], None]) -> None:
        self._send = send
        self._parsers: dict[int, AnswerParser] = {}
        self._waiting: queue.SimpleQueue[tuple[int, Sequence[Event]]] = queue.SimpleQueue()
        self._thread: threading.Thread | None = None

    def open(self, id: int, config: ModelConfig) -> None:
        """Before the conversation begins."""
        parser = AnswerParser(config=config)
        if parser.changes:
            self._parsers[id] = parser
            if self._thread is None:
                self._thread = threading.Thread(target=self._run, name="cutter", daemon=True)
                self._thread.start()

    def close(self, id: int) -> None:
        """Of a conversation that is refused."""
        self._parsers.pop(id, None)

    def takes(self, id: int, events: Sequence[Event]) -> bool:
        """Whether this is one of them; then its events are sent once they are cut."""
        if id not in self._parsers:
            return False
        self._waiting.put((id, events))
        return True

    def _run(self) -> None:
        while True:
            id, events = self._waiting.get()
            if (parser := self._parsers.get(id)) is None:
                continue  # it has failed
            try:
                told = tuple((id, cut) for event in events for cut in _cut(event, parser))
            except Exception as exc:  # noqa: BLE001 - thread border: the answer must end, whatever a rule does to it
                told = ((id, Done("error", error=describe(exc))),)
            if told and isinstance(told[-1][1], Done):
                del self._parsers[id]
            if told:
                self._send(Events(told))


def _cut(event: Event, parser: AnswerParser) -> Iterator[Event]:
    """What may be shown of it now; at the end also what was held back."""
    if isinstance(event, TextDelta):
        shown = msgspec.structs.replace(event, text=parser.begin(event.text) if event.text else "")
        if shown != TextDelta(""):
            yield shown
    elif isinstance(event, Done):
        if rest := parser.finish().text:
            yield TextDelta(rest)
        yield msgspec.structs.replace(event, warnings=(*event.warnings, parser.fault)) if parser.fault else event
    else:
        yield event


class RemoteAnswers:
    """Implements RemoteEmit."""

    def __init__(self, send: Callable[[Report], None], die: Callable[[ErrorInfo], None]) -> None:
        self._send = send
        self._die = die
        self.cutting = Cutting(send)

    def progress(self, fraction: float) -> None:
        self._send(Loading(fraction))

    def accepted(self, id: int, headers: Mapping[str, str]) -> None:
        self._send(Accepted(id, headers=dict(headers)))

    def rejected(self, id: int, error: GalleryError) -> None:
        self.cutting.close(id)
        self._send(Rejected(id, error.info()))

    def events(self, id: int, events: Sequence[Event]) -> None:
        if not self.cutting.takes(id, events):
            self._send(Events(tuple((id, event) for event in events)))

    def pooled(self, result: Pooled) -> None:
        error = None if result.error is None else describe(result.error)
        self._send(Vectors(result.id, result.vectors, result.prompt_tokens, error))

    def fatal(self, error: BaseException) -> None:
        self._die(ErrorInfo("WorkerDied", f"the worker of remote models failed: {error}"))


class Remote:
    """The backend at level chat, with the configurations of all its models."""

    def __init__(
        self,
        backend: RemoteBackend,
        configs: Mapping[str, ModelConfig],
        send: Callable[[Report], None],
        die: Callable[[ErrorInfo], None],
    ) -> None:
        self.backend = backend
        self._configs = configs
        self._send = send
        self._emit = RemoteAnswers(send, die)

    def load(self, config: ModelConfig, files: Files) -> Loaded:
        return self.backend.load(config, files, self._emit)

    def submit(self, command: Submit) -> None:
        """Raises LoadError for a digest that nobody has told of."""
        config = self._config(command.digest)
        self._emit.cutting.open(command.id, config)
        self.backend.converse(Conversation(command.id, command.request, config, streamed=not command.coalesce))

    def pool(self, command: Embed | Rerank) -> None:
        """Raises as submit."""
        config = self._config(command.digest)
        self._send(Accepted(command.id))
        if isinstance(command, Embed):
            self.backend.embed(command.id, command.request, config)
        else:
            self.backend.rerank(command.id, command.request, config)

    def _config(self, digest: str) -> ModelConfig:
        if digest not in self._configs:
            raise LoadError("this worker was not told the model's configuration")
        return self._configs[digest]


def no_vocabulary() -> UnsupportedField:
    """Of requests for tokens and prompts."""
    message = "this model is elsewhere: its vocabulary and its templates are not here, so nobody can tell its tokens or prompts"
    return UnsupportedField(message, field="model")
