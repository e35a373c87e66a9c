"""Where galleries and base files lie, and which place may name which."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from llmgallery.catalog.gallery.cache import Copy, CopyCache
from llmgallery.catalog.gallery.sources import (
    GallerySource,
    HubPlace,
    LocalPlace,
    Place,
    WebPlace,
    base_place,
    check_names,
    check_reach,
    place_of,
)
from llmgallery.core.errors import ConfigError

RAW = "https://raw.githubusercontent.com"
HERE = Path("/srv/config")


@pytest.mark.parametrize(
    ("url", "place"),
    [
        ("mine", LocalPlace(HERE / "mine")),
        ("./mine/index.yaml", LocalPlace(HERE / "mine/index.yaml")),
        ("/data/gallery", LocalPlace(Path("/data/gallery"))),
        ("file:///data/my%20gallery", LocalPlace(Path("/data/my gallery"))),
        ("file://localhost/data", LocalPlace(Path("/data"))),
        ("https://example.org/models", WebPlace("https://example.org/models")),
        ("https://example.org/models/", WebPlace("https://example.org/models/index.yaml")),
        ("https://example.org/a.yaml?x=1#part", WebPlace("https://example.org/a.yaml?x=1")),
        ("http://127.0.0.1:8000/index.yaml", WebPlace("http://127.0.0.1:8000/index.yaml")),
        ("http://localhost/index.yaml", WebPlace("http://localhost/index.yaml")),
        (
            "github:mudler/LocalAI/gallery/index.yaml@master",
            WebPlace(f"{RAW}/mudler/LocalAI/master/gallery/index.yaml"),
        ),
        ("github://mudler/LocalAI/gallery@v2.1", WebPlace(f"{RAW}/mudler/LocalAI/v2.1/gallery/index.yaml")),
        ("github:owner/repo", WebPlace(f"{RAW}/owner/repo/main/index.yaml")),
        ("github:owner/repo/a b.yaml@feature/x", WebPlace(f"{RAW}/owner/repo/feature/x/a%20b.yaml")),
        ("hf://owner/repo", HubPlace("owner/repo", "", "main")),
        ("huggingface://owner/repo/lists/index.yaml@v1", HubPlace("owner/repo", "lists/index.yaml", "v1")),
        ("https://huggingface.co/owner/repo/resolve/main/index.yaml", HubPlace("owner/repo", "index.yaml", "main")),
        (
            "https://huggingface.co/datasets/owner/repo/resolve/main/index.yaml",
            WebPlace("https://huggingface.co/datasets/owner/repo/resolve/main/index.yaml"),
        ),
    ],
)
def test_every_form_of_a_source(url: str, place: Place) -> None:
    assert place_of(GallerySource("mine", url), HERE) == place


@pytest.mark.parametrize(
    ("url", "says"),
    [
        ("", "no url"),
        ("http://example.org/index.yaml", "not https"),
        ("http://127.0.0.1.example.org/index.yaml", "not https"),
        ("ftp://example.org/index.yaml", "scheme"),
        ("oci://registry/models", "scheme"),
        ("https://user:secret@example.org/index.yaml", "password"),
        ("https://example.org:99999/index.yaml", "no address"),
        ("https://exa mple.org/", "no address"),
        ("https:///index.yaml", "no address"),
        ("file://server/share", "another machine"),
        ("github:owner", "github:owner/repo/path"),
        ("github:owner/repo/../../x.yaml@main", "no path"),
        ("github:owner/repo/index.yaml@", "github:owner/repo/path"),
        ("github:owner/repo/index.yaml@../main", "github:owner/repo/path"),
        ("hf://owner", "no Hub reference"),
        ("hf://owner/repo:Q4_K_M", "quantisation"),
    ],
)
def test_what_is_no_source_is_refused_with_the_forms(url: str, says: str) -> None:
    with pytest.raises(ConfigError) as caught:
        place_of(GallerySource("mine", url), HERE)
    assert caught.value.field == "galleries"
    assert caught.value.message.startswith("galleries: mine: ")
    assert says in caught.value.message
    assert "github:owner/repo/path@ref" in caught.value.message
    assert "secret" not in caught.value.message


@pytest.mark.parametrize(
    ("names", "says"),
    [(["a@b"], "no name"), (["a/b"], "no name"), ([""], "no name"), (["x" * 65], "no name"), (["mine", "Mine"], "two")],
)
def test_names_of_galleries(names: list[str], says: str) -> None:
    with pytest.raises(ConfigError, match=says):
        check_names([GallerySource(name, "https://example.org/") for name in names])


LISTED = WebPlace("https://example.org/lists/index.yaml")
ON_HUB = HubPlace("owner/repo", "lists", "v1")


@pytest.mark.parametrize(
    ("url", "origin", "place"),
    [
        ("chatml.yaml", LISTED, WebPlace("https://example.org/lists/chatml.yaml")),
        ("../base/chatml.yaml", LISTED, WebPlace("https://example.org/base/chatml.yaml")),
        ("https://other.example/chatml.yaml", LISTED, WebPlace("https://other.example/chatml.yaml")),
        ("github:o/r/chatml.yaml@master", LISTED, WebPlace(f"{RAW}/o/r/master/chatml.yaml")),
        ("hf://o/r/chatml.yaml", LISTED, HubPlace("o/r", "chatml.yaml", "main")),
        ("chatml.yaml", ON_HUB, HubPlace("owner/repo", "lists/chatml.yaml", "v1")),
        ("../base/chatml.yaml", ON_HUB, HubPlace("owner/repo", "base/chatml.yaml", "v1")),
        ("other.yaml", WebPlace("http://127.0.0.1:9/index.yaml"), WebPlace("http://127.0.0.1:9/other.yaml")),
    ],
)
def test_base_files_are_relative_to_the_index(url: str, origin: Place, place: Place) -> None:
    assert base_place(url, origin) == place


@pytest.mark.parametrize(
    ("url", "origin", "says"),
    [
        ("file:///etc/passwd", LISTED, "of this machine"),
        ("file:///etc/passwd", ON_HUB, "of this machine"),
        ("/etc/chatml.yaml", ON_HUB, "no path inside"),
        ("../../chatml.yaml", ON_HUB, "no path inside"),
        ("chatml.bin", ON_HUB, "no YAML file"),
        ("hf://owner/repo", LISTED, "no YAML file"),
        ("http://example.org/chatml.yaml", LISTED, "not https"),
        ("http://127.0.0.1/chatml.yaml", LISTED, "not https"),
        ("https://127.0.0.1/chatml.yaml", LISTED, "inside this network"),
        ("//10.0.0.1/chatml.yaml", LISTED, "inside this network"),
        ("https://169.254.169.254/latest/meta-data", LISTED, "inside this network"),
        ("https://[::1]/x.yaml", ON_HUB, "inside this network"),
        ("https://printer.local/x.yaml", LISTED, "inside this network"),
    ],
)
def test_what_an_index_of_the_network_may_not_name(url: str, origin: Place, says: str) -> None:
    with pytest.raises(ConfigError, match=says):
        base_place(url, origin)


def test_a_local_gallery_names_files_of_its_folder_only(tmp_path: Path) -> None:
    folder = tmp_path / "gallery"
    (folder / "base").mkdir(parents=True)
    (folder / "base/chatml.yaml").write_text("name: chatml\n")
    (tmp_path / "secret.yaml").write_text("name: secret\n")
    (folder / "link.yaml").symlink_to(tmp_path / "secret.yaml")
    origin, inside = LocalPlace(folder), folder / "base/chatml.yaml"
    assert base_place("base/chatml.yaml", origin) == LocalPlace(inside)
    assert base_place(str(inside), origin) == LocalPlace(inside)
    assert base_place(inside.as_uri(), origin) == LocalPlace(inside)
    for url in ("../secret.yaml", "base/../../secret.yaml", str(tmp_path / "secret.yaml"), "link.yaml", "file:///etc/passwd"):
        with pytest.raises(ConfigError, match="leads out of the gallery's folder"):
            base_place(url, origin)


def test_a_copy_of_a_gallery_on_github_has_its_base_files_beside_it(tmp_path: Path) -> None:
    (tmp_path / "chatml.yaml").write_text("name: chatml\n")
    origin = LocalPlace(tmp_path)
    on_github = WebPlace(f"{RAW}/mudler/LocalAI/master/gallery/chatml.yaml")
    assert base_place("github:mudler/LocalAI/gallery/chatml.yaml@master", origin) == on_github
    (tmp_path / "index.yaml").write_text("- name: a\n")
    assert base_place("github:mudler/LocalAI/gallery/chatml.yaml@master", origin) == LocalPlace(tmp_path / "chatml.yaml")
    elsewhere = base_place("github:mudler/LocalAI/gallery/gemma.yaml@master", origin)
    assert elsewhere == WebPlace(f"{RAW}/mudler/LocalAI/master/gallery/gemma.yaml")


@given(st.text(st.sampled_from("./\\~:@%#? abfile0\0\n"), max_size=30))
def test_no_text_leads_out_of_a_local_gallery(url: str) -> None:
    folder = Path(__file__).parent / "no-such-folder"
    try:
        place = base_place(url, LocalPlace(folder))
    except ConfigError:
        return
    assert not isinstance(place, LocalPlace) or place.path.is_relative_to(folder.resolve())


def test_redirects_do_not_go_down_nor_in() -> None:
    https, loopback = WebPlace("https://example.org/x"), WebPlace("http://127.0.0.1:1/x")
    check_reach(https, WebPlace("https://cdn.example.net/x"))
    check_reach(loopback, WebPlace("https://example.org/x"))
    check_reach(loopback, WebPlace("http://127.0.0.1:2/x"))
    for target in (loopback, WebPlace("https://localhost/x"), WebPlace("https://192.168.0.1/x")):
        with pytest.raises(ConfigError):
            check_reach(https, target)


def test_a_copy_comes_back_as_it_was_kept(tmp_path: Path) -> None:
    cache = CopyCache(tmp_path / "kept")
    copy = Copy("https://example.org/x", b"- name: a\n\0\n", 1_700_000_000.0, '"e"', "Mon, 01 Jan 2024 00:00:00 GMT")
    assert cache.load(copy.url) is None
    cache.store(copy)
    assert cache.load(copy.url) == copy
    assert cache.load("https://example.org/y") is None
    cache.touch(Copy(copy.url, b"", 1_800_000_000.0))
    kept = cache.load(copy.url)
    assert kept is not None and (kept.fetched, kept.body) == (1_800_000_000.0, copy.body)
    assert [path.suffix for path in cache.folder.iterdir()] == [".copy"]


@pytest.mark.parametrize("damage", [b"", b"\n", b"{}\n- name: a\n", b"\xff\xff\n"])
def test_a_damaged_copy_is_none(tmp_path: Path, damage: bytes) -> None:
    cache = CopyCache(tmp_path)
    cache.store(Copy("https://example.org/x", b"- name: a\n" * 100, 1_700_000_000.0))
    (path,) = tmp_path.iterdir()
    whole = path.read_bytes()
    for broken in (damage, whole[:-5], whole + b"more"):
        path.write_bytes(broken)
        assert cache.load("https://example.org/x") is None


def test_of_too_many_copies_the_oldest_go(tmp_path: Path) -> None:
    cache = CopyCache(tmp_path, max_bytes=5000)
    (tmp_path / "notes.txt").write_text("not ours")
    urls = [f"https://example.org/{number}" for number in range(8)]
    for age, url in enumerate(urls):
        cache.store(Copy(url, b"x" * 1000, 1_700_000_000.0 + age))
    kept = [url for url in urls if cache.load(url) is not None]
    assert kept == urls[-4:]
    assert (tmp_path / "notes.txt").exists()


def test_a_disk_that_cannot_keep_copies_is_no_error(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    (tmp_path / "file").write_text("in the way")
    CopyCache(tmp_path / "file").store(Copy("https://example.org/x", b"- name: a\n", 1.0))
    assert "is not kept for offline use" in caplog.text
