"""Whether a model is installed just as it is asked for: a table of what is locked, what its YAML says, and what is asked."""

from typing import Any

import pytest

from llmgallery.catalog.gallery.entry import GalleryEntry
from llmgallery.catalog.gallery.search import Found
from llmgallery.catalog.install.job import Asked
from llmgallery.catalog.lock import LockedFile, LockedModel
from llmgallery.service.install.unchanged import is_unchanged

COMMIT, OTHER = "a" * 40, "b" * 40
SHA = "0" * 64
ENTRY = GalleryEntry(name="tiny", gallery="mine")
YAML = f"""\
name: tiny
backend: llama-cpp
parameters:
  model: own/repo/sub/tiny-Q8_0.gguf@{COMMIT}
  temperature: 0.5
context_size: 512
stopwords: [a, b]
mmproj: .files/{SHA}/mmproj.gguf
"""
FILES = (
    LockedFile(uri=f"hf://own/repo/sub/tiny-Q8_0.gguf@{COMMIT}", sha256=SHA, size=1, commit=COMMIT),
    LockedFile(uri="https://example.org/x/mmproj.gguf", sha256=SHA, size=1, path=f".files/{SHA}/mmproj.gguf"),
)


def same(asked: Asked, found: Found | None = None, source: str = "mine@tiny", text: str = YAML) -> bool:
    model = LockedModel(source=source, files=FILES)
    return is_unchanged(asked, found, {"mine@tiny", "mine@tiny-small"} if found else (), model, text)


@pytest.mark.parametrize(
    ("source", "quant", "is_same"),
    [
        ("mine@tiny", None, True),
        ("mine@tiny-small", None, True),  # the variant that was taken
        ("other@tiny", None, False),
        (f"own/repo@{COMMIT}", None, False),
        ("mine@tiny", "Q8_0", True),
        ("mine@tiny", "q8_0", True),
        ("mine@tiny", "Q8", False),
        ("mine@tiny", "Q4_K_M", False),
    ],
)
def test_an_entry(source: str, quant: str | None, is_same: bool) -> None:
    assert same(Asked(reference="tiny", name="mine"), Found(ENTRY, quant), source) == is_same


@pytest.mark.parametrize(
    ("reference", "is_same"),
    [
        ("own/repo", True),
        ("own/repo:Q8_0", True),
        ("own/repo:Q4_0", False),
        ("own/repo/sub/tiny-Q8_0.gguf", True),
        ("own/repo/tiny-Q8_0.gguf", False),
        (f"own/repo@{COMMIT}", True),
        (f"own/repo@{OTHER}", False),
        ("hf://own/repo", True),
        ("own/other", False),
        ("github:own/repo/x.yaml", False),
    ],
)
@pytest.mark.parametrize("name", [None, "mine"])
def test_a_hub_id(reference: str, is_same: bool, name: str | None) -> None:
    assert same(Asked(reference=reference, name=name), source=f"own/repo@{COMMIT}") == is_same


def test_a_branch_is_told_by_the_models_name_only() -> None:
    """Under another name nobody knows which commit the branch is at now."""
    source = f"own/repo@{COMMIT}"
    assert same(Asked(reference="own/repo@v2"), source=source)
    assert not same(Asked(reference="own/repo@v2", name="mine"), source=source)


def test_an_address() -> None:
    address = "github:own/repo/tiny.yaml@main"
    assert same(Asked(reference=address, name="mine"), source=address)
    assert not same(Asked(reference=address), source=f"own/repo@{COMMIT}")


@pytest.mark.parametrize(
    ("overrides", "is_same"),
    [
        ({}, True),
        ({"context_size": 512}, True),
        ({"context_size": 1024}, False),
        ({"parameters": {"temperature": 0.5}}, True),
        ({"parameters": {"temperature": 0.5, "top_k": 3}}, False),
        ({"parameters": {"context_size": 512}}, True),  # as it is lifted to its place
        ({"stopwords": ["a", "b"]}, True),
        ({"stopwords": ["a"]}, False),
        ({"nobody_reads_it": 1}, True),
        ({"parameters": {"model": "tiny-Q8_0.gguf"}}, True),
        ({"parameters": {"model": "huggingface://own/repo/sub/tiny-Q8_0.gguf"}}, True),
        ({"parameters": {"model": f"own/repo/sub/tiny-Q8_0.gguf@{OTHER}"}}, False),
        ({"parameters": {"model": "other.gguf"}}, False),
        ({"mmproj": "https://example.org/x/mmproj.gguf"}, True),
        ({"mmproj": "https://example.org/y/mmproj.gguf"}, False),
        ({"lora_adapters": ["tiny-Q8_0.gguf"]}, True),
        ({"lora_adapters": ["tiny-Q8_0.gguf", "more.gguf"]}, False),
        ({"download_files": [{"filename": "m", "uri": "https://example.org/x/mmproj.gguf"}], "mmproj": "m"}, True),
        ({"download_files": [{"filename": "m", "uri": "https://example.org/y/mmproj.gguf"}], "mmproj": "m"}, False),
    ],
)
def test_what_is_laid_over_it(overrides: dict[str, Any], is_same: bool) -> None:
    assert same(Asked(reference="tiny", overrides=overrides), Found(ENTRY)) == is_same


@pytest.mark.parametrize(
    ("uri", "is_same"),
    [
        ("huggingface://own/repo/sub/tiny-Q8_0.gguf", True),
        ("https://huggingface.co/own/repo/resolve/main/sub/tiny-Q8_0.gguf", True),
        ("huggingface://own/repo/sub/tiny-Q4_0.gguf", False),
        ("https://example.org/x/mmproj.gguf", True),
        ("ftp://example.org/x", False),
    ],
)
def test_files_of_the_asks_own(uri: str, is_same: bool) -> None:
    asked = Asked(reference="tiny", files=({"uri": uri, "filename": "m.gguf"},), overrides={"parameters": {"model": "m.gguf"}})
    assert same(asked, Found(ENTRY)) == is_same


@pytest.mark.parametrize("text", ["", "- a list\n", "{", "!!python/name:os.system"])
def test_a_yaml_that_is_no_models(text: str) -> None:
    assert not same(Asked(reference="tiny", overrides={"context_size": 512}), Found(ENTRY), text=text)
