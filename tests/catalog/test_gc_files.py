"""gc finds what we brought here and nothing needs; whatever else there is stays, and nothing goes without --delete."""

from __future__ import annotations

import json
import os
import time
from pathlib import Path

import pytest
from installed_home import COMMIT, Home, git_sha1, sha256

from llmgallery.catalog.hub_cache import RepoCache
from llmgallery.catalog.index import Snapshot
from llmgallery.catalog.keep.gc import DAY, Garbage, collect, sweep
from llmgallery.catalog.locks import BlobLock
from llmgallery.core.errors import ConfigError

OTHER = "b" * 40


@pytest.fixture
def home(tmp_path: Path) -> Home:
    home = Home(tmp_path)
    home.install("big", [home.hub_file("m.gguf", b"weights"), home.hub_file("config.json", b"{}", lfs=False)])
    home.install("small", [home.stored_file("s.gguf", b"other weights")])
    RepoCache(home.cache, "owner/repo").write_ref("main", COMMIT)
    return home


def found(home: Home, *others: Home) -> list[Garbage]:
    served = {one.models: one.snapshot for one in (home, *others)}
    return collect([home.models], served, home.cache, home.data)


def shown(garbage: list[Garbage]) -> set[str]:
    return {item.path.name if item.path else f"lock:{item.name}" for item in garbage}


def remove_yaml(home: Home, name: str) -> None:
    (home.models / f"{name}.yaml").unlink()


def age(path: Path, seconds: float = DAY + 60) -> None:
    then = time.time() - seconds
    os.utime(path, (then, then), follow_symlinks=False)


def test_what_is_needed_is_no_garbage(home: Home) -> None:
    for path in home.models.rglob("*"):
        age(path)
    assert found(home) == []


def test_a_models_files_go_with_its_yaml_and_nothing_stays_of_them(home: Home) -> None:
    before = home.everything()
    remove_yaml(home, "big")
    remove_yaml(home, "small")
    garbage = found(home)
    names = {"lock:big", "lock:small", "s.gguf", "m.gguf", "config.json", sha256(b"weights"), git_sha1(b"{}")}
    assert shown(garbage) == names
    assert sum(item.size for item in garbage) == len(b"weights{}other weights")
    assert home.everything() == [path for path in before if not path.endswith(".yaml")], "finding touches nothing"
    assert sweep(garbage) == []
    assert [path for path in home.everything() if ".locks" not in path] == ["models/gallery.lock"]
    assert home.lock.read().models == {} and found(home) == []


def test_a_blob_that_another_snapshot_points_to_stays(home: Home) -> None:
    other = home.hub_file("same.gguf", b"weights", commit=OTHER)
    remove_yaml(home, "big")
    assert sweep(found(home)) == []
    assert home.folders.place(other).read_bytes() == b"weights"
    assert not (RepoCache(home.cache, "owner/repo").folder / "snapshots" / COMMIT).exists()
    assert not (RepoCache(home.cache, "owner/repo").folder / "refs").exists()


def test_a_file_that_another_models_lock_entry_or_yaml_needs_stays(home: Home) -> None:
    home.install("twin", [home.hub_file("m.gguf", b"weights")])
    remove_yaml(home, "big")
    assert shown(found(home)) == {"lock:big", "config.json", git_sha1(b"{}")}
    remove_yaml(home, "twin")
    (home.models / "mine.yaml").write_text("parameters: {model: owner/repo/m.gguf@main}\n")
    assert shown(found(home)) == {"lock:big", "lock:twin", "config.json", git_sha1(b"{}")}


@pytest.mark.parametrize("text", ["parameters: {model: 'owner/repo:Q4_K_M'}\n", "parameters: {model: owner/repo/m.gguf\n"])
def test_while_a_yaml_may_mean_any_file_of_a_repo_all_of_them_stay(home: Home, text: str) -> None:
    remove_yaml(home, "big")
    (home.models / "other.yaml").write_text(text)
    assert shown(found(home)) == {"lock:big"}


def test_a_yaml_of_another_folder_keeps_what_it_names(home: Home, tmp_path: Path) -> None:
    other = Home(tmp_path / "other")
    (other.models / "x.yaml").write_text("parameters: {model: owner/repo/m.gguf@main}\n")
    remove_yaml(home, "big")
    assert shown(found(home, other)) == {"lock:big", "config.json", git_sha1(b"{}")}


def test_other_peoples_files_in_the_cache_stay(home: Home) -> None:
    theirs = [home.hub_file("theirs.gguf", b"theirs"), home.hub_file("x.gguf", b"x", repo="some/body")]
    orphan = RepoCache(home.cache, "owner/repo").blob("f" * 64)
    orphan.write_bytes(b"nobody points here")
    remove_yaml(home, "big")
    sweep(found(home))
    assert [home.folders.place(file).read_bytes() for file in theirs] == [b"theirs", b"x"]
    assert orphan.exists()


def test_a_model_that_is_broken_or_disabled_still_needs_its_files(home: Home) -> None:
    (home.models / "big.yaml").write_text("name: big\nnonsense: [\n")
    (home.models / "small.yaml").write_text(f"name: small\ndisabled: true\n{(home.models / 'small.yaml').read_text()[14:]}")
    assert "small" in home.snapshot.disabled and "big" in home.snapshot.broken
    assert found(home) == []


def test_files_of_the_store_that_nothing_names_go_after_a_day(home: Home) -> None:
    fresh, old = (home.folders.place(home.stored_file(name, name.encode())) for name in ("fresh.gguf", "old.gguf"))
    part = old.with_name("old.gguf.llmgallery.part")
    part.write_bytes(b"..")
    for path in (old, part):
        age(path)
    garbage = found(home)
    assert shown(garbage) == {"old.gguf", "old.gguf.llmgallery.part"}
    assert {item.reason for item in garbage} == {"nothing names it", "a download that nobody goes on with"}
    sweep(garbage)
    assert fresh.exists() and not old.parent.exists()


def test_what_a_yaml_names_without_a_lock_entry_stays(home: Home) -> None:
    home.lock.update("small", None)
    age(home.folders.place(home.stored_file("s.gguf", b"other weights")))
    assert found(home) == []


@pytest.mark.parametrize(("journal", "kept"), [("downloading", True), ("done", False), (None, True)])
def test_what_a_running_install_names_stays(home: Home, journal: str | None, kept: bool) -> None:
    file = home.stored_file("new.gguf", b"new")
    age(home.folders.place(file))
    body = json.dumps({"state": {"phase": journal}, "plan": {"files": [{"path": file.path}]}})
    (home.data / "jobs").mkdir(parents=True)
    (home.data / "jobs" / "1.json").write_text(body if journal else body[:-5])
    assert shown(found(home)) == (set() if kept else {"new.gguf"})


def test_partial_downloads_of_ours_go_after_a_day_unless_they_are_held(home: Home) -> None:
    repo = RepoCache(home.cache, "some/body")
    repo.partial("1" * 64).parent.mkdir(parents=True)
    theirs = repo.blob("2" * 64 + ".incomplete")
    for path in (repo.partial("1" * 64), repo.journal("1" * 64), theirs):
        path.write_bytes(b"..")
    assert found(home) == []
    for path in (repo.partial("1" * 64), repo.journal("1" * 64), theirs):
        age(path)
    garbage = found(home)
    assert shown(garbage) == {repo.partial("1" * 64).name, repo.journal("1" * 64).name}
    lock = BlobLock(repo.lock("1" * 64))
    assert lock.acquire()
    assert [reason for _, reason in sweep(garbage)] == ["it is being downloaded"] * 2
    lock.release()
    assert sweep(garbage) == []
    assert theirs.exists() and not repo.partial("1" * 64).exists()


def test_who_is_stopped_in_the_midst_of_deleting_can_begin_again(home: Home) -> None:
    remove_yaml(home, "big")
    garbage = found(home)
    for done in range(1, len(garbage)):
        sweep(garbage[:done])
        assert shown(found(home)) == shown(garbage[done:])
    sweep(found(home))
    assert home.lock.read().models.keys() == {"small"}


def test_an_entry_stays_while_a_file_of_it_does(home: Home) -> None:
    remove_yaml(home, "big")
    repo = RepoCache(home.cache, "owner/repo")
    lock = BlobLock(repo.lock(sha256(b"weights")))
    assert lock.acquire()
    failed = sweep(found(home))
    lock.release()
    assert [reason for _, reason in failed] == ["it is being downloaded", "files of it are still there"]
    assert repo.blob(sha256(b"weights")).exists() and "big" in home.lock.read().models
    assert sweep(found(home)) == [] and not repo.folder.exists()


def test_links_are_not_followed_out(home: Home, tmp_path: Path) -> None:
    away = tmp_path / "away"
    (away / "blobs").mkdir(parents=True)
    secret = away / "secret.gguf"
    secret.write_bytes(b"weights")
    for path in (secret, away):
        age(path)
    (home.models / ".files" / "linked").symlink_to(away)
    pointer = RepoCache(home.cache, "owner/repo").pointer(COMMIT, "m.gguf")
    pointer.unlink()
    pointer.symlink_to(secret)
    remove_yaml(home, "big")
    sweep(found(home))
    assert secret.read_bytes() == b"weights" and not pointer.is_symlink()


def test_a_store_or_a_repo_that_is_itself_a_link_is_left_alone(home: Home, tmp_path: Path) -> None:
    (home.models / ".files").rename(tmp_path / "store")
    (home.models / ".files").symlink_to(tmp_path / "store")
    repo = RepoCache(home.cache, "owner/repo").folder
    repo.rename(tmp_path / "repo")
    repo.symlink_to(tmp_path / "repo")
    remove_yaml(home, "big")
    remove_yaml(home, "small")
    assert shown(found(home)) == {"lock:big", "lock:small"}


def test_without_links_the_snapshots_file_itself_goes(home: Home) -> None:
    file = home.hub_file("copy.gguf", b"copied")
    home.install("copy", [file])
    place = home.folders.place(file)
    place.resolve().replace(place)
    remove_yaml(home, "copy")
    assert shown(found(home)) == {"lock:copy", "copy.gguf"}
    assert sum(item.size for item in found(home)) == 6
    sweep(found(home))
    assert not place.exists()


def test_a_broken_lock_stops_it(home: Home) -> None:
    home.lock.path.write_text("version: 1\nmodels: [\n")
    remove_yaml(home, "big")
    with pytest.raises(ConfigError, match=r"gallery\.lock:"):
        found(home)


def test_a_yaml_or_a_folder_that_cannot_be_read_stops_it(home: Home) -> None:
    (home.models / "dangling.yaml").symlink_to("nowhere")
    with pytest.raises(ConfigError, match=r"dangling\.yaml cannot be read .*what it needs is not known"):
        found(home)
    (home.models / "dangling.yaml").unlink()
    (home.data / "models").parent.mkdir()
    (home.data / "models").write_text("no folder")
    served = {home.models: home.snapshot, home.data / "models": Snapshot()}
    with pytest.raises(ConfigError, match="cannot be read"):
        collect([home.models], served, home.cache, home.data)


def test_a_folder_that_is_not_there_needs_nothing(home: Home) -> None:
    served = {home.models: home.snapshot, home.data / "models": Snapshot()}
    assert collect([home.models, home.data / "models"], served, home.cache, home.data) == []


def test_what_cannot_be_deleted_is_told_and_the_rest_goes(home: Home) -> None:
    remove_yaml(home, "small")
    garbage = found(home)
    folder = home.models / "folder"
    folder.mkdir()
    failed = sweep([Garbage(home.models, folder, 0, "no file"), *garbage])
    assert [item.path for item, _ in failed] == [folder]
    assert home.lock.read().models.keys() == {"big"}
