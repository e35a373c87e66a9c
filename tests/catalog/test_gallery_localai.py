"""LocalAI's names of backends and uses, and ours for them."""

from __future__ import annotations

from dataclasses import replace

import pytest

from llmgallery.backends.loader import specs
from llmgallery.catalog.engines import check_here
from llmgallery.catalog.gallery.localai import (
    KINDS,
    is_text,
    missing_backend,
    our_backend,
    plain_backend,
    use_cases,
    without_foreign_draft,
)
from llmgallery.core.errors import BackendMissing


@pytest.mark.parametrize(
    "name, ours",
    [
        ("llama-cpp", "llama-cpp"),
        ("Llama-CPP ", "llama-cpp"),
        ("llama", "llama-cpp"),
        ("go-llama", "llama-cpp"),
        ("cpu-llama-cpp", "llama-cpp"),
        ("cuda12-llama-cpp-development", "llama-cpp"),
        ("nvidia-l4t-arm64-cuda13-llama-cpp", "llama-cpp"),
        ("intel-sycl-f16-llama-cpp", "llama-cpp"),
        ("vulkan-llama-cpp", "llama-cpp"),
        ("llama-cpp-avx2", "llama-cpp"),
        ("echo", "echo"),
        ("vllm", None),
        ("vllm-cpp", None),
        ("piper", None),
        ("llama-ggml", None),
        ("cpu", None),
        ("", None),
    ],
)
def test_backends_are_ours_or_are_not(name, ours):
    assert our_backend(name, specs()) == ours


def test_no_backend_is_both_ours_and_missing():
    assert not [name for name in KINDS if our_backend(name, specs())]


@pytest.mark.parametrize("name", ["cpu", "rocm-", "-", "development"])
def test_a_name_is_never_empty(name):
    assert plain_backend(name)


@pytest.mark.parametrize(
    "name, said",
    [
        ("vllm", "g@m needs the backend vllm (text), which is not available yet in this version; available: echo, "),
        ("cuda12-vllm", "g@m needs the backend cuda12-vllm (text), which is not available yet in this version"),
        ("piper", "the backend piper (speech), which is not one of this program's"),
        ("stablediffusion-ggml", "(images), which is not one of this program's"),
        ("something-new", "the backend something-new, which is not one of this program's"),
    ],
)
def test_what_is_missing_is_named(name, said):
    error = missing_backend(name, "g@m", specs())
    assert isinstance(error, BackendMissing) and said in error.message


def test_a_library_that_is_not_installed_is_told_with_its_command():
    spec = replace(specs()["llama-cpp"], requires=("no_such_library",), extra="llama")
    told = "g@m: backend llama-cpp needs no_such_library, not installed here: llmgallery backends install llama-cpp"
    with pytest.raises(BackendMissing, match=told):
        check_here(spec, "g@m")
    with pytest.raises(BackendMissing, match="pip install no_such_library"):
        check_here(replace(spec, extra=""), "g@m")
    check_here(specs()["echo"], "g@m")


def test_a_library_is_needed_for_some_formats_only():
    spec = replace(specs()["llama-cpp"], requires_for={"gptq": ("no_such_library",)})
    check_here(spec, "g@m", "gguf")
    with pytest.raises(BackendMissing, match="needs no_such_library"):
        check_here(spec, "g@m", "gptq")


@pytest.mark.parametrize(
    "config, uses",
    [
        ({}, ()),
        ({"known_usecases": ["chat", "FLAG_COMPLETION", "Chat"]}, ("chat", "completion")),
        ({"known_usecases": "chat"}, ()),
        ({"embeddings": True, "known_usecases": ["embeddings"]}, ("embeddings",)),
        ({"reranking": True, "embeddings": False}, ("rerank",)),
        ({"mmproj": "p.gguf"}, ("vision",)),
    ],
)
def test_use_cases(config, uses):
    assert use_cases(config) == uses


@pytest.mark.parametrize(
    "config, text",
    [
        ({}, True),
        ({"backend": "llama-cpp"}, True),
        ({"backend": "vllm", "known_usecases": ["video"]}, True),
        ({"backend": "whisper"}, False),
        ({"backend": "cuda12-diffusers", "known_usecases": ["chat"]}, False),
        ({"backend": "new-thing", "known_usecases": ["tts"]}, False),
        ({"backend": "new-thing", "known_usecases": ["rerank"]}, True),
    ],
)
def test_what_is_about_text(config, text):
    assert is_text(config) is text


@pytest.mark.parametrize(
    "options, stays",
    [
        (["spec_type:draft"], True),
        (["spec-type:draft_simple"], True),
        (["--spec_type:draft-mtp"], False),
        (["use_jinja:true", "speculative_type: draft-dflash"], False),
        ({"speculative": "draft"}, True),
        ([], True),
    ],
)
def test_weights_of_another_kind_of_speculation_are_no_draft_model(options, stays):
    """They hold a part of a model; llama.cpp's library loads no such thing as a model of its own."""
    config = {"draft_model": "d.gguf", "options": options, "backend": "llama-cpp"}
    found, said = without_foreign_draft(config, specs()["llama-cpp"])
    assert ("draft_model" in found) is stays and bool(said) is not stays
    assert found["options"] == options
    without = {"options": ["spec_type:draft-mtp"]}
    assert without_foreign_draft(without, specs()["llama-cpp"]) == (without, [])
