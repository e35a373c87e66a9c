"""Fetches the small files of galleries: bounded in bytes, time and redirects, asked for again by their validators."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from http.cookiejar import DefaultCookiePolicy

import httpx
import msgspec

from llmgallery import __version__
from llmgallery.catalog.gallery.cache import Copy, CopyCache
from llmgallery.catalog.gallery.sources import WebPlace, check_reach, check_web
from llmgallery.catalog.reach import is_inside, outside_only
from llmgallery.core.errors import ConfigError, GalleryError, HubNotFound, HubOffline, HubUnavailable

log = logging.getLogger(__name__)

Clock = Callable[[], float]
ClientFactory = Callable[[], httpx.AsyncClient]
Check = Callable[[bytes], None]
"""Blocks; raises GalleryError where this is not what was expected: a page that asks for a login, say."""

_LOOPBACK = ("localhost", "127.0.0.1", "[::1]")
_MAX_VALIDATOR = 1024


class Bounds(msgspec.Struct, frozen=True):
    """Of one file: `bytes` of its body, `seconds` for all of it, redirects on the way. LocalAI's index has 2.6 million bytes."""

    bytes: int = 32 << 20
    seconds: float = 60.0
    redirects: int = 5


def new_client() -> httpx.AsyncClient:
    """Proxies are the environment's, as for the Hub; loopback needs none. Redirects are ours to judge. Cookies are
    nobody's: who asks through one client are many."""
    client = httpx.AsyncClient(
        timeout=httpx.Timeout(10.0, read=30.0),
        headers={"User-Agent": f"llmgallery/{__version__}", "Accept-Encoding": "identity"},
        limits=httpx.Limits(max_connections=8),
        mounts={f"all://{host}": None for host in _LOOPBACK},
        follow_redirects=False,
    )
    client.cookies.jar.set_policy(DefaultCookiePolicy(allowed_domains=()))
    return client


class WebFiles:
    """Files of the web, by address. `client` is called once, at the first request; belongs to one event loop.

    `offline`: nothing is asked, what has been kept is all there is.
    """

    def __init__(
        self,
        cache: CopyCache,
        *,
        client: ClientFactory = new_client,
        bounds: Bounds | None = None,
        offline: bool = False,
        clock: Clock = time.time,
    ) -> None:
        self.cache = cache
        self.offline = offline
        self._bounds = bounds or Bounds()
        self._clock = clock
        self._make = client
        self._http: httpx.AsyncClient | None = None

    async def aclose(self) -> None:
        if self._http is not None:
            await self._http.aclose()

    async def get(self, url: str, check: Check, inside: bool = False) -> Copy:
        """The file as it is now; one that has not changed is not sent again, and none is kept that `check` refuses. `inside`:
        its host's name may mean an address inside this network. Raises HubError, ConfigError, and what `check` raises."""
        if self.offline:
            raise HubOffline(f"{url} is not asked for, because HF_HUB_OFFLINE is set")
        kept = await asyncio.to_thread(self.cache.load, url)
        try:
            async with asyncio.timeout(self._bounds.seconds):
                copy = await self._fetch(url, kept, inside)
        except TimeoutError as error:
            raise HubUnavailable(f"{url} does not answer in time: it was not here after {self._bounds.seconds:g} s") from error
        except httpx.RequestError as error:
            raise _unreachable(url, error) from error
        except httpx.InvalidURL as error:
            raise ConfigError(f"{url!r} is no address: {error}") from error
        if copy is None:
            assert kept is not None
            copy = msgspec.structs.replace(kept, fetched=self._clock())
            await asyncio.to_thread(self.cache.touch, copy)
        else:
            await asyncio.to_thread(check, copy.body)
            await asyncio.to_thread(self.cache.store, copy)
        return copy

    async def get_within(self, url: str, seconds: float, check: Check, inside: bool = False) -> Copy:
        """The kept copy where its server has confirmed it within `seconds`; else as `get`, or the kept copy where that fails.
        Raises as `get` where there is none."""
        kept = await asyncio.to_thread(self.cache.load, url)
        if kept is not None and abs(self._clock() - kept.fetched) < seconds:
            return kept
        try:
            return await self.get(url, check, inside)
        except GalleryError as error:
            if kept is None:
                raise
            log.warning("%s is used as it was kept: %s", url, error.message)
            return kept

    async def _fetch(self, url: str, kept: Copy | None, inside: bool) -> Copy | None:
        """None = `kept` still holds."""
        async with self._open(url, _validators(kept), inside) as response:
            if response.status_code == 304 and kept is not None:
                return None
            _check(response, url)
            body = await self._read(response, url)
            headers = response.headers
            return Copy(url, body, self._clock(), _validator(headers.get("etag")), _validator(headers.get("last-modified")))

    @asynccontextmanager
    async def _open(self, url: str, headers: dict[str, str], inside: bool) -> AsyncIterator[httpx.Response]:
        """The answer at the end of the redirects. Raises ConfigError for one that leads where it may not."""
        if self._http is None:
            self._http = self._make()
        here = check_web(url)
        for _ in range(self._bounds.redirects + 1):
            host = httpx.URL(here).host
            guard = None if inside or is_inside(host) else dict(outside_only(host))
            response = await self._http.send(
                self._http.build_request("GET", here, headers=headers, extensions=guard), stream=True
            )
            try:
                if not response.has_redirect_location:
                    yield response
                    return
                there = check_web(str(httpx.URL(here).join(response.headers["location"])))
                check_reach(WebPlace(here), WebPlace(there))
                here = there
            except (httpx.InvalidURL, ConfigError) as error:
                raise HubUnavailable(f"{url} redirects where it may not: {error}") from error
            finally:
                await response.aclose()
        raise HubUnavailable(f"{url} redirects more than {self._bounds.redirects} times")

    async def _read(self, response: httpx.Response, url: str) -> bytes:
        most, body = self._bounds.bytes, bytearray()
        async for piece in response.aiter_raw():
            body += piece
            if len(body) > most:
                raise HubUnavailable(f"{url} is larger than {most:,} bytes: it is no index of a gallery, nor a base file")
        return bytes(body)


def _validators(kept: Copy | None) -> dict[str, str]:
    if kept is None:
        return {}
    found = {"If-None-Match": kept.etag, "If-Modified-Since": kept.modified}
    return {name: value for name, value in found.items() if value is not None}


def _validator(value: str | None) -> str | None:
    """A validator that can be sent back."""
    return value if value and len(value) <= _MAX_VALIDATOR and value.isascii() and value.isprintable() else None


def _check(response: httpx.Response, url: str) -> None:
    status = response.status_code
    if status == 200:
        if (encoding := response.headers.get("content-encoding", "identity")) != "identity":
            raise HubUnavailable(f"{url} came as {encoding}, which was not asked for")
        return
    if status in (404, 410):
        raise HubNotFound(f"there is no file {url} (its server answered {status})")
    if status in (401, 403):
        raise HubUnavailable(f"{url} is not for everybody: its server answered {status}")
    raise HubUnavailable(f"{url}: its server answered {status}")


def _unreachable(url: str, error: httpx.RequestError) -> HubUnavailable:
    late = isinstance(error, httpx.TimeoutException)
    what = "does not answer in time" if late else f"cannot be reached ({error or type(error).__name__})"
    return HubUnavailable(f"{url} {what}: check the network and the gallery's url")
