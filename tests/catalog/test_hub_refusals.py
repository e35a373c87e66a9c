"""What the Hub refuses, as errors that say what to do; redirects and the token; the settings."""

from __future__ import annotations

import asyncio
import subprocess
import sys
from pathlib import Path

import pytest
from loopback_hub import LoopbackHub

from llmgallery.catalog.hub import Hub
from llmgallery.catalog.hub_client import HubClient
from llmgallery.catalog.hub_repo import near_names
from llmgallery.catalog.hub_settings import HubSettings
from llmgallery.catalog.reference import HubReference
from llmgallery.core.errors import ConfigError, HubGated, HubNotFound, HubUnavailable

REPO = "someone/model-GGUF"
FILE = "sub/model.Q4_K_M.gguf"
REF = HubReference(REPO, FILE)
WEIGHTS = bytes(range(256)) * 100


# Refusals


async def test_a_missing_file_names_its_neighbours(hub: LoopbackHub, ours: Hub):
    for name in ("Model.Q4_K_M.gguf", "Model.Q8_0.gguf", "README.md"):
        hub.add(REPO, name, WEIGHTS)
    with pytest.raises(HubNotFound) as caught:
        await ours.ensure(HubReference(REPO, "model.q4_k_s.gguf"))
    assert caught.value.hints[0] == "Model.Q4_K_M.gguf"
    assert "Model.Q4_K_M.gguf" in caught.value.message and "README.md" not in caught.value.hints


def test_near_names_look_at_the_last_name_too():
    assert near_names("model-q4.gguf", ["gguf/deep/model-Q4.gguf", "x.json"]) == ("gguf/deep/model-Q4.gguf",)


async def test_missing_repo_and_revision(hub: LoopbackHub, ours: Hub):
    hub.add(REPO, FILE, WEIGHTS)
    with pytest.raises(HubNotFound, match="someone/missing"):
        await ours.ensure(HubReference("someone/missing", FILE))
    with pytest.raises(HubNotFound, match="no revision nowhere"):
        await ours.ensure(HubReference(REPO, FILE, revision="nowhere"))
    with pytest.raises(HubNotFound, match="no revision nowhere"):
        await ours.ensure(HubReference(REPO, revision="nowhere"))
    assert len(hub.requests) == 3


@pytest.mark.parametrize("token", [None, "hf_other"])
async def test_gated_repo(hub: LoopbackHub, cache: Path, token: str | None):
    hub.add(REPO, FILE, WEIGHTS, gated=True)
    ours = Hub(HubSettings(hub.url, cache, token=token))
    with pytest.raises(HubGated) as caught:
        await ours.ensure(REF)
    await ours.aclose()
    assert "HF_TOKEN" in caught.value.message
    assert (f"{hub.url}/{REPO}" in caught.value.message) == (token is None)


async def test_a_token_opens_gated_and_private_repos_and_stays_with_the_hub(hub: LoopbackHub, cache: Path, tmp_path: Path):
    hub.add(REPO, FILE, WEIGHTS, gated=True)
    hub.add("someone/private", FILE, WEIGHTS[::-1], private=True)
    (tmp_path / "token").write_text(f" {hub.token}\n")
    for settings in (HubSettings(hub.url, cache, hub.token), HubSettings(hub.url, cache, token_path=tmp_path / "token")):
        ours = Hub(settings)
        await ours.ensure(REF)
        await ours.ensure(HubReference("someone/private", FILE))
        await ours.aclose()
    assert all("authorization" in seen.headers for seen in hub.seen("HEAD"))
    assert len(hub.seen(host="storage")) == 2
    assert all("authorization" not in seen.headers for seen in hub.seen(host="storage"))


async def test_a_private_repo_without_a_token(hub: LoopbackHub, ours: Hub):
    hub.add(REPO, FILE, WEIGHTS, private=True)
    with pytest.raises(HubNotFound, match="or it is private"):
        await ours.ensure(REF)


async def test_other_refusals(hub: LoopbackHub, ours: Hub):
    hub.add(REPO, FILE, WEIGHTS)
    hub.fail(403, headers={"X-Error-Message": "Access to this resource is disabled."})
    with pytest.raises(HubGated, match="disabled"):
        await ours.ensure(REF)
    hub.fail(401)
    with pytest.raises(HubGated, match="HF_TOKEN"):
        await ours.ensure(REF)
    hub.fail(418)
    with pytest.raises(HubUnavailable, match="418"):
        await ours.ensure(REF)


async def test_a_renamed_repo_is_followed(hub: LoopbackHub, ours: Hub):
    hub.add(REPO, FILE, WEIGHTS)
    old = HubReference("someone/old-name", FILE)
    hub.fail(307, method="HEAD", headers={"Location": f"/{REPO}/resolve/main/{FILE}"})
    (path,) = await ours.ensure(old)
    assert path.read_bytes() == WEIGHTS
    hub.fail(307, times=99, headers={"Location": f"/{REPO}/resolve/main/{FILE}"})
    with pytest.raises(HubUnavailable, match="without end"):
        await ours.ensure(HubReference("someone/other", FILE))


async def test_the_token_does_not_follow_a_redirect_to_another_host(hub: LoopbackHub, cache: Path):
    hub.add(REPO, FILE, WEIGHTS)
    with LoopbackHub() as mirror:
        ours = Hub(HubSettings(mirror.url, cache, "hf_secret"))
        mirror.fail(308, times=99, headers={"Location": f"{hub.url}/{REPO}/resolve/main/{FILE}"})
        (path,) = await ours.ensure(REF)
        await ours.aclose()
        assert path.read_bytes() == WEIGHTS
        assert "Authorization" in mirror.requests[0].headers
    assert hub.requests and all("Authorization" not in seen.headers for seen in hub.requests)


async def test_a_redirect_to_a_dead_host_names_it(hub: LoopbackHub, ours: Hub):
    hub.add(REPO, FILE, WEIGHTS)
    hub.fail(307, times=99, headers={"Location": "http://127.0.0.1:9/x"})
    with pytest.raises(HubUnavailable, match=r"http://127\.0\.0\.1:9 cannot be reached"):
        await ours.ensure(REF)


async def test_a_token_that_cannot_be_read(hub: LoopbackHub, cache: Path, tmp_path: Path):
    ours = Hub(HubSettings(hub.url, cache, token_path=tmp_path))
    with pytest.raises(HubGated, match="cannot be read"):
        await ours.ensure(REF)
    await ours.aclose()


# Settings


def test_settings_follow_the_environment_as_it_is_now(tmp_path: Path):
    home = str(tmp_path / "home")
    found = HubSettings.from_env({"HF_HOME": home, "HF_ENDPOINT": "http://hub/", "HF_TOKEN": " t ", "HF_HUB_OFFLINE": "YES"})
    assert found == HubSettings("http://hub", tmp_path / "home" / "hub", "t", tmp_path / "home" / "token", True)
    assert HubSettings.from_env({"HF_HOME": home, "HF_HUB_CACHE": str(tmp_path)}).cache_dir == tmp_path
    assert HubSettings.from_env({"XDG_CACHE_HOME": home}).cache_dir == tmp_path / "home" / "huggingface" / "hub"
    assert HubSettings.from_env({"HF_TOKEN": "t", "HF_HUB_DISABLE_IMPLICIT_TOKEN": "1"}).current_token() is None
    plain = HubSettings.from_env({})
    assert plain.endpoint == "https://huggingface.co" and not plain.offline


@pytest.mark.parametrize(
    ("name", "value"),
    [("HF_ENDPOINT", "hub.example"), ("HF_HUB_DOWNLOAD_TIMEOUT", "soon"), ("HF_HUB_ETAG_TIMEOUT", "0.5")],
)
def test_settings_that_cannot_be_used(name: str, value: str):
    with pytest.raises(ConfigError, match=name):
        HubSettings.from_env({name: value})


def test_settings_agree_with_huggingface_hub(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    """In a fresh interpreter: huggingface_hub reads its variables at import."""
    code = (
        "from huggingface_hub import constants as c\nfrom llmgallery.catalog.hub_settings import HubSettings\n"
        "s = HubSettings.from_env()\nassert str(s.cache_dir) == c.HF_HUB_CACHE, (s.cache_dir, c.HF_HUB_CACHE)\n"
        "assert str(s.token_path) == c.HF_TOKEN_PATH\nassert s.endpoint == c.ENDPOINT\nassert s.offline == c.HF_HUB_OFFLINE"
    )
    monkeypatch.setenv("HF_HOME", f"{tmp_path}/$LLMGALLERY_TEST_FOLDER")
    monkeypatch.setenv("LLMGALLERY_TEST_FOLDER", "here")
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:1/mirror/")
    monkeypatch.setenv("HF_HUB_OFFLINE", "on")
    monkeypatch.delenv("HF_HUB_CACHE", raising=False)
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)


async def test_a_download_that_has_begun_waits_for_the_connection_to_come_back(cache: Path):
    pauses: list[float] = []

    async def keep(seconds: float) -> None:
        pauses.append(seconds)

    client = HubClient(HubSettings("http://127.0.0.1:9", cache), keep)
    with pytest.raises(HubUnavailable, match="cannot be reached"):
        await client.metadata(REPO, "main", FILE, client.settings.attempts)
    await client.aclose()
    assert pauses == [1.0, 2.0, 4.0, 8.0]


@pytest.mark.parametrize(
    "answer", [b"<html>sign in</html>", b"\xff\xfe{", b'{"sha": "main"}', b'{"cardData": ' + b"[" * 100_000, b""]
)
async def test_a_listing_that_is_none(cache: Path, answer: bytes):
    """A login page, a proxy's nonsense, a mirror that knows no commits."""

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\nConnection: close\r\n\r\n" % len(answer) + answer)
        await writer.drain()
        writer.close()

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    async with server:
        ours = Hub(HubSettings(f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}", cache))
        for ask in (ours.list_files, ours.describe):
            with pytest.raises(HubUnavailable, match=r"is HF_ENDPOINT a Hub\?"):
                await ask(REPO)
        await ours.aclose()


@pytest.mark.parametrize(("commit", "size"), [("b" * 40, "7"), ("a" * 40, "9" * 30)])
async def test_an_answer_that_cannot_be_the_files(hub: LoopbackHub, ours: Hub, commit: str, size: str):
    """Another commit than the one that was asked for, and a size beyond all disks."""
    hub.add(REPO, FILE, WEIGHTS)
    headers = {"X-Repo-Commit": commit, "ETag": '"e"', "X-Linked-Size": size, "Location": "/x"}
    hub.fail(302, method="HEAD", headers=headers)
    with pytest.raises(HubUnavailable, match=r"is HF_ENDPOINT a Hub|does not answer like a Hub"):
        await ours.metadata(REPO, "a" * 40, FILE)
