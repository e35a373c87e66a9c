"""Downloads against the loopback hub: resumed, verified, refused."""

from __future__ import annotations

import asyncio
import errno
import json
import os
import resource
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Callable
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from loopback_hub import LoopbackHub

from llmgallery.catalog.download import disk_error
from llmgallery.catalog.hub import Hub
from llmgallery.catalog.hub_cache import RepoCache
from llmgallery.catalog.hub_settings import HubSettings
from llmgallery.catalog.partial import Expected, Partial, Place
from llmgallery.catalog.reference import HubReference
from llmgallery.core.errors import HubCorrupt, HubError, HubUnavailable, NoSpace

REPO = "someone/model-GGUF"
FILE = "model.Q4_K_M.gguf"
REF = HubReference(REPO, FILE)
WEIGHTS = b"".join(number.to_bytes(4, "big") for number in range(150_000))
SIZE = len(WEIGHTS)


class Pauses:
    """Stands for asyncio.sleep between attempts: keeps the seconds, waits none."""

    def __init__(self) -> None:
        self.seconds: list[float] = []

    async def __call__(self, seconds: float) -> None:
        self.seconds.append(seconds)
        await asyncio.sleep(0)


@pytest.fixture
def pauses() -> Pauses:
    return Pauses()


@pytest.fixture
def hub_settings(hub: LoopbackHub, tmp_path: Path) -> HubSettings:
    return HubSettings(hub.url, tmp_path / "cache", stall=20.0)


@pytest.fixture
async def ours(hub_settings: HubSettings, pauses: Pauses) -> AsyncIterator[Hub]:
    mine = Hub(hub_settings, sleep=pauses)
    yield mine
    await mine.aclose()


def partial_of(settings: HubSettings, etag: str) -> tuple[Path, Path]:
    cache = RepoCache(settings.cache_dir, REPO)
    return cache.partial(etag), cache.journal(etag)


def etag_of(hub: LoopbackHub, file: str = FILE) -> str:
    return hub.repos[REPO].commits[hub.commit(REPO)][file].etag


def until(true: Callable[[], bool]) -> None:
    """Poll the file system, which has no event to wait for."""
    deadline = time.monotonic() + 20
    while not true():
        assert time.monotonic() < deadline
        time.sleep(0.005)


async def test_downloads_and_links(hub: LoopbackHub, ours: Hub):
    hub.add(REPO, "config.json", b"{}", lfs=False)
    commit = hub.add(REPO, FILE, WEIGHTS)
    told: list[tuple[int, int]] = []
    (path,) = await ours.ensure(REF, lambda done, total: told.append((done, total)))
    assert path.read_bytes() == WEIGHTS
    assert path.is_symlink() and path.parent.name == commit
    assert told[-1] == (SIZE, SIZE) and told == sorted(told)
    (config,) = await ours.ensure(HubReference(REPO, "config.json"))
    assert config.read_bytes() == b"{}"
    assert not list(path.resolve().parent.glob("*llmgallery*"))


async def test_an_empty_file(hub: LoopbackHub, ours: Hub):
    hub.add(REPO, "empty.txt", b"", lfs=False)
    (path,) = await ours.ensure(HubReference(REPO, "empty.txt"))
    assert path.read_bytes() == b""


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(cuts=st.lists(st.integers(0, SIZE - 1), min_size=1, max_size=4), expire=st.booleans())
async def test_resumes_wherever_it_was_cut(hub: LoopbackHub, cuts: list[int], expire: bool):
    hub.add(REPO, FILE, WEIGHTS)
    hub.bytes_sent.clear()
    with tempfile.TemporaryDirectory() as folder:
        for cut in cuts:
            hub.cut(FILE, after=cut)
        if expire:
            hub.expire_links()
        ours = Hub(HubSettings(hub.url, Path(folder), attempts=6), sleep=Pauses())
        (path,) = await ours.ensure(REF)
        assert path.read_bytes() == WEIGHTS
        await ours.aclose()
    hub._faults.clear()
    assert hub.sent(FILE) == SIZE


async def test_resumes_with_a_fresh_link_and_the_storages_validator(hub: LoopbackHub, ours: Hub):
    hub.add(REPO, FILE, WEIGHTS)
    hub.cut(FILE, after=1000)
    await ours.ensure(REF)
    first, second = hub.seen("GET", host="storage")
    assert second.headers["Range"] == "bytes=1000-" and second.status == 206
    assert second.headers["If-Range"].endswith('-2"')
    assert "Range" not in first.headers
    assert len(hub.seen("HEAD")) == 2


async def test_links_of_later_parts_may_expire_meanwhile(hub: LoopbackHub, ours: Hub):
    for number in (1, 2):
        hub.add(REPO, f"m-0000{number}-of-00002.gguf", WEIGHTS + bytes([number]))
    release = hub.hold("m-00001-of-00002.gguf", after=1000)
    ensure = asyncio.create_task(ours.ensure(HubReference(REPO, "m-00001-of-00002.gguf")))
    await asyncio.to_thread(hub.wait_for_bytes, "m-00001-of-00002.gguf", 1000)
    hub.expire_links()
    release.set()
    paths = await ensure
    assert [path.read_bytes()[-1] for path in paths] == [1, 2]
    assert [seen.status for seen in hub.seen("GET", host="storage")] == [200, 403, 200]


CHILD = """
import asyncio, sys
from llmgallery.catalog.download import disk_error
from llmgallery.catalog.hub import Hub
from llmgallery.catalog.reference import parse_reference
print(asyncio.run(Hub().ensure(parse_reference(sys.argv[1])))[0])
"""


def start_child(hub: LoopbackHub, cache: Path) -> subprocess.Popen[str]:
    env = {**os.environ, "HF_ENDPOINT": hub.url, "HF_HOME": str(cache), "HF_TOKEN": ""}
    for name in ("HF_HUB_CACHE", "HUGGINGFACE_HUB_CACHE", "HF_HUB_OFFLINE"):
        env.pop(name, None)
    return subprocess.Popen([sys.executable, "-c", CHILD, str(REF)], env=env, stdout=subprocess.PIPE, text=True)


def test_resumes_after_sigkill_in_another_process(hub: LoopbackHub, tmp_path: Path):
    hub.add(REPO, FILE, WEIGHTS)
    hub.hold(FILE, after=400_000)
    part = RepoCache(tmp_path / "hub", REPO).partial(etag_of(hub))
    with start_child(hub, tmp_path) as child:
        hub.wait_for_bytes(FILE, 400_000)
        until(lambda: part.exists() and part.stat().st_size == 400_000)
        child.send_signal(signal.SIGKILL)
        assert child.wait(20) == -signal.SIGKILL
    with start_child(hub, tmp_path) as child:
        printed, _ = child.communicate(timeout=60)
    assert Path(printed.strip()).read_bytes() == WEIGHTS
    _held, resumed = hub.seen("GET", host="storage")
    assert resumed.headers["Range"] == "bytes=400000-"
    assert resumed.status == 206
    assert not part.exists()


def test_two_processes_download_once(hub: LoopbackHub, tmp_path: Path):
    hub.add(REPO, FILE, WEIGHTS)
    release = hub.hold(FILE, after=1000)
    with start_child(hub, tmp_path) as one, start_child(hub, tmp_path) as other:
        until(lambda: len(hub.seen("HEAD")) == 2 and len(hub.seen("GET")) == 1)
        release.set()
        paths = {child.communicate(timeout=60)[0].strip() for child in (one, other)}
    assert Path(paths.pop()).read_bytes() == WEIGHTS and not paths
    assert hub.sent(FILE) == SIZE


async def test_closing_keeps_what_has_come(hub: LoopbackHub, hub_settings: HubSettings):
    hub.add(REPO, FILE, WEIGHTS)
    release = hub.hold(FILE, after=123_456)
    ours = Hub(hub_settings)
    waiter = asyncio.create_task(ours.ensure(REF))
    part, journal = partial_of(hub_settings, etag_of(hub))
    await asyncio.to_thread(until, lambda: part.exists() and part.stat().st_size == 123_456)
    await ours.aclose()
    with pytest.raises(Exception, match="stopped"):
        await waiter
    release.set()
    assert json.loads(journal.read_bytes())["size"] == SIZE
    again = Hub(hub_settings)
    (path,) = await again.ensure(REF)
    await again.aclose()
    assert path.read_bytes() == WEIGHTS
    assert hub.seen("GET", host="storage")[1].headers["Range"] == "bytes=123456-"


async def test_a_damaged_partial_is_discarded_and_fetched_again(hub: LoopbackHub, ours: Hub, hub_settings: HubSettings):
    hub.add(REPO, FILE, WEIGHTS)
    hub.fail(404, name=FILE, host="storage", times=5)
    with pytest.raises(HubUnavailable):
        await ours.ensure(REF)
    part, journal = partial_of(hub_settings, etag_of(hub))
    part.write_bytes(b"x" * 5000)
    journal.write_text(json.dumps({"repo": REPO, "file": FILE, "commit": "c", "etag": etag_of(hub), "size": SIZE}))
    (path,) = await ours.ensure(REF)
    assert path.read_bytes() == WEIGHTS
    assert [seen.status for seen in hub.seen("GET", host="storage")][-2:] == [206, 200]


@pytest.mark.parametrize("journal", [None, "nonsense", "\udcff", "[" * 100_000, {"etag": "0" * 64}, {"size": 1}])
async def test_a_partial_without_its_journal_does_not_count(
    hub: LoopbackHub, ours: Hub, hub_settings: HubSettings, journal: object
):
    hub.add(REPO, FILE, WEIGHTS)
    part, path = partial_of(hub_settings, etag_of(hub))
    part.parent.mkdir(parents=True)
    part.write_bytes(WEIGHTS[:5000])
    if isinstance(journal, dict):
        journal = json.dumps({"repo": REPO, "file": FILE, "commit": "c", "etag": etag_of(hub), "size": SIZE} | journal)
    if journal:
        path.write_text(str(journal), errors="surrogateescape")
    await ours.ensure(REF)
    assert "Range" not in hub.seen("GET", host="storage")[0].headers


async def test_a_partial_longer_than_the_file_does_not_count(hub: LoopbackHub, ours: Hub, hub_settings: HubSettings):
    hub.add(REPO, FILE, WEIGHTS)
    part, path = partial_of(hub_settings, etag_of(hub))
    part.parent.mkdir(parents=True)
    part.write_bytes(WEIGHTS + b"more")
    path.write_text(json.dumps({"repo": REPO, "file": FILE, "commit": "c", "etag": etag_of(hub), "size": SIZE}))
    (got,) = await ours.ensure(REF)
    assert got.read_bytes() == WEIGHTS


async def test_a_complete_partial_needs_no_bytes(hub: LoopbackHub, ours: Hub, hub_settings: HubSettings):
    hub.add(REPO, FILE, WEIGHTS)
    part, path = partial_of(hub_settings, etag_of(hub))
    part.parent.mkdir(parents=True)
    part.write_bytes(WEIGHTS)
    path.write_text(json.dumps({"repo": REPO, "file": FILE, "commit": "c", "etag": etag_of(hub), "size": SIZE}))
    (got,) = await ours.ensure(REF)
    assert got.read_bytes() == WEIGHTS
    assert hub.seen("GET") == []


async def test_200_instead_of_206_starts_over(hub: LoopbackHub, ours: Hub):
    hub.add(REPO, FILE, WEIGHTS)
    hub.cut(FILE, after=70_000)
    hub.ignore_range(FILE)
    (path,) = await ours.ensure(REF)
    assert path.read_bytes() == WEIGHTS
    assert [seen.status for seen in hub.seen("GET", host="storage")] == [200, 200]


async def test_416_starts_over(hub: LoopbackHub, ours: Hub):
    hub.add(REPO, FILE, WEIGHTS)
    hub.cut(FILE, after=70_000)
    hub.fail(416, name=FILE, host="storage", after=1)
    (path,) = await ours.ensure(REF)
    assert path.read_bytes() == WEIGHTS
    assert [seen.status for seen in hub.seen("GET", host="storage")] == [200, 416, 200]


@pytest.mark.parametrize("lfs", [True, False])
async def test_wrong_bytes_once_are_fetched_again(hub: LoopbackHub, ours: Hub, lfs: bool):
    hub.add(REPO, FILE, WEIGHTS, lfs=lfs)
    hub.corrupt(FILE)
    (path,) = await ours.ensure(REF)
    assert path.read_bytes() == WEIGHTS
    assert hub.sent(FILE) == 2 * SIZE


@pytest.mark.parametrize("lfs", [True, False])
async def test_wrong_bytes_twice_are_an_error_that_leaves_nothing(
    hub: LoopbackHub, ours: Hub, hub_settings: HubSettings, lfs: bool
):
    hub.add(REPO, FILE, WEIGHTS, lfs=lfs)
    hub.corrupt(FILE, times=2)
    with pytest.raises(HubCorrupt, match="checksum"):
        await ours.ensure(REF)
    assert list((RepoCache(hub_settings.cache_dir, REPO).folder / "blobs").iterdir()) == []
    assert ours.cached(REF) is None
    (path,) = await ours.ensure(REF)
    assert path.read_bytes() == WEIGHTS


async def test_no_space_is_told_before_byte_one(hub: LoopbackHub, hub_settings: HubSettings):
    hub.add(REPO, FILE, WEIGHTS)
    ours = Hub(hub_settings, free_bytes=lambda folder: 65_000_000)
    with pytest.raises(NoSpace) as caught:
        await ours.ensure(REF)
    await ours.aclose()
    assert "65,000,000" in caught.value.message and f"{SIZE + (64 << 20):,}" in caught.value.message
    assert str(hub_settings.cache_dir) in caught.value.message
    assert hub.seen("GET") == []


async def test_what_is_here_already_needs_no_space(hub: LoopbackHub, hub_settings: HubSettings):
    hub.add(REPO, FILE, WEIGHTS)
    part, path = partial_of(hub_settings, etag_of(hub))
    part.parent.mkdir(parents=True)
    part.write_bytes(WEIGHTS[:-1000])
    path.write_text(json.dumps({"repo": REPO, "file": FILE, "commit": "c", "etag": etag_of(hub), "size": SIZE}))
    ours = Hub(hub_settings, free_bytes=lambda folder: (64 << 20) + 1000)
    (got,) = await ours.ensure(REF)
    await ours.aclose()
    assert got.read_bytes() == WEIGHTS


async def test_a_split_model_is_too_large_as_a_whole(hub: LoopbackHub, hub_settings: HubSettings):
    for number in (1, 2):
        hub.add(REPO, f"m-0000{number}-of-00002.gguf", WEIGHTS + bytes([number]))
    ours = Hub(hub_settings, free_bytes=lambda folder: (64 << 20) + SIZE + 10)
    with pytest.raises(NoSpace):
        await ours.ensure(HubReference(REPO, "m-00001-of-00002.gguf"))
    await ours.aclose()
    assert hub.seen("GET") == []


async def test_a_cache_that_cannot_be_written(hub: LoopbackHub, tmp_path: Path):
    hub.add(REPO, FILE, WEIGHTS)
    (tmp_path / "file").write_text("in the way")
    ours = Hub(HubSettings(hub.url, tmp_path / "file"))
    with pytest.raises(HubError, match="cannot write"):
        await ours.ensure(REF)
    await ours.aclose()


async def test_a_write_that_fails_leaves_a_good_beginning(hub: LoopbackHub, ours: Hub, hub_settings: HubSettings):
    hub.add(REPO, FILE, WEIGHTS)
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, limits[1]))
    try:
        with pytest.raises(HubError, match="File too large"):
            await ours.ensure(REF)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    part, _ = partial_of(hub_settings, etag_of(hub))
    assert part.read_bytes() == WEIGHTS[:100_000]
    (path,) = await ours.ensure(REF)
    assert path.read_bytes() == WEIGHTS
    assert hub.seen("GET", host="storage")[1].headers["Range"] == "bytes=100000-"


def test_a_full_disk_is_no_space(tmp_path: Path):
    assert isinstance(disk_error(OSError(errno.ENOSPC, "No space left on device"), tmp_path), NoSpace)
    assert not isinstance(disk_error(OSError(errno.EACCES, "Permission denied"), tmp_path), NoSpace)


async def test_a_silent_connection_is_left_and_resumed(hub: LoopbackHub, tmp_path: Path, pauses: Pauses):
    hub.add(REPO, FILE, WEIGHTS)
    release = hub.hold(FILE, after=200_000)
    ours = Hub(HubSettings(hub.url, tmp_path, stall=0.2), sleep=pauses)
    (path,) = await ours.ensure(REF)
    release.set()
    await ours.aclose()
    assert path.read_bytes() == WEIGHTS
    assert hub.seen("GET", host="storage")[1].headers["Range"] == "bytes=200000-"


async def test_busy_answers_are_waited_for_as_asked(hub: LoopbackHub, ours: Hub, pauses: Pauses):
    hub.add(REPO, FILE, WEIGHTS)
    hub.fail(500, method="HEAD")
    hub.fail(503, method="HEAD")
    hub.fail(429, method="HEAD", headers={"Retry-After": "7"})
    hub.fail(429, method="GET", headers={"Retry-After": "900"})
    (path,) = await ours.ensure(REF)
    assert path.read_bytes() == WEIGHTS
    assert pauses.seconds == [1.0, 2.0, 7.0, 60.0]


async def test_cuts_with_progress_do_not_use_up_the_attempts(hub: LoopbackHub, tmp_path: Path, pauses: Pauses):
    hub.add(REPO, FILE, WEIGHTS)
    hub.cut(FILE, after=50_000, times=8)
    ours = Hub(HubSettings(hub.url, tmp_path, attempts=2), sleep=pauses)
    (path,) = await ours.ensure(REF)
    await ours.aclose()
    assert path.read_bytes() == WEIGHTS
    assert pauses.seconds == [1.0] * 8
    assert hub.sent(FILE) == SIZE


async def test_cuts_without_any_progress_end(hub: LoopbackHub, ours: Hub, pauses: Pauses):
    hub.add(REPO, FILE, WEIGHTS)
    hub.cut(FILE, after=0, times=99)
    with pytest.raises(HubUnavailable, match=r"connection to 127\.0\.0\.1 broke"):
        await ours.ensure(REF)
    assert len(hub.seen("GET", host="storage")) == 5
    assert pauses.seconds == [1.0, 2.0, 4.0, 8.0]


async def test_a_hub_that_is_no_hub(hub: LoopbackHub, tmp_path: Path, pauses: Pauses):
    hub.add(REPO, FILE, WEIGHTS)
    hub.fail(200, method="HEAD")
    ours = Hub(HubSettings(hub.url, tmp_path), sleep=pauses)
    with pytest.raises(HubUnavailable, match="does not answer like a Hub"):
        await ours.ensure(REF)
    await ours.aclose()


def test_a_disk_that_is_full_at_the_journal_leaves_no_half_of_one(tmp_path: Path):
    if not Path("/dev/full").exists():
        pytest.skip("no /dev/full here")
    place = Place(*(tmp_path / name for name in ("final", "part", "journal", "lock")), folder=tmp_path, mend="")
    (tmp_path / "journal.tmp").symlink_to("/dev/full")
    partial = Partial(place, Expected("x", "0" * 64, 7))
    partial.open()
    with pytest.raises(OSError, match="No space left"):
        partial.begin(None, 7)
    partial.discard()
    assert list(tmp_path.iterdir()) == []
