"""The server's application: routes, guards, the order of starting and stopping."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncGenerator, Awaitable, Callable
from contextlib import asynccontextmanager

from litestar import Litestar
from litestar.config.cors import CORSConfig
from litestar.datastructures import State
from litestar.di import Provide
from litestar.middleware import DefineMiddleware

from llmgallery.api import errors, health
from llmgallery.api.auth import Guard, Preflights
from llmgallery.api.dialects.jina.routes import rerank
from llmgallery.api.dialects.localai.routes import router as localai_router
from llmgallery.api.dialects.openai.edits import edits
from llmgallery.api.dialects.openai.embeddings import embeddings
from llmgallery.api.dialects.openai.rendering import apply_template
from llmgallery.api.dialects.openai.routes import router as openai_router
from llmgallery.api.respond import BODY_BYTES, Bodiless
from llmgallery.config.settings import Settings
from llmgallery.service.gallery import Gallery

logger = logging.getLogger("llmgallery.api")

Watcher = Callable[[asyncio.Event], Awaitable[None]]
LOOPBACK_PAGES = r"https?://(localhost|127(\.\d{1,3}){3}|\[::1\])(:\d+)?"


def create_app(gallery: Gallery, settings: Settings, *, watcher: Watcher | None = None) -> Litestar:
    """An ASGI application, for uvicorn or to be mounted elsewhere. Its lifespan starts and stops `gallery`, and runs
    `watcher` (given an event that is set when it must return) between the two. Who stops the server sets `state.leaving`, an
    event: streams that have no end of their own then end."""

    @asynccontextmanager
    async def lifespan(app: Litestar) -> AsyncGenerator[None, None]:
        stop = asyncio.Event()
        await gallery.start()
        watching = asyncio.create_task(_watch(gallery, watcher, stop), name="watches the models folder")
        try:
            yield
        finally:
            stop.set()
            await asyncio.gather(watching, return_exceptions=True)
            await gallery.stop(0.0)  # open answers were drained by the HTTP server, which is closed by now

    cors = _cors(settings)
    app = Litestar(
        route_handlers=[
            *(openai_router, edits, embeddings, apply_template, rerank, localai_router),
            *(health.healthz, health.readyz, health.metrics),
        ],
        dependencies={"gallery": Provide(lambda: gallery, sync_to_thread=False)},
        exception_handlers={Exception: errors.handle},
        middleware=[DefineMiddleware(health.Measure, metrics=gallery.metrics), DefineMiddleware(Guard, settings=settings)],
        cors_config=cors,
        lifespan=[lifespan],
        state=State({"leaving": asyncio.Event()}),
        openapi_config=None,
        logging_config=None,
        request_max_body_size=BODY_BYTES,
    )
    app.asgi_handler = Bodiless(Preflights(app.asgi_handler, settings, cors))  # Litestar has no door that is further out
    return app


async def _watch(gallery: Gallery, watcher: Watcher | None, stop: asyncio.Event) -> None:
    """Only after the first reading: the watcher tells what changed since."""
    if watcher is None:
        return
    try:
        await gallery.snapshot()
        await watcher(stop)
    except Exception:
        logger.exception("the models folder is not watched any more: changes need a restart")
        raise


def _cors(settings: Settings) -> CORSConfig:
    """Pages that the guard lets in may read the answers."""
    return CORSConfig(allow_origins=list(settings.allowed_origins), allow_origin_regex=LOOPBACK_PAGES, max_age=600)
