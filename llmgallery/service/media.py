"""Images on their way in: what addresses mean becomes bytes before a request goes to its worker, which never asks the network.

A request may come from anybody who may ask this server, so its addresses lead out of this machine and its network only, unless a
setting names the host, and never to a file.
"""

from __future__ import annotations

import asyncio
import binascii
from base64 import b64decode
from collections.abc import AsyncIterator, Callable, Collection, Sequence
from contextlib import asynccontextmanager
from urllib.parse import unquote_to_bytes

import httpx
import msgspec

from llmgallery.catalog.gallery.web import new_client
from llmgallery.catalog.reach import is_inside, outside_only
from llmgallery.core.errors import ConfigError, InvalidField
from llmgallery.core.messages import ImagePart, Message, RawPart
from llmgallery.core.requests import ChatRequest, Request

SHOWN = 120
"""Characters of an address in messages: data: URIs are long."""
AT_ONCE = 4
_WANTED = "expected a data: URI with an image, or an address that begins with https:// or http://"


class MediaBounds(msgspec.Struct, frozen=True):
    """`bytes` and `seconds` of one image, `redirects` on the way to it; `total`: bytes of all images of one request, which cross
    to the worker in one frame; `count`: images of one request that are fetched."""

    bytes: int = 20 << 20
    total: int = 48 << 20
    seconds: float = 20.0
    redirects: int = 3
    count: int = 32


class Media:
    """`hosts`: names and addresses inside this machine or its network that images may be fetched from all the same, without
    ports. Belongs to one event loop; `client` is called once, at the first fetch."""

    def __init__(
        self,
        hosts: Collection[str] = (),
        *,
        client: Callable[[], httpx.AsyncClient] = new_client,
        bounds: MediaBounds | None = None,
    ) -> None:
        self._hosts = frozenset(host.strip("[]").lower() for host in hosts)
        self._make = client
        self._bounds = bounds or MediaBounds()
        self._http: httpx.AsyncClient | None = None

    async def aclose(self) -> None:
        if self._http is not None:
            await self._http.aclose()
            self._http = None

    async def brought(self, requests: Sequence[Request]) -> tuple[Request, ...]:
        """The requests with the bytes of their images. Raises InvalidField, which names the address at fault as
        `messages[0].content[1].image_url.url`."""
        return tuple([await self._request(request) for request in requests])

    async def _request(self, request: Request) -> Request:
        if not isinstance(request, ChatRequest):
            return request
        _check_shapes(request.messages)
        if not any(message.images for message in request.messages):
            return request
        found = _named(request.messages)
        if (several := sum(not part.url.startswith("data:") for part in found.values() if part.url)) > self._bounds.count:
            field = "messages"
            raise InvalidField(f"{field}: {several} images to be fetched, {self._bounds.count} at most", field=field)
        places, turn = list(found), _Turn(asyncio.Semaphore(AT_ONCE), self._bounds.total)
        tasks = [asyncio.ensure_future(self._bytes(found[place], place, turn)) for place in places]
        try:
            images = dict(zip(places, await asyncio.gather(*tasks), strict=True))
        finally:
            for task in tasks:
                task.cancel()
        messages = tuple(_with_bytes(message, row, images) for row, message in enumerate(request.messages))
        return msgspec.structs.replace(request, messages=messages)

    async def _bytes(self, part: ImagePart, place: str, turn: _Turn) -> bytes:
        url = part.url.strip()
        if part.data:
            return turn.taken(part.data)
        if url[:5].lower() == "data:":
            return turn.taken(read_data(url, place, self._bounds.bytes))
        async with turn.places:
            return await self._fetched(url, place, turn)

    async def _fetched(self, url: str, place: str, turn: _Turn) -> bytes:
        shown = url[:SHOWN]
        try:
            async with asyncio.timeout(self._bounds.seconds), self._open(url, place) as response:
                return await self._read(response, shown, place, turn)
        except TimeoutError as exc:
            raise InvalidField(f"{place}: {shown} was not here after {self._bounds.seconds:g} s", field=place) from exc
        except httpx.RequestError as exc:
            said = str(exc) or type(exc).__name__
            raise InvalidField(f"{place}: {shown} cannot be fetched: {said}", field=place) from exc
        except httpx.InvalidURL as exc:
            raise InvalidField(f"{place}: {shown!r} is no address: {exc}", field=place) from exc
        except ConfigError as exc:  # the connection ended inside this network
            raise _inside(shown, place) from exc

    @asynccontextmanager
    async def _open(self, url: str, place: str) -> AsyncIterator[httpx.Response]:
        """The answer at the end of the redirects, each of which is judged as the address itself."""
        if self._http is None:
            self._http = self._make()
        here = url
        for _ in range(self._bounds.redirects + 1):
            guard = self._guard(here, place)
            response = await self._http.send(self._http.build_request("GET", here, extensions=guard), stream=True)
            try:
                if not response.has_redirect_location:
                    yield response
                    return
                here = str(httpx.URL(here).join(response.headers["location"]))
            finally:
                await response.aclose()
        raise InvalidField(f"{place}: {url[:SHOWN]} redirects more than {self._bounds.redirects} times", field=place)

    def _guard(self, url: str, place: str) -> dict[str, object] | None:
        """What the request needs so that its connection cannot end inside; None for hosts that may be there."""
        parts = httpx.URL(url)
        if parts.scheme not in ("http", "https") or not parts.host:
            raise InvalidField(f"{place}: {_WANTED}, not {url[:SHOWN]!r}", field=place)
        if parts.userinfo:
            raise InvalidField(f"{place}: an address with a password is not fetched", field=place)
        if parts.host.lower() in self._hosts:
            return None
        if is_inside(parts.host):
            raise _inside(url[:SHOWN], place)
        return dict(outside_only(parts.host))

    async def _read(self, response: httpx.Response, shown: str, place: str, turn: _Turn) -> bytes:
        if response.status_code != 200:
            raise InvalidField(f"{place}: the server of {shown} answered {response.status_code}", field=place)
        kind = response.headers.get("content-type", "").partition(";")[0].strip().lower()
        if kind and not _may_be_image(kind):
            raise InvalidField(f"{place}: {shown} is no image, but {kind}", field=place)
        if (encoding := response.headers.get("content-encoding", "identity")) != "identity":
            raise InvalidField(f"{place}: {shown} came as {encoding}, which was not asked for", field=place)
        body = bytearray()
        async for piece in response.aiter_raw():
            body += piece
            if len(body) > self._bounds.bytes:
                raise _too_large(shown, place, self._bounds.bytes)
            turn.taken(piece)
        return bytes(body)


class _Turn:
    """Of one request's images: how many are fetched at once, and the bytes that all of them may still have."""

    def __init__(self, places: asyncio.Semaphore, total: int) -> None:
        self.places = places
        self._total = self._left = total

    def taken(self, data: bytes) -> bytes:
        """The same. Raises InvalidField where it is too much."""
        self._left -= len(data)
        if self._left < 0:
            message = f"the images of one request may have {self._total:,} bytes together"
            raise InvalidField(message, field="messages")
        return data


def read_data(url: str, place: str, most: int) -> bytes:
    """The bytes of a data: URI (RFC 2397), base64 or percent-encoded. Raises InvalidField, which names `place`."""
    head, comma, data = url[5:].partition(",")
    kind, *options = [each.strip().lower() for each in head.split(";")]
    if not comma:
        raise InvalidField(
            f"{place}: a data: URI has a comma before its data, such as data:image/png;base64,iVBOR...", field=place
        )
    if kind and not _may_be_image(kind):
        raise InvalidField(f"{place}: expected a data: URI with an image, not {kind[:SHOWN]}", field=place)
    if len(data) > 4 * most:
        raise _too_large("the image", place, most)
    found = unquote_to_bytes(data)
    if "base64" in options:
        try:
            found = b64decode(b"".join(found.split()), validate=True)
        except binascii.Error as exc:
            raise InvalidField(f"{place}: the data is not valid base64: {exc}", field=place) from exc
    if not found:
        raise InvalidField(f"{place}: the data: URI holds no data", field=place)
    if len(found) > most:
        raise _too_large("the image", place, most)
    return found


def _may_be_image(kind: str) -> bool:
    return kind.startswith("image/") or kind in ("application/octet-stream", "binary/octet-stream")


def _too_large(shown: str, place: str, most: int) -> InvalidField:
    return InvalidField(f"{place}: {shown} is larger than {most:,} bytes", field=place)


def _inside(shown: str, place: str) -> InvalidField:
    message = f"{place}: {shown} is inside this machine or its network: send the image in a data: URI, or name the host in the"
    return InvalidField(f"{message} server's setting media_hosts", field=place)


def _check_shapes(messages: Sequence[Message]) -> None:
    for row, message in enumerate(messages):
        for column, part in enumerate(message.parts):
            if isinstance(part, RawPart) and part.value.get("type") == "image_url":
                place = _place(row, column)
                raise InvalidField(f"{place}: {_WANTED}", field=place)


def _named(messages: Sequence[Message]) -> dict[str, ImagePart]:
    """The images by the place of their address in the request."""
    return {
        _place(row, column): part
        for row, message in enumerate(messages)
        for column, part in enumerate(message.parts)
        if isinstance(part, ImagePart)
    }


def _place(row: int, column: int) -> str:
    return f"messages[{row}].content[{column}].image_url.url"


def _with_bytes(message: Message, row: int, images: dict[str, bytes]) -> Message:
    """The address goes: workers get bytes, and nothing that could be fetched."""
    if not message.images:
        return message
    parts = [
        ImagePart(images[_place(row, column)], "", part.detail) if isinstance(part, ImagePart) else part
        for column, part in enumerate(message.parts)
    ]
    return msgspec.structs.replace(message, parts=tuple(parts))
