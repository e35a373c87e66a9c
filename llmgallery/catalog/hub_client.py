"""The Hub's HTTP protocol: what a file is (HEAD resolve), what a repo holds, and its errors as ours. Writes no file.

Protocol: https://huggingface.co/docs/hub/api and the headers that huggingface_hub.file_download reads.
"""

from __future__ import annotations

import asyncio
import re
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from email.utils import parsedate_to_datetime
from urllib.parse import quote

import httpx
import msgspec

from llmgallery import __version__
from llmgallery.catalog.hub_repo import Repo, near_names, read_repo
from llmgallery.catalog.hub_settings import HubSettings
from llmgallery.catalog.reach import check_redirect, is_inside, outside_only
from llmgallery.catalog.reference import check_file
from llmgallery.core.errors import ConfigError, HubError, HubGated, HubNotFound, HubUnavailable

Sleep = Callable[[float], Awaitable[None]]
MAX_PAUSE = 60.0
"""Seconds; the longest that a Retry-After is waited for."""

QUICK_ATTEMPTS = 3
"""When no connection comes about; half a back-off between them."""

MAX_ANSWER = 32 << 20
"""Bytes of an answer of the API: a repo of 100,000 files takes less."""

_COMMIT = re.compile(r"[0-9a-f]{40}")
_ETAG = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,127}")
_AGAIN = frozenset({408, 425, 429, 500, 502, 503, 504})
_MAX_REDIRECTS = 5
_LOOPBACK = frozenset({"127.0.0.1", "localhost", "::1"})


class FileMeta(msgspec.Struct, frozen=True):
    """A file at a commit. `etag` is unquoted: a sha256 (LFS) or a git blob sha1. `location` is where its bytes are now; when
    the Hub redirected there (`signed`), that may expire.
    """

    repo: str
    file: str
    commit: str
    etag: str
    size: int
    location: str
    signed: bool = False


class Listing(msgspec.Struct, frozen=True):
    """GET /api/models/{repo}/revision/{revision}, as far as we read it."""

    class Sibling(msgspec.Struct, frozen=True):
        rfilename: str

    sha: str
    siblings: list[Sibling] = []


class Wanted(msgspec.Struct, frozen=True):
    """What a request is about, for its errors."""

    repo: str
    revision: str
    file: str = ""


class Again(Exception):
    """A request that may be tried again after `pause` seconds (None = our own back-off), or given up as `error`.

    `refused`: there was no connection at all, which another try seldom mends: no such host, nothing listens, no way there.
    """

    def __init__(self, error: HubError, pause: float | None = None, refused: bool = False) -> None:
        super().__init__(error.message)
        self.error = error
        self.pause = pause
        self.refused = refused


class HubClient:
    """Requests to one Hub. Belongs to one event loop. The token goes to the Hub's own origin only."""

    def __init__(self, settings: HubSettings, sleep: Sleep = asyncio.sleep) -> None:
        self.settings = settings
        self.sleep = sleep
        self._origin = _origin(httpx.URL(settings.endpoint))
        self._http = httpx.AsyncClient(
            timeout=httpx.Timeout(settings.connect, read=settings.stall),
            headers={"User-Agent": f"llmgallery/{__version__}", "Accept-Encoding": "identity"},
            limits=httpx.Limits(max_connections=32),
        )

    async def aclose(self) -> None:
        await self._http.aclose()

    async def metadata(self, repo: str, revision: str, file: str, attempts: int | None = None) -> FileMeta:
        """Resolve a file. Raises HubNotFound (with near names), HubGated, HubUnavailable."""
        url = f"{self.settings.endpoint}/{repo}/resolve/{quote(revision, safe='')}/{quote(file)}"
        try:
            response = await self.retrying(lambda: self._ask("HEAD", url, Wanted(repo, revision, file)), attempts)
        except HubNotFound as error:
            if error.field == "file":
                raise await self._with_near_names(error, repo, revision, file) from error
            raise
        meta = _read_metadata(response, repo, file)
        if _COMMIT.fullmatch(revision) and meta.commit != revision:
            raise HubUnavailable(f"{url} answered commit {meta.commit}, and another was asked for: is HF_ENDPOINT a Hub?")
        return meta

    async def list_files(self, repo: str, revision: str, attempts: int | None = None) -> tuple[str, list[str]]:
        """The commit that `revision` is, and the paths of its files."""
        url = f"{self.settings.endpoint}/api/models/{repo}/revision/{quote(revision, safe='')}"
        response = await self.retrying(lambda: self._ask("GET", url, Wanted(repo, revision)), attempts)
        try:
            listing = msgspec.json.decode(response.content, type=Listing)
        except (ValueError, RecursionError) as exc:  # not UTF-8, no JSON, nested without end
            raise HubUnavailable(f"{url} answered no listing of a repo ({exc}): is HF_ENDPOINT a Hub?") from exc
        if not _COMMIT.fullmatch(listing.sha):
            raise HubUnavailable(f"{url} names no commit: is HF_ENDPOINT a Hub?")
        return listing.sha, [sibling.rfilename for sibling in listing.siblings if _is_plain(sibling.rfilename)]

    async def describe(self, repo: str, revision: str) -> Repo:
        """What a repo is and holds at `revision`, with the files' sizes and checksums."""
        url = f"{self.settings.endpoint}/api/models/{repo}/revision/{quote(revision, safe='')}?blobs=true"
        response = await self.retrying(lambda: self._ask("GET", url, Wanted(repo, revision)))
        try:
            return read_repo(repo, response.content)
        except (ValueError, RecursionError) as exc:
            raise HubUnavailable(f"{url} answered no listing of a repo ({exc}): is HF_ENDPOINT a Hub?") from exc

    async def size_of(self, address: str, inside: bool = False) -> int | None:
        """How many bytes lie at an address outside the Hub, by HEAD; None = it does not say. `inside`: as of Expected. Raises
        HubNotFound for what is not there, HubUnavailable for a host that cannot be reached."""
        url = httpx.URL(address)
        for _ in range(_MAX_REDIRECTS):
            request = await self._elsewhere("HEAD", url, {}, inside)
            try:
                response = await self._send(request)
            except Again as again:
                raise again.error from again
            await response.aclose()
            if not response.has_redirect_location:
                break
            url = _led(address, url, _target(response))
        else:
            raise HubUnavailable(f"{address} redirects without end")
        if response.status_code in (404, 410):
            raise HubNotFound(f"there is nothing at {address} ({response.status_code})", field="uri")
        length = str(response.headers.get("content-length", ""))
        return int(length) if response.status_code == 200 and length.isdecimal() else None

    @asynccontextmanager
    async def open(self, meta: FileMeta, headers: dict[str, str]) -> AsyncIterator[httpx.Response]:
        """GET a file's bytes with these headers; 200, 206 or 416 come back. Raises Again, or a HubError that is final."""
        url = httpx.URL(meta.location)
        for _ in range(_MAX_REDIRECTS):
            request = self._http.build_request("GET", url, headers=headers | await self._auth(url))
            response = await self._send(request)
            try:
                if not response.has_redirect_location:
                    self._check(response, None if meta.signed else Wanted(meta.repo, meta.commit, meta.file))
                    yield response
                    return
                url = _target(response)
            finally:
                await response.aclose()
        raise HubUnavailable(f"{meta.location} redirects without end")

    @asynccontextmanager
    async def open_address(self, address: str, headers: dict[str, str], inside: bool = False) -> AsyncIterator[httpx.Response]:
        """GET any https address, or http on this machine, with these headers; 200, 206 or 416 come back. `inside`: as of
        Expected. Raises Again, HubNotFound, HubUnavailable, ConfigError."""
        url = httpx.URL(address)
        if not _is_safe(url):
            raise HubUnavailable(f"{address} is not encrypted: write an https:// address")
        for _ in range(_MAX_REDIRECTS):
            request = await self._elsewhere("GET", url, headers, inside)
            response = await self._send(request)
            try:
                if not response.has_redirect_location:
                    _check_address(response, address)
                    yield response
                    return
                url = _led(address, url, _target(response))
            finally:
                await response.aclose()
        raise HubUnavailable(f"{address} redirects without end")

    async def retrying(self, ask: Callable[[], Awaitable[httpx.Response]], attempts: int | None = None) -> httpx.Response:
        """Ask until it answers, with back-off, at most `attempts` times. None = the settings' count, and few quick ones where
        there is no connection at all: then somebody waits for an answer that will most likely not come.
        """
        left = attempts or self.settings.attempts
        failures = 0
        while True:
            try:
                return await ask()
            except Again as again:
                failures += 1
                quick = attempts is None and again.refused
                if failures >= (min(left, QUICK_ATTEMPTS) if quick else left):
                    raise again.error from again
                await self.pause(failures, self.settings.backoff / 2 if quick else again.pause)

    async def pause(self, failures: int, asked: float | None) -> None:
        """Wait before the next attempt: as long as the Hub asked, else doubling from the settings' back-off."""
        ours = self.settings.backoff * 2.0 ** (failures - 1)
        await self.sleep(min(ours if asked is None else asked, MAX_PAUSE))

    async def _ask(self, method: str, address: str, wanted: Wanted) -> httpx.Response:
        """One request to the Hub. A redirect that itself tells the file's commit is an answer; others are followed."""
        url = httpx.URL(address)
        for _ in range(_MAX_REDIRECTS):
            request = self._http.build_request(method, url, headers=await self._auth(url), timeout=self.settings.connect)
            response = await self._send(request)
            try:
                if not response.has_redirect_location or "x-repo-commit" in response.headers:
                    answer = await _whole(response)
                    self._check(answer, wanted)
                    return answer
            except httpx.RequestError as exc:
                raise Again(_unreachable(url, exc)) from exc
            finally:
                await response.aclose()
            url = _target(response)
        raise HubUnavailable(f"{address} redirects without end")

    async def _send(self, request: httpx.Request) -> httpx.Response:
        try:
            return await self._http.send(request, stream=True)
        except httpx.RequestError as exc:
            raise Again(_unreachable(request.url, exc), refused=isinstance(exc, httpx.ConnectError)) from exc

    async def _elsewhere(self, method: str, url: httpx.URL, headers: dict[str, str], inside: bool) -> httpx.Request:
        """A request to an address outside the Hub. One that is written as inside was judged when it was planned; a name that
        turns out to be is refused, but for the Hub's own."""
        guard = None if inside or is_inside(url.host) or _origin(url) == self._origin else dict(outside_only(url.host))
        timeout = self.settings.connect if method == "HEAD" else httpx.USE_CLIENT_DEFAULT
        headers = headers | await self._auth(url)
        return self._http.build_request(method, url, headers=headers, extensions=guard, timeout=timeout)

    async def _auth(self, url: httpx.URL) -> dict[str, str]:
        if _origin(url) != self._origin:
            return {}
        token = await asyncio.to_thread(self.settings.current_token)
        return {"Authorization": f"Bearer {token}"} if token else {}

    def _check(self, response: httpx.Response, wanted: Wanted | None) -> None:
        """Raise what an error status means. `wanted` is None for a link that the Hub gave: those expire."""
        status = response.status_code
        if status < 400 or status == 416:
            return
        url = response.request.url
        if status in _AGAIN:
            error = HubUnavailable(f"{url.scheme}://{url.netloc.decode()} answered {status}: try again later")
            raise Again(error, _retry_after(response))
        if wanted is None:
            raise Again(HubUnavailable(f"{url.host} answered {status} for a download link of {self.settings.endpoint}"))
        raise _refusal(response, wanted, self.settings.endpoint)

    async def _with_near_names(self, error: HubNotFound, repo: str, revision: str, file: str) -> HubNotFound:
        try:
            _, files = await self.list_files(repo, revision)
        except HubError:
            return error
        near = near_names(file, files)
        message = f"{error.message}; nearest: {', '.join(near)}" if near else error.message
        return HubNotFound(message, field=error.field, hints=near)


async def _whole(response: httpx.Response) -> httpx.Response:
    """The answer with its body read. Raises HubUnavailable for one that is larger than an API's."""
    body = bytearray()
    async for piece in response.aiter_bytes():
        body += piece
        if len(body) > MAX_ANSWER:
            raise HubUnavailable(f"{response.request.url} answers more than {MAX_ANSWER >> 20} MiB: name a file of the repo")
    headers = {key: value for key, value in response.headers.items() if key != "content-encoding"}
    return httpx.Response(response.status_code, headers=headers, content=bytes(body), request=response.request)


def _led(address: str, before: httpx.URL, after: httpx.URL) -> httpx.URL:
    """Where a redirect leads, if it may. Raises HubUnavailable."""
    if not _is_safe(after) or (before.scheme == "https" and after.scheme != "https"):
        raise HubUnavailable(f"{address} leads to {after}, which is not encrypted: write another address")
    try:
        check_redirect(before.host, after.host, str(after))
    except ConfigError as error:
        raise HubUnavailable(f"{address} leads where it may not: {error.message}") from error
    return after


def _is_safe(url: httpx.URL) -> bool:
    return url.scheme == "https" or (url.scheme == "http" and url.host in _LOOPBACK)


def _check_address(response: httpx.Response, address: str) -> None:
    """Raise what an error status of an address outside the Hub means."""
    status = response.status_code
    if status in _AGAIN:
        raise Again(HubUnavailable(f"{address} answered {status}: try again later"), _retry_after(response))
    if status in (404, 410):
        raise HubNotFound(f"there is nothing at {address} ({status}): the entry that names it is out of date", field="uri")
    if status not in (200, 206, 416):
        raise HubUnavailable(f"{address} answered {status}, so its file cannot be fetched from here")


def _refusal(response: httpx.Response, wanted: Wanted, endpoint: str) -> HubError:
    """The error by X-Error-Code. A private repo and a missing one look the same to who may not see them."""
    status, code = response.status_code, response.headers.get("x-error-code", "")
    said = response.headers.get("x-error-message", "")
    page = f"{endpoint}/{wanted.repo}"
    token = "HF_TOKEN does not open it" if "authorization" in response.request.headers else "no HF_TOKEN is set"
    if code == "GatedRepo":
        return HubGated(
            f"{wanted.repo} is gated: accept its terms at {page} and set HF_TOKEN to a token of that account ({token})"
        )
    if code == "RevisionNotFound":
        return HubNotFound(f"{wanted.repo} has no revision {wanted.revision}: see {page}/branches", field="revision")
    if code == "EntryNotFound" or (status == 404 and not code and wanted.file):
        return HubNotFound(f"{wanted.repo} has no file {wanted.file} at revision {wanted.revision}", field="file")
    if "invalid credentials" in said.lower():
        return HubGated(f"the Hub does not accept the token: make a new one at {endpoint}/settings/tokens and set HF_TOKEN to it")
    if code == "RepoNotFound" or status == 404:
        return HubNotFound(f"there is no repo {wanted.repo} at {endpoint}, or it is private ({token})", field="repo")
    because = f" ({said})" if said else ""
    if status in (401, 403):
        return HubGated(f"{page} answered {status}{because}: {token}")
    return HubUnavailable(f"{response.request.url} answered {status}{because}")


def _read_metadata(response: httpx.Response, repo: str, file: str) -> FileMeta:
    headers, url = response.headers, response.request.url
    commit = headers.get("x-repo-commit", "")
    etag = (headers.get("x-linked-etag") or headers.get("etag", "")).removeprefix("W/").strip('"')
    redirected = response.has_redirect_location
    size = headers.get("x-linked-size") or ("" if redirected else headers.get("content-length", ""))
    if not _COMMIT.fullmatch(commit) or not _ETAG.fullmatch(etag) or not size.isdecimal() or len(size) > 18:
        raise HubUnavailable(
            f"{url} does not answer like a Hub (no usable X-Repo-Commit, ETag or size): check HF_ENDPOINT, proxy and firewall"
        )
    location = str(_target(response)) if redirected else str(url)
    return FileMeta(repo, file, commit, etag, int(size), location, redirected)


def _target(response: httpx.Response) -> httpx.URL:
    """Where a redirect leads; httpx has checked that it is an address."""
    return response.request.url.join(response.headers["location"])


def _is_plain(file: str) -> bool:
    try:
        check_file(file)
    except ConfigError:
        return False
    return True


def _origin(url: httpx.URL) -> tuple[str, str, int | None]:
    return url.scheme, url.host, url.port


def _unreachable(url: httpx.URL, exc: httpx.RequestError) -> HubUnavailable:
    what = (
        "does not answer in time"
        if isinstance(exc, httpx.TimeoutException)
        else f"cannot be reached ({exc or type(exc).__name__})"
    )
    return HubUnavailable(f"{url.scheme}://{url.netloc.decode()} {what}: check the network, or HF_ENDPOINT")


def _retry_after(response: httpx.Response) -> float | None:
    """Seconds; the header is a number or a date."""
    value = response.headers.get("retry-after", "")
    if value.isdecimal():
        return float(value)
    try:
        then = parsedate_to_datetime(value)
        now = parsedate_to_datetime(response.headers.get("date", ""))
        return max(0.0, (then - now).total_seconds())
    except (ValueError, TypeError):
        return None
