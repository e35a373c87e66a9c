"""Galleries as they are configured: read, kept, refreshed, served on when they cannot be reached."""

from __future__ import annotations

import asyncio
import logging
import shutil
import threading
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager
from itertools import pairwise
from pathlib import Path
from time import process_time, thread_time
from typing import Any

import httpx
import pytest
from gallery_server import DEADLINE, GalleryServer
from loopback_hub import LoopbackHub

from llmgallery.catalog.gallery.choose_variant import Host
from llmgallery.catalog.gallery.entry import GalleryEntry
from llmgallery.catalog.gallery.library import GalleryState, Library
from llmgallery.catalog.gallery.sources import GallerySource
from llmgallery.catalog.gallery.web import Bounds
from llmgallery.catalog.hub import Hub
from llmgallery.catalog.hub_settings import HubSettings
from llmgallery.core.errors import ConfigError, GalleryError, HubNotFound, HubUnavailable

INDEX = b"""- name: small
  url: base.yaml
  tags: [chat]
- &tiny
  name: tiny
  overrides: {backend: llama-cpp, parameters: {model: tiny.Q4_K_M.gguf}}
"""
BASE = b"config_file: |\n  backend: llama-cpp\n  context_size: 2048\n"


@pytest.fixture
def web() -> Iterator[GalleryServer]:
    with GalleryServer({"/index.yaml": INDEX, "/base.yaml": BASE}) as server:
        yield server


@pytest.fixture
def kept(tmp_path: Path) -> Path:
    return tmp_path / "kept"


class Time:
    """A clock that stands still until it is told otherwise, and sleeps that end when the test says so."""

    def __init__(self) -> None:
        self.now = 1_800_000_000.0
        self.asleep = asyncio.Queue[float]()
        self._wake = asyncio.Event()

    def __call__(self) -> float:
        return self.now

    async def sleep(self, seconds: float) -> None:
        self.asleep.put_nowait(seconds)
        await self._wake.wait()

    def pass_by(self, seconds: float) -> None:
        self.now += seconds
        wake, self._wake = self._wake, asyncio.Event()
        wake.set()

    async def until_asleep(self) -> float:
        return await asyncio.wait_for(self.asleep.get(), DEADLINE)


@asynccontextmanager
async def library(kept: Path, *galleries: tuple[str, str], **options: Any) -> AsyncIterator[Library]:
    made = Library([GallerySource(name, url) for name, url in galleries], kept, **options)
    await made.start()
    try:
        yield made
    finally:
        await made.aclose()


def state(made: Library, name: str = "web") -> GalleryState:
    return next(found for found in made.states() if found.name == name)


def names(made: Library) -> list[str]:
    return [entry.id for entry in made.search()]


def warnings(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [record.getMessage() for record in caplog.records if record.levelno >= logging.WARNING]


# A folder, and a file


def folder(path: Path, **files: bytes) -> Path:
    path.mkdir(parents=True, exist_ok=True)
    for name, body in files.items():
        (path / f"{name}.yaml").write_bytes(body)
    return path


async def test_a_folder_with_an_index_has_its_base_files_beside_it(tmp_path: Path, kept: Path) -> None:
    mine = folder(tmp_path / "mine", index=INDEX, base=BASE)
    async with library(kept, ("mine", str(mine))) as made:
        assert names(made) == ["mine@small", "mine@tiny"]
        found = made.find("small")
        assert found is not None
        composed = await made.composed(found.entry, {"context_size": 512})
        assert (composed.config["backend"], composed.config["context_size"]) == ("llama-cpp", 512)
        assert (state(made, "mine").error, state(made, "mine").problems) == (None, ())
    async with library(kept, ("mine", "mine/index.yaml"), folder=tmp_path) as made:
        found = made.find("mine@small")
        assert found is not None
        assert (await made.composed(found.entry)).config["context_size"] == 2048


async def test_a_folder_without_an_index_is_all_its_files(tmp_path: Path, kept: Path) -> None:
    mine = folder(tmp_path / "mine", b=b"- name: b\n- name: a\n", a=b"- name: a\n  description: first\n")
    (mine / "notes.txt").write_text("- name: c\n")
    (mine / ".hidden.yaml").write_text("- name: d\n")
    async with library(kept, ("mine", str(mine))) as made:
        assert names(made) == ["mine@a", "mine@b"]
        found = made.find("a")
        assert found is not None and found.entry.description == "first"
        (problem,) = state(made, "mine").problems
        assert "b.yaml:2:" in str(problem) and "'a' is already taken by" in str(problem) and "a.yaml:1:" in str(problem)


async def test_a_local_gallery_is_read_as_it_is_now(tmp_path: Path, kept: Path, caplog: pytest.LogCaptureFixture) -> None:
    mine, time = folder(tmp_path / "mine", index=b"- name: a\n"), Time()
    async with library(kept, ("mine", str(mine)), clock=time) as made:
        (mine / "index.yaml").write_bytes(b"- name: b\n")
        time.pass_by(2)
        await made.ready()
        assert names(made) == ["mine@b"]
        (mine / "index.yaml").write_bytes(b"- name: [\n")
        time.pass_by(2)
        await made.ready()
        assert names(made) == ["mine@b"]
        assert "index.yaml:" in (state(made, "mine").error or "")
        shutil.rmtree(mine)
        time.pass_by(2)
        await made.ready()
        assert "there is no file or folder" in (state(made, "mine").error or "")
        assert len(warnings(caplog)) == 1
        folder(mine, index=b"- name: c\n")
        time.pass_by(2)
        await made.ready()
        assert (names(made), state(made, "mine").error) == (["mine@c"], None)


async def test_one_bad_entry_is_told_and_costs_no_other(tmp_path: Path, kept: Path, caplog: pytest.LogCaptureFixture) -> None:
    mine = folder(tmp_path / "mine", index=b"- name: a\n- description: nameless\n- name: b\n")
    async with library(kept, ("mine", str(mine))) as made:
        assert names(made) == ["mine@a", "mine@b"]
        assert [problem.line for problem in state(made, "mine").problems] == [2]
    assert "the gallery mine is not read in full" in caplog.text


async def test_a_base_file_that_leads_out_of_the_folder(tmp_path: Path, kept: Path) -> None:
    mine = folder(tmp_path / "mine", index=b"- {name: a, url: ../base.yaml}\n- {name: b, url: gone.yaml}\n")
    (tmp_path / "base.yaml").write_bytes(BASE)
    async with library(kept, ("mine", str(mine))) as made:
        for name, says in (("a", "leads out of the gallery's folder"), ("b", "gone.yaml cannot be read: No such file")):
            found = made.find(name)
            assert found is not None
            with pytest.raises(ConfigError) as caught:
                await made.composed(found.entry)
            assert says in caught.value.message and f"mine@{name}" in caught.value.message


async def test_the_first_gallery_has_the_name_and_ours_is_the_first(tmp_path: Path, kept: Path) -> None:
    ours, one, two = (folder(tmp_path / name, index=body) for name, body in (
        ("ours", b"- name: a\n"), ("one", b"- name: a\n- name: b\n"), ("two", b"- name: b\n- name: c\n"),
    ))  # fmt: skip
    async with library(kept, ("one", str(one)), ("two", str(two)), builtin=ours) as made:
        found = {name: made.find(name) for name in ("a", "b", "c", "one@a", "two@b", "one@c", "three@a")}
        ids = {name: None if what is None else what.entry.id for name, what in found.items()}
        assert ids == {
            "a": "llmgallery@a", "b": "one@b", "c": "two@c", "one@a": "one@a", "two@b": "two@b", "one@c": None, "three@a": None,
        }  # fmt: skip
    async with library(kept, ("llmgallery", str(two)), builtin=ours) as made:
        assert names(made) == ["llmgallery@b", "llmgallery@c"]


# The web


async def test_what_was_fetched_serves_without_the_server(
    web: GalleryServer, kept: Path, caplog: pytest.LogCaptureFixture
) -> None:
    url, time = f"{web.url}/index.yaml", Time()
    async with library(kept, ("web", url), clock=time, sleep=time.sleep) as made:
        await made.ready()
        found = made.find("small")
        assert found is not None
        await made.composed(found.entry)
        assert state(made) == GalleryState("web", url, 2, time.now)
    web.stop()
    first = time.now
    time.pass_by(10 * 24 * 3600)
    async with library(kept, ("web", url), clock=time, sleep=time.sleep) as made:
        assert names(made) == ["web@small", "web@tiny"]
        await time.until_asleep()
        found = made.find("web@small")
        assert found is not None
        assert (await made.composed(found.entry)).config["context_size"] == 2048
        for _ in range(3):
            await made.refresh()
        told = state(made)
        assert (told.entries, told.refreshed) == (2, first)
        assert "cannot be reached" in (told.error or "") and url in (told.error or "")
    said = [line for line in warnings(caplog) if "gallery web" in line]
    assert len(said) == 1 and "its copy is served (2 entries)" in said[0]


@pytest.mark.parametrize(("validator", "header"), [("ETag", "If-None-Match"), ("Last-Modified", "If-Modified-Since")])
async def test_what_has_not_changed_is_not_sent_again(web: GalleryServer, kept: Path, validator: str, header: str) -> None:
    web.validators = (validator,)
    time = Time()
    for _ in range(2):
        async with library(kept, ("web", f"{web.url}/index.yaml"), clock=time, sleep=time.sleep) as made:
            await made.ready()
            time.pass_by(100)
            await made.refresh("web")
            assert (state(made).entries, state(made).refreshed, state(made).error) == (2, time.now, None)
    assert web.seen("/index.yaml") == [200, 304, 304]
    assert all(header in asked.headers for asked in web.asked[1:])


async def test_the_background_refreshes_when_it_is_due(web: GalleryServer, kept: Path) -> None:
    time = Time()
    options: dict[str, Any] = {"clock": time, "sleep": time.sleep, "refresh_every": 600.0}
    async with library(kept, ("web", f"{web.url}/index.yaml"), **options) as made:
        assert await time.until_asleep() == 600
        web.files["/index.yaml"] = b"- name: other\n"
        time.pass_by(599)
        assert await time.until_asleep() == 1
        assert names(made) == ["web@small", "web@tiny"]
        time.pass_by(1)
        await time.until_asleep()
        assert names(made) == ["web@other"]
        web.statuses["/index.yaml"] = 500
        time.pass_by(600)
        assert await time.until_asleep() == 60  # sooner than usual after a failure, then less and less often
        time.pass_by(60)
        assert await time.until_asleep() == 120
        assert (names(made), "answered 500" in (state(made).error or "")) == (["web@other"], True)
        del web.statuses["/index.yaml"]
        time.pass_by(120)
        assert (await time.until_asleep(), state(made).error) == (600, None)


async def test_a_clock_that_is_set_back_does_not_stop_the_refreshing(web: GalleryServer, kept: Path) -> None:
    """The machine started with a wrong date."""
    time = Time()
    async with library(kept, ("web", f"{web.url}/index.yaml"), clock=time, sleep=time.sleep, refresh_every=600.0) as made:
        await time.until_asleep()
        web.files["/index.yaml"] = b"- name: other\n"
        time.pass_by(-30 * 86_400.0)
        assert await time.until_asleep() == 600
        assert names(made) == ["web@other"]


async def test_a_fresh_copy_is_not_asked_for_at_the_start(web: GalleryServer, kept: Path) -> None:
    time = Time()
    for _ in range(3):
        async with library(kept, ("web", f"{web.url}/index.yaml"), clock=time, sleep=time.sleep) as made:
            await time.until_asleep()
            await made.ready()
            assert len(names(made)) == 2
    assert web.seen("/index.yaml") == [200]
    for _ in range(3):  # a copy that its server has confirmed is as good as a new one
        time.pass_by(20 * 3600)
        async with library(kept, ("web", f"{web.url}/index.yaml"), clock=time, sleep=time.sleep) as made:
            await time.until_asleep()
    assert web.seen("/index.yaml") == [200, 304]


async def test_a_slow_gallery_holds_up_nobody(web: GalleryServer, tmp_path: Path, kept: Path) -> None:
    web.held["/index.yaml"] = threading.Event()
    mine = folder(tmp_path / "mine", index=b"- name: a\n")
    async with library(kept, ("web", f"{web.url}/index.yaml"), ("mine", str(mine)), first_wait=0.05) as made:
        await made.ready()
        assert names(made) == ["mine@a"]
        assert state(made) == GalleryState("web", f"{web.url}/index.yaml")
        web.held["/index.yaml"].set()
        await made.refresh()
        assert names(made) == ["web@small", "web@tiny", "mine@a"]


async def test_the_first_names_wait_for_a_gallery_that_was_never_read(web: GalleryServer, kept: Path) -> None:
    web.held["/index.yaml"] = threading.Event()
    async with library(kept, ("web", f"{web.url}/index.yaml")) as made:
        waiting = asyncio.create_task(made.ready())
        await asyncio.to_thread(web.wait_for, "/index.yaml")
        assert not waiting.done()
        web.held["/index.yaml"].set()
        await waiting
        assert made.find("tiny") is not None


async def test_a_fetch_ends_with_its_bound(web: GalleryServer, kept: Path) -> None:
    web.held["/index.yaml"] = threading.Event()
    async with library(kept, ("web", f"{web.url}/index.yaml"), bounds=Bounds(seconds=0.05)) as made:
        await made.ready()
        assert "does not answer in time" in (state(made).error or "")


def too_large(web: GalleryServer) -> None:
    web.files["/index.yaml"] = INDEX + b"#" * 4096


def in_circles(web: GalleryServer) -> None:
    web.redirects["/index.yaml"] = "/index.yaml"


def to_a_file(web: GalleryServer) -> None:
    web.redirects["/index.yaml"] = "file:///etc/passwd"


def to_another_host(web: GalleryServer) -> None:
    web.redirects["/index.yaml"] = "http://example.org/index.yaml"


def to_a_page(web: GalleryServer) -> None:
    web.files["/index.yaml"] = b"<html><body>please log in</body></html>"


def packed(web: GalleryServer) -> None:
    web.files["/index.yaml"] = INDEX + b"# changed\n"
    web.headers["Content-Encoding"] = "gzip"


def forbidden(web: GalleryServer) -> None:
    web.statuses["/index.yaml"] = 403


@pytest.mark.parametrize(
    ("fault", "says"),
    [
        (too_large, "larger than 2,000 bytes"),
        (in_circles, "redirects more than 5 times"),
        (to_a_file, "redirects where it may not"),
        (to_another_host, "redirects where it may not"),
        (to_a_page, "no index of a gallery"),
        (packed, "came as gzip"),
        (forbidden, "not for everybody"),
    ],
)
async def test_what_is_no_index_costs_no_entry(
    web: GalleryServer, kept: Path, fault: Callable[[GalleryServer], None], says: str
) -> None:
    url = f"{web.url}/index.yaml"
    async with library(kept, ("web", url), bounds=Bounds(bytes=2000)) as made:
        await made.ready()
        fault(web)
        await made.refresh()
        assert says in (state(made).error or "")
        assert len(names(made)) == 2
    async with library(kept, ("web", url), bounds=Bounds(bytes=2000)) as made:
        assert len(names(made)) == 2


async def test_redirects_are_followed(web: GalleryServer, kept: Path) -> None:
    web.redirects["/latest"] = "/index.yaml"
    async with library(kept, ("web", f"{web.url}/latest")) as made:
        await made.ready()
        assert len(names(made)) == 2


@pytest.mark.parametrize(
    ("target", "says"),
    [
        ("https://cdn.example/index.yaml", None),
        ("http://lists.example/index.yaml", "is not https"),
        ("http://127.0.0.1/index.yaml", "is not https"),
        ("https://127.0.0.1/index.yaml", "inside this network"),
        ("https://169.254.169.254/index.yaml", "inside this network"),
        ("https://user:pass@cdn.example/index.yaml", "password"),
    ],
)
async def test_where_a_redirect_of_the_open_web_may_lead(kept: Path, target: str, says: str | None) -> None:
    asked: list[str] = []

    def answer(request: httpx.Request) -> httpx.Response:
        asked.append(str(request.url))
        body = httpx.ByteStream(INDEX)
        return httpx.Response(200, stream=body) if len(asked) > 1 else httpx.Response(302, headers={"Location": target})

    def client() -> httpx.AsyncClient:
        return httpx.AsyncClient(transport=httpx.MockTransport(answer))

    async with library(kept, ("web", "https://lists.example/index.yaml"), client=client) as made:
        await made.ready()
        error = state(made).error
        assert (error is None) if says is None else (says in (error or ""))
        assert (asked[1:], len(names(made))) == (([target], 2) if says is None else ([], 0))


async def test_a_form_of_github(web: GalleryServer, kept: Path) -> None:
    web.files = {"/o/r/v1/lists/index.yaml": INDEX, "/o/r/v1/lists/base.yaml": BASE}
    async with library(kept, ("web", "github:o/r/lists/index.yaml@v1"), github=web.url) as made:
        await made.ready()
        found = made.find("small")
        assert found is not None
        assert (await made.composed(found.entry)).config["backend"] == "llama-cpp"


async def test_an_index_of_the_web_names_no_files_of_this_machine(web: GalleryServer, tmp_path: Path, kept: Path) -> None:
    base = tmp_path / "base.yaml"
    base.write_bytes(BASE)
    web.files["/index.yaml"] = f"- {{name: a, url: '{base.as_uri()}'}}\n".encode()
    async with library(kept, ("web", f"{web.url}/index.yaml")) as made:
        await made.ready()
        found = made.find("a")
        assert found is not None
        with pytest.raises(ConfigError, match="of this machine"):
            await made.composed(found.entry)


async def test_many_who_want_a_base_file_share_one_fetch(web: GalleryServer, kept: Path) -> None:
    web.held["/base.yaml"] = threading.Event()
    async with library(kept, ("web", f"{web.url}/index.yaml")) as made:
        await made.ready()
        found = made.find("small")
        assert found is not None
        leaving, *staying = [asyncio.create_task(made.composed(found.entry)) for _ in range(10)]
        await asyncio.to_thread(web.wait_for, "/base.yaml")
        leaving.cancel()
        web.held["/base.yaml"].set()
        assert {composed.config["context_size"] for composed in await asyncio.gather(*staying)} == {2048}
        await asyncio.gather(leaving, return_exceptions=True)
        assert leaving.cancelled()
        await made.composed(found.entry)
    assert web.seen("/base.yaml") == [200]


async def test_a_base_file_that_cannot_be_had(web: GalleryServer, kept: Path) -> None:
    async with library(kept, ("web", f"{web.url}/index.yaml")) as made:
        await made.ready()
        found = made.find("small")
        assert found is not None
        faults: list[tuple[int, type[GalleryError], str]] = [(404, HubNotFound, "there is no file"), (503, HubUnavailable, "503")]
        for status, kind, says in faults:
            web.statuses["/base.yaml"] = status
            with pytest.raises(kind) as caught:
                await made.composed(found.entry)
            assert says in caught.value.message and "web@small needs the base file base.yaml" in caught.value.message
        web.statuses.clear()
        web.files["/base.yaml"] = b"<html>please log in</html>"
        with pytest.raises(ConfigError):
            await made.composed(found.entry)
        web.files["/base.yaml"] = BASE
        assert (await made.composed(found.entry)).config["context_size"] == 2048


async def test_a_base_file_is_asked_for_again_when_it_is_old(web: GalleryServer, kept: Path) -> None:
    time = Time()
    async with library(kept, ("web", f"{web.url}/index.yaml"), clock=time, sleep=time.sleep) as made:
        await made.ready()
        found = made.find("small")
        assert found is not None
        await made.composed(found.entry)
        web.files["/base.yaml"] = BASE.replace(b"2048", b"4096")
        assert (await made.composed(found.entry)).config["context_size"] == 2048
        time.pass_by(2 * 24 * 3600)
        assert (await made.composed(found.entry)).config["context_size"] == 4096
        web.statuses["/base.yaml"] = 500
        time.pass_by(2 * 24 * 3600)
        assert (await made.composed(found.entry)).config["context_size"] == 4096


async def test_a_proxy_of_the_environment_is_not_asked_for_loopback(
    web: GalleryServer, kept: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("HTTP_PROXY", "http_proxy", "ALL_PROXY", "all_proxy"):
        monkeypatch.setenv(name, "http://127.0.0.1:9")
    async with library(kept, ("web", f"{web.url}/index.yaml")) as made:
        await made.ready()
        assert len(names(made)) == 2


async def test_an_unknown_gallery(tmp_path: Path, kept: Path) -> None:
    async with library(kept, ("mine", str(folder(tmp_path / "mine")))) as made:
        with pytest.raises(ConfigError, match="no gallery 'web'"):
            await made.composed(GalleryEntry(name="a", gallery="web", url="base.yaml"))
        with pytest.raises(ConfigError, match="no gallery 'web'; configured: mine"):
            await made.refresh("web")


async def test_nothing_is_ready_before_the_start(kept: Path) -> None:
    made = Library([], kept)
    with pytest.raises(RuntimeError):
        await made.ready()
    await made.start()
    await made.ready()
    assert (made.find("a"), made.near("a"), made.search("a"), made.states()) == (None, (), [], ())
    await made.aclose()


async def test_an_early_end(web: GalleryServer, kept: Path) -> None:
    web.held["/index.yaml"] = threading.Event()
    async with library(kept, ("web", f"{web.url}/index.yaml"), first_wait=1000.0) as made:
        waiting = asyncio.create_task(made.ready())
        await asyncio.to_thread(web.wait_for, "/index.yaml")
    await asyncio.wait_for(waiting, DEADLINE)


async def test_a_big_index_leaves_the_event_loop_free(tmp_path: Path, kept: Path) -> None:
    lines = b"".join(
        b"- {name: model-%d, description: a model for tests, tags: [chat, test]}\n" % number for number in range(2000)
    )
    mine = folder(tmp_path / "mine", index=lines)
    made = Library([GallerySource("mine", str(mine))], kept)
    starting, begun, beats = asyncio.create_task(made.start()), process_time(), [thread_time()]
    while not starting.done():
        await asyncio.sleep(0)
        beats.append(thread_time())
    longest = max(after - before for before, after in pairwise(beats))
    assert len(names(made)) == 2000
    assert longest < (process_time() - begun) / 4  # what the loop's own thread did at a stretch, of all that was to do
    await made.aclose()


# The Hub


@pytest.fixture
async def on_hub(hub: LoopbackHub, tmp_path: Path) -> AsyncIterator[Hub]:
    async def no_pause(seconds: float) -> None:
        await asyncio.sleep(0)

    made = Hub(HubSettings(hub.url, tmp_path / "hf", attempts=1), sleep=no_pause)
    yield made
    await made.aclose()


@pytest.mark.parametrize("url", ["hf://owner/lists/text", "hf://owner/lists/text/index.yaml@main"])
async def test_a_repo_of_the_hub(hub: LoopbackHub, on_hub: Hub, kept: Path, url: str, caplog: pytest.LogCaptureFixture) -> None:
    hub.add("owner/lists", "README.md", b"lists", lfs=False)
    hub.add("owner/lists", "text/index.yaml", INDEX.replace(b"base.yaml", b"../base/base.yaml"), lfs=False)
    hub.add("owner/lists", "base/base.yaml", BASE, lfs=False)
    time = Time()
    async with library(kept, ("web", url), hub=on_hub, clock=time, sleep=time.sleep) as made:
        await made.ready()
        found = made.find("web@small")
        assert found is not None
        assert (await made.composed(found.entry)).config["context_size"] == 2048
        hub.add("owner/lists", "text/index.yaml", b"- name: new\n", lfs=False)
        await made.refresh()
        assert names(made) == ["web@new"]
        assert found.entry.source.startswith("hf://owner/lists/text/index.yaml")
    hub.add("owner/lists", "text/index.yaml", INDEX.replace(b"base.yaml", b"../base/base.yaml"), lfs=False)
    async with library(kept, ("web", url), hub=on_hub, clock=time, sleep=time.sleep) as made:
        assert names(made) == ["web@new"]
        await made.refresh()
        hub.fail(503, times=1000)
        await made.refresh()
        assert "503" in (state(made).error or "")
        found = made.find("small")
        assert found is not None
        assert (await made.composed(found.entry)).config["context_size"] == 2048
    assert len([line for line in warnings(caplog) if "gallery web cannot be read" in line]) == 1


async def test_faults_of_a_repo(hub: LoopbackHub, on_hub: Hub, kept: Path) -> None:
    hub.add("owner/empty", "README.md", b"nothing", lfs=False)
    hub.add("owner/big", "index.yaml", b"#" * 5000)
    urls = (("gone", "hf://owner/gone"), ("empty", "hf://owner/empty"), ("big", "hf://owner/big"))
    async with library(kept, *urls, hub=on_hub, bounds=Bounds(bytes=4000)) as made:
        await made.ready()
        errors = {name: state(made, name).error or "" for name, _ in urls}
        assert "no repo owner/gone" in errors["gone"]
        assert "no index.yaml nor another YAML file" in errors["empty"]
        assert "5,000 bytes: more than 4,000" in errors["big"]
        assert hub.sent("owner/big/index.yaml") == 0


async def test_offline_asks_nobody(hub: LoopbackHub, web: GalleryServer, tmp_path: Path, kept: Path) -> None:
    hub.add("owner/lists", "index.yaml", b"- name: a\n", lfs=False)
    galleries = (("web", f"{web.url}/index.yaml"), ("hub", "hf://owner/lists"), ("new", f"{web.url}/other.yaml"))
    for offline in (False, True):
        on_hub = Hub(HubSettings(hub.url, tmp_path / "hf", offline=offline))
        before = len(web.asked) + len(hub.requests)
        async with library(kept, *galleries[: 3 if offline else 2], hub=on_hub) as made:
            await made.ready()
            await made.refresh()
            assert names(made) == ["web@small", "web@tiny", "hub@a"]
        await on_hub.aclose()
    assert len(web.asked) + len(hub.requests) == before
    assert all("HF_HUB_OFFLINE" in (found.error or "") for found in made.states())


async def test_without_a_hub_such_a_gallery_tells(kept: Path) -> None:
    async with library(kept, ("hub", "hf://owner/lists")) as made:
        await made.ready()
        assert "owner/lists" in (state(made, "hub").error or "")


# Variants


async def test_a_variant_is_chosen_by_its_base_file_and_size(web: GalleryServer, kept: Path) -> None:
    web.files |= {
        "/base.yaml": b"config_file: 'backend: cuda12-vllm'\n",
        "/cpp.yaml": BASE.replace(b"llama-cpp", b"vulkan-llama-cpp"),
    }
    web.files["/index.yaml"] = b"""
- {name: a, url: base.yaml, size: 1GB, variants: [{model: a-q4}, {model: a-q8}, {model: a-lost}]}
- {name: a-q4, url: cpp.yaml, files: [{filename: a.Q4_K_M.gguf, uri: 'hf://o/r/a.Q4_K_M.gguf', size: 500}]}
- {name: a-q8, url: cpp.yaml, files: [{filename: a.Q8_0.gguf, uri: 'hf://o/r/a.Q8_0.gguf'}]}
- {name: a-lost, url: lost.yaml, size: 900GB}
"""

    async def size(entry: Any, composed: Any) -> int | None:
        assert composed.config["context_size"] == 2048
        return {"a-q8": 900}.get(entry.name)

    async with library(kept, ("web", f"{web.url}/index.yaml")) as made:
        await made.ready()
        found = made.find("a")
        assert found is not None
        roomy = await made.choose(found.entry, Host(lambda name: name == "llama-cpp", 10_000), size)
        assert (roomy.entry.name, roomy.fits) == ("a-q8", True)
        assert [line.split(" ")[0] for line in roomy.dropped] == ["a", "a-lost"]
        assert "vllm" in roomy.dropped[0]
        tight = await made.choose(found.entry, Host(lambda name: name == "llama-cpp", 800), size)
        assert tight.entry.name == "a-q4"
        alone = made.find("a-q4")
        assert alone is not None
        assert (await made.choose(alone.entry, Host(lambda name: False))).entry is alone.entry
