"""Where a file's bytes come from: the Hub, an https address, a file of this machine. All three can begin in the middle."""

from __future__ import annotations

import asyncio
import re
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import AbstractAsyncContextManager, aclosing, asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import httpx

from llmgallery.catalog.hub_client import FileMeta, HubClient
from llmgallery.catalog.partial import Expected
from llmgallery.core.errors import HubNotFound, HubUnavailable

_READ = 1 << 20


@dataclass(frozen=True)
class Answer:
    """Bytes on their way, from `offset` on; None = there is no such part. `total`: of the whole file, None = not said.
    `validator`: what tells this state of the file from others. `whole`: the end of `pieces` can be told from a break."""

    offset: int | None
    total: int | None
    validator: str | None
    pieces: AsyncIterator[bytes]
    whole: bool = True


class Remote(Protocol):
    @property
    def expected(self) -> Expected: ...
    @property
    def host(self) -> str:
        """For errors."""
        ...

    def open(self, offset: int, validator: str | None) -> AbstractAsyncContextManager[Answer]:
        """The bytes from `offset` on, if the file is still in the state of `validator`; else from the start. Raises Again,
        httpx.RequestError, or a HubError that is final."""
        ...

    async def renew(self) -> None:
        """Before another attempt: links expire. Raises HubError."""
        ...


class HubRemote:
    """A file of the Hub at a commit."""

    def __init__(self, client: HubClient, meta: FileMeta) -> None:
        self._client = client
        self._meta = meta

    @property
    def expected(self) -> Expected:
        meta = self._meta
        return Expected(f"{meta.repo}/{meta.file}@{meta.commit}", meta.etag, meta.size, lasting=True)

    @property
    def host(self) -> str:
        return httpx.URL(self._meta.location).host

    @asynccontextmanager
    async def open(self, offset: int, validator: str | None) -> AsyncIterator[Answer]:
        async with self._client.open(self._meta, _range(offset, validator)) as response:
            yield _answer(response)

    async def renew(self) -> None:
        """At the commit itself a file cannot change; a Hub that says otherwise is not the one we began with."""
        attempts = self._client.settings.attempts  # all of them: the connection that just broke may be away for longer
        meta = await self._client.metadata(self._meta.repo, self._meta.commit, self._meta.file, attempts)
        if (meta.etag, meta.size) != (self._meta.etag, self._meta.size):
            raise HubUnavailable(f"{meta.repo}/{meta.file} at {meta.commit} changed while it was downloaded: ask again")
        self._meta = meta


class WebRemote:
    """A file at an https address; http on this machine only."""

    def __init__(self, client: HubClient, expected: Expected) -> None:
        self._client = client
        self.expected = expected

    @property
    def host(self) -> str:
        return httpx.URL(self.expected.source).host

    @asynccontextmanager
    async def open(self, offset: int, validator: str | None) -> AsyncIterator[Answer]:
        headers = _range(offset, validator)
        async with self._client.open_address(self.expected.source, headers, self.expected.inside) as response:
            yield _answer(response)

    async def renew(self) -> None:
        """Each attempt starts at the address itself."""


class FileRemote:
    """A file of this machine, which is copied."""

    def __init__(self, path: Path, expected: Expected) -> None:
        self._path = path
        self.expected = expected

    @property
    def host(self) -> str:
        return str(self._path.parent)

    @asynccontextmanager
    async def open(self, offset: int, validator: str | None) -> AsyncIterator[Answer]:
        if not await asyncio.to_thread(self._path.is_file):
            raise HubNotFound(f"there is no file {self._path}", field="file")
        stat = await asyncio.to_thread(self._path.stat)
        now = f"{stat.st_mtime_ns}-{stat.st_size}-{stat.st_ino}"
        start = offset if validator == now and offset <= stat.st_size else 0
        async with aclosing(self._pieces(start)) as pieces:
            yield Answer(start, stat.st_size, now, pieces)

    async def renew(self) -> None:
        """It is where it is."""

    async def _pieces(self, offset: int) -> AsyncGenerator[bytes, None]:
        with await asyncio.to_thread(self._path.open, "rb") as file:
            await asyncio.to_thread(file.seek, offset)
            while piece := await asyncio.to_thread(file.read, _READ):
                yield piece


def _range(offset: int, validator: str | None) -> dict[str, str]:
    if not offset:
        return {}
    return {"Range": f"bytes={offset}-", **({"If-Range": validator} if validator else {})}


def _answer(response: httpx.Response) -> Answer:
    headers = response.headers
    if headers.get("content-encoding", "identity") not in ("identity", ""):
        raise HubUnavailable(f"{response.request.url} answers compressed bytes, which nobody asked for: they cannot be checked")
    offset, total = _extent(response)
    whole = "content-length" in headers or "chunked" in headers.get("transfer-encoding", "")
    validator = _strong(headers.get("etag")) or headers.get("last-modified")
    return Answer(offset, total, validator, response.aiter_raw(), whole)


def _extent(response: httpx.Response) -> tuple[int | None, int | None]:
    """Where the answer's bytes begin, and how long the whole file is (RFC 9110, 14.4)."""
    if response.status_code == 206:
        match = re.fullmatch(r"bytes (\d+)-\d+/(\d+|\*)", str(response.headers.get("content-range", "")))
        return (int(match[1]), int(match[2]) if match[2] != "*" else None) if match else (None, None)
    length = response.headers.get("content-length", "")
    return (0 if response.status_code == 200 else None), int(length) if length.isdecimal() else None


def _strong(etag: str | None) -> str | None:
    return None if etag is None or etag.startswith("W/") else etag
