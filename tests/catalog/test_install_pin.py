"""Addresses of gallery entries, pinned."""

from __future__ import annotations

import hashlib
from pathlib import Path

import pytest
from loopback_hub import LoopbackHub

from llmgallery.catalog.hub import Hub
from llmgallery.catalog.hub_settings import HubSettings
from llmgallery.catalog.install.pin import pin
from llmgallery.core.errors import ConfigError, HubNotFound, HubOffline, HubUnavailable

REPO = "someone/model-GGUF"
WEIGHTS = b"GGUF" * 1000
SHA256 = hashlib.sha256(WEIGHTS).hexdigest()


@pytest.fixture
def commit(hub: LoopbackHub) -> str:
    hub.add(REPO, "config.json", b"{}", lfs=False)
    return hub.add(REPO, "sub/m-Q8_0.gguf", WEIGHTS)


async def test_files_of_the_hub(hub: LoopbackHub, ours: Hub, commit: str):
    for uri in (
        f"hf://{REPO}/sub/m-Q8_0.gguf",
        f"huggingface://{REPO}/sub/m-Q8_0.gguf",
        f"huggingface://{REPO}@main/sub/m-Q8_0.gguf",
        f"https://huggingface.co/{REPO}/resolve/main/sub/m-Q8_0.gguf",
        f"https://huggingface.co/{REPO}/resolve/main/sub/m-Q8_0.gguf?download=true",
        f"https://huggingface.co/{REPO}/blob/{commit}/sub/m-Q8_0.gguf",
        f"{hub.url}/{REPO}/resolve/main/sub/m-Q8_0.gguf",
        f"hf://{REPO}:Q8_0",
        f"hf://{REPO}",
    ):
        file = await pin(ours, uri)
        assert (file.uri, file.path) == (f"hf://{REPO}/sub/m-Q8_0.gguf@{commit}", None)
        assert (file.name, file.sha256, file.size) == ("sub/m-Q8_0.gguf", SHA256, len(WEIGHTS))
    assert hub.sent("sub/m-Q8_0.gguf") == 0
    small = await pin(ours, f"hf://{REPO}/config.json")
    assert (small.sha256, small.size) == (None, 2)


async def test_what_the_hub_does_not_have(hub: LoopbackHub, ours: Hub, commit: str, cache: Path):
    with pytest.raises(HubNotFound, match=r"has no file sub/m-Q8_1\.gguf .*nearest: sub/m-Q8_0\.gguf"):
        await pin(ours, f"hf://{REPO}/sub/m-Q8_1.gguf")
    with pytest.raises(HubNotFound, match="no GGUF file of this repo is Q2_K"):
        await pin(ours, f"hf://{REPO}:Q2_K")
    offline = Hub(HubSettings(hub.url, cache, offline=True))
    for uri in (f"hf://{REPO}/config.json", "https://example.org/x.gguf"):
        with pytest.raises(HubOffline):
            await pin(offline, uri)
    await offline.aclose()


async def test_other_addresses_stay_and_tell_their_size(hub: LoopbackHub, ours: Hub, commit: str):
    """The loopback hub's storage is a host that is not the Hub's: it gets no token."""
    hub.add(REPO, "sub/n.gguf", WEIGHTS + b"n")
    signed = (await ours.metadata(REPO, "main", "sub/n.gguf")).location
    file = await pin(ours, signed)
    assert (file.uri, file.size, file.sha256) == (signed, len(WEIGHTS) + 1, None)
    assert file.path is not None and file.path.startswith(".files/uri-")
    hub.fail(405, method="HEAD", host="storage")
    assert (await pin(ours, signed)).size is None
    hub.fail(404, method="HEAD", host="storage")
    with pytest.raises(HubNotFound, match="there is nothing at"):
        await pin(ours, signed)
    hub.fail(302, method="HEAD", host="storage", headers={"Location": "http://example.org/m.gguf"})
    with pytest.raises(HubUnavailable, match="not encrypted"):
        await pin(ours, signed)
    hub.fail(302, method="HEAD", host="storage", headers={"Location": signed}, times=20)
    with pytest.raises(HubUnavailable, match="redirects without end"):
        await pin(ours, signed)
    assert all("authorization" not in {key.lower() for key in seen.headers} for seen in hub.seen(host="storage"))


@pytest.mark.parametrize(
    "uri",
    ["http://example.org/m.gguf", "ftp://example.org/m.gguf", "m.gguf", "ollama://x", "https://[bad/m.gguf", "http://[::1/x"],
)
async def test_what_may_not_be_fetched(ours: Hub, uri: str):
    with pytest.raises(ConfigError):
        await pin(ours, uri)


async def test_files_of_this_machine_only_where_that_is_allowed(ours: Hub, tmp_path: Path):
    path = tmp_path / "m.gguf"
    path.write_bytes(WEIGHTS)
    with pytest.raises(ConfigError, match="may not be fetched"):
        await pin(ours, path.as_uri())
    file = await pin(ours, path.as_uri(), local=True)
    assert (file.uri, file.size) == (path.as_uri(), len(WEIGHTS))
    with pytest.raises(ConfigError, match="cannot be read: No such file"):
        await pin(ours, (tmp_path / "n.gguf").as_uri(), local=True)
