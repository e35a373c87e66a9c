"""Images become bytes before their request reaches a worker; nothing inside this network is asked for anybody outside."""

from __future__ import annotations

import base64
import threading
from collections.abc import AsyncIterator, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from llmgallery.core.errors import InvalidField
from llmgallery.core.messages import ImagePart, Message, RawPart, TextPart
from llmgallery.core.requests import ChatRequest, CompletionRequest
from llmgallery.service.media import Media, MediaBounds, read_data

PLACE = "messages[1].content[1].image_url.url"
PNG = b"\x89PNG\r\n\x1a\n" + bytes(100)


class Web:
    """A server of loopback: /image, /page, /big, /gone, /loop, /gzip, and /to?ADDRESS."""

    def __init__(self) -> None:
        self.asked: list[str] = []
        self.hang = threading.Event()
        web = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                path, _, query = self.path.partition("?")
                web.asked.append(path)
                if path == "/slow":
                    web.hang.wait(20)
                headers, body = {"content-type": "image/png"}, PNG
                if path == "/page":
                    headers["content-type"] = "text/html; charset=utf-8"
                if path == "/gzip":
                    headers["content-encoding"] = "gzip"
                if path == "/big":
                    body = bytes(4000)
                if path in ("/to", "/loop"):
                    headers["location"] = query or "/loop"
                status = {"/gone": 404, "/to": 302, "/loop": 302}.get(path, 200)
                self.send_response(status)
                for name, value in {**headers, "content-length": str(len(body))}.items():
                    self.send_header(name, value)
                self.end_headers()
                self.wfile.write(body)

            def log_message(self, *_: Any) -> None:
                pass

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.01,))
        self._thread.start()
        self.url = f"http://127.0.0.1:{self._server.server_port}"

    def close(self) -> None:
        self.hang.set()
        self._server.shutdown()
        self._thread.join()
        self._server.server_close()


@pytest.fixture
def web() -> Iterator[Web]:
    served = Web()
    yield served
    served.close()


@pytest.fixture
async def media() -> AsyncIterator[Media]:
    """One that may ask loopback."""
    bounds = MediaBounds(bytes=2000, total=300, seconds=5.0, redirects=2, count=3)
    allowed = Media(["127.0.0.1"], bounds=bounds)
    yield allowed
    await allowed.aclose()


def asking(*urls: str) -> ChatRequest:
    parts = tuple(ImagePart(url=url, detail="low") for url in urls)
    return ChatRequest((Message("user", (TextPart("a"),)), Message("user", (TextPart("b"), *parts))))


async def images(media: Media, *urls: str) -> list[ImagePart]:
    (request,) = await media.brought([asking(*urls)])
    assert isinstance(request, ChatRequest)
    return list(request.messages[1].images)


async def refused(media: Media, *urls: str) -> str:
    with pytest.raises(InvalidField) as caught:
        await images(media, *urls)
    assert caught.value.field == PLACE and caught.value.message.startswith(f"{PLACE}: ")
    return caught.value.message


def inline(data: bytes, head: str = "image/png;base64") -> str:
    return f"data:{head},{base64.b64encode(data).decode()}"


async def test_what_is_in_the_request_is_read_and_what_has_an_address_fetched(media: Media, web: Web) -> None:
    found = await images(media, inline(b"one"), f"{web.url}/image")
    assert found == [ImagePart(b"one", "", "low"), ImagePart(PNG, "", "low")]
    assert web.asked == ["/image"]


async def test_requests_without_images_are_left_as_they_are(media: Media) -> None:
    plain = [ChatRequest((Message("user", (TextPart("a"),)),)), CompletionRequest("a")]
    brought = await media.brought(plain)
    assert all(one is other for one, other in zip(plain, brought, strict=True))


@pytest.mark.parametrize(
    ("url", "data"),
    [
        (inline(PNG), PNG),
        (inline(b"x", "image/jpeg;name=a.jpg;base64"), b"x"),
        (inline(b"x", ";base64"), b"x"),
        (inline(b"x", "application/octet-stream;BASE64"), b"x"),
        ("data:image/svg+xml,%3Csvg%2F%3E", b"<svg/>"),
        ("data:image/png;base64,eA%3D%3D", b"x"),
        ("data:image/png;base64,e\nA==", b"x"),
    ],
)
def test_data_uris(url: str, data: bytes) -> None:
    assert read_data(url, "x", 200) == data


@pytest.mark.parametrize(
    ("url", "words"),
    [
        ("data:image/png;base64", "comma"),
        ("data:image/png;base64,e*A=", "valid base64"),
        ("data:image/png;base64,eA=", "valid base64"),
        ("data:image/png;base64,", "no data"),
        ("data:text/html,x", "not text/html"),
        (inline(bytes(201)), "larger than 200 bytes"),
        ("data:image/png," + "x" * 900, "larger than 200 bytes"),
    ],
)
def test_bad_data_uris_are_named(url: str, words: str) -> None:
    with pytest.raises(InvalidField, match=words) as caught:
        read_data(url, "here", 200)
    assert caught.value.field == "here" and len(caught.value.message) < 300


@given(st.text())
def test_any_data_uri_is_read_or_refused(text: str) -> None:
    try:
        assert 0 < len(read_data(f"data:{text}", "here", 50)) <= 50
    except InvalidField as exc:
        assert exc.field == "here"


@pytest.mark.parametrize(
    ("path", "words"),
    [
        ("/page", "is no image, but text/html"),
        ("/big", "larger than 2,000 bytes"),
        ("/gone", "answered 404"),
        ("/loop", "more than 2 times"),
        ("/gzip", "came as gzip"),
    ],
)
async def test_what_is_fetched_must_be_an_image(media: Media, web: Web, path: str, words: str) -> None:
    assert words in await refused(media, f"{web.url}{path}")


@pytest.mark.parametrize(
    "url",
    [
        "file:///etc/passwd",
        "/etc/passwd",
        "ftp://example.com/a.png",
        "aGVsbG8=",
        "https://",
        "http://[::1",
        "https://user:secret@example.com/a.png",
    ],
)
async def test_other_addresses_are_refused(media: Media, url: str) -> None:
    assert "secret" not in (await refused(media, url)).replace(url, "")


@pytest.mark.parametrize("host", ["127.0.0.1", "localhost", "10.1.2.3", "169.254.169.254", "[::1]", "printer.local"])
async def test_nothing_inside_is_asked(host: str) -> None:
    closed = Media()
    assert "media_hosts" in await refused(closed, f"http://{host}:9/a.png")
    await closed.aclose()


async def test_a_name_that_means_this_machine_gets_no_byte(web: Web) -> None:
    closed = Media()
    port = web.url.rpartition(":")[2]
    assert "media_hosts" in await refused(closed, f"http://0x7f.1:{port}/image")  # the system's resolver reads it as 127.0.0.1
    assert web.asked == []
    await closed.aclose()


async def test_a_redirect_is_judged_as_an_address(media: Media, web: Web) -> None:
    assert (await images(media, f"{web.url}/to?/image"))[0].data == PNG
    assert "media_hosts" in await refused(media, f"{web.url}/to?http://10.1.2.3/a.png")
    assert "expected a data: URI" in await refused(media, f"{web.url}/to?file:///etc/passwd")


async def test_who_is_slow_is_given_up(web: Web) -> None:
    hasty = Media(["127.0.0.1"], bounds=MediaBounds(seconds=0.05))
    assert "0.05 s" in await refused(hasty, f"{web.url}/slow")
    await hasty.aclose()


async def test_who_is_not_there_is_told(media: Media) -> None:
    assert "cannot be fetched" in await refused(media, "http://127.0.0.1:1/a.png")


async def test_all_images_together_have_a_limit(media: Media, web: Web) -> None:
    with pytest.raises(InvalidField, match="300 bytes together"):
        await images(media, *[f"{web.url}/image"] * 3)
    with pytest.raises(InvalidField, match="3 at most"):
        await images(media, *[f"{web.url}/image"] * 4)


async def test_what_is_no_address_at_all_is_named(media: Media) -> None:
    odd = RawPart({"type": "image_url", "image_url": {"uri": "x"}})
    with pytest.raises(InvalidField) as caught:
        await media.brought([ChatRequest((Message("user", (odd,)),))])
    assert caught.value.field == "messages[0].content[0].image_url.url"
