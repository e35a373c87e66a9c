"""GGUF headers: ours against files that the gguf package writes, and against every kind of broken bytes."""

from __future__ import annotations

import struct

import gguf
import numpy as np
import pytest
from gguf.constants import GGML_QUANT_SIZES, GGMLQuantizationType
from hypothesis import given, settings
from hypothesis import strategies as st

from llmgallery import paths
from llmgallery.catalog.gguf import Header, is_gguf, kv_bytes, read_header, weights_bytes
from llmgallery.catalog.gguf_reader import Array, Tensor
from llmgallery.catalog.gguf_types import GGML_TYPES
from llmgallery.core.errors import BadWeights

POCKET = paths.builtin("models") / "pocket-f16.gguf"
MIB = 2**20


def write(path, architecture="llama", layers=2, add=lambda writer: None, tensors=None):
    writer = gguf.GGUFWriter(path, architecture)
    writer.add_name("tiny")
    writer.add_block_count(layers)
    writer.add_context_length(4096)
    writer.add_embedding_length(64)
    add(writer)
    for name, values in (tensors or {"token_embd.weight": np.zeros((8, 64), np.float16)}).items():
        writer.add_tensor(name, values)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def test_the_bundled_model():
    header = read_header(POCKET)
    assert (header.architecture, header.name, header.file_type, header.version) == ("llama", "pocket", "F16", 3)
    assert (header.context_length, header.block_count, header.embedding_length) == (1024, 5, 192)
    assert header.head_counts == header.head_counts_kv == (3,) * 5
    assert (header.key_length, header.value_length, header.num_tokens) == (64, 64, 2048)
    assert header.chat_template is not None and header.chat_template.startswith("{#- ChatML")
    assert header.data_end == POCKET.stat().st_size
    assert header.metadata["tokenizer.ggml.tokens"] == Array("string", 2048)
    # What llama.cpp prints for 8 sequences: "KV buffer size = 30.00 MiB", "file size = 4.63 MiB".
    assert kv_bytes(header, 1024, 8) == 30 * MIB
    assert round(weights_bytes(header) / MIB, 2) == 4.63


def test_keys_of_a_written_file(tmp_path):
    def add(writer: gguf.GGUFWriter) -> None:
        writer.add_head_count(8)
        writer.add_head_count_kv([2, 0])
        writer.add_key_length(16)
        writer.add_value_length(32)
        writer.add_sliding_window(512)
        writer.add_file_type(15)
        writer.add_token_list(["a", "b", "c"])
        writer.add_chat_template([{"name": "default", "template": "D"}, {"name": "tool_use", "template": "T"}])
        writer.add_uint16("split.count", 3)
        writer.add_array("some.numbers", list(range(2000)))
        writer.add_array("some.texts", ["x", "y"])

    path = write(tmp_path / "a.gguf", add=add)
    header = read_header(path)
    assert (header.head_counts, header.head_counts_kv) == ((8, 8), (2, 0))
    assert (header.key_length, header.value_length, header.sliding_window) == (16, 32, 512)
    assert (header.file_type, header.split_count, header.num_tokens) == ("Q4_K_M", 3, 3)
    assert (header.chat_template, header.templates) == ("D", {"tool_use": "T"})
    assert header.metadata["some.numbers"] == Array("i32", 2000)
    assert header.metadata["some.texts"] == Array("string", 2)
    assert header.tensors == (Tensor("token_embd.weight", (64, 8), 1, 0),)
    assert weights_bytes(header) == 64 * 8 * 2
    whole = read_header(path, arrays=True)
    assert whole.metadata["some.numbers"] == tuple(range(2000)) and whole.metadata["some.texts"] == ("x", "y")
    assert whole.num_tokens == 3
    assert read_header(path.read_bytes()) == header


def test_heads_are_told_from_the_width_when_the_file_does_not(tmp_path):
    header = read_header(write(tmp_path / "a.gguf", add=lambda writer: writer.add_head_count(4)))
    assert (header.head_counts_kv, header.key_length, header.value_length) == ((4, 4), 16, 16)
    assert kv_bytes(header, 1000) == 1024 * 2 * (64 + 64) * 2
    assert kv_bytes(header, 1000, 3) == 3 * kv_bytes(header, 1000)
    assert kv_bytes(header, 256, 1, "q8_0", "f32") == 256 * 2 * (68 + 256)
    with pytest.raises(BadWeights, match="no cache type q9"):
        kv_bytes(header, 256, 1, "q9")


def test_sizes_that_differ_by_layer_count_as_the_largest(tmp_path):
    def add(writer: gguf.GGUFWriter) -> None:
        writer.add_head_count(4)
        writer.add_array("llama.attention.key_length", [16, 32])

    assert read_header(write(tmp_path / "a.gguf", add=add)).key_length == 32


def test_a_recurrent_model_has_a_state_instead_of_a_cache(tmp_path):
    def add(writer: gguf.GGUFWriter) -> None:
        writer.add_ssm_conv_kernel(4)
        writer.add_ssm_inner_size(128)
        writer.add_ssm_state_size(16)

    header = read_header(write(tmp_path / "a.gguf", architecture="mamba", add=add))
    assert kv_bytes(header, 100_000, 2) == 2 * 2 * 4 * (3 * 128 + 128 * 16)


def test_a_file_without_an_architecture_is_still_a_header(tmp_path):
    header = read_header(b"GGUF" + struct.pack("<IQQ", 3, 0, 0))
    assert (header.architecture, header.tensors, header.block_count, header.data_offset) == ("", (), 0, 32)
    assert kv_bytes(header, 1024) == 0 and header.data_end == 32


def test_version_2_is_read():
    data = POCKET.read_bytes()
    assert read_header(data[:4] + struct.pack("<I", 2) + data[8:]).name == "pocket"


def header_of(*values: tuple[str, int, bytes], tensors: bytes = b"", num_tensors: int = 0) -> bytes:
    """A header by hand: metadata as (key, type, bytes)."""
    body = b"".join(struct.pack("<Q", len(key)) + key.encode() + struct.pack("<I", kind) + raw for key, kind, raw in values)
    return b"GGUF" + struct.pack("<IQQ", 3, num_tensors, len(values)) + body + tensors


U32, STRING, ARRAY = 4, 8, 9
LLAMA = ("general.architecture", STRING, struct.pack("<Q", 5) + b"llama")


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (b"", r"does not begin with GGUF \(at byte 0\)"),
        (b"GGU", "does not begin with GGUF"),
        (b"GGML" + bytes(100), "does not begin with GGUF"),
        (b"GGUF" + struct.pack("<I", 1) + bytes(100), r"version 1; 2 and 3 can be read \(at byte 4\)"),
        (b"GGUF" + struct.pack(">I", 3) + bytes(100), "big-endian"),
        (b"GGUF" + struct.pack("<IQQ", 3, 1 << 60, 0), "tensors, more than the 24 bytes"),
        (b"GGUF" + struct.pack("<IQQ", 3, 0, 1 << 60), "metadata values, more than"),
        (POCKET.read_bytes()[:3000], "truncated"),
        (header_of(("a", U32, bytes(4)), ("a", U32, bytes(4))), "metadata key 'a' twice"),
        (header_of(("a", 77, bytes(4))), "unknown type 77"),
        (header_of(("a", STRING, struct.pack("<Q", 1 << 62))), "a text of 4611686018427387904 bytes"),
        (header_of(("a", ARRAY, struct.pack("<IQ", U32, 1 << 62))), "array items, more than"),
        (header_of(("a", ARRAY, struct.pack("<IQ", STRING, 1 << 62))), "array items, more than"),
        (header_of(("a", ARRAY, struct.pack("<IQ", ARRAY, 1) * 6 + bytes(64))), "nested deeper"),
        (header_of(("a", ARRAY, struct.pack("<IQ", 99, 0))), "array of unknown type 99"),
        (header_of(("general.alignment", U32, struct.pack("<I", 3))), "no power of two"),
        (header_of(("general.architecture", U32, bytes(4))), "general.architecture is '0', not a text"),
        (header_of(LLAMA, ("llama.block_count", STRING, bytes(8))), "llama.block_count is '', not a size"),
        (header_of(LLAMA, ("llama.block_count", U32, b"\xff" * 4)), "more than 4096"),
        (
            header_of(tensors=struct.pack("<Q", 1) + b"t" + struct.pack("<I", 9) + bytes(40), num_tensors=1),
            "9 dimensions",
        ),
    ],
)  # fmt: skip
def test_what_is_wrong_is_said_with_its_place(data, reason):
    with pytest.raises(BadWeights, match=reason):
        read_header(data)


def test_too_few_heads_for_the_layers(tmp_path):
    path = write(tmp_path / "a.gguf", layers=3, add=lambda writer: writer.add_head_count([1, 2]))
    with pytest.raises(BadWeights, match="for each of 3 layers"):
        read_header(path)


def test_files_that_are_none(tmp_path):
    with pytest.raises(BadWeights, match="cannot be read"):
        read_header(tmp_path / "none.gguf")
    with pytest.raises(BadWeights, match="cannot be read"):
        read_header(tmp_path)
    (tmp_path / "model.bin").write_bytes(POCKET.read_bytes()[:100])
    (tmp_path / "text.gguf").write_text("hello")
    assert is_gguf(tmp_path / "model.bin")
    assert not is_gguf(tmp_path / "text.gguf") and not is_gguf(tmp_path) and not is_gguf(tmp_path / "none")


def test_only_the_header_is_read(tmp_path):
    """A sparse file of a terabyte: nothing of its size is read or allocated."""
    path = tmp_path / "huge.gguf"
    with path.open("wb") as stream:
        stream.write(POCKET.read_bytes()[:70_000])
        stream.truncate(1 << 40)
    assert read_header(path).name == "pocket"


def test_sizes_of_types_are_those_of_ggml():
    known = {int(kind): GGML_QUANT_SIZES[kind] for kind in GGMLQuantizationType if int(kind) in GGML_TYPES}
    assert {number: (kind.block, kind.size) for number, kind in GGML_TYPES.items()} == known


def try_to_read(data: bytes) -> None:
    try:
        header = read_header(data)
    except BadWeights:
        return
    assert isinstance(header, Header)
    assert kv_bytes(header, 4096, 8) >= 0 and weights_bytes(header) >= 0 and header.data_end >= 0


SMALL = header_of(
    LLAMA,
    ("llama.block_count", U32, struct.pack("<I", 3)),
    ("llama.attention.head_count", ARRAY, struct.pack("<IQ3I", U32, 3, 8, 8, 8)),
    ("llama.embedding_length", U32, struct.pack("<I", 64)),
    ("tokenizer.ggml.tokens", ARRAY, struct.pack("<IQQ", STRING, 1, 2) + b"ab"),
    tensors=struct.pack("<Q", 1) + b"t" + struct.pack("<IQQIQ", 2, 64, 8, 1, 0),
    num_tensors=1,
)


def test_the_small_header_is_whole():
    header = read_header(SMALL)
    assert (header.block_count, header.head_counts, header.num_tokens, len(header.tensors)) == (3, (8, 8, 8), 1, 1)


@given(st.binary(max_size=300))
def test_any_bytes(data):
    try_to_read(data)
    try_to_read(b"GGUF" + data)
    try_to_read(b"GGUF\x03\0\0\0" + data)


@settings(max_examples=300)
@given(st.integers(0, len(SMALL) - 1), st.binary(min_size=1, max_size=9), st.integers(0, len(SMALL)))
def test_a_header_with_some_bytes_changed_and_the_end_cut(place, change, end):
    try_to_read((SMALL[:place] + change + SMALL[place + len(change) :])[:end])


@given(st.integers(0, 66_000))
def test_a_real_header_cut_anywhere(end):
    try_to_read(POCKET.read_bytes()[:end])
