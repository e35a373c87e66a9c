"""Files of installs: from the Hub, from an address, from this machine - resumed, checked, never one for another."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
from install_scene import SIZE, WEIGHTS, Scene, sha256, until
from loopback_hub import LoopbackHub

from llmgallery.catalog import download
from llmgallery.catalog.install.job import Job
from llmgallery.catalog.install.plan import PlannedFile, store_path
from llmgallery.catalog.lock import LockFile
from llmgallery.core.errors import ConfigError, HubCorrupt, HubError, HubNotFound, HubOffline, HubUnavailable, NoSpace


@pytest.fixture
async def scene(hub: LoopbackHub, tmp_path: Path) -> AsyncIterator[Scene]:
    mine = Scene(hub, tmp_path)
    yield mine
    await mine.stop()


class Host:
    """A web server that answers what `answer(request head)` yields, then closes the connection. `heads`: what was asked."""

    def __init__(self, answer: Callable[[str], Iterator[bytes]]) -> None:
        self._answer = answer
        self.heads: list[str] = []
        self.url = ""

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        head = (await reader.readuntil(b"\r\n\r\n")).decode()
        self.heads.append(head)
        for piece in self._answer(head):
            writer.write(piece)
        await writer.drain()
        writer.close()

    def file(self, name: str, data: bytes | None = None, size: int | None = None) -> PlannedFile:
        uri = f"{self.url}/{name}"
        digest = sha256(data) if data is not None else None
        return PlannedFile(uri=uri, name=name, path=store_path(uri, name, digest), sha256=digest, size=size)


@asynccontextmanager
async def hosting(answer: Callable[[str], Iterator[bytes]]) -> AsyncIterator[Host]:
    host = Host(answer)
    server = await asyncio.start_server(host.serve, "127.0.0.1", 0)
    host.url = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"
    async with server:
        yield host


async def installed(scene: Scene, *files: PlannedFile) -> Job:
    scene.offer("tiny", *files)
    job = scene.start().install("tiny")
    await job.wait()
    return job


def stored(scene: Scene, file: PlannedFile) -> bytes:
    assert file.path is not None
    return (scene.models / file.path).read_bytes()


# From an address


async def test_an_address_resumes_after_a_cut(scene: Scene):
    file = scene.on_web("draft.gguf")
    scene.hub.cut("draft.gguf", after=70_000, times=2)
    await installed(scene, file)
    assert stored(scene, file) == WEIGHTS
    assert [seen.headers["Range"] for seen in scene.hub.seen("GET", host="storage")] == [None, "bytes=70000-", "bytes=140000-"]
    assert scene.hub.sent("draft.gguf") == SIZE


async def test_a_silent_host_is_left_and_resumed(scene: Scene):
    file = scene.on_web("draft.gguf")
    release = scene.hub.hold("draft.gguf", after=70_000)
    scene.offer("tiny", file)
    await scene.start(hub={"stall": 0.2}).install("tiny").wait()
    release.set()
    assert stored(scene, file) == WEIGHTS
    assert scene.hub.seen("GET", host="storage")[1].headers["Range"] == "bytes=70000-"


async def test_wrong_bytes_are_fetched_once_again_then_named_and_deleted(scene: Scene):
    file = scene.on_web("draft.gguf")
    scene.hub.corrupt("draft.gguf", times=3)
    scene.offer("tiny", file)
    installer = scene.start()
    with pytest.raises(HubCorrupt, match=rf"draft\.gguf came twice with a wrong checksum \(expected {file.sha256}"):
        await installer.install("tiny").wait()
    assert not list((scene.models / ".files").rglob("*.gguf*"))
    await installer.install("tiny").wait()
    assert stored(scene, file) == WEIGHTS


async def test_a_host_that_never_says_the_size(scene: Scene):
    def chunked(head: str) -> Iterator[bytes]:
        yield b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n"
        for start in range(0, SIZE, 50_000):
            yield b"%x\r\n%b\r\n" % (50_000, WEIGHTS[start : start + 50_000])
        yield b"0\r\n\r\n"

    async with hosting(chunked) as host:
        file = host.file("model.gguf")
        job = await installed(scene, file)
    assert stored(scene, file) == WEIGHTS and job.state.total_bytes == SIZE
    assert LockFile.of(scene.models).read().models["tiny"].files[0].sha256 == sha256(WEIGHTS)


async def test_bytes_that_nothing_can_check_are_never_gone_on_with(scene: Scene):
    """No digest, no size, no validator: what came before a break could be of another file."""

    def breaking(head: str) -> Iterator[bytes]:
        yield b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % SIZE
        yield WEIGHTS if len(host.heads) > 2 else WEIGHTS[:70_000]

    async with hosting(breaking) as host:
        file = host.file("model.gguf")
        scene.offer("tiny", file)
        with pytest.raises(HubUnavailable):
            await scene.start(hub={"attempts": 1}).install("tiny").wait()
        await scene.stop()
        await scene.start(hub={"attempts": 3}).install("tiny").wait()
        assert not any("range:" in head.lower() for head in host.heads) and len(host.heads) == 3
    assert stored(scene, file) == WEIGHTS


async def test_a_file_that_changed_since_the_break_starts_over(scene: Scene):
    def changing(head: str) -> Iterator[bytes]:
        first = len(host.heads) == 1
        data = WEIGHTS if first else WEIGHTS[::-1]
        yield b'HTTP/1.1 200 OK\r\nETag: "%d"\r\nContent-Length: %d\r\n\r\n' % (first, SIZE)
        yield data[:70_000] if first else data

    async with hosting(changing) as host:
        file = host.file("model.gguf")
        await installed(scene, file)
        assert 'if-range: "1"' in host.heads[1].lower() and "range: bytes=70000-" in host.heads[1].lower()
    assert stored(scene, file) == WEIGHTS[::-1]


async def test_an_end_that_cannot_be_told_from_a_break_needs_a_digest(scene: Scene):
    def endless(head: str) -> Iterator[bytes]:
        yield b"HTTP/1.0 200 OK\r\n\r\n" + WEIGHTS

    async with hosting(endless) as host:
        scene.offer("unsure", host.file("model.gguf"))
        with pytest.raises(HubUnavailable, match="too early"):
            await scene.start().install("unsure").wait()
        sure = host.file("model.gguf", WEIGHTS)
        await installed(scene, sure)
    assert stored(scene, sure) == WEIGHTS


async def test_compressed_answers_are_refused(scene: Scene):
    def zipped(head: str) -> Iterator[bytes]:
        yield b"HTTP/1.1 200 OK\r\nContent-Encoding: gzip\r\nContent-Length: 3\r\n\r\nabc"

    async with hosting(zipped) as host:
        with pytest.raises(HubUnavailable, match="compressed"):
            await installed(scene, host.file("model.gguf"))


async def test_an_address_that_leads_to_an_open_one_is_refused(scene: Scene):
    def leading(head: str) -> Iterator[bytes]:
        yield b"HTTP/1.1 302 Found\r\nLocation: http://example.invalid/model.gguf\r\nContent-Length: 0\r\n\r\n"

    async with hosting(leading) as host:
        with pytest.raises(HubUnavailable, match=r"leads to http://example\.invalid/model\.gguf, which is not encrypted"):
            await installed(scene, host.file("model.gguf"))


@pytest.mark.parametrize(("status", "error", "words"), [(404, HubNotFound, "out of date"), (403, HubUnavailable, "answered 403")])
async def test_refusals_are_final_and_name_the_address(scene: Scene, status: int, error: type[HubError], words: str):
    def refusing(head: str) -> Iterator[bytes]:
        yield b"HTTP/1.1 %d No\r\nContent-Length: 0\r\n\r\n" % status

    async with hosting(refusing) as host:
        with pytest.raises(error, match=words) as caught:
            await installed(scene, host.file("model.gguf"))
        assert f"{host.url}/model.gguf" in caught.value.message and len(host.heads) == 1


async def test_a_size_that_is_not_the_stated_one_is_refused_unless_the_digest_decides(scene: Scene):
    def sized(head: str) -> Iterator[bytes]:
        yield b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % SIZE + WEIGHTS

    async with hosting(sized) as host:
        with pytest.raises(HubCorrupt, match=r"is of 200,000 bytes, and 7 were expected"):
            await installed(scene, host.file("model.gguf", size=7))
        job = await installed(scene, host.file("model.gguf", WEIGHTS, size=7))
    assert job.state.total_bytes == SIZE


async def test_the_disk_is_watched_while_a_file_grows(scene: Scene, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(download, "CHECK_EVERY", 50_000)
    monkeypatch.setattr(download, "_MOST_PENDING", 0)  # each piece is written before the next is looked at
    scene.offer("tiny", scene.on_web("draft.gguf", said=False))
    release = scene.hub.hold("draft.gguf", after=40_000)
    job = scene.start().install("tiny")
    await until(job, lambda state: state.done_bytes == 40_000)
    scene.free = (64 << 20) + 5
    release.set()
    with pytest.raises(NoSpace, match="set models_dir to another folder"):
        await job.wait()


async def test_offline_nothing_is_fetched(scene: Scene):
    scene.offer("web", scene.on_web("draft.gguf"))
    scene.offer("hub", scene.on_hub("weights.gguf"))
    installer = scene.start(hub={"offline": True})
    for name in ("web", "hub"):
        with pytest.raises(HubOffline, match="HF_HUB_OFFLINE"):
            await installer.install(name).wait()
    assert scene.hub.requests == []


# From this machine


async def test_a_local_file_is_copied_and_checked(scene: Scene, tmp_path: Path):
    source = tmp_path / "a model.gguf"
    source.write_bytes(WEIGHTS)
    uri = source.as_uri()
    good = PlannedFile(uri=uri, name="model.gguf", path=store_path(uri, "model.gguf", sha256(WEIGHTS)), sha256=sha256(WEIGHTS))
    await installed(scene, good)
    assert stored(scene, good) == WEIGHTS
    wrong = "0" * 64
    with pytest.raises(HubCorrupt, match=wrong):
        await installed(scene, PlannedFile(uri=uri, name="m", path=store_path(uri, "m", wrong), sha256=wrong))
    missing = (tmp_path / "nothing").as_uri()
    with pytest.raises(HubNotFound, match="there is no file"):
        await installed(scene, PlannedFile(uri=missing, name="m", path=store_path(missing, "m", None)))


# One name, several files


async def test_files_named_alike_never_clash(scene: Scene):
    one, other = scene.on_web("model.bin", repo="web/one"), scene.on_web("model.bin", WEIGHTS[::-1], repo="web/other")
    unsaid = scene.on_web("model.bin", WEIGHTS[4:], repo="web/third", said=False)
    scene.offer("one", one)
    scene.offer("other", other)
    scene.offer("third", unsaid)
    installer = scene.start()
    await asyncio.gather(*(installer.install(name).wait() for name in ("one", "other", "third")))
    assert (stored(scene, one), stored(scene, other), stored(scene, unsaid)) == (WEIGHTS, WEIGHTS[::-1], WEIGHTS[4:])


async def test_a_file_of_the_hub_that_is_not_the_planned_one_costs_no_byte(scene: Scene):
    file = scene.on_hub("weights.gguf")
    wrong = PlannedFile(uri=file.uri, name=file.name, sha256="0" * 64)
    with pytest.raises(HubCorrupt, match=f"its sha256 is {file.sha256}, and {'0' * 64} was expected"):
        await installed(scene, wrong)
    assert scene.hub.seen("GET") == []


async def test_a_small_file_of_the_hub_is_checked_against_the_plans_sha256_too(scene: Scene):
    file = scene.on_hub("config.json", b'{"a": 1}', lfs=False)
    with pytest.raises(HubCorrupt, match=f"its sha256 is {file.sha256}"):
        await installed(scene, PlannedFile(uri=file.uri, name=file.name, sha256="0" * 64))
    assert not list(scene.cache.rglob("config.json")) and not list(scene.cache.glob("models--*/blobs/*"))
    await installed(scene, file)
    assert [path.read_bytes() for path in scene.cache.rglob("config.json")] == [b'{"a": 1}']


@pytest.mark.parametrize(
    "file",
    [
        PlannedFile(uri="hf://a/b/c.gguf", name="c"),
        PlannedFile(uri="ftp://a/b", name="b", path=".files/uri-1/b"),
        PlannedFile(uri="https://a.invalid/b", name="b"),
        PlannedFile(uri="https://a.invalid/b", name="b", path="../b"),
        PlannedFile(uri="https://a.invalid/b", name="b", path="/etc/b"),
        PlannedFile(uri="https://a.invalid/b", name="b", path="tiny.yaml"),
    ],
)
async def test_plans_that_lead_elsewhere_are_refused(scene: Scene, file: PlannedFile):
    with pytest.raises(ConfigError):
        await installed(scene, file)
    assert scene.left() == []


async def test_at_most_so_many_files_at_a_time(scene: Scene):
    files = [scene.on_hub(f"part-{number}.gguf", WEIGHTS[number:]) for number in range(6)]
    releases = [scene.hub.hold(f"part-{number}.gguf", after=1000) for number in range(6)]
    scene.offer("tiny", *files)
    job = scene.start(parallel=2).install("tiny")
    await until(job, lambda state: sum(file.done == 1000 for file in state.files) == 2)
    assert len(scene.hub.seen("GET", host="storage")) == 2
    for release in releases:
        release.set()
    await job.wait()


@pytest.mark.parametrize("length", [b"", b"Content-Length: 2000000000\r\n"])
async def test_a_file_that_is_far_larger_than_was_said_is_not_taken(scene: Scene, length: bytes):
    """It was allowed by what it said of its size."""

    def endless(head: str) -> Iterator[bytes]:
        yield b"HTTP/1.1 200 OK\r\n" + length + b"\r\n"
        for _ in range(64):
            yield bytes(1 << 16)

    async with hosting(endless) as host:
        file = host.file("model.gguf", WEIGHTS, size=SIZE)
        with pytest.raises(HubCorrupt, match=r"is of .* bytes, and at most 1,248,576 were expected"):
            await installed(scene, file)
    assert file.path is not None
    left = (scene.models / file.path).parent
    assert sum(path.stat().st_size for path in left.iterdir()) == 0 and not (scene.models / file.path).exists()
