"""What models are made for, by headers that the gguf package writes."""

from __future__ import annotations

import os
from pathlib import Path

import gguf
import pytest
from gguf_headers import Add, classifier, nothing, write

from llmgallery import paths
from llmgallery.catalog.gguf import read_header
from llmgallery.catalog.index import Entry
from llmgallery.catalog.purpose import ENCODERS, purpose, purpose_of
from llmgallery.catalog.reference import HubReference
from llmgallery.config.model import ModelConfig, Parameters


def entry(reference: str | None, folder: Path) -> Entry:
    config = ModelConfig(name="m", parameters=Parameters(model=reference))
    return Entry("m", folder / "m.yaml", folder, config, "llama-cpp")


@pytest.mark.parametrize(
    ("architecture", "add", "expected"),
    [
        ("llama", nothing, "generate"),
        ("t5", nothing, "generate"),
        ("qwen3", lambda writer: writer.add_pooling_type(gguf.PoolingType.LAST), "generate"),
        ("qwen3", lambda writer: writer.add_pooling_type(gguf.PoolingType.RANK), "rerank"),
        ("bert", lambda writer: writer.add_pooling_type(gguf.PoolingType.MEAN), "embed"),
        ("bert", lambda writer: writer.add_pooling_type(gguf.PoolingType.RANK), "rerank"),
        ("bert", classifier, "rerank"),
        ("new-encoder", lambda writer: writer.add_causal_attention(False), "embed"),
        ("new-decoder", lambda writer: writer.add_causal_attention(True), "generate"),
        *((name, nothing, "embed") for name in sorted(ENCODERS)),
    ],
)
def test_headers_tell(tmp_path: Path, architecture: str, add: Add, expected: str) -> None:
    assert purpose(read_header(write(tmp_path / "a.gguf", architecture, add))) == expected


def test_the_encoders_are_architectures_of_llama_cpp() -> None:
    assert set(gguf.MODEL_ARCH_NAMES.values()) >= ENCODERS


def test_entries_tell_once_their_weights_are_here(tmp_path: Path) -> None:
    write(tmp_path / "a.gguf", "bert")
    (tmp_path / "text.gguf").write_text("no model")
    assert purpose_of(entry("a.gguf", tmp_path)) == ("embed", "bert")
    for unknown in ("text.gguf", "absent.gguf", "owner/repo:Q4_0", None, "/nowhere/a.gguf"):
        assert purpose_of(entry(unknown, tmp_path)) is None
    assert purpose_of(entry(str(paths.builtin("models") / "pocket-f16.gguf"), tmp_path)) == ("generate", "llama")


def test_downloaded_weights_tell_too(tmp_path: Path) -> None:
    file = write(tmp_path / "a.gguf", "bert")
    asked: list[HubReference] = []

    def cached(reference: HubReference) -> list[Path] | None:
        asked.append(reference)
        return [file] if reference.quant == "Q4_0" else None

    assert purpose_of(entry("owner/repo:Q4_0", tmp_path), cached) == ("embed", "bert")
    assert purpose_of(entry("owner/repo:Q8_0", tmp_path), cached) is None
    assert [reference.repo for reference in asked] == ["owner/repo"] * 2


def test_a_file_that_changes_is_read_again(tmp_path: Path) -> None:
    file = write(tmp_path / "a.gguf", "bert")
    assert purpose_of(entry("a.gguf", tmp_path)) == ("embed", "bert")
    write(file, "nomic-bert")
    os.utime(file, ns=(1, 1))
    assert purpose_of(entry("a.gguf", tmp_path)) == ("embed", "nomic-bert")


def test_a_header_that_cannot_be_read_says_nothing(tmp_path: Path) -> None:
    whole = write(tmp_path / "a.gguf", "bert").read_bytes()
    (tmp_path / "cut.gguf").write_bytes(whole[:40])
    assert purpose_of(entry("cut.gguf", tmp_path)) is None
