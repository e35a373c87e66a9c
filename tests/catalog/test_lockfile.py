"""gallery.lock: what is written can be read, merged and mended, and nothing in it is lost."""

from __future__ import annotations

import difflib
import subprocess
import sys
import threading
from pathlib import Path

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from llmgallery.catalog.lock import LockedFile, LockedModel, LockFile, changed, lock_text, parse_lock
from llmgallery.core.errors import ConfigError

COMMIT = "0123456789abcdef0123456789abcdef01234567"
DIGEST = "1234567e" + "0" * 56
HUB = LockedFile(uri=f"hf://owner/repo/m.gguf@{COMMIT}", commit=COMMIT, sha256=DIGEST, size=7)
STORED = LockedFile(uri="https://example.org/m.gguf", path=".files/x/m.gguf", sha256="b" * 64, size=0)
MODEL = LockedModel(source="llmgallery@m", licence="apache-2.0", files=(STORED, HUB))


@pytest.fixture
def lock(tmp_path: Path) -> LockFile:
    return LockFile.of(tmp_path)


def test_a_lock_that_is_not_there_is_empty(lock: LockFile) -> None:
    assert lock.read().models == {}
    assert not lock.path.exists()


def test_an_empty_file_is_an_empty_lock(lock: LockFile) -> None:
    lock.path.write_text("# nothing\n")
    assert lock.read().models == {}
    assert lock.update("m", MODEL).models.keys() == {"m"}


def test_the_text_has_a_block_for_each_model_and_a_line_for_each_value(lock: LockFile) -> None:
    lock.update("owner/repo:Q8_0", LockedModel(source=f"owner/repo@{COMMIT}", files=(HUB,)))
    lock.update("m", MODEL)
    head, *rest = lock.path.read_text().splitlines()
    assert head.startswith("# ")
    assert rest == [
        "version: 1",
        "models:",
        "  m:",
        "    files:",
        f'      - commit: "{COMMIT}"',
        f'        sha256: "{DIGEST}"',
        "        size: 7",
        f'        uri: "hf://owner/repo/m.gguf@{COMMIT}"',
        '      - path: ".files/x/m.gguf"',
        f'        sha256: "{"b" * 64}"',
        "        size: 0",
        '        uri: "https://example.org/m.gguf"',
        '    licence: "apache-2.0"',
        '    source: "llmgallery@m"',
        '  "owner/repo:Q8_0":',
        "    files:",
        f'      - commit: "{COMMIT}"',
        f'        sha256: "{DIGEST}"',
        "        size: 7",
        f'        uri: "hf://owner/repo/m.gguf@{COMMIT}"',
        f'    source: "owner/repo@{COMMIT}"',
    ]
    assert [path.name for path in lock.path.parent.iterdir()] == ["gallery.lock"]


def test_a_change_to_one_model_touches_only_its_lines(lock: LockFile) -> None:
    for name in ("a", "b", "c"):
        lock.update(name, MODEL)
    before = lock.path.read_text().splitlines()
    lock.update("b", LockedModel(source="llmgallery@m", licence="mit", files=MODEL.files))
    after = lock.path.read_text().splitlines()
    lines = [
        line
        for line in difflib.unified_diff(before, after, n=0, lineterm="")
        if line[:1] in "+-" and line[:3] not in ("+++", "---")
    ]
    assert lines == ['-    licence: "apache-2.0"', '+    licence: "mit"']


def test_what_is_taken_out_is_gone_and_the_same_again_writes_nothing(lock: LockFile) -> None:
    lock.update("a", MODEL)
    lock.update("b", MODEL)
    assert lock.update("a", None).models == {"b": LockedModel(source=MODEL.source, licence=MODEL.licence, files=(HUB, STORED))}
    then = lock.path.stat()
    lock.update("b", MODEL)
    lock.update("none", None)
    assert (lock.path.stat().st_mtime_ns, lock.path.stat().st_ino) == (then.st_mtime_ns, then.st_ino)


NAMES = st.text(min_size=1, max_size=30).filter(lambda text: text.encode("utf-8", "ignore").decode() == text)
HEX = st.text("0123456789abcdef", min_size=64, max_size=64)
FILES = st.builds(
    LockedFile,
    uri=NAMES,
    sha256=HEX,
    size=st.integers(0, 2**62),
    path=st.from_regex(r"[a-z0-9é ]{1,9}(/[a-z0-9.]{3,9}[a-z]){0,2}", fullmatch=True).filter(lambda path: ".." not in path),
)
MODELS = st.dictionaries(
    NAMES,
    st.builds(LockedModel, source=NAMES, licence=st.none() | NAMES, files=st.lists(FILES, max_size=3).map(tuple)),
    max_size=4,
)


@given(models=MODELS)
def test_what_is_written_is_what_is_read(models: dict[str, LockedModel]) -> None:
    text = lock_text(changed({}, models))
    found = parse_lock(text.encode(), Path("gallery.lock"))
    assert {name: set(model.files) for name, model in found.models.items()} == {
        name: set(model.files) for name, model in models.items()
    }
    assert {name: (model.source, model.licence) for name, model in found.models.items()} == {
        name: (model.source, model.licence) for name, model in models.items()
    }
    assert lock_text(found.data) == text


@given(data=st.binary(max_size=200) | st.text("models:versin1{}[],- &*'\"\n<=>#", max_size=80).map(str.encode))
def test_whatever_lies_there_is_read_or_refused_as_a_fault_of_the_file(data: bytes) -> None:
    try:
        parse_lock(data, Path("gallery.lock"))
    except ConfigError as error:
        assert "gallery.lock" in error.message and error.hints


LATER = """
version: 1
signed: {by: "someone", on: [1, 2.5, {deep: null}]}
models:
  a:
    source: "x@y"
    note: keep me
    files:
      - {uri: "https://example.org/m.gguf", path: .files/x/m.gguf, sha256: "%s", size: 0, mirror: elsewhere}
  b: {source: "z", files: [], extra: [true, "no", []]}
"""


def test_keys_of_a_later_version_stay(lock: LockFile) -> None:
    lock.path.write_text(LATER % ("b" * 64))
    before = lock.read().data
    after = lock.update("a", LockedModel(source="x@z", files=(STORED,))).data
    assert after["signed"] == before["signed"] and after["models"]["b"] == before["models"]["b"]
    assert after["models"]["a"]["note"] == "keep me" and after["models"]["a"]["source"] == "x@z"
    assert after["models"]["a"]["files"][0]["mirror"] == "elsewhere"
    other = LockedFile(uri=STORED.uri, path=STORED.path, sha256="c" * 64, size=1)
    files = lock.update("a", LockedModel(source="x@z", files=(other,))).data["models"]["a"]["files"]
    assert "mirror" not in files[0], "it was said of other bytes"


GOOD = f'sha256: "{DIGEST}", size: 7'
BROKEN = {
    "version: 1\nmodels:\n  a: {source: x, files: []\n": ("4:1", "bracket"),
    "version: 1\nmodels:\n<<<<<<< HEAD\n  a: {source: x, files: []}\n=======\n": ("3:1", "merge left this conflict"),
    "version: 1\nmodels:\n  a: {source: x, files: []}\n  a: {source: y, files: []}\n": ("4:3", "twice"),
    "version: 2\n": ("1:10", "newer llmgallery"),
    "models: {}\n": ("1:1", "version"),
    "- 1\n": ("1:1", "expected `version:` and `models:`"),
    "version: 1\nmodels: [a]\n": ("2:9", "expected models by name"),
    "version: 1\nmodels:\n  a: {files: []}\n": ("3:6", "source"),
    "version: 1\nmodels:\n  a:\n    source: x\n    files:\n      - {uri: y, sha256: z, size: 7}\n": (
        "6:26",
        "models.a.files[0].sha256",
    ),
    f"version: 1\nmodels:\n  a:\n    source: x\n    files:\n      - {{uri: y, path: ../m, {GOOD}}}\n": (
        "6:9",
        "inside the models folder",
    ),
    f"version: 1\nmodels:\n  a:\n    source: x\n    files:\n      - {{uri: y, path: /etc/m, {GOOD}}}\n": (
        "6:9",
        "inside the models folder",
    ),
    f"version: 1\nmodels:\n  a:\n    source: x\n    files:\n      - {{uri: hf://a/b/c.gguf, {GOOD}}}\n": ("6:9", "@COMMIT"),
    f"version: 1\nmodels:\n  a:\n    source: x\n    files:\n      - {{uri: https://a/b, {GOOD}}}\n": ("6:9", "no path"),
    "version: 1\nmodels:\n  a: &a {source: x, files: []}\n  b: *a\n": ("3:6", "alias"),
}


@pytest.mark.parametrize("text", BROKEN)
def test_a_broken_lock_is_told_with_its_place_and_never_overwritten(lock: LockFile, text: str) -> None:
    place, word = BROKEN[text]
    lock.path.write_text(text)
    for attempt in (lock.read, lambda: lock.update("b", MODEL)):
        with pytest.raises(ConfigError) as raised:
            attempt()
        assert f"gallery.lock:{place}" in raised.value.message and word in raised.value.message
        assert "restore it from version control" in raised.value.message
    assert lock.path.read_text() == text


def test_all_problems_are_told_at_once(lock: LockFile) -> None:
    lock.path.write_text("version: 1\nmodels:\n  a: {source: 1, files: []}\n  b: {source: x, files: 2}\n")
    with pytest.raises(ConfigError) as raised:
        lock.read()
    assert len(raised.value.hints) == 2


UNREADABLE = {
    "inside the models folder": {"path": "../out"},
    "@COMMIT": {"uri": "hf://owner/repo/m.gguf@main", "path": None},
    "sha256": {"sha256": "no digest"},
    "size": {"size": -1},
}


@pytest.mark.parametrize("word", UNREADABLE)
def test_an_entry_that_could_not_be_read_again_is_refused_before_it_is_written(lock: LockFile, word: str) -> None:
    lock.update("a", MODEL)
    before = lock.path.read_bytes()
    with pytest.raises(ConfigError, match=f"b cannot be locked: .*{word}"):
        lock.update("b", LockedModel(source="x", files=(msgspec.structs.replace(STORED, **UNREADABLE[word]),)))
    assert lock.path.read_bytes() == before


def test_an_update_tells_what_would_be_read_now(lock: LockFile) -> None:
    lock.update("a", MODEL)
    assert lock.update_all({"b": MODEL, "c": MODEL, "none": None}) == lock.read()
    assert lock.update_all({"b": None, "a": LockedModel(source="other", files=())}) == lock.read()


def test_it_is_read_again_only_when_it_has_changed(lock: LockFile) -> None:
    lock.update("a", MODEL)
    first = lock.read()
    assert lock.read() is first
    LockFile(lock.path).update("b", MODEL)
    assert lock.read().models.keys() == {"a", "b"}
    lock.path.write_text("version: 1\nmodels: [\n")
    with pytest.raises(ConfigError):
        lock.read()
    lock.path.unlink()
    assert lock.read().models == {}


def test_writers_wait_for_each_other_in_one_process(lock: LockFile) -> None:
    def write(number: int) -> None:
        for turn in range(5):
            LockFile(lock.path).update(f"m{number}-{turn}", MODEL)

    threads = [threading.Thread(target=write, args=(number,)) for number in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(lock.read().models) == 30
    assert [path.name for path in lock.path.parent.iterdir()] == ["gallery.lock"]


WRITER = """
import sys
from pathlib import Path
from llmgallery.catalog.lock import LockedModel, LockFile
for turn in range(10):
    LockFile(Path(sys.argv[1])).update(f"{sys.argv[2]}-{turn}", LockedModel(source="x", files=()))
"""


def test_writers_wait_for_each_other_in_several(lock: LockFile) -> None:
    writers = [subprocess.Popen([sys.executable, "-c", WRITER, lock.path, str(number)]) for number in range(3)]
    assert [writer.wait(30) for writer in writers] == [0, 0, 0]
    assert len(lock.read().models) == 30


def test_a_linked_lock_stays_a_link(tmp_path: Path) -> None:
    (tmp_path / "real").mkdir()
    (tmp_path / "models").mkdir()
    lock = LockFile.of(tmp_path / "models")
    lock.path.symlink_to(tmp_path / "real" / "my.lock")
    lock.update("m", MODEL)
    assert lock.path.is_symlink() and "apache-2.0" in (tmp_path / "real" / "my.lock").read_text()


def test_a_folder_that_cannot_be_written_is_told(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(ConfigError, match="cannot be written"):
        LockFile.of(tmp_path / "file").update("m", MODEL)
