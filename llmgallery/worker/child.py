"""The life of a worker: Hello, Load, then requests until the parent stops it or is gone.

Threads: the reader (commands, cancels at once), this one (loads, renders, tokenises), the engine's, the writer.
"""

from __future__ import annotations

import contextlib
import os
import queue
import socket
import sys
import threading
from collections.abc import Mapping
from pathlib import Path
from typing import NoReturn

from llmgallery import __version__
from llmgallery.backends.base import Backend, BackendSpec, Files, Loaded, RemoteBackend
from llmgallery.backends.loader import spec_at, specs
from llmgallery.config.model import ModelConfig
from llmgallery.core.errors import ErrorInfo, LoadError
from llmgallery.wire.channel import ChildChannel, FrameError
from llmgallery.wire.frames import (
    PROTOCOL,
    Accepted,
    Cancel,
    Command,
    Configure,
    Detokenize,
    Embed,
    Fatal,
    Hello,
    Load,
    Ready,
    Rejected,
    Render,
    Rerank,
    Result,
    Stop,
    Submit,
    Tokenize,
    Vectors,
)
from llmgallery.worker.answers import Answers, describe
from llmgallery.worker.outbox import Outbox
from llmgallery.worker.pooled import embed_job, rerank_job
from llmgallery.worker.prepare import check_tokens, prepare
from llmgallery.worker.remote import Remote, no_vocabulary
from llmgallery.worker.rendering import load_vocabulary, render


def serve(fd: int) -> None:
    """Runs until the process ends."""
    Child(ChildChannel(socket.socket(fileno=fd))).run()


class Child:
    def __init__(self, channel: ChildChannel) -> None:
        self._channel = channel
        self._outbox = Outbox(channel)
        self._inbox: queue.SimpleQueue[Command] = queue.SimpleQueue()
        self._configs: dict[str, ModelConfig] = {}
        self._pending: dict[int, bool] = {}  # read, not yet with the backend -> withdrawn meanwhile
        self._lock = threading.Lock()
        self._backend: Backend | None = None
        self._remote: Remote | None = None
        self._loaded = Loaded(context_size=0)
        self._can_answer = False
        self._answers = Answers(self._outbox.send, self._cancel_job, self._die)

    def run(self) -> None:
        threading.Thread(target=self._read, name="reader", daemon=True).start()
        self._outbox.send(Hello(PROTOCOL, __version__, os.getpid()))
        while True:
            self._handle(self._inbox.get())

    def _read(self) -> None:
        """Ends the process with the connection, also in the middle of a native call: a worker never outlives its server."""
        status = 1
        try:
            self._follow_commands()
            status = 0
        except (FrameError, OSError) as exc:
            with contextlib.suppress(OSError):  # nobody may be left to read this
                print(f"worker: {exc}", file=sys.stderr, flush=True)
        finally:
            os._exit(status)

    def _follow_commands(self) -> None:
        for command in self._channel.commands():
            match command:
                case Stop():
                    return
                case Cancel(id):
                    self._cancel(id)
                case Submit(id) | Embed(id) | Rerank(id):
                    self._pending[id] = False
                    self._inbox.put(command)
                case _:
                    self._inbox.put(command)

    def _handle(self, command: Command) -> None:
        match command:
            case Load():
                self._load(command)
            case Configure(digest, config):
                self._configs[digest] = config
            case Submit():
                self._submit(command)
            case Embed() | Rerank():
                self._pool(command)
            case Tokenize() | Detokenize() | Render():
                self._outbox.send(self._result(command))
            case _:
                raise AssertionError(f"{command} is the reader's")

    def _load(self, command: Load) -> None:
        files = _files(command)
        try:
            if command.render:
                self._backend, self._loaded = load_vocabulary(_specs(command), command.backend, command.config, files)
            else:
                self._load_model(command, files)
        except Exception as exc:  # noqa: BLE001 - process border: the parent must hear of every failure
            info = describe(exc)
            self._die(info if info.kind != "GalleryError" else ErrorInfo("LoadError", info.message))
        loaded = self._loaded
        self._outbox.send(
            Ready(loaded.context_size, loaded.slots, tuple(sorted(loaded.capabilities)), loaded.memory_bytes, loaded.vocab_size)
        )

    def _load_model(self, command: Load, files: Files) -> None:
        spec = _specs(command).get(command.backend)
        if spec is None:
            raise LoadError(f"this worker has no backend {command.backend}")
        backend = spec.load()()
        if spec.level == "chat":
            self._remote = Remote(backend, self._configs, self._outbox.send, self._die)
            self._loaded = self._remote.load(command.config, files)
            return
        self._loaded = backend.load(command.config, files, self._answers)
        self._backend = backend
        self._can_answer = True

    def _die(self, error: ErrorInfo) -> NoReturn:
        self._outbox.send(Fatal(error))
        self._outbox.flush(5)
        os._exit(1)

    def _ready_backend(self) -> Backend:
        """Raises LoadError when there is none to answer with."""
        if not self._can_answer:
            raise LoadError("nothing is loaded that could answer")
        return self._vocabulary()

    def _vocabulary(self) -> Backend:
        if self._backend is None:
            raise LoadError("no vocabulary is loaded")
        return self._backend

    def _submit(self, command: Submit) -> None:
        id = command.id
        try:
            if self._remote is not None:
                self._remote.submit(command)
                self._settle_cancel(id, self._remote.backend)
                return
            backend = self._ready_backend()
            prepared = prepare(id, command.request, self._configs[command.digest], backend, self._loaded)
        except Exception as exc:  # noqa: BLE001 - process border: one request fails, the worker goes on
            self._pending.pop(id)
            self._outbox.send(Rejected(id, describe(exc)))
            return
        self._outbox.send(Accepted(id, len(prepared.job.prompt), prepared.warnings))
        self._answers.open(prepared, command.coalesce)
        backend.submit(prepared.job)
        self._settle_cancel(id, backend)

    def _pool(self, command: Embed | Rerank) -> None:
        id = command.id
        try:
            if self._remote is not None:
                self._remote.pool(command)
                self._settle_cancel(id, self._remote.backend)
                return
            backend = self._ready_backend()
            if isinstance(command, Embed):
                embed = embed_job(id, command.request, self._loaded)
                self._announce(id)
                backend.embed(embed)
            else:
                rerank = rerank_job(id, command.request, self._loaded)
                self._announce(id)
                backend.rerank(rerank)
        except Exception as exc:  # noqa: BLE001 - process border: one request fails, the worker goes on
            self._pending.pop(id)
            self._outbox.send(Vectors(id, error=describe(exc)))
            return
        self._settle_cancel(id, backend)

    def _announce(self, id: int) -> None:
        """On its way to the parent before the backend has the job: who kills the process must not seem to have been waiting."""
        self._outbox.send(Accepted(id))
        self._outbox.flush(5)

    def _settle_cancel(self, id: int, backend: Backend | RemoteBackend) -> None:
        """The backend has the job now; what was withdrawn until then is withdrawn there."""
        with self._lock:
            withdrawn = self._pending.pop(id)
        if withdrawn:
            backend.cancel(id)

    def _cancel(self, id: int) -> None:
        """At once, in the reader's thread; a request that is still being rendered is cancelled when it is submitted."""
        with self._lock:
            if id in self._pending:
                self._pending[id] = True
                return
        self._cancel_job(id)

    def _cancel_job(self, id: int) -> None:
        backend = self._backend if self._remote is None else self._remote.backend
        if backend is not None:
            backend.cancel(id)

    def _result(self, command: Tokenize | Detokenize | Render) -> Result:
        try:
            if self._remote is not None:
                raise no_vocabulary()
            match command:
                case Tokenize(id, text, special, bos):
                    return Result(id, tokens=tuple(self._vocabulary().tokenize(text, special=special, bos=bos)))
                case Detokenize(id, tokens):
                    check_tokens(tokens, self._loaded.vocab_size, "tokens")
                    return Result(id, text=self._vocabulary().detokenize(tokens))
                case Render(id, digest, request):
                    return Result(id, rendering=render(request, self._configs[digest], self._backend, self._loaded))
        except Exception as exc:  # noqa: BLE001 - process border: one request fails, the worker goes on
            return Result(command.id, error=describe(exc))


def _specs(command: Load) -> Mapping[str, BackendSpec]:
    """The backend of the model: where the parent says, else as it is installed here. Raises LoadError."""
    if not command.spec:
        return specs()
    try:
        return {command.backend: spec_at(command.spec)}
    except (ImportError, AttributeError) as exc:
        raise LoadError(
            f"backend {command.backend} is not installed for {sys.executable}, which runs its workers: {exc}"
        ) from exc


def _files(command: Load) -> Files:
    weights, adapters, draft = (tuple(Path(file) for file in files) for files in (command.files, command.adapters, command.draft))
    return Files(weights, adapters, draft)
