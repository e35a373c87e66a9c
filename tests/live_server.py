"""The whole stack in this process: the real app under the real uvicorn, workers as real processes."""

from __future__ import annotations

import asyncio
import json
import socket
import threading
import time
from collections.abc import Callable, Coroutine
from pathlib import Path
from typing import Any, Self, TypeVar

import httpx
import jsonschema
import uvicorn
from openai import OpenAI

from llmgallery.api.app import create_app
from llmgallery.cli.stack import Stack, build
from llmgallery.config.settings import Settings
from llmgallery.runtime.resident import ModelState

DEADLINE = 20.0
SHAPES = json.loads((Path(__file__).parent / "api" / "cases" / "openai_shapes.json").read_text())
T = TypeVar("T")


class Uvicorn(uvicorn.Server):
    def __init__(self, config: uvicorn.Config, up: threading.Event) -> None:
        super().__init__(config)
        self._up = up

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        self._up.set()


class LiveServer:
    """Serves `folder` and the bundled model on a free port of loopback, in a thread of its own, until the block ends. Installs
    nothing, unless `settings` say so: unknown names must not be asked for on the Hub."""

    def __init__(self, folder: Path, **settings: Any) -> None:
        self.folder = folder
        self.settings = Settings(**{"models_dir": folder, "watch": "off", "auto_install": "off", **settings})
        # asyncio sends at once (TCP_NODELAY) only where a socket says that it is TCP; else each answer waits for 40 ms.
        self._listener = socket.socket(socket.AF_INET, socket.SOCK_STREAM, socket.IPPROTO_TCP)
        self._listener.bind(("127.0.0.1", 0))
        self._listener.listen()
        self.url = f"http://127.0.0.1:{self._listener.getsockname()[1]}"
        self._up = threading.Event()
        self._thread = threading.Thread(target=self._run, name="server under test", daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        assert self._up.wait(DEADLINE) and self._thread.is_alive(), "the server did not start"
        try:
            self.call(self.stack.gallery.snapshot())
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self._uvicorn.should_exit = True
        self._thread.join(DEADLINE)
        assert not self._thread.is_alive(), "the server did not stop"

    def _run(self) -> None:
        with self._listener:
            try:
                asyncio.run(self._serve())
            finally:
                self._up.set()

    async def _serve(self) -> None:
        self._loop = asyncio.get_running_loop()
        self.stack: Stack = build(self.settings)
        app = create_app(self.stack.gallery, self.settings, watcher=self.stack.follow)
        config = uvicorn.Config(app, log_config=None, lifespan="on", timeout_graceful_shutdown=5)
        self._uvicorn = Uvicorn(config, self._up)
        try:
            await self._uvicorn.serve(sockets=[self._listener])
        finally:
            await self.stack.close()

    def call(self, work: Coroutine[Any, Any, T]) -> T:
        """The result of `work`, done in the server's loop."""
        return asyncio.run_coroutine_threadsafe(work, self._loop).result(DEADLINE)

    def add(self, name: str, **config: Any) -> str:
        """A model file in the folder; echo unless it says otherwise. The name."""
        body = {"name": name, "backend": "echo", **config}
        (self.folder / f"{name.replace('/', '__')}.yaml").write_text(json.dumps(body))
        self.stack.registry.refresh()
        return name

    def state(self, name: str) -> ModelState | None:
        async def states() -> dict[str, ModelState]:
            return {state.name: state for state in self.stack.gallery.manager.states()}

        return self.call(states()).get(name)

    def until(self, holds: Callable[[], T]) -> T:
        """The first true value of `holds`, asked again and again up to a deadline."""
        pause = threading.Event()
        end = time.monotonic() + DEADLINE
        while time.monotonic() < end:
            if value := holds():
                return value
            pause.wait(0.005)
        raise AssertionError("it never came to hold")

    def http(self, **options: Any) -> httpx.Client:
        return httpx.Client(base_url=self.url, timeout=DEADLINE, **options)

    @property
    def client(self) -> OpenAI:
        """The official client, which does not try again by itself."""
        return OpenAI(base_url=f"{self.url}/v1", api_key="none", max_retries=0, timeout=DEADLINE)


def sse(text: str) -> list[Any]:
    """The data of each event, parsed; `[DONE]` stays text. Fails on anything that is neither event nor comment."""
    events: list[Any] = []
    for block in text.strip("\n").split("\n\n"):
        if not block or block.startswith(":"):
            continue
        assert block.startswith("data: ") and "\n" not in block, block
        data = block.removeprefix("data: ")
        events.append(data if data == "[DONE]" else json.loads(data))
    return events


def fits(shape: str, body: Any) -> Any:
    """The body, once it has the shape of that name in cases/openai_shapes.json."""
    jsonschema.Draft202012Validator({"$ref": f"#/$defs/{shape}", "$defs": SHAPES["$defs"]}).validate(body)
    return body


def error_of(reply: httpx.Response) -> dict[str, Any]:
    error: dict[str, Any] = fits("error", reply.json())["error"]
    return error


def user(text: str) -> list[dict[str, str]]:
    return [{"role": "user", "content": text}]
