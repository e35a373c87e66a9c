"""bundle and unbundle: what goes in comes out, byte for byte, and nothing of a hostile bundle reaches the disk."""

from __future__ import annotations

import io
import os
import tarfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from installed_home import COMMIT, REPO, Home, git_sha1, sha256

from llmgallery.backends.loader import specs
from llmgallery.catalog.hub import Hub
from llmgallery.catalog.hub_cache import RepoCache, find_cached
from llmgallery.catalog.hub_settings import HubSettings
from llmgallery.catalog.keep.bundle import bundle
from llmgallery.catalog.keep.manifest import FILES, Manifest, member_name
from llmgallery.catalog.keep.tar import header, members
from llmgallery.catalog.keep.unbundle import Target, Unbundled, unbundle
from llmgallery.catalog.keep.verify import verify
from llmgallery.catalog.reference import HubReference
from llmgallery.core.errors import ConfigError, GalleryError, HubCorrupt, HubOffline, LoadError, NoSpace
from llmgallery.runtime.files import WeightFiles

MINE = "backend: llama-cpp\nparameters: {model: own/w.gguf}\ntemplate: {chat_template_file: t.jinja}\n"


@pytest.fixture
def home(tmp_path: Path) -> Home:
    """A model of the Hub with a small file beside it, one from elsewhere, and one of the user's own."""
    home = Home(tmp_path / "here")
    home.install("owner/repo:Q8_0", [home.hub_file("m.Q8_0.gguf", b"weights"), home.hub_file("config.json", b"{}", lfs=False)])
    home.install("small", [home.stored_file("s.gguf", b"other weights")])
    (home.models / "own").mkdir()
    (home.models / "own" / "w.gguf").write_bytes(b"GGUF of my own")
    (home.models / "t.jinja").write_text("{{ messages }}")
    (home.models / "mine.yaml").write_text(MINE)
    return home


@pytest.fixture
def away(tmp_path: Path) -> Home:
    return Home(tmp_path / "away")


ALL = ("owner/repo:Q8_0", "small", "mine")


def pack(home: Home, *names: str) -> Path:
    out = home.models.parent / "models.tar"
    out.unlink(missing_ok=True)
    snapshot = home.snapshot
    bundle([snapshot.entries[name] for name in names or ALL], home.cache, specs(), out)
    return out


def unpack(file: Path, away: Home, **more: Any) -> Unbundled:
    taken = {entry.name: entry.path for entry in away.snapshot.entries.values()}
    return unbundle(file, Target(away.folders, specs(), taken=taken, **more))


def contents(home: Home) -> dict[str, bytes]:
    paths = [
        path for root in (home.models, home.cache) for path in root.rglob("*") if path.is_file() and ".locks" not in path.parts
    ]
    return {str(path.relative_to(home.models.parent)): path.read_bytes() for path in paths}


def test_templates_in_files_go_along(home: Home, away: Home) -> None:
    (home.models / "mine.yaml").write_text(MINE.replace("chat_template_file: t.jinja", "function: my-tools"))
    (home.models / "my-tools.tmpl").write_text("{{.Functions}}")
    (home.models / "own" / "w.gguf.tmpl").write_text("{{.Input}}")
    unpack(pack(home, "mine"), away)
    template = away.snapshot.entries["mine"].config.template
    assert (template.function, template.chat, template.edit) == ("{{.Functions}}", "{{.Input}}", "{{.Input}}")


WITH_PRESET = "backend: llama-cpp\nparameters: {model: own/w.gguf}\ntemplate: {preset: our, engine: ollama}\n"


def test_preset_files_go_along_with_their_templates(home: Home, away: Home) -> None:
    (home.models / "mine.yaml").write_text(WITH_PRESET.replace(", engine: ollama", ""))
    (home.models / "presets").mkdir()
    (home.models / "presets" / "our.yaml").write_text("template: {chat_template_file: p.jinja}\nparameters: {top_k: 3}\n")
    (home.models / "presets" / "p.jinja").write_text("{{ messages }}!")
    unpack(pack(home, "mine"), away)
    config = away.snapshot.entries["mine"].config
    assert (config.template.chat_template, config.parameters.top_k) == ("{{ messages }}!", 3)
    assert (away.models / "presets" / "our.yaml").read_bytes() == (home.models / "presets" / "our.yaml").read_bytes()
    assert not unpack(pack(home, "mine"), away).written


def test_a_model_that_is_whole_only_with_its_preset_is_unpacked(home: Home, away: Home) -> None:
    (home.models / "mine.yaml").write_text(WITH_PRESET)
    (home.models / "presets").mkdir()
    (home.models / "presets" / "our.yaml").write_text("template: {chat: '{{ .Prompt }}'}\n")
    unpack(pack(home, "mine"), away)
    assert away.snapshot.entries["mine"].config.template.chat == "{{ .Prompt }}"


def test_a_preset_file_with_another_text_is_not_replaced(home: Home, away: Home) -> None:
    (home.models / "mine.yaml").write_text(WITH_PRESET.replace(", engine: ollama", ""))
    for here, text in ((home, "parameters: {top_k: 3}\n"), (away, "parameters: {top_k: 4}\n")):
        (here.models / "presets").mkdir(parents=True)
        (here.models / "presets" / "our.yaml").write_text(text)
    before = contents(away)
    with pytest.raises(ConfigError, match=r"our\.yaml is there already"):
        unpack(pack(home, "mine"), away)
    assert contents(away) == before


def test_what_goes_in_comes_out(home: Home, away: Home) -> None:
    done = unpack(pack(home), away)
    ours, theirs = contents(home), contents(away)
    lock = "models/gallery.lock"
    assert {name: data for name, data in theirs.items() if name != lock} == {
        name: data for name, data in ours.items() if name != lock
    }
    assert len(done.written) == 5 and done.size == sum(
        map(len, (b"weights", b"{}", b"other weights", b"GGUF of my own", b"{{ messages }}"))
    )
    locked = away.lock.read()
    assert locked.models == home.lock.read().models, "what is the user's own is in no lock"
    assert not verify(locked, away.folders, away.snapshot.entries).differences


def test_the_same_models_give_the_same_bytes(home: Home) -> None:
    first = pack(home).read_bytes()
    for path in home.models.rglob("*"):
        os.utime(path, (1, 1))
    assert pack(home, *reversed(ALL)).read_bytes() == first


def test_it_is_a_tar_that_tar_reads(home: Home) -> None:
    with tarfile.open(pack(home)) as archive:
        members = archive.getmembers()
        assert [member.name for member in members[:1]] == [member_name(archive.extractfile(members[0]).read())]  # type: ignore[union-attr]
        assert {member.name for member in members[1:]} == {
            FILES + sha256(data) for data in (b"weights", b"{}", b"other weights", b"GGUF of my own", b"{{ messages }}")
        }
        file = archive.extractfile(FILES + sha256(b"weights"))
        assert file is not None and file.read() == b"weights"


@pytest.mark.parametrize("size", [0, 1, 512, (8 << 30) - 1, 8 << 30, 700 << 30])
def test_sizes_beyond_tars_eight_gigabytes(size: int) -> None:
    found = next(members(io.BytesIO(header("files/x", size)), Path("x.tar")))
    assert (found.name, found.size) == ("files/x", size)


def test_bytes_that_two_models_share_are_packed_once(home: Home, away: Home) -> None:
    home.install("twin", [home.hub_file("m.gguf", b"weights")])
    home.install("again", [home.stored_file("copy.gguf", b"weights")])
    file = pack(home, "owner/repo:Q8_0", "twin", "again")
    with tarfile.open(file) as archive:
        assert len(archive.getmembers()) == 3
    unpack(file, away)
    assert not verify(away.lock.read(), away.folders, ()).differences


async def test_the_model_is_found_offline(home: Home, away: Home) -> None:
    """Through the registry, the Hub and the files of the manager; HF_HUB_OFFLINE and no address to ask."""
    unpack(pack(home), away)
    hub = Hub(HubSettings("http://127.0.0.1:1", away.cache, offline=True))
    source, snapshot = WeightFiles(hub), away.snapshot
    assert not snapshot.broken and sorted(snapshot.entries) == sorted(ALL)
    for name, data in {
        "owner/repo:Q8_0": b"weights",
        "small": b"other weights",
        "mine": b"GGUF of my own",
    }.items():
        entry = snapshot.entries[name]
        assert source.present(entry)
        files = await source.ensure(entry, lambda done, total: None)
        assert [path.read_bytes() for path in files.weights] == [data]
    await hub.aclose()


def test_a_reference_to_a_branch_works_offline_too(home: Home, away: Home) -> None:
    home.hub_file("b.gguf", b"branch")
    RepoCache(home.cache, REPO).write_ref("main", COMMIT)
    (home.models / "branch.yaml").write_text("parameters: {model: owner/repo/b.gguf}\n")
    file = pack(home, "branch")
    unpack(file, away)
    assert [entry.source for entry in away.lock.read().models.values()] == ["bundle"]
    assert not verify(away.lock.read(), away.folders, ()).differences
    assert [path.read_bytes() for path in find_cached(away.cache, HubReference(REPO, "b.gguf")) or ()] == [b"branch"]
    unpack(file, away)
    other = Home(away.models.parent / "other")
    RepoCache(other.cache, REPO).write_ref("main", "c" * 40)
    with pytest.raises(ConfigError, match="is another commit here"):
        unpack(file, other)


def test_a_model_that_is_a_whole_repo_takes_the_files_that_the_lock_names(home: Home, away: Home) -> None:
    files = [home.hub_file(name, name.encode(), repo="some/body") for name in ("model.safetensors", "config.json")]
    home.install("whole", files, f"name: whole\nparameters: {{model: some/body@{COMMIT}}}\n")
    assert [path.name for path in unpack(pack(home, "whole"), away).written] == [
        file.sha256 for file in sorted(files, key=lambda file: file.sha256)
    ]
    assert [away.folders.place(file).read_bytes() for file in files] == [b"model.safetensors", b"config.json"]


def test_small_files_of_the_hub_keep_gits_name(home: Home, away: Home) -> None:
    unpack(pack(home, ALL[0]), away)
    repo = RepoCache(away.cache, REPO)
    assert repo.blob(git_sha1(b"{}")).read_bytes() == b"{}" and repo.blob(sha256(b"weights")).is_file()
    assert repo.pointer(COMMIT, "config.json").is_symlink()


# --- packing that is refused -------------------------------------------------------------------------------------------------


def test_what_is_not_as_locked_is_not_packed(home: Home) -> None:
    (file,) = home.lock.read().models["small"].files
    home.folders.place(file).write_bytes(b"OTHER weights")
    with pytest.raises(ConfigError, match="other bytes than it should"):
        pack(home, "small")
    assert not (home.models.parent / "models.tar").exists()
    assert not list(home.models.parent.glob(".*.tmp"))


def test_what_is_not_here_is_not_packed(home: Home) -> None:
    RepoCache(home.cache, REPO).blob(sha256(b"weights")).unlink()
    with pytest.raises(HubOffline, match=r"owner/repo:Q8_0 cannot be packed.*not downloaded"):
        pack(home, ALL[0])
    (home.models / "own" / "w.gguf").unlink()
    with pytest.raises(LoadError, match="weights not found"):
        pack(home, "mine")


def test_what_lies_outside_the_folder_is_not_packed(home: Home, tmp_path: Path) -> None:
    (tmp_path / "w.gguf").write_bytes(b"GGUF")
    (home.models / "far.yaml").write_text(f"backend: llama-cpp\nparameters: {{model: {tmp_path}/w.gguf}}\n")
    with pytest.raises(ConfigError, match=r"parameters\.model names .* outside"):
        pack(home, "far")


def test_a_file_that_is_there_is_not_overwritten(home: Home) -> None:
    out = pack(home, "small")
    before = out.read_bytes()
    with pytest.raises(ConfigError, match="there already"):
        bundle([home.snapshot.entries["mine"]], home.cache, specs(), out)
    assert out.read_bytes() == before


# --- unpacking over what is there --------------------------------------------------------------------------------------------


def test_what_is_there_and_the_same_is_passed_over(home: Home, away: Home) -> None:
    file = pack(home)
    unpack(file, away)
    before = {name: (away.models.parent / name).stat().st_mtime_ns for name in contents(away)}
    assert unpack(file, away).written == ()
    assert {name: (away.models.parent / name).stat().st_mtime_ns for name in contents(away)} == before


def test_an_unpacking_that_was_stopped_goes_on(home: Home, away: Home) -> None:
    file = pack(home)
    cut = file.with_name("cut.tar")
    cut.write_bytes(file.read_bytes()[:-2048])
    with pytest.raises(ConfigError, match="is cut"):
        unpack(cut, away)
    assert not list(away.models.glob("*.yaml")) and not away.lock.path.exists()
    assert len(unpack(file, away).written) == 1
    assert sorted(away.snapshot.entries) == sorted(ALL)


IN_THE_WAY: dict[str, Callable[[Home], object]] = {
    "is there already, with other bytes": lambda away: (away.models / "t.jinja").write_text("mine"),
    "is there already, and differs": lambda away: (away.models / "small.yaml").write_text("backend: echo\nname: big\n"),
    "a model 'small' is there already": lambda away: (away.models / "x.yaml").write_text("name: small\nbackend: echo\n"),
    "is there already, with": lambda away: away.hub_file("m.Q8_0.gguf", b"Weights"),
    "leads out of": lambda away: (away.models / "own").symlink_to(away.data.parent),
}


@pytest.mark.parametrize("fault", IN_THE_WAY)
def test_what_is_there_and_different_ends_it_before_it_writes(home: Home, away: Home, fault: str) -> None:
    IN_THE_WAY[fault](away)
    before = contents(away)
    with pytest.raises(ConfigError, match=fault):
        unpack(pack(home), away)
    assert contents(away) == before


def test_a_full_disk_is_told_before_anything_is_written(home: Home, away: Home) -> None:
    with pytest.raises(NoSpace, match="not enough disk space"):
        unpack(pack(home), away, free=lambda folder: 10)
    assert contents(away) == {}


def test_a_link_that_leads_nowhere_is_mended(home: Home, away: Home) -> None:
    file = pack(home, ALL[0])
    unpack(file, away)
    RepoCache(away.cache, REPO).blob(sha256(b"weights")).unlink()
    assert len(unpack(file, away).written) == 1
    assert RepoCache(away.cache, REPO).pointer(COMMIT, "m.Q8_0.gguf").read_bytes() == b"weights"


# --- hostile bundles ---------------------------------------------------------------------------------------------------------

Member = tuple[tarfile.TarInfo, bytes]


def member(name: str, data: bytes = b"", **fields: Any) -> Member:
    info = tarfile.TarInfo(name)
    info.size = len(data)
    for key, value in fields.items():
        setattr(info, key, value)
    return info, data


def manifest_member(manifest: dict[str, Any]) -> Member:
    data = msgspec.json.encode(manifest)
    return member(member_name(data), data)


def written(path: Path, members: list[Member]) -> Path:
    with tarfile.open(path, "w", format=tarfile.GNU_FORMAT) as archive:
        for info, data in members:
            archive.addfile(info, io.BytesIO(data))
    return path


def taken_apart(file: Path) -> tuple[dict[str, Any], list[Member]]:
    with tarfile.open(file) as archive:
        parts = [member(info.name, archive.extractfile(info).read()) for info in archive]  # type: ignore[union-attr]
    return msgspec.json.decode(parts[0][1]), parts[1:]


DIGEST = sha256(b"other weights")
HOSTILE_MEMBERS: dict[str, Callable[[list[Member]], list[Member]]] = {
    "no plain file": lambda rest: [member(FILES + DIGEST, type=tarfile.SYMTYPE, linkname="/etc/passwd"), *rest],
    "'hard' is no plain file": lambda rest: [member("hard", type=tarfile.LNKTYPE, linkname="/etc/passwd"), *rest],
    "'dev' is no plain file": lambda rest: [member("dev", type=tarfile.CHRTYPE, devmajor=1, devminor=3), *rest],
    "'fifo' is no plain file": lambda rest: [member("fifo", type=tarfile.FIFOTYPE), *rest],
    "'dir' is no plain file": lambda rest: [member("dir", type=tarfile.DIRTYPE), *rest],
    "'sparse' is no plain file": lambda rest: [member("sparse", type=tarfile.GNUTYPE_SPARSE), *rest],
    "'././@LongLink' is no plain file": lambda rest: [member("x" * 300), *rest],
    "'../evil' is in it, but not": lambda rest: [member("../evil", b"x"), *rest],
    "'/tmp/evil' is in it, but not": lambda rest: [member("/tmp/evil", b"x"), *rest],
    "or twice": lambda rest: [*rest, rest[0]],
    "with another size": lambda rest: [member(FILES + DIGEST, b"x"), *rest],
    "is not in it": lambda rest: [],
    "other bytes than its name": lambda rest: [member(rest[0][0].name, b"OTHER weights")],
}


@pytest.mark.parametrize("fault", HOSTILE_MEMBERS)
def test_hostile_members_are_refused_and_leave_nothing(home: Home, away: Home, fault: str) -> None:
    file = pack(home, "small")
    manifest, rest = taken_apart(file)
    evil = written(file, [manifest_member(manifest), *HOSTILE_MEMBERS[fault](rest)])
    with pytest.raises((ConfigError, HubCorrupt), match=fault):
        unpack(evil, away)
    assert set(contents(away).values()) <= {b"other weights"}, "at most a file that is what it should be"
    assert not list(away.models.glob("*.yaml")) and not list(away.models.rglob("*.tmp"))


def hub_of(manifest: dict[str, Any]) -> dict[str, Any]:
    found: dict[str, Any] = next(file for file in manifest["files"] if file.get("hub"))["hub"]
    return found


def file_of(manifest: dict[str, Any]) -> dict[str, Any]:
    found: dict[str, Any] = next(file for file in manifest["files"] if file["path"] == "t.jinja")
    return found


def model_of(manifest: dict[str, Any]) -> dict[str, Any]:
    found: dict[str, Any] = next(model for model in manifest["models"] if model["name"] == "mine")
    return found


HOSTILE_MANIFESTS: dict[str, Callable[[dict[str, Any]], object]] = {
    "no path inside the models folder#1": lambda it: file_of(it).update(path="/etc/passwd"),
    "no path inside the models folder#2": lambda it: file_of(it).update(path="../out"),
    "no path inside the models folder#3": lambda it: file_of(it).update(path="a\\..\\b"),
    "no path inside the models folder#4": lambda it: file_of(it).update(path="a//b"),
    "no place for a file of weights#1": lambda it: file_of(it).update(path=".git/hooks/x"),
    "no place for a file of weights#2": lambda it: file_of(it).update(path="evil.yaml"),
    "no place for a file of weights#3": lambda it: file_of(it).update(path="gallery.lock"),
    "no place for a file of weights#4": lambda it: file_of(it).update(path=".files"),
    "no path inside the models folder#5": lambda it: model_of(it).update(path="../mine.yaml"),
    "no name for a model's YAML#1": lambda it: model_of(it).update(path="sub/mine.yaml"),
    "no name for a model's YAML#2": lambda it: model_of(it).update(path=".mine.yaml"),
    "no name for a model's YAML#3": lambda it: model_of(it).update(path="mine.sh"),
    "come together": lambda it: model_of(it).update(path=None),
    "is called 'mine', not 'other'": lambda it: model_of(it).update(name="other"),
    "control characters": lambda it: model_of(it).update(name="mi\nne"),
    "leads out of the models folder": lambda it: model_of(it).update(yaml="backend: llama-cpp\nparameters: {model: ../x.gguf}\n"),
    "names /etc/x.gguf": lambda it: model_of(it).update(yaml="backend: llama-cpp\nparameters: {model: /etc/x.gguf}\n"),
    "names ~/x.gguf": lambda it: model_of(it).update(yaml="backend: llama-cpp\nparameters: {model: ~/x.gguf}\n"),
    "mine.yaml:1:1": lambda it: model_of(it).update(yaml="nonsense: 1\n"),
    "names /etc/y.gguf": lambda it: model_of(it).update(yaml=MINE + "draft_model: /etc/y.gguf\n"),
    "chat_template_file#1": lambda it: model_of(it).update(yaml=MINE.replace("t.jinja", "/etc/passwd")),
    "chat_template_file#2": lambda it: model_of(it).update(yaml=MINE.replace("t.jinja", "../../etc/passwd")),
    "chat_template_file#3": lambda it: model_of(it).update(yaml=MINE.replace("t.jinja", "none.jinja")),
    "no name for a preset file#1": lambda it: model_of(it).update(preset={"name": "../x", "yaml": ""}),
    "no name for a preset file#2": lambda it: model_of(it).update(preset={"name": "a/x", "yaml": ""}),
    "presets/p.yaml:1:1": lambda it: model_of(it).update(
        preset={"name": "p", "yaml": "nonsense: 1\n"}, yaml="backend: llama-cpp\nmodel: own/w.gguf\ntemplate: {preset: p}\n"
    ),
    "with two texts": lambda it: [one.update(preset={"name": "p", "yaml": str(i)}) for i, one in enumerate(it["models"])],
    "no path inside a Hub repo": lambda it: hub_of(it).update(file="../../x"),
    "no Hub repo": lambda it: hub_of(it).update(repo="../.."),
    "no revision": lambda it: hub_of(it).update(revisions=["../../x"]),
    "commit": lambda it: hub_of(it).update(commit="main"),
    "blob": lambda it: hub_of(it).update(blob="../x"),
    "is not its sha256": lambda it: hub_of(it).update(blob="1" * 64),
    "there twice#1": lambda it: it["files"].append(dict(file_of(it), path="T.jinja")),
    "there twice#2": lambda it: it["models"].append(dict(model_of(it))),
    "has two sizes": lambda it: it["files"].append(dict(file_of(it), path="u", size=1)),
    "more than the bundle has": lambda it: (file_of(it).update(size=1 << 50), model_of(it).update(locked=None)),
    "a `path` or a place": lambda it: file_of(it).update(hub=hub_of(it)),
    "does not come along": lambda it: it["files"].clear(),
    "newer llmgallery": lambda it: it.update(version=2),
    "format": lambda it: it.update(format="other"),
    "unknown field": lambda it: file_of(it).update(mode=0o4755),
}


@pytest.mark.parametrize("fault", HOSTILE_MANIFESTS)
def test_hostile_manifests_are_refused_before_anything_is_written(home: Home, away: Home, fault: str) -> None:
    file = pack(home)
    manifest, rest = taken_apart(file)
    HOSTILE_MANIFESTS[fault](manifest)
    evil = written(file, [manifest_member(manifest), *rest])
    with pytest.raises(ConfigError) as raised:
        unpack(evil, away)
    assert fault.partition("#")[0] in raised.value.message and str(evil) in raised.value.message
    assert contents(away) == {}


def test_git_names_are_checked_too(home: Home, away: Home) -> None:
    file = pack(home, ALL[0])
    manifest, rest = taken_apart(file)
    next(one for one in manifest["files"] if len(one["hub"]["blob"]) == 40)["hub"]["blob"] = "1" * 40
    with pytest.raises(HubCorrupt, match="other bytes than its name"):
        unpack(written(file, [manifest_member(manifest), *rest]), away)


@pytest.mark.parametrize("data", [b"", b"no tar at all" * 100, b"\x1f\x8b" + b"0" * 600, bytes(1024)])
def test_what_is_no_bundle_is_told(away: Home, tmp_path: Path, data: bytes) -> None:
    (tmp_path / "x.tar").write_bytes(data)
    with pytest.raises(ConfigError, match=r"x\.tar is (no|cut)"):
        unpack(tmp_path / "x.tar", away)


@settings(max_examples=80, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(at=st.floats(0, 1), change=st.binary(min_size=1, max_size=8))
def test_a_damaged_bundle_is_refused_or_gives_the_right_bytes(home: Home, tmp_path: Path, at: float, change: bytes) -> None:
    file = tmp_path / "whole.tar"
    if not file.exists():
        file.write_bytes(pack(home, "small").read_bytes())
    data = bytearray(file.read_bytes())
    start = int(at * (len(data) - len(change)))
    data[start : start + len(change)] = change
    (tmp_path / "damaged.tar").write_bytes(data)
    fresh = Home(tmp_path / os.urandom(8).hex())
    try:
        unpack(tmp_path / "damaged.tar", fresh)
    except GalleryError as error:
        assert "damaged.tar" in error.message
    ours, theirs = contents(home), contents(fresh)
    theirs.pop("models/gallery.lock", None)
    assert all(data == ours[name] for name, data in theirs.items())
    assert all(model == home.lock.read().models[name] for name, model in fresh.lock.read().models.items())


def test_the_manifest_has_the_fields_that_its_docs_name(home: Home) -> None:
    manifest, _ = taken_apart(pack(home))
    assert list(manifest) == list(Manifest.__struct_fields__)
