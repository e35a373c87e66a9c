"""Is it alive, is it ready, what does it count."""

from __future__ import annotations

import time

from litestar import Response, route
from litestar.di import NamedDependency
from litestar.enums import ScopeType
from litestar.types import ASGIApp, Message, Receive, Scope, Send

from llmgallery.api.errors import NotReady
from llmgallery.api.respond import READS
from llmgallery.metrics import CONTENT_TYPE, Metrics
from llmgallery.service.gallery import Gallery


@route("/healthz", http_method=READS, sync_to_thread=False)
def healthz() -> dict[str, str]:
    """The process answers."""
    return {"status": "ok"}


@route("/readyz", http_method=READS, sync_to_thread=False)
def readyz(gallery: NamedDependency[Gallery]) -> dict[str, str]:
    """Models can be asked for. Raises NotReady until the folder has been read."""
    if not gallery.is_ready:
        raise NotReady("the models folder has not been read yet", retry_after=1)
    return {"status": "ready"}


@route("/metrics", http_method=READS, sync_to_thread=False)
def metrics(gallery: NamedDependency[Gallery]) -> Response[bytes]:
    """Prometheus' text format."""
    return Response(gallery.metrics.text(), headers={"content-type": CONTENT_TYPE})


class Measure:
    """Litestar middleware: counts requests by route pattern and status."""

    def __init__(self, app: ASGIApp, metrics: Metrics) -> None:
        self._app = app
        self._metrics = metrics

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != ScopeType.HTTP:
            await self._app(scope, receive, send)
            return
        began = time.monotonic()
        status = 499  # nothing was sent: the client had left

        async def counting(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
            await send(message)

        try:
            await self._app(scope, receive, counting)
        finally:
            pattern = str(scope.get("path_template") or "unknown")
            self._metrics.http(scope["method"], pattern, status, time.monotonic() - began)
