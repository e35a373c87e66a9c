"""Who may ask: API keys where there are some; without them, nobody that a web page or a forged name could have sent."""

from __future__ import annotations

import hmac
from collections.abc import Sequence
from typing import Any
from urllib.parse import urlsplit

from litestar import Request
from litestar.config.cors import CORSConfig
from litestar.datastructures import Headers
from litestar.enums import HttpMethod, ScopeType
from litestar.types import ASGIApp, HTTPScope, Receive, Scope, Send

from llmgallery.api.errors import ForeignHost, ForeignOrigin, Unauthorized, to_failure, to_response
from llmgallery.config.settings import Settings, is_loopback
from llmgallery.core.errors import GalleryError

OPEN_PATHS = frozenset({"/healthz", "/readyz"})
"""Asked by supervisors, which know no key and use the address that they like."""


class Guard:
    """Litestar middleware. Raises Unauthorized, ForeignHost, ForeignOrigin."""

    def __init__(self, app: ASGIApp, settings: Settings) -> None:
        self._app = app
        self._settings = settings
        self._hosts = settings.hosts()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["path"] not in OPEN_PATHS:
            self._check(Headers.from_scope(scope))
        await self._app(scope, receive, send)

    def _check(self, headers: Headers) -> None:
        if self._settings.api_keys:
            check_key(headers, self._settings.api_keys)
        else:
            check_host(headers.get("host", ""), self._hosts)
            check_origin(headers, self._settings.allowed_origins)


class Preflights:
    """ASGI around the whole application: Litestar answers a browser's preflight before any of its middleware runs. A page that
    may not ask gets the error that its request would get. Preflights carry no key: only the page counts."""

    def __init__(self, app: ASGIApp, settings: Settings, cors: CORSConfig) -> None:
        self._app = app
        self._settings = settings
        self._cors = cors

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == ScopeType.HTTP and scope["method"] == HttpMethod.OPTIONS:
            try:
                scope = self._checked(scope)
            except GalleryError as error:
                request: Request[Any, Any, Any] = Request(scope, receive, send)
                await to_response(to_failure(error)).to_asgi_response(app=None, request=request)(scope, receive, send)
                return
        await self._app(scope, receive, send)

    def _checked(self, scope: HTTPScope) -> HTTPScope:
        """What Litestar may see of it. A page of this very host asks without CORS. Raises ForeignHost, ForeignOrigin."""
        headers = Headers(scope["headers"])
        origin = headers.get("origin")
        if origin is None:
            return scope
        if not self._settings.api_keys:
            check_host(headers.get("host", ""), self._settings.hosts())
            check_origin(headers, self._settings.allowed_origins)
        if self._cors.is_origin_allowed(origin):
            return scope
        check_origin(headers, self._settings.allowed_origins)
        return {**scope, "headers": [(name, value) for name, value in scope["headers"] if name != b"origin"]}


def bearer_token(headers: Headers) -> str | None:
    """The token of `Authorization: Bearer`, else of `x-api-key`."""
    scheme, _, token = headers.get("authorization", "").partition(" ")
    if scheme.lower() == "bearer" and token.strip():
        return token.strip()
    return headers.get("x-api-key") or None


def check_key(headers: Headers, keys: Sequence[str]) -> None:
    """Raises Unauthorized. Takes the same time for every wrong key."""
    token = bearer_token(headers)
    if token is None:
        raise Unauthorized("this server needs an API key: send `Authorization: Bearer KEY`")
    matches = [hmac.compare_digest(token.encode(), key.encode()) for key in keys]  # all of them: no early end
    if not any(matches):
        raise Unauthorized("this API key is not one of the server's")


def check_host(host: str, allowed: frozenset[str]) -> None:
    """A page may give its own name our address (DNS rebinding): then Host is that name. Raises ForeignHost."""
    name = host_name(host)
    if name in allowed or "*" in allowed or is_loopback(name) or name.endswith(".localhost"):
        return
    raise ForeignHost(
        f"this server does not answer for the host {name or 'that was not named'}: "
        f"add it to allowed_hosts (LLMGALLERY_ALLOWED_HOSTS), or set an API key"
    )


def check_origin(headers: Headers, allowed: Sequence[str]) -> None:
    """Browsers say which page asks. Pages from this machine and from this very host may. Raises ForeignOrigin."""
    origin = headers.get("origin")
    if origin is None or "*" in allowed or origin in allowed:
        return
    place, name = _place(origin)
    if is_loopback(name) or (place and place == headers.get("host", "").lower()):
        return
    raise ForeignOrigin(f"pages of {origin} may not use this server: add it to allowed_origins (LLMGALLERY_ALLOWED_ORIGINS)")


def _place(origin: str) -> tuple[str, str]:
    """`http://[::1]:80` -> `[::1]:80`, `::1`; nothing for what is no URL."""
    try:
        parts = urlsplit(origin)
        return parts.netloc.lower(), parts.hostname or ""
    except ValueError:
        return "", ""


def host_name(host: str) -> str:
    """`[::1]:8080` -> `::1`, `LocalHost:80` -> `localhost`"""
    if host.startswith("["):
        return host[1:].partition("]")[0].lower()
    return host.rpartition(":")[0].lower() if host.count(":") == 1 else host.lower()
