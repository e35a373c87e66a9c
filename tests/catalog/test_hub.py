"""What the Hub class promises: one download for all, the cache shared with huggingface_hub, errors that say what to do."""

from __future__ import annotations

import asyncio
import subprocess
import sys
from pathlib import Path

import pytest
from huggingface_hub import hf_hub_download, try_to_load_from_cache
from huggingface_hub.utils import WeakFileLock
from loopback_hub import LoopbackHub

from llmgallery.catalog.hub import Hub
from llmgallery.catalog.hub_cache import RepoCache
from llmgallery.catalog.hub_settings import HubSettings
from llmgallery.catalog.reference import HubReference
from llmgallery.core.errors import Cancelled, ConfigError, HubNotFound, HubOffline, HubUnavailable

REPO = "someone/model-GGUF"
FILE = "sub/model.Q4_K_M.gguf"
REF = HubReference(REPO, FILE)
WEIGHTS = bytes(range(256)) * 1000


def everything(folder: Path, pattern: str = "*") -> list[Path]:
    return list(folder.rglob(pattern))


# One download for all


async def test_ten_callers_share_one_download(hub: LoopbackHub, ours: Hub):
    hub.add(REPO, FILE, WEIGHTS)
    told: list[list[tuple[int, int]]] = [[] for _ in range(10)]
    paths = await asyncio.gather(*(ours.ensure(REF, lambda *now, mine=mine: mine.append(now)) for mine in told))
    assert paths[0][0].read_bytes() == WEIGHTS
    assert all(path == paths[0] for path in paths)
    assert hub.sent(FILE) == len(WEIGHTS)
    assert len(hub.requests) == 2
    assert all(mine[-1] == (len(WEIGHTS), len(WEIGHTS)) for mine in told)


async def test_the_first_of_ten_leaves_and_nine_are_answered(hub: LoopbackHub, ours: Hub):
    hub.add(REPO, FILE, WEIGHTS)
    release = hub.hold(FILE, after=1000)
    waiters = [asyncio.create_task(ours.ensure(REF)) for _ in range(10)]
    await asyncio.to_thread(hub.wait_for_bytes, FILE, 1000)
    waiters[0].cancel()
    with pytest.raises(asyncio.CancelledError):
        await waiters[0]
    release.set()
    paths = await asyncio.gather(*waiters[1:])
    assert all(path[0].read_bytes() == WEIGHTS for path in paths)
    assert hub.sent(FILE) == len(WEIGHTS)


async def test_a_download_goes_on_when_everybody_has_left(hub: LoopbackHub, ours: Hub):
    hub.add(REPO, FILE, WEIGHTS)
    release = hub.hold(FILE, after=1000)
    waiter = asyncio.create_task(ours.ensure(REF))
    await asyncio.to_thread(hub.wait_for_bytes, FILE, 1000)
    waiter.cancel()
    with pytest.raises(asyncio.CancelledError):
        await waiter
    late = asyncio.create_task(ours.ensure(REF))
    release.set()
    assert (await late)[0].read_bytes() == WEIGHTS
    assert hub.sent(FILE) == len(WEIGHTS)


async def test_a_failure_reaches_all_and_is_not_kept(hub: LoopbackHub, ours: Hub):
    hub.add(REPO, FILE, WEIGHTS)
    hub.fail(500, times=5)
    answers = await asyncio.gather(ours.ensure(REF), ours.ensure(REF), return_exceptions=True)
    assert all(isinstance(answer, HubUnavailable) for answer in answers)
    assert (await ours.ensure(REF))[0].read_bytes() == WEIGHTS


async def test_two_names_of_one_file_download_it_once(hub: LoopbackHub, ours: Hub):
    hub.add(REPO, FILE, WEIGHTS)
    first, second = await asyncio.gather(ours.ensure(REF), ours.ensure(HubReference(REPO, quant="q4_k_m")))
    assert first == second
    assert hub.sent(FILE) == len(WEIGHTS)


async def test_a_caller_whose_callback_fails_harms_only_itself(hub: LoopbackHub, ours: Hub):
    hub.add(REPO, FILE, WEIGHTS)

    def breaks(done: int, total: int) -> None:
        raise ZeroDivisionError

    bad, good = await asyncio.gather(ours.ensure(REF, breaks), ours.ensure(REF), return_exceptions=True)
    assert isinstance(bad, ZeroDivisionError)
    assert isinstance(good, list)


async def test_closing_answers_who_waits(hub: LoopbackHub, ours: Hub):
    hub.add(REPO, FILE, WEIGHTS)
    hub.hold(FILE, after=1000)
    waiter = asyncio.create_task(ours.ensure(REF))
    await asyncio.to_thread(hub.wait_for_bytes, FILE, 1000)
    await ours.aclose()
    with pytest.raises(Cancelled):
        await waiter


# The cache, shared with huggingface_hub


async def test_huggingface_hub_finds_what_we_downloaded(hub: LoopbackHub, ours: Hub, cache: Path):
    commit = hub.add(REPO, FILE, WEIGHTS)
    (path,) = await ours.ensure(REF)
    assert try_to_load_from_cache(REPO, FILE, cache_dir=cache) == str(path)
    for revision in ("main", commit):
        assert hf_hub_download(REPO, FILE, revision=revision, cache_dir=cache, local_files_only=True) == str(path)


async def test_we_find_what_huggingface_hub_downloaded(hub: LoopbackHub, ours: Hub, cache: Path):
    commit = hub.add(REPO, FILE, WEIGHTS)
    theirs = await asyncio.to_thread(hf_hub_download, REPO, FILE, endpoint=hub.url, cache_dir=cache, token=False)
    hub.requests.clear()
    assert ours.cached(REF) == [Path(theirs)]
    assert await ours.ensure(HubReference(REPO, FILE, revision=commit)) == [Path(theirs)]
    assert await ours.ensure(HubReference(REPO, quant="Q4_K_M", revision=commit)) == [Path(theirs)]
    assert hub.requests == []
    assert await ours.ensure(REF) == [Path(theirs)]
    assert [seen.method for seen in hub.requests] == ["HEAD"]


async def test_a_blob_of_another_commit_is_used_again(hub: LoopbackHub, ours: Hub):
    hub.add(REPO, FILE, WEIGHTS)
    (before,) = await ours.ensure(REF)
    commit = hub.add(REPO, "README.md", b"# New", lfs=False)
    (after,) = await ours.ensure(REF)
    assert after != before and after.parent.parent.name == commit
    assert after.resolve() == before.resolve()
    assert hub.sent(FILE) == len(WEIGHTS)


async def test_waits_for_huggingface_hubs_lock(hub: LoopbackHub, ours: Hub, cache: Path):
    hub.add(REPO, FILE, WEIGHTS)
    etag = hub.repos[REPO].commits[hub.commit(REPO)][FILE].etag
    theirs = RepoCache(cache, REPO)
    theirs.locks.mkdir(parents=True)
    code = (
        "import sys\nfrom huggingface_hub.utils import WeakFileLock\nwith WeakFileLock(sys.argv[1]):\n print(flush=True); input()"
    )
    with subprocess.Popen(  # noqa: ASYNC220
        [sys.executable, "-c", code, str(theirs.lock(etag))], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as holder:
        assert holder.stdin and holder.stdout
        await asyncio.to_thread(holder.stdout.readline)
        waiter = asyncio.create_task(ours.ensure(REF))
        await asyncio.to_thread(hub.wait_for_requests, 1)
        done, _ = await asyncio.wait({waiter}, timeout=0.2)
        assert not done and not hub.seen("GET")
        theirs.blob(etag).parent.mkdir(parents=True, exist_ok=True)
        theirs.blob(etag).write_bytes(WEIGHTS)
        holder.stdin.close()
        (path,) = await waiter
    assert path.read_bytes() == WEIGHTS
    assert not hub.seen("GET")


async def test_the_lock_is_held_while_downloading_and_free_after(hub: LoopbackHub, ours: Hub, cache: Path):
    hub.add(REPO, FILE, WEIGHTS)
    release = hub.hold(FILE, after=1000)
    waiter = asyncio.create_task(ours.ensure(REF))
    await asyncio.to_thread(hub.wait_for_bytes, FILE, 1000)
    (lock,) = RepoCache(cache, REPO).locks.iterdir()
    with pytest.raises(TimeoutError), WeakFileLock(lock, timeout=0.1):
        pass
    release.set()
    await waiter
    with WeakFileLock(lock, timeout=5):
        pass


async def test_without_symlinks_the_file_is_moved(hub: LoopbackHub, ours: Hub, cache: Path, monkeypatch: pytest.MonkeyPatch):
    hub.add(REPO, FILE, WEIGHTS)

    def refuse(self: Path, target: str) -> None:
        raise OSError("no symlinks on this disk")

    monkeypatch.setattr(Path, "symlink_to", refuse)
    (path,) = await ours.ensure(REF)
    assert path.read_bytes() == WEIGHTS and not path.is_symlink()
    assert ours.cached(REF) == [path]
    assert try_to_load_from_cache(REPO, FILE, cache_dir=cache) == str(path)


async def test_a_branch_that_moved_is_followed(hub: LoopbackHub, ours: Hub, cache: Path):
    hub.add(REPO, FILE, WEIGHTS)
    await ours.ensure(REF)
    commit = hub.add(REPO, FILE, WEIGHTS[::-1])
    (path,) = await ours.ensure(REF)
    assert path.read_bytes() == WEIGHTS[::-1]
    assert RepoCache(cache, REPO).commit("main") == commit


async def test_a_revision_with_a_slash(hub: LoopbackHub, ours: Hub):
    hub.add(REPO, FILE, WEIGHTS, revision="refs/pr/1")
    ref = HubReference(REPO, FILE, revision="refs/pr/1")
    assert await ours.ensure(ref) == ours.cached(ref)


# When the Hub is away


async def test_a_cached_branch_serves_while_the_hub_is_down(hub: LoopbackHub, ours: Hub):
    hub.add(REPO, FILE, WEIGHTS)
    paths = await ours.ensure(REF)
    hub.fail(503, times=99)
    assert await ours.ensure(REF) == paths
    assert await ours.ensure(HubReference(REPO)) == paths
    assert len(hub.seen("HEAD")) == 2


@pytest.mark.parametrize("host", ["127.0.0.1:9", "no-such-hub.invalid"])
async def test_without_any_connection_nobody_waits_long(cache: Path, host: str):
    pauses: list[float] = []

    async def keep(seconds: float) -> None:
        pauses.append(seconds)

    ours = Hub(HubSettings(f"http://{host}", cache), sleep=keep)
    with pytest.raises(HubUnavailable, match=rf"http://{host} cannot be reached"):
        await ours.ensure(REF)
    await ours.aclose()
    assert pauses == [0.5, 0.5]


async def test_offline_serves_the_cache_and_nothing_else(hub: LoopbackHub, ours: Hub, cache: Path):
    hub.add(REPO, FILE, WEIGHTS)
    paths = await ours.ensure(REF)
    hub.requests.clear()
    offline = Hub(HubSettings(hub.url, cache, offline=True))
    assert await offline.ensure(REF) == paths
    assert await offline.ensure(HubReference(REPO)) == paths
    with pytest.raises(HubOffline, match="HF_HUB_OFFLINE"):
        await offline.ensure(HubReference(REPO, "other.gguf"))
    with pytest.raises(HubOffline):
        await offline.list_files(REPO)
    await offline.aclose()
    assert hub.requests == []


# Choosing


async def test_choosing_by_quantisation_and_all_parts(hub: LoopbackHub, ours: Hub):
    hub.add(REPO, "README.md", b"# Model", lfs=False)
    hub.add(REPO, "model-Q4_0.gguf", WEIGHTS)
    for number in (1, 2, 3):
        hub.add(REPO, f"Q8_0/model-Q8_0-0000{number}-of-00003.gguf", WEIGHTS + bytes([number]))
    totals: set[int] = set()
    paths = await ours.ensure(HubReference(REPO, quant="q8_0"), lambda done, total: totals.add(total))
    assert [path.read_bytes()[-1] for path in paths] == [1, 2, 3]
    assert totals == {3 * (len(WEIGHTS) + 1)}
    with pytest.raises(HubNotFound) as caught:
        await ours.ensure(HubReference(REPO))
    assert "model-Q4_0.gguf" in caught.value.hints and "model-Q4_0.gguf" in caught.value.message
    commit, files = await ours.list_files(REPO)
    assert commit == hub.commit(REPO) and "README.md" in files


async def test_what_is_cached_does_not_decide_what_a_bare_repo_means(hub: LoopbackHub, ours: Hub):
    hub.add(REPO, "model.Q8_0.gguf", WEIGHTS)
    commit = hub.add(REPO, "model.Q4_K_M.gguf", WEIGHTS[::-1])
    (cached,) = await ours.ensure(HubReference(REPO, "model.Q8_0.gguf", revision=commit))
    assert ours.cached(HubReference(REPO, revision=commit)) == [cached]
    (path,) = await ours.ensure(HubReference(REPO, revision=commit))
    assert path.name == "model.Q4_K_M.gguf"
    hub.requests.clear()
    assert await ours.ensure(HubReference(REPO, revision=commit)) == [path]
    assert hub.requests == []


async def test_names_that_leave_the_repo_are_refused(hub: LoopbackHub, ours: Hub, cache: Path):
    hub.add(REPO, "../../../../evil.gguf", WEIGHTS)
    hub.add(REPO, "/etc/evil.gguf", WEIGHTS)
    with pytest.raises(HubNotFound):
        await ours.ensure(HubReference(REPO))
    assert (await ours.list_files(REPO))[1] == []
    with pytest.raises(ConfigError):
        RepoCache(cache, REPO).pointer("0" * 40, "../../evil.gguf")
    assert not everything(cache, "*evil*")


@pytest.mark.parametrize("headers", [{"ETag": '"../../evil"'}, {"X-Repo-Commit": "../../evil"}, {"ETag": '".."'}])
async def test_header_values_never_become_paths(hub: LoopbackHub, ours: Hub, cache: Path, headers: dict[str, str]):
    hub.add(REPO, FILE, WEIGHTS)
    hub.fail(200, method="HEAD", headers={"X-Repo-Commit": "0" * 40, "ETag": '"abc"', "Content-Length": "0"} | headers)
    with pytest.raises(HubUnavailable, match="does not answer like a Hub"):
        await ours.ensure(REF)
    assert not everything(cache)
