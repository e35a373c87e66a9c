"""`llmgallery serve`: the stack behind HTTP, until a signal ends it."""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
import shlex
import signal
import socket
import sys
from collections.abc import Iterator
from pathlib import Path

import uvicorn
from litestar import Litestar

from llmgallery import __version__
from llmgallery.api.app import create_app
from llmgallery.catalog.registry import Snapshot
from llmgallery.cli import stack as wiring
from llmgallery.cli.display import counted
from llmgallery.cli.given import check_loadable
from llmgallery.cli.group import told
from llmgallery.cli.stack import Stack
from llmgallery.config.settings import Settings, is_loopback
from llmgallery.core.errors import ConfigError, GalleryError
from llmgallery.service.names import resolve

SIGNALS = (signal.SIGINT, signal.SIGTERM)
log = logging.getLogger(__name__)
CUT_SECONDS = 10.0
"""After the drain: for errors to reach their clients, and for a worker that has to be killed."""
LOG_FORMAT = "%(asctime)s %(levelname)s %(name)s: %(message)s"
EVERYWHERE = ("", "0.0.0.0", "::")
QUESTION = "What is llmgallery?"
ONLY_WARNINGS = ("httpx", "httpcore", "watchfiles", "uvicorn.error")
"""At every log level. HTTP clients log whole URLs, and a download's is signed: who reads the log could fetch the file. What
watchfiles sees, and how uvicorn starts and ends, we say ourselves."""


def serve(settings: Settings, path: Path | None) -> None:
    """Blocks until SIGINT or SIGTERM, then drains. `path`: a model beside the folder. Raises ConfigError, LoadError."""
    if path is not None and not path.exists():
        raise ConfigError(f"there is no file {path}: --model takes a GGUF file or a model's YAML")
    _log_to_stderr(settings.log_level)
    _make_default_folder(settings)
    listener = bind(settings.host, settings.port)
    # uvloop, where uvicorn finds it: the server took 6 to 17% less CPU time for the tokens that it passes on.
    loop_factory = uvicorn.Config(app="", log_config=None).get_loop_factory()
    with contextlib.suppress(KeyboardInterrupt), asyncio.Runner(loop_factory=loop_factory) as runner:
        runner.run(_serve(settings, path, listener))


async def _serve(settings: Settings, path: Path | None, listener: socket.socket) -> None:
    stack = wiring.build(settings, path)
    try:
        if path is not None:
            check_loadable(resolve(None, stack.registry.read(), default=stack.settings.default_model))
        app = create_app(stack.gallery, stack.settings, watcher=stack.follow)
        await Server(app, stack).serve(sockets=[listener])
    finally:
        await stack.close()


class Server(uvicorn.Server):
    """Uvicorn, with our banner and our signals: its own handling would end the process before the workers are stopped."""

    def __init__(self, app: Litestar, stack: Stack) -> None:
        settings = stack.settings
        self._drain = min(settings.drain, 24 * 3600)
        cut = int(self._drain + CUT_SECONDS)
        super().__init__(uvicorn.Config(app, log_config=None, lifespan="on", timeout_graceful_shutdown=cut, server_header=False))
        self._app = app
        self._stack = stack
        self._drained = asyncio.Event()

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        if sockets:
            await self._tell(sockets[0].getsockname()[1])

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        loop = asyncio.get_running_loop()
        for number in SIGNALS:
            loop.add_signal_handler(number, self._leave)
        try:
            yield
        finally:
            for number in SIGNALS:
                loop.remove_signal_handler(number)

    def _leave(self) -> None:
        """The first signal drains, the second one does not wait for answers, the third one for nothing."""
        if not self.should_exit:
            log.info("stopping; running answers get %g s, or until the next signal", self._stack.settings.drain)
            self.should_exit = True
            self._app.state.leaving.set()
        elif not self._drained.is_set():
            self._drained.set()
        else:
            self.force_exit = True

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """What still runs when the time is up is ended by us, so that its client is told why; uvicorn would cut it off."""
        ending = asyncio.create_task(self._end_answers(), name="ends what outlasts the drain")
        await super().shutdown(sockets)
        self._drained.set()
        await ending

    async def _end_answers(self) -> None:
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(self._drain):
                await self._drained.wait()
        self._drained.set()
        await self._stack.close()

    async def _tell(self, port: int) -> None:
        snapshot = await self._stack.gallery.snapshot()
        wiring.report_problems(snapshot)
        settings = self._stack.settings
        _warn(settings, snapshot)
        models = counted(len(snapshot.entries), "model")
        where = wiring.models_dir(settings)
        print(f"llmgallery {__version__} serves {models} at {url_of(settings.host, port)} (models folder: {where})")
        model = await self._model()
        if model is not None:
            more = ", with one of the keys for YOUR_KEY" if settings.api_keys else ""
            print(f"Try it{more}:\n\n{curl(settings, port, model)}\n")
        sys.stdout.flush()

    async def _model(self) -> str | None:
        """A name for the example: what a request without a name gets, else any."""
        gallery = self._stack.gallery
        for name in (None, "default"):
            with contextlib.suppress(GalleryError):
                return (await gallery.entry(name)).name
        return next((entry.name for entry in await gallery.models()), None)


def _warn(settings: Settings, snapshot: Snapshot) -> None:
    """What the settings promise and the server will not do."""
    if settings.default_model is not None:
        try:
            resolve(None, snapshot, default=settings.default_model)
        except GalleryError as exc:
            log.warning("default_model cannot be served: %s", told(exc))
    if not settings.api_keys and not is_loopback(settings.host):
        where = "all interfaces" if settings.host.strip("[]") in EVERYWHERE else settings.host
        hosts = ", ".join(sorted(settings.hosts()))
        log.warning(
            "listening on %s without a key: only requests to %s are answered; --api-key, or --allowed-host, lets others in",
            where,
            hosts,
        )


def bind(host: str, port: int) -> socket.socket:
    """A listening socket. Raises ConfigError."""
    name = host.strip("[]")
    try:
        family, *_, address = socket.getaddrinfo(name, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)[0]
        listener = socket.socket(family, socket.SOCK_STREAM, socket.IPPROTO_TCP)  # else asyncio leaves Nagle's delay of 40 ms
        try:
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            listener.bind(address)
            listener.listen(2048)
        except OSError:
            listener.close()
            raise
    except OSError as exc:
        reason = exc.strerror or str(exc)
        raise ConfigError(f"cannot listen on {host}:{port}: {reason}; choose another with --port or --host") from exc
    listener.set_inheritable(False)
    return listener


def url_of(host: str, port: int) -> str:
    """Where a client of this machine finds the server."""
    name = host.strip("[]")
    if name in EVERYWHERE:
        name = "127.0.0.1"
    return f"http://[{name}]:{port}" if ":" in name else f"http://{name}:{port}"


def curl(settings: Settings, port: int, model: str) -> str:
    """A command that asks the server one question; ready to be pasted. Keys are not shown: they would stay in the log."""
    body = {"model": model, "stream": True, "messages": [{"role": "user", "content": QUESTION}]}
    lines = [f"curl -N {url_of(settings.host, port)}/v1/chat/completions", "-H 'Content-Type: application/json'"]
    if settings.api_keys:
        lines.append('-H "Authorization: Bearer $LLMGALLERY_API_KEY"')
    lines.append(f"-d {shlex.quote(json.dumps(body, ensure_ascii=False))}")
    return ("export LLMGALLERY_API_KEY=YOUR_KEY\n" if settings.api_keys else "") + " \\\n  ".join(lines)


def _log_to_stderr(level: str) -> None:
    """One line a record."""
    logging.basicConfig(level=level.upper(), stream=sys.stderr, format=LOG_FORMAT)
    for name in ONLY_WARNINGS:
        logging.getLogger(name).setLevel(max(logging.WARNING, logging.getLogger().level))


def _make_default_folder(settings: Settings) -> None:
    """The folder that nobody named is made, so that there is a place to drop files into; where it cannot be, nothing is lost."""
    if settings.models_dir is None:
        with contextlib.suppress(OSError):
            wiring.models_dir(settings).mkdir(parents=True, exist_ok=True)
