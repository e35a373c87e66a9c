"""Requests to endpoints over pooled connections: connect, send once, and read what comes in time. Knows no OpenAI."""

from __future__ import annotations

import asyncio
import ssl
from collections.abc import AsyncGenerator, Mapping
from contextlib import aclosing, asynccontextmanager, suppress
from http.cookiejar import DefaultCookiePolicy
from typing import Any

import httpx
import msgspec

from llmgallery.backends.openai import failures
from llmgallery.backends.openai.endpoint import Endpoint
from llmgallery.backends.openai.unpacking import Unpacker
from llmgallery.core.errors import ConfigError, UpstreamUnavailable

MOST = 48 * 1024 * 1024
"""Bytes of an answer that comes whole."""
MOST_OF_STREAM = 256 * 1024 * 1024
"""Bytes of one that comes in events: of those that say most about each token, a hundred thousand tokens."""
MOST_OF_ERROR = 64 * 1024
PAUSE = 0.2
"""Seconds before a connection is tried again; each further pause is twice as long."""
KEEP_SECONDS = 4.0
"""Of an idle connection: less than after which servers of this field close it (uvicorn: 5), as what is sent meanwhile is lost."""
DRAIN_SECONDS = 1.0

Trust = tuple[bool, str | None]


class Connections:
    """Clients by what certificates they trust; each pools connections to all its hosts. Used in one event loop."""

    def __init__(self) -> None:
        self._clients: dict[Trust, httpx.AsyncClient] = {}

    def client(self, endpoint: Endpoint) -> httpx.AsyncClient:
        """Raises ConfigError for a file of certificates that cannot be read, and for an environment that httpx cannot use."""
        trust = (endpoint.options.verify, endpoint.options.ca_bundle)
        if trust not in self._clients:
            limits = httpx.Limits(max_connections=None, max_keepalive_connections=64, keepalive_expiry=KEEP_SECONDS)
            verify = _verify(*trust)
            try:
                client = httpx.AsyncClient(verify=verify, limits=limits, timeout=None)
            except (ValueError, ImportError, OSError, httpx.InvalidURL) as exc:
                raise ConfigError(
                    f"the environment of the server, of proxies (HTTPS_PROXY, ...) or SSL_CERT_FILE: {exc}"
                ) from exc
            # Models with other keys, and other ports of the host, would be sent an endpoint's cookies.
            client.cookies.jar.set_policy(DefaultCookiePolicy(allowed_domains=()))
            self._clients[trust] = client
        return self._clients[trust]

    async def close(self) -> None:
        for client in self._clients.values():
            await client.aclose()
        self._clients.clear()


def _verify(verify: bool, bundle: str | None) -> bool | ssl.SSLContext:
    if not verify or bundle is None:
        return verify
    try:
        return ssl.create_default_context(cafile=bundle)
    except (OSError, ssl.SSLError) as exc:
        message = f"options.ca_bundle: {bundle} cannot be read as certificates: {exc}"
        raise ConfigError(message, field="options.ca_bundle") from exc


class Arriving:
    """An answer of status 200 whose body is on its way. Reading raises UpstreamUnavailable."""

    def __init__(self, endpoint: Endpoint, path: str, response: httpx.Response, clock: asyncio.Timeout) -> None:
        self.headers = failures.kept(response.headers)
        self.is_stream: bool = response.headers.get("content-type", "").lower().startswith("text/event-stream")
        self._endpoint = endpoint
        self._path = path
        self._response = response
        self._clock = clock
        self._unpacker = Unpacker(response.headers.get("content-encoding", ""))
        self._bytes = response.aiter_raw()

    async def pieces(self) -> AsyncGenerator[bytes]:
        """As they come; never longer apart than the endpoint's idle_timeout. Read once."""
        loop = asyncio.get_running_loop()
        size = 0
        async for packed in self._bytes:
            self._clock.reschedule(loop.time() + self._endpoint.options.idle_timeout)
            for piece in self._unpacker.feed(packed):
                size += len(piece)
                if size > MOST_OF_STREAM:
                    raise self._too_long(MOST_OF_STREAM)
                yield piece

    async def drain(self) -> None:
        """What comes after the end of the answer: a connection that is read to its end is used again."""
        self._clock.reschedule(asyncio.get_running_loop().time() + DRAIN_SECONDS)
        async for _ in self._bytes:
            pass

    async def json(self) -> Any:
        """The whole body."""
        body = bytearray()
        async with aclosing(self.pieces()) as pieces:
            async for piece in pieces:
                body += piece
                if len(body) > MOST:
                    raise self._too_long(MOST)
        return self.decoded(bytes(body))

    def _too_long(self, most: int) -> UpstreamUnavailable:
        return UpstreamUnavailable(f"{self._endpoint.shown(self._path)} answered with more than {most} bytes")

    def decoded(self, data: bytes) -> Any:
        """JSON that came, and that a frame can hold. A secret that an error tells goes no further; text stays as it is."""
        try:
            value = failures.portable(data)
            is_answer = isinstance(value, dict) and b'"error"' not in data
            return value if is_answer else failures.harmless(value, self._endpoint)
        except ValueError as exc:
            said = self._endpoint.without_secrets(data[:1000].decode(errors="replace"))[:80]
            message = f"{self._endpoint.shown(self._path)} answered with what is no JSON that can be passed on: {said!r}"
            raise UpstreamUnavailable(message) from exc


@asynccontextmanager
async def post(
    connections: Connections, endpoint: Endpoint, path: str, body: Mapping[str, Any], *, streamed: bool = False
) -> AsyncGenerator[Arriving]:
    """The answer while it comes; leaving closes it. Raises UpstreamError for a status of an error, UpstreamUnavailable for what
    does not come, ConfigError. Leaving early, or being cancelled, closes the connection at once."""
    options = endpoint.options
    client = connections.client(endpoint)
    phase = "began no answer"
    try:
        async with asyncio.timeout(None) as clock:
            response = await _sent(client, _request(client, endpoint, path, body, streamed), endpoint, clock)
            try:
                await _check(response, endpoint, path)
                clock.reschedule(asyncio.get_running_loop().time() + options.first_byte_timeout)
                phase = "broke off"
                yield Arriving(endpoint, path, response, clock)
            finally:
                await response.aclose()
    except TimeoutError as exc:
        limits = f"{options.first_byte_timeout:g} s (options.first_byte_timeout) or, once it had begun, "
        limits += f"{options.idle_timeout:g} s (options.idle_timeout)"
        raise UpstreamUnavailable(f"{endpoint.shown(path)} was silent for longer than {limits}") from exc
    except httpx.HTTPError as exc:
        raise UpstreamUnavailable(f"{endpoint.shown(path)} {phase}: {_why(exc, endpoint)}") from exc


def _request(client: httpx.AsyncClient, endpoint: Endpoint, path: str, body: Mapping[str, Any], streamed: bool) -> httpx.Request:
    # A compressed stream may be held back until a block of it is full.
    fixed = {"content-type": "application/json"} | ({"accept-encoding": "identity"} if streamed else {})
    timeout = httpx.Timeout(None, connect=endpoint.options.connect_timeout)
    content = msgspec.json.encode(body)
    headers = {**endpoint.headers, **fixed}
    try:
        return client.build_request("POST", endpoint.address(path), content=content, headers=headers, timeout=timeout)
    except httpx.InvalidURL as exc:
        raise ConfigError(f"options.base_url: {endpoint.shown()} is no address: {exc}", field="options.base_url") from exc


async def _sent(client: httpx.AsyncClient, request: httpx.Request, endpoint: Endpoint, clock: asyncio.Timeout) -> httpx.Response:
    """The answer's head. Only what failed before there was a connection is tried again."""
    loop = asyncio.get_running_loop()
    options = endpoint.options
    for attempt in range(options.connect_retries + 1):
        clock.reschedule(loop.time() + options.connect_timeout + options.first_byte_timeout)
        try:
            return await client.send(request, stream=True)
        except (httpx.ConnectError, httpx.ConnectTimeout) as exc:
            if attempt == options.connect_retries or "CERTIFICATE" in str(exc):
                raise _unreachable(exc, endpoint) from exc
        clock.reschedule(None)
        await asyncio.sleep(PAUSE * 2**attempt)
    raise AssertionError("the last attempt returns or raises")


async def _check(response: httpx.Response, endpoint: Endpoint, path: str) -> None:
    if response.is_success:
        return
    if response.is_redirect:
        raise failures.moved(endpoint, path, response.status_code, response.headers.get("location", ""))
    raise failures.refused(endpoint, path, response.status_code, response.headers, await _beginning(response))


async def _beginning(response: httpx.Response) -> bytes:
    """Of an error's body; nothing where it cannot be read, as its status says enough."""
    raw = bytearray()
    with suppress(UpstreamUnavailable):
        unpacker = Unpacker(response.headers.get("content-encoding", ""))
        async for packed in response.aiter_raw():
            for piece in unpacker.feed(packed):
                raw += piece
                if len(raw) > MOST_OF_ERROR:
                    return bytes(raw[:MOST_OF_ERROR])
    return bytes(raw)


def _unreachable(exc: httpx.TransportError, endpoint: Endpoint) -> UpstreamUnavailable:
    if isinstance(exc, httpx.ConnectTimeout):
        why = f"no connection within {endpoint.options.connect_timeout:g} s (options.connect_timeout)"
    else:
        why = _why(exc, endpoint)
        if "CERTIFICATE" in why:
            why += "; name the certificates to trust in options.ca_bundle"
    return UpstreamUnavailable(f"{endpoint.shown()} cannot be reached: {why}")


def _why(exc: httpx.HTTPError, endpoint: Endpoint) -> str:
    return endpoint.without_secrets(str(exc)) or f"the connection was closed ({type(exc).__name__})"
