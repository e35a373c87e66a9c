"""verify, gc, bundle and unbundle as a user has them: exit codes, what stdout and stderr say, a model that answers offline."""

from __future__ import annotations

import os
import time
from pathlib import Path

import pytest
from installed_home import COMMIT, Home, sha256
from terminal import llmgallery

from llmgallery.catalog.hub_cache import RepoCache

POCKET = next((Path(__file__).parent.parent.parent / "models").glob("*.gguf"))
YAML = f"name: answers\nparameters: {{model: owner/repo/pocket.gguf@{COMMIT}}}\n"
OFFLINE = {"HF_HUB_OFFLINE": "1", "HF_ENDPOINT": "http://127.0.0.1:1"}


@pytest.fixture
def home(tmp_path: Path) -> Home:
    """With the bundled model as one that came from the Hub."""
    home = Home(tmp_path / "here")
    home.install("answers", [home.hub_file("pocket.gguf", POCKET.read_bytes())], YAML)
    return home


@pytest.fixture
def away(tmp_path: Path) -> Home:
    return Home(tmp_path / "away")


def at(home: Home, *arguments: object, **env: str):
    return llmgallery(*arguments, cwd=home.models.parent, **env)


def test_a_model_answers_on_a_machine_without_a_network(home: Home, away: Home) -> None:
    packed = at(home, "bundle", "answers", "-o", "all.tar")
    assert packed.returncode == 0 and "all.tar: 1 model, 1 file, 4.9 MB" in packed.stderr
    first = at(away, "unbundle", "../here/all.tar")
    assert (first.returncode, first.stdout) == (0, "answers\n") and "1 new file, 4.9 MB" in first.stderr
    assert "all files were here" in at(away, "unbundle", "../here/all.tar").stderr
    checked = at(away, "verify", **OFFLINE)
    assert checked.returncode == 0 and "1 file, 4.9 MB: as locked" in checked.stderr
    answer = at(away, "run", "answers", "Who are you?", **OFFLINE)
    assert answer.returncode == 0 and "I am pocket" in answer.stdout, answer.stderr


def test_verify_fails_for_wrong_bytes_and_names_them(home: Home) -> None:
    blob = RepoCache(home.cache, "owner/repo").blob(sha256(POCKET.read_bytes()))
    data = bytearray(POCKET.read_bytes())
    data[-1] ^= 1
    blob.write_bytes(data)
    found = at(home, "verify")
    assert found.returncode == 1
    assert found.stdout.startswith("answers: ") and sha256(bytes(data)) in found.stdout and "1 difference" in found.stderr
    blob.unlink()
    assert "is missing" in at(home, "verify", "answers").stdout


def test_verify_notes_what_was_not_installed(home: Home) -> None:
    (home.models / "own.yaml").write_text("backend: echo\n")
    found = at(home, "verify")
    assert (found.returncode, found.stdout) == (0, "")
    assert "note: own is not in gallery.lock" in found.stderr


def test_verify_of_a_name_that_is_not_locked(home: Home) -> None:
    found = at(home, "verify", "pocket")
    assert found.returncode == 1 and "pocket is not in the gallery.lock of" in found.stderr and "answers" in found.stderr


@pytest.mark.parametrize("command", [("verify",), ("gc",), ("gc", "--delete"), ("bundle", "answers", "-o", "x.tar")])
def test_a_broken_lock_is_a_message_with_its_place(home: Home, command: tuple[str, ...]) -> None:
    home.lock.path.write_text("version: 1\nmodels: 3\n")
    found = at(home, *command)
    assert found.returncode == 1 and "models/gallery.lock:2:9: models: expected models by name" in found.stderr
    assert "Traceback" not in found.stderr and home.lock.path.read_text() == "version: 1\nmodels: 3\n"


def test_gc_tells_first_and_deletes_when_asked(home: Home) -> None:
    (home.models / "answers.yaml").unlink()
    found = at(home, "gc")
    rows = [line.split("\t") for line in found.stdout.splitlines()]
    assert [row[1:] for row in rows] == [["4.9 MB", "its model is gone"], ["0 B", "its model is gone"], ["", "no YAML serves it"]]
    assert "3 items, 4.9 MB: `llmgallery gc --delete` deletes them" in found.stderr
    assert Path(rows[0][0]).read_bytes() == POCKET.read_bytes()
    deleted = at(home, "gc", "--delete")
    assert deleted.returncode == 0 and deleted.stdout == found.stdout and "deleted 3 items, 4.9 MB" in deleted.stderr
    assert not (home.cache / "models--owner--repo").exists()
    assert "nothing to delete" in at(home, "gc").stderr


def test_gc_keeps_what_the_other_models_folder_needs(home: Home) -> None:
    """./models here; where it is not, the same user's folder is the one among the data."""
    (home.models / "answers.yaml").unlink()
    folder = home.data / "models"
    folder.mkdir(parents=True)
    (folder / "x.yaml").write_text(YAML)
    assert [line.split("\t")[2] for line in at(home, "gc").stdout.splitlines()] == ["no YAML serves it"]


def test_gc_finds_what_is_left_of_a_download(home: Home) -> None:
    part = RepoCache(home.cache, "some/body").partial("1" * 64)
    part.parent.mkdir(parents=True)
    part.write_bytes(b"..")
    then = time.time() - 90_000
    os.utime(part, (then, then))
    assert "a download that nobody goes on with" in at(home, "gc").stdout


def test_bundle_takes_aliases_and_several_names_for_one_model(home: Home) -> None:
    (home.models / "answers.yaml").write_text(f"{YAML}aliases: [assistant]\n")
    packed = at(home, "bundle", "assistant", "answers", "-o", "x.tar")
    assert "x.tar: 1 model, 1 file" in packed.stderr
    again = at(home, "bundle", "answers", "-o", "x.tar")
    assert again.returncode == 1 and "x.tar is there already" in again.stderr


def test_bundle_of_what_is_not_there(home: Home) -> None:
    found = at(home, "bundle", "answer", "-o", "x.tar")
    assert found.returncode == 1 and "answer" in found.stderr and not (home.models.parent / "x.tar").exists()
    (home.models / "answers.yaml").write_text("parameters: {model: owner/repo/other.gguf}\n")
    found = at(home, "bundle", "answers", "-o", "x.tar")
    assert found.returncode == 1 and "which is not downloaded" in found.stderr


def test_unbundle_of_what_is_no_bundle(away: Home) -> None:
    (away.models.parent / "x.tar").write_text("x" * 2000)
    found = at(away, "unbundle", "x.tar")
    assert found.returncode == 1 and "x.tar is no tar archive" in found.stderr and "Traceback" not in found.stderr
    assert list(away.models.iterdir()) == []


def test_unbundle_needs_the_folder_that_was_named(home: Home, away: Home) -> None:
    at(home, "bundle", "answers", "-o", "all.tar")
    found = at(away, "unbundle", "../here/all.tar", "--models-dir", "nowhere")
    assert found.returncode == 1 and "there is no models folder nowhere" in found.stderr
