"""Headers of safetensors files, read without the library."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from weight_folders import BYTES, llama_files, safetensors, write_folder

from llmgallery.catalog.safetensors import MOST, check_whole, read_header
from llmgallery.catalog.shards import missing_shards
from llmgallery.core.errors import BadWeights

shapes = st.lists(st.integers(0, 5), max_size=4).map(tuple)
names = st.text(min_size=1, max_size=8).filter(lambda name: name != "__metadata__")
tensors = st.dictionaries(names, st.tuples(st.sampled_from(sorted(BYTES)), shapes), max_size=5)


def header(value: object) -> bytes:
    text = value if isinstance(value, bytes) else json.dumps(value).encode()
    return len(text).to_bytes(8, "little") + text


@given(tensors, st.dictionaries(st.text(max_size=5), st.text(max_size=5), max_size=3))
def test_what_was_written_is_read(wanted: dict[str, tuple[str, tuple[int, ...]]], metadata: dict[str, str]) -> None:
    data = safetensors(wanted, metadata)
    found = read_header(data)
    assert {name: (tensor.type, tensor.shape) for name, tensor in found.tensors.items()} == wanted
    assert found.metadata == metadata
    assert found.data_end == len(data)
    for tensor in found.tensors.values():
        assert tensor.size == tensor.numbers * BYTES[tensor.type]


@given(tensors, st.data())
def test_a_cut_file_is_told(wanted: dict[str, tuple[str, tuple[int, ...]]], data: st.DataObject) -> None:
    whole = safetensors(wanted)
    with pytest.raises(BadWeights):
        read_header(whole[: data.draw(st.integers(0, read_header(whole).data_start - 1))])


@given(st.binary(max_size=200))
@example(b"\xff" * 8)
@example(header([1, 2]))
@example(header(b"\xff\xff"))
@example(header(b"[" * 5000))
@example(header({"a": {"dtype": "F32", "shape": [2], "data_offsets": [0, 4]}}))
@example(header({"a": {"dtype": "F32", "shape": [2], "data_offsets": [8, 0]}}))
@example(header({"a": {"dtype": "F32", "shape": [-2], "data_offsets": [0, 8]}}))
@example(header({"a": {"dtype": "F32", "shape": [2]}}))
@example(header({"__metadata__": {"a": 1}}))
def test_nonsense_is_bad_weights_or_a_header(data: bytes) -> None:
    try:
        found = read_header(data)
    except BadWeights as error:
        assert "these bytes" in error.message
    else:
        assert found.data_start <= len(data)


def test_a_file_must_be_as_long_as_its_header_says(tmp_path: Path) -> None:
    path = tmp_path / "model.safetensors"
    data = safetensors({"a": ("F16", (3, 2))})
    path.write_bytes(data)
    assert check_whole(path).tensors["a"].numbers == 6
    path.write_bytes(data[:-1])
    with pytest.raises(BadWeights, match=rf"model.safetensors is cut: {len(data) - 1} of {len(data)} bytes are here"):
        check_whole(path)
    path.write_bytes(data + b"x")
    with pytest.raises(BadWeights, match="has 1 bytes more than its header says"):
        check_whole(path)
    path.write_bytes((MOST + 1).to_bytes(8, "little") + b"{}")
    with pytest.raises(BadWeights, match="does not begin with the length of a header"):
        read_header(path)


def test_shards_are_missed_by_the_index_and_by_their_numbers(tmp_path: Path) -> None:
    files = llama_files()
    folder = write_folder(tmp_path / "a", files)
    assert missing_shards(folder) == []
    (folder / "model-00002-of-00002.safetensors").unlink()
    assert missing_shards(folder) == ["model-00002-of-00002.safetensors"]
    (folder / "model.safetensors.index.json").unlink()
    assert missing_shards(folder) == ["model-00002-of-00002.safetensors"]
    (folder / "model-00001-of-00002.safetensors").unlink()
    assert missing_shards(folder) == []


def test_an_index_that_a_conversion_left_behind_does_not_count(tmp_path: Path) -> None:
    """EXL2 repos keep the index of the model that they were made from."""
    names = {name: data for name, data in llama_files().items() if not name.endswith(".safetensors")}
    folder = write_folder(tmp_path / "a", {**names, "output.safetensors": safetensors({"a": ("F16", (1,))})})
    assert missing_shards(folder) == []
    (folder / "output.safetensors").unlink()
    assert missing_shards(folder) == ["model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"]
