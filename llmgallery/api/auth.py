"""Who may ask: API keys where there are some; without them, nobody that a web page or a forged name could have sent."""

from __future__ import annotations

import hmac
from collections.abc import Sequence
from urllib.parse import urlsplit

from litestar.datastructures import Headers
from litestar.types import ASGIApp, Receive, Scope, Send

from llmgallery.api.errors import ForeignHost, ForeignOrigin, Unauthorized
from llmgallery.config.settings import Settings, is_loopback

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
    parts = urlsplit(origin)
    if is_loopback(parts.hostname or "") or (parts.netloc and parts.netloc.lower() == headers.get("host", "").lower()):
        return
    raise ForeignOrigin(
        f"pages of {origin} may not use this server: add it to allowed_origins (LLMGALLERY_ALLOWED_ORIGINS), or set an API key"
    )


def host_name(host: str) -> str:
    """`[::1]:8080` -> `::1`, `LocalHost:80` -> `localhost`"""
    if host.startswith("["):
        return host[1:].partition("]")[0].lower()
    return host.rpartition(":")[0].lower() if host.count(":") == 1 else host.lower()
