"""An entry, its base file and a request become one model file's keys; what nobody reads is lifted or told."""

from __future__ import annotations

import copy

import pytest
from hypothesis import given
from hypothesis import strategies as st

from llmgallery.catalog.gallery.compose import compose, merge
from llmgallery.catalog.gallery.entry import Composed, EntryFile, GalleryEntry
from llmgallery.core.errors import ConfigError

BASE = b"""
name: base-name
description: what the base says
license: mit
urls: [https://base]
files: [{filename: shared.bin, uri: "https://base/shared.bin"}, {filename: w.gguf, uri: "https://base/w.gguf"}]
config_file: |
    name: base-model
    backend: llama-cpp
    stopwords: [a, b]
    parameters:
        temperature: 0.5
        context_size: 8192
        f16: true
        mmap: true
    template:
        chat: "{{.Input}}"
        completion: "{{.Input}}"
"""


def entry(**fields) -> GalleryEntry:
    return GalleryEntry(**{"name": "m", "gallery": "g", "source": "i.yaml", "place": (4, 3), **fields})


def of(overrides: dict, **fields) -> Composed:
    return compose(entry(overrides=overrides, **fields), None)


# --- merging -----------------------------------------------------------------------------------------------------------------


def test_later_layers_are_laid_over_earlier_ones():
    """Base file, `config`, `overrides`, the request: maps recurse, lists and all else replace."""
    one = entry(
        url="base.yaml",
        config={"parameters": {"top_k": 1, "top_p": 0.1}, "stopwords": ["c"]},
        overrides={"parameters": {"top_k": 2}, "stopwords": ["d"], "template": {"completion": "x"}},
    )
    found = compose(one, BASE, {"parameters": {"top_k": 3, "seed": 0}, "f16": False}).config
    assert found == {
        "backend": "llama-cpp",
        "stopwords": ["d"],
        "parameters": {"temperature": 0.5, "top_p": 0.1, "top_k": 3, "seed": 0},
        "template": {"chat": "{{.Input}}", "completion": "x"},
        "f16": False,
        "context_size": 8192,
        "mmap": True,
    }


def test_zero_and_false_replace_and_nothing_does_not():
    assert merge({"a": 1, "b": True, "c": [1], "d": 2}, {"a": 0, "b": False, "c": [], "d": None}) == {
        "a": 0,
        "b": False,
        "c": [],
        "d": 2,
    }


@pytest.mark.parametrize(
    "below, above, expected",
    [
        ({"a": {"b": 1}}, {"a": {"c": 2}}, {"a": {"b": 1, "c": 2}}),
        ({"a": {"b": 1}}, {"a": 3}, {"a": 3}),
        ({"a": 3}, {"a": {"b": 1}}, {"a": {"b": 1}}),
        ({"a": ["k:v"]}, {"a": {"k": "v"}}, {"a": {"k": "v"}}),
        ({"a": {"b": {"c": 1, "d": 2}}}, {"a": {"b": {"c": 5}}}, {"a": {"b": {"c": 5, "d": 2}}}),
    ],
)
def test_maps_recurse(below, above, expected):
    assert merge(below, above) == expected


VALUES = st.recursive(
    st.none() | st.booleans() | st.integers(0, 3) | st.lists(st.integers(0, 3), max_size=2),
    lambda inner: st.dictionaries(st.sampled_from("abc"), inner, max_size=3),
    max_leaves=12,
)
MAPS = st.dictionaries(st.sampled_from("abc"), VALUES, max_size=3)


@given(MAPS, MAPS)
def test_merging_changes_neither_and_is_idempotent(below, above):
    before = copy.deepcopy((below, above))
    merged = merge(below, above)
    assert (below, above) == before
    assert merge(merged, above) == merged and merge(below, {}) == below


def test_what_the_entry_says_of_itself_goes_before_the_base():
    found = compose(entry(url="b"), BASE)
    assert (found.licence, found.description, found.urls) == ("mit", "what the base says", ("https://base",))
    own = entry(url="b", licence="apache-2.0", description="own", urls=("https://own",))
    found = compose(own, BASE)
    assert (found.licence, found.description, found.urls) == ("apache-2.0", "own", ("https://own",))
    assert compose(entry(licence="N/A"), None).licence is None


def test_the_name_is_the_installs_to_say():
    assert "name" not in compose(entry(url="b", overrides={"name": "other"}), BASE).config


def test_a_base_file_that_is_not_there_or_is_wrong_is_told():
    with pytest.raises(ConfigError, match=r"i\.yaml:4:3: g@m is written over base\.yaml, which is not here"):
        compose(entry(url="base.yaml"), None)
    with pytest.raises(ConfigError) as caught:
        compose(entry(url="base.yaml"), b"config_file: |\n  a: [\n")
    assert "base.yaml:" in caught.value.hints[0]


def test_aliases_of_the_entry_are_the_models():
    found = of({"aliases": ["b", "c"]}, aliases=("a", "b", "c"))
    assert found.config["aliases"] == ["a", "b", "c"]
    assert compose(entry(aliases=("a",)), None, {"aliases": ["z"]}).config["aliases"] == ["a", "z"]


# --- keys that nobody reads --------------------------------------------------------------------------------------------------


def test_keys_under_the_wrong_parent_are_lifted():
    found = compose(entry(url="b"), BASE)
    assert found.config["context_size"] == 8192 and found.config["parameters"] == {"temperature": 0.5}
    assert found.lifted == (
        "parameters.context_size has no meaning there, and is taken as context_size",
        "parameters.f16 has no meaning there, and is taken as f16",
        "parameters.mmap has no meaning there, and is taken as mmap",
    )


@pytest.mark.parametrize(
    "written, config",
    [
        ({"parameters": {"threads": 3}}, {"parameters": {}, "threads": 3}),
        ({"temperature": 0.3}, {"parameters": {"temperature": 0.3}}),
        (
            {"function": {"grammar": {"function_arguments_key": "args"}}},
            {"function": {"grammar": {}, "function_arguments_key": "args"}},
        ),
        (
            {"use_tokenizer_template": True, "template": {"chat": "x"}},
            {"template": {"chat": "x", "use_tokenizer_template": True}},
        ),
    ],
)
def test_a_key_with_one_home_goes_there(written, config):
    found = of(written)
    assert found.config == config and len(found.lifted) == 1 and not found.dropped


def test_what_stands_in_its_place_counts():
    found = of({"context_size": 4096, "parameters": {"context_size": 8192}})
    assert found.config["context_size"] == 4096
    assert found.lifted == ("parameters.context_size has no meaning there, and context_size says otherwise, which counts",)
    assert of({"context_size": 4096, "parameters": {"context_size": 4096}}).lifted == ()


def test_keys_without_a_home_are_told_with_their_values():
    found = of(
        {
            "parameters": {"voice": "amy", "temperatur": 1},
            "function": {"return_name_in_function_response": True},
            "diffusers": {"cuda": True},
            "backend": "llama-cpp",
        }
    )
    assert found.config == {"parameters": {}, "function": {}, "backend": "llama-cpp"}
    assert found.dropped == {
        "parameters.voice": "amy",
        "parameters.temperatur": 1,
        "function.return_name_in_function_response": True,
        "diffusers": {"cuda": True},
    }
    assert set(found.warnings) == {
        "parameters.voice: not used: it chooses a voice, and no backend here speaks",
        "parameters.temperatur: unknown key, not used; did you mean parameters.temperature?",
        "function.return_name_in_function_response: not used: LocalAI has dropped it: a tool's result is known by its "
        "tool_call_id",
        "diffusers: not used: it makes images, which no backend here does",
    }


def test_keys_without_a_value_are_not_written():
    assert of({"mmap": None, "parameters": {"seed": None}, "voice": None}) == Composed({"parameters": {}})


def test_warnings_of_entry_and_base_are_kept():
    base = BASE + b"prompt_templates: []\n"
    found = compose(entry(url="b.yaml", warnings=("i.yaml:9:3: odd: unknown key, not read",)), base)
    assert found.warnings[0].startswith("i.yaml:9:3: odd")
    assert found.warnings[1].startswith("b.yaml:19:1: prompt_templates: unknown key")


# --- files -------------------------------------------------------------------------------------------------------------------


def test_of_files_of_one_name_the_nearest_to_the_request_counts():
    one = entry(url="b", files=(EntryFile("w.gguf", "https://entry/w"), EntryFile("x.gguf", "https://entry/x")))
    found = compose(one, BASE, None, [EntryFile("x.gguf", "https://request/x")])
    assert {file.filename: file.uri for file in found.files} == {
        "x.gguf": "https://request/x",
        "w.gguf": "https://entry/w",
        "shared.bin": "https://base/shared.bin",
    }


def test_download_files_of_a_model_file_are_files():
    written = [{"uri": "https://a/b/c.gguf?x=1", "sha256": "AB" * 32}, {"filename": "d", "uri": "https://a/e"}, "f", {"uri": 3}]
    found = of({"download_files": written})
    assert found.files == (EntryFile("c.gguf", "https://a/b/c.gguf?x=1", "ab" * 32), EntryFile("d", "https://a/e"))
    assert "download_files" not in found.config
    assert [warning.partition(":")[0] for warning in found.warnings] == ["download_files[2]", "download_files[3]"]
