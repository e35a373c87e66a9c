"""verify reads the bytes: what differs from the lock is named, and nothing else fails it."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from installed_home import Home, git_sha1, sha256

from llmgallery.catalog.hub_cache import RepoCache
from llmgallery.catalog.keep.verify import Verified, verify


@pytest.fixture
def home(tmp_path: Path) -> Home:
    home = Home(tmp_path)
    home.install("big", [home.hub_file("m.gguf", b"weights"), home.hub_file("config.json", b"{}", lfs=False)])
    home.install("small", [home.stored_file("s.gguf", b"other weights")])
    return home


def verified(home: Home, *names: str, served: set[str] | None = None) -> Verified:
    return verify(home.lock.read(), home.folders, set(home.snapshot.entries) if served is None else served, names)


def test_files_as_locked_pass(home: Home) -> None:
    found = verified(home)
    assert found == Verified((), (), 3, len(b"weights{}other weights"))
    assert verified(home, "small").files == 1


def test_a_file_of_two_models_is_read_once(home: Home) -> None:
    home.install("twin", [home.hub_file("m.gguf", b"weights")])
    read: list[int] = []
    found = verify(home.lock.read(), home.folders, set(home.snapshot.entries), (), read.append)
    assert found.files == 3 and sum(read) == found.size


def test_other_bytes_of_the_same_size_are_named_with_both_digests(home: Home) -> None:
    blob = RepoCache(home.cache, "owner/repo").blob(sha256(b"weights"))
    blob.write_bytes(b"Weights")
    (difference,) = verified(home).differences
    assert (difference.model, difference.path, difference.found) == ("big", blob, (sha256(b"Weights"), 7))
    for part in (str(blob), sha256(b"Weights"), sha256(b"weights"), "delete it", "`llmgallery install big`"):
        assert part in str(difference)


def test_a_small_file_of_the_hub_is_checked_by_its_sha256_too(home: Home) -> None:
    RepoCache(home.cache, "owner/repo").blob(git_sha1(b"{}")).write_bytes(b"[]")
    (difference,) = verified(home, "big").differences
    assert difference.found == (sha256(b"[]"), 2)


def test_another_size_is_told_without_reading(home: Home) -> None:
    (stored,) = home.lock.read().models["small"].files
    os.truncate(home.folders.place(stored), 5)
    read: list[int] = []
    (difference,) = verify(home.lock.read(), home.folders, (), ("small",), read.append).differences
    assert difference.found == (None, 5) and not read
    assert "has 5 bytes, not 13 bytes" in str(difference)


def test_every_model_of_a_missing_file_is_told(home: Home) -> None:
    home.install("twin", [home.hub_file("m.gguf", b"weights")])
    RepoCache(home.cache, "owner/repo").blob(sha256(b"weights")).unlink()
    differences = verified(home).differences
    assert [difference.model for difference in differences] == ["big", "twin"]
    assert "is missing: `llmgallery install big` fetches it again" in str(differences[0])


@pytest.mark.parametrize("make", [Path.mkdir, lambda path: os.mkfifo(path)])
def test_what_is_no_regular_file_is_told_and_does_not_block(home: Home, make) -> None:
    (stored,) = home.lock.read().models["small"].files
    place = home.folders.place(stored)
    place.unlink()
    make(place)
    (difference,) = verified(home).differences
    assert "cannot be read" in str(difference)


def test_models_that_the_lock_does_not_know_and_entries_without_a_yaml_are_notes(home: Home) -> None:
    (home.models / "own.yaml").write_text("backend: echo\n")
    (home.models / "big.yaml").unlink()
    found = verified(home)
    assert not found.differences
    assert [note.partition(" ")[0] for note in found.notes] == ["own", "big"]
    assert "no YAML serves it" in found.notes[1]
    assert verified(home, "big").notes == ()
