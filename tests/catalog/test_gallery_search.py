"""What a name means over all galleries, what is near it, and what fits some words."""

from __future__ import annotations

import time
from collections.abc import Sequence

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from llmgallery.catalog.gallery.entry import EntryFile, GalleryEntry
from llmgallery.catalog.gallery.search import Contents, Found, family


def entry(name: str, gallery: str = "ours", weights: str = "", **fields: object) -> GalleryEntry:
    overrides = {"backend": "llama-cpp", "parameters": {"model": weights}} if weights else {}
    return msgspec.structs.replace(GalleryEntry(name=name, gallery=gallery, overrides=overrides), **fields)


def contents(*entries: GalleryEntry) -> Contents:
    galleries: dict[str, dict[str, GalleryEntry]] = {}
    for one in entries:
        galleries.setdefault(one.gallery, {})[one.name] = one
    return Contents(galleries)


QWEN = entry(
    "qwen3-0.6b",
    weights="Qwen3-0.6B-Q4_K_M.gguf",
    aliases=("qwen-small",),
    variants=("qwen3-0.6b-best", "qwen3-0.6b-mtp", "qwen3:0.6b-iq2-m"),
    tags=("chat", "tools"),
    url="github:mudler/LocalAI/gallery/qwen3.yaml@master",
    description="A small model for conversations in many languages.",
)
ALL = contents(
    QWEN,
    entry("qwen3-0.6b-best", weights="owner/repo/Qwen3-0.6B-Q8_0.gguf@main", description="A small model."),
    entry("qwen3-0.6b-mtp", weights="qwen3-mtp.Q5_K_M.gguf"),
    entry("qwen3:0.6b-iq2-m", weights="x.gguf", files=(EntryFile("Qwen3-0.6B-IQ2_M.gguf", "hf://o/r/x"),)),
    entry("whole", weights="hf://owner/whole-GGUF", tags=("Embeddings",), description="Sentences as vectors, for search."),
    entry("Mixed-Case", weights="mixed.gguf"),
    entry("mixed-case-2", aliases=("TWICE",)),
    entry("other", aliases=("twice", "qwen3-0.6b")),
    entry("piper-voice", overrides={"backend": "piper"}, description="qwen3 speaks", tags=("tts",)),
    entry("qwen3-0.6b", "theirs", description="another one of this name"),
    entry("only-theirs", "theirs", weights="Only-BF16.gguf"),
)


@pytest.mark.parametrize(
    ("name", "means"),
    [
        ("qwen3-0.6b", "ours@qwen3-0.6b"),
        ("theirs@qwen3-0.6b", "theirs@qwen3-0.6b"),
        ("ours@qwen3-0.6b", "ours@qwen3-0.6b"),
        ("only-theirs", "theirs@only-theirs"),
        ("qwen-small", "ours@qwen3-0.6b"),
        ("ours@qwen-small", "ours@qwen3-0.6b"),
        ("Qwen-Small", "ours@qwen3-0.6b"),
        ("mixed-case", "ours@Mixed-Case"),
        ("OURS@MIXED-case", "ours@Mixed-Case"),
        ("TWICE", "ours@mixed-case-2"),
        ("twice", "ours@other"),
        ("Twice", None),
        ("theirs@mixed-case", None),
        ("nowhere@qwen3-0.6b", None),
        ("@qwen3-0.6b", None),
        ("qwen3-0.6b@main", None),
        ("", None),
        (":", None),
        ("x" * 100_000 + ":q8", None),
        (":" * 100_000, None),
    ],
)
def test_names(name: str, means: str | None) -> None:
    found = ALL.find(name)
    assert (found and (found.entry.id, found.quant, found.chosen)) == (means and (means, None, False))


@pytest.mark.parametrize(
    ("name", "means", "quant"),
    [
        ("qwen3-0.6b:Q4_K_M", "qwen3-0.6b", None),
        ("qwen3-0.6b:q4", "qwen3-0.6b", None),
        ("qwen3-0.6b:q8_0", "qwen3-0.6b-best", None),
        ("qwen3-0.6b:Q8", "qwen3-0.6b-best", None),
        ("ours@qwen-small:q8-0", "qwen3-0.6b-best", None),
        ("QWEN3-0.6B:Q8_0", "qwen3-0.6b-best", None),
        ("qwen3-0.6b:best", "qwen3-0.6b-best", None),
        ("qwen3-0.6b:mtp", "qwen3-0.6b-mtp", None),
        ("qwen3-0.6b:qwen3-0.6b-mtp", "qwen3-0.6b-mtp", None),
        ("qwen3-0.6b:qwen3:0.6b-iq2-m", "qwen3:0.6b-iq2-m", None),
        ("qwen3-0.6b:iq2_m", "qwen3:0.6b-iq2-m", None),
        ("qwen3:0.6b-iq2-m:IQ2_M", "qwen3:0.6b-iq2-m", None),
        ("whole:Q5_K_M", "whole", "Q5_K_M"),
        ("only-theirs:bf16", "only-theirs", None),
        ("qwen3-0.6b:q6_k", None, None),
        ("qwen3-0.6b:6b", None, None),
        ("qwen3-0.6b:", None, None),
        ("only-theirs:q4_k_m", None, None),
        ("nothing:q4_k_m", None, None),
    ],
)
def test_a_variant_or_a_quantisation_follows_the_colon(name: str, means: str | None, quant: str | None) -> None:
    found = ALL.find(name)
    assert (found and (found.entry.name, found.quant, found.chosen)) == (means and (means, quant, True))


def test_variants_are_of_the_own_gallery_first() -> None:
    shelves = contents(
        entry("b", "one"), entry("c", "one"), entry("a", "two", variants=("b", "c", "gone", "a")), entry("b", "two")
    )
    assert [other.id for other in shelves.variants(shelves.galleries["two"]["a"])] == ["two@b", "one@c"]


def test_a_name_without_end_costs_nothing() -> None:
    begun = time.thread_time()
    for name in (":" * 300_000, "ours@" * 100_000, "qwen3-0.6b:" * 50_000):
        assert (ALL.find(name), len(ALL.near(name)) <= 3) == (None, True)
    assert time.thread_time() - begun < 0.2


@pytest.mark.parametrize(
    ("name", "near"),
    [
        ("qwen3-0.6", "qwen3-0.6b"),
        ("qwn3-0.6b", "qwen3-0.6b"),
        ("QWEN3_0.6B", "qwen3-0.6b"),
        ("theirs@only-their", "theirs@only-theirs"),
        ("piper", "piper-voice"),
        ("qwen3-0.6b:q9", "qwen3-0.6b:Q4_K_M"),
    ],
)
def test_near_names(name: str, near: str) -> None:
    assert ALL.near(name)[0] == near


def test_nothing_is_near_nonsense() -> None:
    assert ALL.near("zzzzzz") == ()
    assert ALL.near("theirs@zzzzzz") == ()
    assert ALL.near("") == ()
    assert ALL.near("qwen3-0.6b:q9") == tuple(f"qwen3-0.6b:{quant}" for quant in ("Q4_K_M", "Q8_0", "Q5_K_M"))


@pytest.mark.parametrize(
    ("text", "names"),
    [
        ("qwen3-0.6b", ["qwen3-0.6b", "qwen3-0.6b", "other", "qwen3-0.6b-mtp", "qwen3-0.6b-best", "qwen3:0.6b-iq2-m"]),
        ("small", ["qwen3-0.6b", "qwen3-0.6b-best"]),
        ("tools", ["qwen3-0.6b"]),
        ("languages", ["qwen3-0.6b"]),
        ("EMBEDDINGS", ["whole"]),
        ("vectors search", ["whole"]),
        ("whole vectors nothing", []),
        ("q8_0", ["qwen3-0.6b-best"]),
        ("qwen iq2", ["qwen3:0.6b-iq2-m"]),
        ("onversations", []),
        ("?!", [
            "qwen3-0.6b", "qwen3-0.6b-best", "qwen3-0.6b-mtp", "qwen3:0.6b-iq2-m", "whole", "Mixed-Case", "mixed-case-2", "other",
            "piper-voice", "qwen3-0.6b", "only-theirs",
        ]),
    ],
)  # fmt: skip
def test_search(text: str, names: list[str]) -> None:
    assert [found.name for found in ALL.search(text)] == names


def test_search_puts_text_models_before_others_and_names_before_descriptions() -> None:
    found = [one.name for one in ALL.search("qwen3")]
    assert found[-1] == "piper-voice"
    assert found[0].startswith("qwen3-0.6b")
    voices = contents(entry("owl-tts", overrides={"backend": "piper"}), entry("owl-chat", overrides={"backend": "llama-cpp"}))
    assert [one.name for one in voices.search("owl")] == ["owl-chat", "owl-tts"]
    assert [one.name for one in voices.search()] == ["owl-tts", "owl-chat"]


def test_search_within_a_tag_or_a_gallery() -> None:
    assert [one.name for one in ALL.search(tag="embeddings")] == ["whole"]
    assert [one.id for one in ALL.search("qwen3-0.6b", gallery="theirs")] == ["theirs@qwen3-0.6b"]
    assert ALL.search("qwen3", tag="embeddings") == []


@pytest.mark.parametrize(
    ("url", "name"),
    [
        ("github:mudler/LocalAI/gallery/qwen3.yaml@master", "qwen3"),
        ("base/Llama3.1-Instruct.yaml", "llama3.1-instruct"),
        ("github:mudler/LocalAI/gallery/virtual.yaml@master", ""),
        (None, ""),
    ],
)
def test_family(url: str | None, name: str) -> None:
    assert family(entry("a", url=url)) == name


def many(count: int) -> list[GalleryEntry]:
    sizes = ("0.6b", "1.7b", "4b", "8b", "14b", "32b", "70b")
    text = "An instruction tuned model for conversations, tools and code in many languages. " * 12
    return [
        entry(
            f"family{number // 7}-{sizes[number % 7]}-instruct",
            weights=f"f{number}.Q4_K_M.gguf",
            description=text,
            tags=("chat",),
        )
        for number in range(count)
    ]


def test_two_thousand_entries_are_searched_quickly() -> None:
    big = contents(*many(2100))
    begun = time.thread_time()
    assert big.search("family77 8b conversations")[0].name == "family77-8b-instruct"
    assert "family288-8b-instruct" in big.near("famly288-8b-instruct")
    assert big.find("family288-8b-instruct:nope") is None
    assert time.thread_time() - begun < 0.25  # of this thread; 0.02 s measured


NAMES = st.text(st.sampled_from("abAB01-_.:@/ é"), max_size=12)


@given(st.lists(st.tuples(NAMES.filter(bool), st.sampled_from(["one", "two"]), st.lists(NAMES, max_size=2)), max_size=8), NAMES)
def test_every_name_finds_its_entry_and_no_text_fails(made: Sequence[tuple[str, str, list[str]]], text: str) -> None:
    entries = [entry(name, gallery, aliases=tuple(aliases)) for name, gallery, aliases in made]
    held = contents(*entries)
    for name, gallery, _ in made:
        found = held.find(name)
        assert found is not None and name in (found.entry.name, *found.entry.aliases)
        assert held.find(f"{gallery}@{name}") is not None
    assert isinstance(held.find(text), Found | None)
    assert len(held.near(text)) <= 3
    assert set(map(id, held.search(text))) <= set(map(id, held.search()))
