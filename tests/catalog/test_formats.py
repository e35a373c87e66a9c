"""Formats are told by contents: every file here has a name that says nothing, or lies."""

import json
import struct
import zipfile
from pathlib import Path

import pytest

from llmgallery.catalog import formats


def text(value: str) -> bytes:
    return struct.pack("<Q", len(value)) + value.encode()


def gguf(**values: str | int | list[str]) -> bytes:
    """A GGUF header with these values; no tensors."""
    head = b"GGUF" + struct.pack("<IQQ", 3, 0, len(values))
    for key, value in values.items():
        head += text(key.replace("__", "."))
        if isinstance(value, str):
            head += struct.pack("<I", 8) + text(value)
        elif isinstance(value, int):
            head += struct.pack("<II", 4, value)
        else:
            head += struct.pack("<IIQ", 9, 8, len(value)) + b"".join(map(text, value))
    return head


def safetensors() -> bytes:
    header = b'{"w":{"dtype":"F16","shape":[1],"data_offsets":[0,2]}}'
    return struct.pack("<Q", len(header)) + header + b"\0\0"


def hf_folder(folder: Path, config: object, **files: bytes) -> Path:
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps(config))
    for name, data in files.items():
        (folder / name.replace("__", ".")).write_bytes(data)
    return folder


@pytest.mark.parametrize(
    ("data", "expected"),
    [
        (gguf(general__architecture="llama"), formats.GGUF),
        (b"tjgg" + bytes(20), formats.GGML),
        (safetensors(), formats.SAFETENSORS),
        (b"GGU", None),
        (b"", None),
        (b'{"model": "x"}', None),
        (b"backend: echo\n", None),
        (bytes(64), None),
    ],
)
def test_files_by_their_first_bytes(tmp_path: Path, data: bytes, expected: str | None) -> None:
    path = tmp_path / "weights.bin"
    path.write_bytes(data)
    assert formats.detect(path) == expected


def test_a_torch_checkpoint_is_told_from_any_other_zip(tmp_path: Path) -> None:
    for name, member, expected in (("a", "archive/data.pkl", formats.PYTORCH), ("b", "readme.md", None)):
        with zipfile.ZipFile(tmp_path / name, "w") as archive:
            archive.writestr(member, b"x")
        assert formats.detect(tmp_path / name) == expected


def test_openvino_is_a_net_beside_its_weights(tmp_path: Path) -> None:
    xml = tmp_path / "openvino_model.xml"
    xml.write_text('<?xml version="1.0"?>\n<net name="Model0" version="11">')
    assert formats.detect(xml) is None
    xml.with_suffix(".bin").write_bytes(b"x")
    assert formats.detect(xml) == formats.OPENVINO
    assert formats.detect(tmp_path) == formats.OPENVINO
    xml.write_text("<html><net ></html>")
    assert formats.detect(tmp_path) is None


@pytest.mark.parametrize(
    ("config", "files", "expected"),
    [
        ({}, {"model__safetensors": safetensors()}, formats.SAFETENSORS),
        ({"quantization_config": {"quant_method": "gptq", "bits": 4}}, {"model__safetensors": b"x"}, formats.GPTQ),
        ({"quantization_config": {"bits": 4, "group_size": 128}}, {"model__safetensors": b"x"}, formats.GPTQ),
        ({"quantization_config": {"quant_method": "awq"}}, {"model__safetensors": b"x"}, formats.AWQ),
        ({"quantization_config": {"quant_method": "exl2", "bits": 4.0}}, {"output__safetensors": b"x"}, formats.EXL2),
        ({"quantization_config": {"quant_method": "exl3"}}, {"model__safetensors": b"x"}, formats.EXL3),
        ({"quantization_config": {"quant_method": "bitsandbytes"}}, {"model__safetensors": b"x"}, formats.SAFETENSORS),
        ({}, {"quantize_config__json": b"{}", "model__safetensors": b"x"}, formats.GPTQ),
        ({}, {"quant_config__json": b"{}", "model__safetensors": b"x"}, formats.AWQ),
        ({}, {"tokenizer__json": b"{}"}, None),
        ([], {"model__safetensors": b"x"}, None),
        ({}, {"model__gguf": gguf(general__architecture="llama")}, formats.GGUF),
    ],
)
def test_folders_by_their_config(tmp_path: Path, config: object, files: dict[str, bytes], expected: str | None) -> None:
    assert formats.detect(hf_folder(tmp_path / "model", config, **files)) == expected


def test_an_unreadable_config_is_no_model(tmp_path: Path) -> None:
    folder = hf_folder(tmp_path / "model", {}, model__safetensors=b"x")
    (folder / "config.json").write_bytes(b"\xff\xfe{")
    assert formats.detect(folder) is None


def test_header_texts_up_to_the_first_list() -> None:
    path_values = gguf(general__architecture="llama", general__file_type=1, general__type="model", tokens=["a", "b"], late="x")
    import io

    assert formats._texts(io.BytesIO(path_values)) == {"general.architecture": "llama", "general.type": "model"}


@pytest.mark.parametrize(
    ("name", "data", "model"),
    [
        ("a", gguf(general__architecture="llama"), True),
        ("mmproj-a", gguf(general__architecture="clip"), False),
        ("b", gguf(general__architecture="llama", general__type="adapter"), False),
        ("c", gguf(general__architecture="llama", general__type="model"), True),
        ("x-00001-of-00002.gguf", gguf(general__architecture="llama"), True),
        ("x-00002-of-00002.gguf", gguf(general__architecture="llama"), False),
        ("cut", gguf(general__architecture="llama")[:40], True),
        ("lying", b"GGUF" + struct.pack("<IQQ", 3, 0, 2**60) + struct.pack("<Q", 2**63), True),
    ],
)
def test_models_are_told_from_projectors_adapters_and_later_parts(tmp_path: Path, name: str, data: bytes, model: bool) -> None:
    path = tmp_path / name
    path.write_bytes(data)
    assert formats.is_model(path) is model


def test_parts_of_a_split_model() -> None:
    parts = formats.split_parts(Path("d/m-00002-of-00003.gguf"))
    assert [part.name for part in parts] == ["m-00001-of-00003.gguf", "m-00002-of-00003.gguf", "m-00003-of-00003.gguf"]
    for single in ("m.gguf", "m-00000-of-00003.gguf", "m-00004-of-00003.gguf"):
        assert formats.split_parts(Path(single)) == (Path(single),)
