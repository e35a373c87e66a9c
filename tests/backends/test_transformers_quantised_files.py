"""What files and YAML say of quantised weights, without loading any."""

import json
from pathlib import Path
from typing import Any

import pytest

from llmgallery.backends.transformers.spec import TransformersOptions
from llmgallery.backends.transformers.weights import quantisation
from llmgallery.backends.transformers.weights.quantisation import CPU_WORKERS, quantisation_of
from llmgallery.config.model import ModelConfig
from llmgallery.core.errors import BackendMissing, BadWeights, LoadError


def folder_with(folder: Path, own: dict[str, Any] | None = None, *files: str) -> Path:
    (folder / "config.json").write_text(json.dumps({"model_type": "llama", **({"quantization_config": own} if own else {})}))
    for name in files or ("model.safetensors",):
        (folder / name).touch()
    return folder


def test_plain_weights_need_nothing(tmp_path: Path) -> None:
    told = quantisation_of(folder_with(tmp_path), ModelConfig(), TransformersOptions())
    assert (told.method, told.from_pretrained, told.attributes) == ("", {}, {})
    told.check()


@pytest.mark.parametrize("method", ["gptq", "awq"])
def test_files_that_say_so_themselves_need_gptqmodel(tmp_path: Path, monkeypatch, method: str) -> None:
    monkeypatch.delenv(CPU_WORKERS, raising=False)
    told = quantisation_of(folder_with(tmp_path, {"quant_method": method, "bits": 4}), ModelConfig(), TransformersOptions())
    assert (told.method, told.source, told.from_pretrained) == (method, "config.json", {})
    monkeypatch.setattr(quantisation, "_is_installed", lambda name: name != "gptqmodel")
    with pytest.raises(BackendMissing, match=r"gptqmodel: llmgallery backends install transformers --with gptq"):
        told.check()
    monkeypatch.setattr(quantisation, "_is_installed", lambda name: True)
    told.check()
    assert int(quantisation.os.environ[CPU_WORKERS]) >= 2


def test_a_yaml_that_says_otherwise_is_refused(tmp_path: Path) -> None:
    folder = folder_with(tmp_path, {"quant_method": "gptq", "bits": 4})
    with pytest.raises(LoadError, match=r"bnb_4bit.*config.json.*gptq already") as refusal:
        quantisation_of(folder, ModelConfig(quantization="bnb_4bit"), TransformersOptions())
    assert refusal.value.field == "quantization"
    assert quantisation_of(folder, ModelConfig(quantization="gptq"), TransformersOptions()).method == "gptq"


def test_an_unknown_word_is_refused(tmp_path: Path) -> None:
    with pytest.raises(LoadError, match=r"3bit is none of bnb_4bit"):
        quantisation_of(folder_with(tmp_path), ModelConfig(quantization="3bit"), TransformersOptions())
    assert not quantisation_of(folder_with(tmp_path), ModelConfig(quantization="none"), TransformersOptions()).method


def test_gptq_weights_without_their_bits_are_asked_for_them(tmp_path: Path) -> None:
    with pytest.raises(LoadError, match=r"options: \{wbits: 4\}") as refusal:
        quantisation_of(folder_with(tmp_path), ModelConfig(quantization="gptq"), TransformersOptions())
    assert refusal.value.field == "options.wbits"
    with pytest.raises(LoadError, match="5 is none of"):
        quantisation_of(folder_with(tmp_path), ModelConfig(), TransformersOptions(wbits=5))


def test_awq_weights_say_so_themselves(tmp_path: Path) -> None:
    with pytest.raises(BadWeights, match="nothing of AWQ"):
        quantisation_of(folder_with(tmp_path), ModelConfig(quantization="awq"), TransformersOptions())


def test_damaged_files_are_told(tmp_path: Path) -> None:
    folder = folder_with(tmp_path)
    (folder / "quantize_config.json").write_text("{")
    with pytest.raises(BadWeights, match=r"quantize_config\.json is not readable"):
        quantisation_of(folder, ModelConfig(), TransformersOptions())


def test_the_one_file_of_an_old_repo_is_found(tmp_path: Path) -> None:
    name = "gptq_model-4bit-128g.safetensors"
    folder = folder_with(tmp_path, {"quant_method": "gptq"}, name)
    assert quantisation_of(folder, ModelConfig(), TransformersOptions()).attributes == {"transformers_weights": name}


@pytest.mark.parametrize(
    "config",
    [
        ModelConfig(model_base_name="b"),
        ModelConfig(model_base_name="b.safetensors"),
        ModelConfig(model="owner/repo/b.safetensors@main"),
    ],
)
def test_the_yaml_says_which_of_several(tmp_path: Path, config: ModelConfig) -> None:
    folder = folder_with(tmp_path, {"quant_method": "gptq"}, "a.safetensors", "b.safetensors", "c.pt")
    assert quantisation_of(folder, config, TransformersOptions()).attributes == {"transformers_weights": "b.safetensors"}
    with pytest.raises(BadWeights, match=r"no d\.safetensors .*, but a\.safetensors, b\.safetensors"):
        quantisation_of(folder, ModelConfig(model_base_name="d"), TransformersOptions())
    with pytest.raises(BadWeights, match="c is a pickle"):
        quantisation_of(folder, ModelConfig(model_base_name="c"), TransformersOptions())
