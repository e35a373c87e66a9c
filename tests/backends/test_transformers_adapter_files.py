"""Folders of LoRA adapters, judged by their files."""

import json
from pathlib import Path

import pytest

from llmgallery.backends.transformers.weights.adapters import check_adapter
from llmgallery.core.errors import BadWeights


def adapter(folder: Path, kind: str = "LORA", weights: str = "adapter_model.safetensors") -> Path:
    (folder / "adapter_config.json").write_text(json.dumps({"peft_type": kind}))
    (folder / weights).touch()
    return folder


def test_a_folder_of_peft_is_one(tmp_path: Path) -> None:
    check_adapter(adapter(tmp_path))


def test_a_gguf_is_for_another_backend(tmp_path: Path) -> None:
    file = tmp_path / "lora.gguf"
    file.write_bytes(b"GGUF\3\0\0\0")
    with pytest.raises(BadWeights, match=r"lora\.gguf is an adapter in GGUF, which only llama-cpp takes") as refusal:
        check_adapter(file)
    assert refusal.value.field == "lora_adapters"


def test_other_kinds_are_refused(tmp_path: Path) -> None:
    with pytest.raises(BadWeights, match="of type PREFIX_TUNING, only LORA"):
        check_adapter(adapter(tmp_path, kind="PREFIX_TUNING"))


def test_pickles_are_loaded_only_where_the_yaml_says_so(tmp_path: Path) -> None:
    folder = adapter(tmp_path, weights="adapter_model.bin")
    with pytest.raises(BadWeights, match="safetensors_only: false"):
        check_adapter(folder)
    check_adapter(folder, safetensors_only=False)


@pytest.mark.parametrize("name", ["absent", "empty"])
def test_what_is_no_adapter_is_told(tmp_path: Path, name: str) -> None:
    (tmp_path / "empty").mkdir()
    with pytest.raises(BadWeights, match="no such folder" if name == "absent" else r"no adapter_config\.json"):
        check_adapter(tmp_path / name)


def test_weights_that_are_missing_are_told(tmp_path: Path) -> None:
    with pytest.raises(BadWeights, match=r"no adapter_model\.safetensors is in it"):
        check_adapter(adapter(tmp_path, weights="other.safetensors"))


def test_a_damaged_description_is_told(tmp_path: Path) -> None:
    (adapter(tmp_path) / "adapter_config.json").write_text("[")
    with pytest.raises(BadWeights, match="not readable as JSON"):
        check_adapter(tmp_path)
