"""Where files of installs lie, and the locks between processes."""

from __future__ import annotations

import asyncio
import threading
import uuid
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from llmgallery.catalog.install.job import Asked
from llmgallery.catalog.install.journal import Journals, Record
from llmgallery.catalog.install.plan import InstallPlan, PlannedFile
from llmgallery.catalog.install.store import Store, install_folder
from llmgallery.catalog.lock import Locked, LockedModel
from llmgallery.catalog.locks import FileLock, holding, take
from llmgallery.core.errors import ConfigError
from llmgallery.core.installs import Install

COMMIT = "0123456789" * 4


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(tmp_path / "models", tmp_path / "cache")


def plan(name: str = "tiny", yaml: str = "name: tiny\n") -> InstallPlan:
    return InstallPlan(name=name, source="test@tiny", yaml=yaml, files=(), backend="llama-cpp")


def test_installs_go_to_the_users_folder_and_to_ours_where_that_cannot_be_written(tmp_path: Path):
    assert install_folder(tmp_path / "not" / "there", tmp_path / "data") == tmp_path / "not" / "there"
    (tmp_path / "file").write_text("")
    assert install_folder(tmp_path / "file" / "models", tmp_path / "data") == tmp_path / "data" / "models"


def test_places(store: Store):
    hub = PlannedFile(uri=f"hf://owner/repo/sub/w.gguf@{COMMIT}", name="w.gguf")
    assert store.final(hub) == store.cache / "models--owner--repo" / "snapshots" / COMMIT / "sub" / "w.gguf"
    assert store.place(hub, "e" * 64).final == store.cache / "models--owner--repo" / "blobs" / ("e" * 64)
    web = PlannedFile(uri="https://host.invalid/w.gguf", name="w.gguf", path=".files/abc/w.gguf")
    assert store.final(web) == store.place(web, "x").final == store.folder / ".files" / "abc" / "w.gguf"
    kept = PlannedFile(uri=hub.uri, name="w.gguf", path=".files/abc/w.gguf")
    assert store.final(kept) == store.final(web) and store.hub(kept) == store.hub(hub)


def test_how_much_of_a_file_is_here(store: Store):
    web = PlannedFile(uri="https://host.invalid/w.gguf", name="w.gguf", path=".files/abc/w.gguf", sha256="a" * 64)
    place = store.place(web, "a" * 64)
    assert store.held(web) == 0 and store.begun(web) is None
    place.part.parent.mkdir(parents=True)
    place.part.write_bytes(b"123")
    assert store.held(web) == 0 and store.begun(web) == place
    place.journal.write_text(f'{{"etag": "{"a" * 64}", "size": 10}}')
    assert store.held(web) == 3
    place.final.write_bytes(b"1234567890")
    assert store.held(web) == 10 and store.present(web)


def test_the_yaml_is_written_whole_and_never_over_the_users(store: Store):
    path = store.write_yaml(plan(), Locked())
    assert path == store.folder / "tiny.yaml" and path.read_text() == "name: tiny\n"
    assert store.write_yaml(plan(), Locked()) == path
    with pytest.raises(ConfigError, match="not written by an install"):
        store.write_yaml(plan(yaml="name: tiny\nother: 1\n"), Locked())
    locked = Locked({"tiny": LockedModel(source="test@tiny", files=())})
    store.write_yaml(plan(yaml="name: tiny\nother: 1\n"), locked)
    assert sorted(item.name for item in store.folder.iterdir()) == ["tiny.yaml", "tiny.yaml.bak"]


def test_several_servers_may_write_the_same_yaml_at_once(store: Store):
    """With data folders of their own, no lock of jobs is between them."""
    names = [f"m{number}" for number in range(40)]
    begin = threading.Barrier(4)

    def write() -> None:
        for name in names:
            begin.wait(20)
            store.write_yaml(plan(name, f"name: {name}\n"), Locked())

    with ThreadPoolExecutor(begin.parties) as pool:
        for done in [pool.submit(write) for _ in range(begin.parties)]:
            done.result()
    assert sorted(item.name for item in store.folder.iterdir()) == sorted(f"{name}.yaml" for name in names)


def test_a_link_that_leads_nowhere_is_the_users_too(store: Store):
    store.folder.mkdir()
    (store.folder / "tiny.yaml").symlink_to("nowhere")
    with pytest.raises(ConfigError):
        store.write_yaml(plan(), Locked())


# Locks


def test_locks_of_one_path_exclude_each_other_and_leave_no_file(tmp_path: Path):
    one, other = FileLock(tmp_path / "a" / "x.lock", wait=0.0), FileLock(tmp_path / "a" / "x.lock", wait=0.0)
    assert one.acquire() and not other.acquire()
    one.release()
    assert other.acquire()
    other.release()
    other.release()
    assert list((tmp_path / "a").iterdir()) == []


def test_many_threads_take_turns_although_the_lock_file_comes_and_goes(tmp_path: Path):
    inside: list[int] = []
    most: list[int] = []

    def work() -> None:
        for _ in range(20):
            lock = FileLock(tmp_path / "x.lock", wait=20.0)
            assert lock.acquire()
            inside.append(1)
            most.append(len(inside))
            inside.pop()
            lock.release()

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert most == [1] * 80


async def test_who_is_cancelled_while_waiting_does_not_hold_the_lock(tmp_path: Path):
    held, wanted = FileLock(tmp_path / "x.lock"), FileLock(tmp_path / "x.lock")
    assert held.acquire()
    tries = asyncio.Event()
    waiter = asyncio.create_task(take(wanted, tries.set))
    await tries.wait()
    waiter.cancel()
    held.release()
    with pytest.raises(asyncio.CancelledError):
        await waiter
    async with holding(FileLock(tmp_path / "x.lock", wait=0.0)):
        assert (tmp_path / "x.lock").exists()
    assert not (tmp_path / "x.lock").exists()


def test_a_full_disk_leaves_no_half_of_a_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    if not Path("/dev/full").exists():
        pytest.skip("no /dev/full here")
    store, journals = Store(tmp_path, tmp_path / "cache"), Journals(tmp_path)
    monkeypatch.setattr(uuid, "uuid4", lambda: uuid.UUID(int=0))
    (tmp_path / f".{'0' * 32}.tmp").symlink_to("/dev/full")
    with pytest.raises(OSError, match="No space left"):
        store.write_yaml(plan("owl", "name: owl\n"), Locked())
    state = Install("0" * 32, "owl", created=1.0, updated=1.0)
    (tmp_path / f".{state.id}.json.tmp").symlink_to("/dev/full")
    with pytest.raises(ConfigError, match="No space left"):
        journals.write(Record(state=state, asked=Asked(reference="owl")))
    assert list(tmp_path.iterdir()) == []
