"""Which variant a host takes, and which quantisation an entry is."""

from __future__ import annotations

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from llmgallery.catalog.gallery.choose_variant import Candidate, Host, choose_variant
from llmgallery.catalog.gallery.compose import compose
from llmgallery.catalog.gallery.entry import EntryFile, GalleryEntry
from llmgallery.catalog.gallery.quantisation import pick, quantisation, with_quantisation

GB = 10**9


def entry(name: str, *files: str, model: str = "", **fields: object) -> GalleryEntry:
    overrides = {"parameters": {"model": model}} if model else {}
    made = GalleryEntry(
        name=name, gallery="ours", overrides=overrides, files=tuple(EntryFile(file, f"hf://o/r/{file}") for file in files)
    )
    return msgspec.structs.replace(made, **fields)


@pytest.mark.parametrize(
    ("made", "quant"),
    [
        (entry("a", "Carbon-3B-Q4_K_M.gguf"), "Q4_K_M"),
        (entry("carbon-3b-q8", "weights.gguf"), "Q8"),
        (entry("inkling-small-iq2-m"), "IQ2_M"),
        (entry("a-q8", "x/UD-IQ1_S/model-UD-IQ1_S-00001-of-00003.gguf"), "UD_IQ1_S"),
        (entry("a", "mmproj-F16.gguf", "model.TQ1_0.gguf"), "TQ1_0"),
        (entry("a", "other.Q2_K.gguf", model="main.Q6_K.gguf"), "Q6_K"),
        (entry("a", model="owner/repo-AWQ"), "AWQ"),
        (entry("gpt-oss-20b-mxfp4"), "MXFP4"),
        (entry("a", "Model-bf16.gguf"), "BF16"),
        (entry("turbo-4.25bpw"), "4.25BPW"),
        (entry("qwen3-0.6b", "weights.gguf"), None),
        (entry("faq4you", "plaq8_0.gguf"), None),
    ],
)
def test_quantisations_by_name(made: GalleryEntry, quant: str | None) -> None:
    assert quantisation(made) == quant


def test_what_a_word_picks() -> None:
    main, small, big = entry("m", "m.Q4_K_M.gguf"), entry("m-little", "m.Q4_0.gguf"), entry("m-big-f16", "m-F16.gguf")
    all_of_them = (small, big)
    assert pick("q4", small, (main, big)) is main
    assert pick("q4_0", main, all_of_them) is small
    assert pick("LITTLE", main, all_of_them) is small
    assert pick("m-big-f16", main, all_of_them) is big
    assert pick("f16", main, all_of_them) is big
    assert pick("q5", main, all_of_them) is None
    assert pick("ittle", main, all_of_them) is None


@pytest.mark.parametrize(
    ("made", "weights"),
    [
        (entry("a", model="owner/repo"), "owner/repo:Q8_0"),
        (entry("a", model="hf://owner/repo@v1"), "owner/repo:Q8_0@v1"),
        (entry("a", "mmproj.gguf", model="owner/repo"), "owner/repo:Q8_0"),
        (entry("a", config={"backend": "cuda12-llama-cpp", "parameters": {"model": "owner/repo"}}), "owner/repo:Q8_0"),
        (entry("a", model="owner/repo:Q4_0"), None),
        (entry("a", model="owner/repo/file.gguf"), None),
        (entry("a", "file.gguf", model="owner/repo"), None),
        (entry("a", model="file.gguf"), None),
        (entry("a", model="hf://owner"), None),
        (entry("a", config={"backend": "transformers", "parameters": {"model": "owner/repo"}}), None),
        (entry("a"), None),
    ],
)
def test_a_quantisation_of_an_entry_that_leaves_it_open(made: GalleryEntry, weights: str | None) -> None:
    quantised = with_quantisation(made, "Q8_0")
    found = None if quantised is None else compose(quantised, None).config["parameters"]["model"]
    assert found == weights
    assert with_quantisation(made, "no quantisation!") is None


def test_a_quantisation_goes_where_the_weights_are_named() -> None:
    quantised = with_quantisation(entry("a", overrides={"model": "owner/repo", "parameters": {"top_k": 3}}), "q4")
    assert quantised is not None
    assert quantised.overrides == {"model": "owner/repo:q4", "parameters": {"top_k": 3}}


BASE = Candidate(entry("m", "m.Q4_K_M.gguf"), "llama-cpp", 4 * GB)
Q8 = Candidate(entry("m-q8", "m.Q8_0.gguf"), "llama-cpp", 8 * GB)
Q2 = Candidate(entry("m-q2", "m.Q2_K.gguf"), "llama-cpp", 2 * GB)
F16 = Candidate(entry("m-f16", "m.F16.gguf"), "llama-cpp", 15 * GB)
MTP = Candidate(entry("m-q4-mtp", "m-mtp.Q4_K_M.gguf"), "llama-cpp", 5 * GB)
DFLASH = Candidate(entry("m-fast", "m.Q4_0.gguf", tags=("DFlash",)), "llama-cpp", 3 * GB)
VLLM = Candidate(entry("m-vllm", "m-AWQ"), "vllm", 5 * GB)
BIG_VLLM = Candidate(entry("m-vllm-big", "m-AWQ"), "vllm", 50 * GB)
UNKNOWN = Candidate(entry("m-unknown", "m.Q6_K.gguf"), "llama-cpp", None)
ANY = Candidate(entry("m-any"), None, 1 * GB)
SMTP = Candidate(entry("smtp-agent", "s.Q4_0.gguf"), "llama-cpp", 1 * GB)


def host(gb: float | None = 16, backends: str = "llama-cpp", **preferred: tuple[str, ...]) -> Host:
    return Host(lambda name: name in backends.split(), None if gb is None else int(gb * GB), **preferred)


@pytest.mark.parametrize(
    ("candidates", "there", "taken"),
    [
        ([BASE, Q8, Q2], host(), "m-q8"),
        ([BASE, Q8, Q2], host(8.7), "m"),  # a tenth beside the weights
        ([BASE, Q8, Q2], host(8.9), "m-q8"),
        ([BASE, Q8, Q2], host(3), "m-q2"),
        ([BASE, Q8, F16], host(64), "m-q8"),  # no more than enough
        ([F16, BASE], host(64), "m"),
        ([F16], host(64), "m-f16"),
        ([BASE, VLLM], host(), "m"),
        ([BASE, VLLM], host(backends="llama-cpp vllm"), "m-vllm"),
        ([BASE, VLLM, Q8], host(backends="llama-cpp vllm", engines=("llama-cpp", "vllm")), "m-q8"),
        ([BASE, VLLM, Q8], host(backends="llama-cpp vllm", engines=("vllm", "llama-cpp")), "m-vllm"),
        ([BASE, BIG_VLLM, Q8], host(backends="llama-cpp vllm", engines=("vllm",)), "m-q8"),
        ([BASE, MTP, Q8], host(features=("dflash", "mtp")), "m-q4-mtp"),
        ([BASE, MTP, DFLASH, Q8], host(features=("dflash", "mtp")), "m-fast"),
        ([BASE, SMTP], host(features=("mtp",)), "m"),
        ([BASE, MTP, VLLM], host(backends="llama-cpp vllm", engines=("vllm",), features=("mtp",)), "m-vllm"),
        ([BASE, UNKNOWN], host(), "m"),
        ([BASE, UNKNOWN], host(1), "m-unknown"),
        ([UNKNOWN, Q2], host(), "m-q2"),
        ([VLLM, ANY], host(), "m-any"),
        ([BASE, Q8, Q2], host(None), "m"),
        ([VLLM, Q8, Q2], host(None), "m-q8"),
    ],
)
def test_the_variant_that_a_host_takes(candidates: list[Candidate], there: Host, taken: str) -> None:
    choice = choose_variant(candidates, there)
    assert (choice.entry.name, choice.fits) == (taken, True)


def test_where_nothing_fits_it_is_the_entry_itself_and_says_why() -> None:
    choice = choose_variant([BASE, VLLM, Q8], host(1))
    assert (choice.entry.name, choice.fits) == ("m", False)
    assert choice.dropped == (
        "m needs about 4,400,000,000 bytes of memory; 1,000,000,000 may be had",
        "m-vllm needs the backend vllm, which is not installed here",
        "m-q8 needs about 8,800,000,000 bytes of memory; 1,000,000,000 may be had",
    )


@given(
    st.lists(st.sampled_from([BASE, Q8, Q2, F16, MTP, DFLASH, VLLM, UNKNOWN, ANY]), min_size=1, max_size=6), st.integers(0, 80)
)
def test_what_is_taken_fits_unless_nothing_does(candidates: list[Candidate], gb: int) -> None:
    there = host(gb)
    choice = choose_variant(candidates, there)
    fitting = [
        one for one in candidates if one.backend in (None, "llama-cpp") and (one.size is None or one.size * 1.1 <= gb * GB)
    ]
    assert choice.fits is bool(fitting)
    assert choice.entry in [one.entry for one in (fitting or candidates[:1])]
    assert len(choice.dropped) == len(candidates) - len(fitting)
