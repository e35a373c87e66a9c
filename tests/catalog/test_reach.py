"""What anybody may have written does not make this server ask its own network."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest
from loopback_hub import LoopbackHub

from llmgallery.catalog.gallery.cache import CopyCache
from llmgallery.catalog.gallery.entry import EntryFile, GalleryEntry
from llmgallery.catalog.gallery.library import Library
from llmgallery.catalog.gallery.sources import GallerySource, may_lead_inside
from llmgallery.catalog.gallery.web import WebFiles
from llmgallery.catalog.hub import Hub
from llmgallery.catalog.install.entry_files import check_uri
from llmgallery.catalog.install.pin import pin
from llmgallery.catalog.reach import is_inside, outside_only
from llmgallery.core.errors import ConfigError, HubUnavailable

INSIDE = "127.0.0.1 LOCALHOST localhost. 10.1.2.3 [::1] ::ffff:10.0.0.1 64:ff9b::7f00:1 2002:7f00:1::1 169.254.169.254 fe80::1"
INSIDE += " ::127.0.0.1 64:ff9b:1::7f00:1 fec0::1 168.63.129.16 192.0.0.192"
INSIDE += " fd00::1 224.0.0.1 0.0.0.0 100.64.0.1 metadata.google.internal printer.local"
ALIAS = "2130706433"
"""A name that does not look like an address and means 127.0.0.1 to every resolver, as a public name might."""


@asynccontextmanager
async def listening() -> AsyncIterator[tuple[int, list[bytes]]]:
    """A port of this machine, and what has been said to it."""
    said: list[bytes] = []
    heard = asyncio.Event()

    async def hear(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        said.append(await reader.read(100))
        heard.set()
        writer.close()

    server = await asyncio.start_server(hear, "127.0.0.1", 0)
    async with server:
        yield server.sockets[0].getsockname()[1], said
        await heard.wait()  # the connection was there, however it ended


@pytest.mark.parametrize("host", INSIDE.split())
def test_addresses_and_names_of_this_network(host: str) -> None:
    assert is_inside(host)


@pytest.mark.parametrize("host", ["8.8.8.8", "2606:4700::1111", "::ffff:8.8.8.8", "example.com", "localhost.example.com"])
def test_addresses_and_names_of_others(host: str) -> None:
    assert not is_inside(host)


async def test_a_name_that_means_this_machine_gets_no_byte(ours: Hub, tmp_path: Path) -> None:
    web = WebFiles(CopyCache(tmp_path))
    async with asyncio.timeout(20):
        async with listening() as (port, said):
            with pytest.raises(ConfigError, match=rf"{ALIAS} is 127\.0\.0\.1, inside this network"):
                await pin(ours, f"https://{ALIAS}:{port}/m.gguf")
        assert said == [b""]
        async with listening() as (port, said):
            with pytest.raises(ConfigError, match="inside this network"):
                await web.get(f"https://{ALIAS}:{port}/base.yaml", lambda body: None)
        assert said == [b""]
        async with listening() as (port, said):  # an operator's own word: it is asked, though it speaks no TLS
            with pytest.raises(HubUnavailable):
                await pin(ours, f"https://{ALIAS}:{port}/m.gguf", inside=True)
        assert said[0].startswith(b"\x16\x03")
    await web.aclose()


async def test_nor_does_a_name_in_other_letters(monkeypatch: pytest.MonkeyPatch) -> None:
    """A URL tells such a host in other letters than it is connected to by."""
    resolve = socket.getaddrinfo

    def to_loopback(host: str | bytes, *rest: Any, **more: Any) -> Any:
        said = host.decode() if isinstance(host, bytes) else host
        return resolve("127.0.0.1" if said.startswith("xn--") else host, *rest, **more)

    monkeypatch.setattr(socket, "getaddrinfo", to_loopback)
    async with asyncio.timeout(20), listening() as (port, said):
        url = httpx.URL(f"http://xn--fsq.example:{port}/")
        async with httpx.AsyncClient(trust_env=False) as client:
            with pytest.raises(ConfigError, match="inside this network"):
                await client.get(url, extensions=dict(outside_only(url.host)))
    assert said == [b""]


async def test_a_proxy_may_lie_inside() -> None:
    """What lies behind it is for the proxy to judge."""
    async with asyncio.timeout(20), listening() as (port, said):
        async with httpx.AsyncClient(proxy=f"http://127.0.0.1:{port}") as client:
            with pytest.raises(httpx.RemoteProtocolError):
                await client.get("http://example.com/x", extensions=dict(outside_only("example.com")))
        assert said[0].startswith(b"GET http://example.com/x")


async def test_a_redirect_inside_is_not_followed(hub: LoopbackHub, ours: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    """As if the host that redirects were a public one."""
    hub.add("o/r", "m.gguf", b"GGUF" * 100)
    signed = (await ours.metadata("o/r", "main", "m.gguf")).location
    monkeypatch.setattr("llmgallery.catalog.reach.is_loopback", lambda host: host == "localhost")
    monkeypatch.setattr("llmgallery.catalog.reach._is_public", lambda host: True)
    target = signed.replace("127.0.0.1", "localhost")
    hub.fail(302, method="HEAD", host="storage", headers={"Location": target})
    with pytest.raises(HubUnavailable, match=r"leads where it may not: .* inside this network"):
        await pin(ours, signed)
    assert not [seen for seen in hub.seen(host="storage") if seen.headers.get("host", "").startswith("localhost")]


@pytest.mark.parametrize("source", ["", "/srv/gallery/index.yaml", "C:/g/index.yaml", "http://127.0.0.1:1/i.yaml"])
def test_who_may_name_addresses_inside(source: str) -> None:
    assert may_lead_inside(source) == (not source.startswith("file:"))
    assert may_lead_inside(source)
    entry = GalleryEntry(name="owl", gallery="g", source=source)
    check_uri(entry, "https://10.0.0.1/owl.gguf")


@pytest.mark.parametrize("source", ["https://example.org/index.yaml", "hf://owner/gallery", "github:owner/repo/index.yaml@main"])
def test_who_may_not(source: str) -> None:
    files = (EntryFile("owl.gguf", "https://10.0.0.1/owl.gguf"),)
    for entry in (
        GalleryEntry(name="owl", gallery="g", source=source, files=files),
        GalleryEntry(name="owl", gallery="g", source="index.yaml", url=source),
    ):
        with pytest.raises(ConfigError, match=f"inside this network, and {source}, which names it, is not"):
            check_uri(entry, files[0].uri)
        check_uri(entry, "https://example.net/owl.gguf")


async def test_a_base_file_of_a_request_may_not_lie_inside(hub: LoopbackHub, ours: Hub, tmp_path: Path) -> None:
    """The same address is one that a gallery of this machine may name."""
    commit = hub.add("o/bases", "b.yaml", b"config_file: {backend: llama-cpp}\n", lfs=False)
    url = f"{hub.url}/o/bases/resolve/{commit}/b.yaml"
    (tmp_path / "index.yaml").write_text(f"- {{name: owl, url: '{url}'}}\n")
    library = Library([GallerySource("mine", str(tmp_path))], tmp_path / "cache", hub=ours)
    await library.start()
    found = library.find("owl")
    assert found is not None
    assert (await library.composed(found.entry)).config["backend"] == "llama-cpp"
    with pytest.raises(ConfigError, match="not https"):
        await library.composed(GalleryEntry(name="owl", gallery="", url=url, source=url))
    await library.aclose()
