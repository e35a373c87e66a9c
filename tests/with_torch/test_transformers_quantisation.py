"""Quantised weights whose libraries are not here: refused by name before anything is loaded; and the list of arguments."""

import json
from pathlib import Path

import pytest
import transformers
from driving_transformers import Told
from tiny_transformers import make_llama

from llmgallery.backends.base import Files
from llmgallery.backends.transformers.backend import TransformersBackend
from llmgallery.backends.transformers.generation.generate_arguments import ARGUMENTS
from llmgallery.backends.transformers.weights import quantisation
from llmgallery.config.model import ModelConfig
from llmgallery.core.errors import BackendMissing, BadWeights

INNER = {"_from_model_config", "transformers_version", "_original_object_hash"}


def load(folder: Path, **config: object) -> None:
    TransformersBackend().load(ModelConfig(**config), Files((folder,)), Told())


@pytest.fixture
def llama(tmp_path: Path, monkeypatch) -> Path:
    """Nothing that quantised weights need is installed."""
    monkeypatch.setattr(quantisation, "_is_installed", lambda name: False)
    return make_llama(tmp_path / "llama")


def describe(folder: Path, **described: object) -> None:
    file = folder / "config.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), "quantization_config": described}))


def test_gptq_needs_its_libraries(llama: Path) -> None:
    describe(llama, quant_method="gptq", bits=4, group_size=32)
    with pytest.raises(BackendMissing, match=r"gptqmodel, optimum: llmgallery backends install transformers --with gptq"):
        load(llama)


def test_bitsandbytes_must_be_there(llama: Path) -> None:
    with pytest.raises(BackendMissing, match=r"bitsandbytes.*--with bitsandbytes") as refusal:
        load(llama, quantization="bnb_4bit")
    assert refusal.value.field == "quantization"


def test_other_methods_name_their_library(llama: Path) -> None:
    describe(llama, quant_method="compressed-tensors")
    with pytest.raises(BackendMissing, match=r"compressed_tensors: pip install compressed-tensors"):
        load(llama)


def test_a_quantize_config_without_bits_is_damaged(llama: Path) -> None:
    (llama / "quantize_config.json").write_text(json.dumps({"group_size": 128}))
    with pytest.raises(BadWeights, match=r"quantize_config\.json: bits: None is none of 2, 3, 4, 8"):
        load(llama)


def test_all_arguments_of_generate_are_known() -> None:
    theirs = {name for name in vars(transformers.GenerationConfig()) if name not in INNER}
    assert theirs == set(ARGUMENTS)
