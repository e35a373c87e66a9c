"""LoRA adapters: the answers are peft's own, and adapters of other models are refused with their reason."""

from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from tiny_transformers import make_llama
from transformers import AutoModelForCausalLM

from llmgallery.backends.transformers.weights.adapters import apply_adapters
from llmgallery.config.model import ModelConfig
from llmgallery.core.errors import BadWeights, LoadError

pytestmark = pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing`:FutureWarning")  # peft 0.21 asks transformers 5
IDS = torch.tensor([[1, 40, 50, 60, 70]])


def base(folder: Path) -> Any:
    return AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()


def make_adapter(model: Any, folder: Path, seed: int, **more: Any) -> Path:
    """A LoRA that does something: peft's own begin with zeros."""
    torch.manual_seed(seed)
    config = LoraConfig(**{"r": 4, "lora_alpha": 8, "target_modules": ["q_proj", "v_proj"], "task_type": "CAUSAL_LM", **more})
    wrapped = get_peft_model(model, config)
    with torch.no_grad():
        for name, weights in wrapped.named_parameters():
            if "lora_B" in name:
                weights.normal_(0, 0.5)
    wrapped.save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def llama(tmp_path_factory) -> Path:
    return make_llama(tmp_path_factory.mktemp("llama"))


@pytest.fixture(scope="module")
def adapters(llama: Path, tmp_path_factory) -> list[Path]:
    return [make_adapter(base(llama), tmp_path_factory.mktemp("lora"), seed) for seed in (1, 2)]


def logits(model: Any) -> torch.Tensor:
    with torch.no_grad():
        return model(IDS).logits


def test_an_adapter_acts_as_in_peft(llama: Path, adapters: list[Path]) -> None:
    told = apply_adapters(base(llama), ModelConfig(lora_adapter="a"), adapters[:1])
    expected = logits(PeftModel.from_pretrained(base(llama), adapters[0]).eval())
    assert torch.allclose(logits(told), expected, atol=1e-4)
    assert not torch.allclose(logits(told), logits(base(llama)), atol=1e-2)
    assert type(told).__name__ == "LlamaForCausalLM"
    assert not [name for name, _ in told.named_parameters() if "lora" in name]


def test_scales_count(llama: Path, adapters: list[Path]) -> None:
    none = apply_adapters(base(llama), ModelConfig(lora_adapter="a", lora_scale=0.0), adapters[:1])
    assert torch.allclose(logits(none), logits(base(llama)), atol=1e-5)


def test_several_adapters_add_up(llama: Path, adapters: list[Path]) -> None:
    config = ModelConfig(lora_adapters=["a", "b"], lora_scales=[1.0, 0.5])
    told = apply_adapters(base(llama), config, adapters)
    plain, parts = base(llama).state_dict(), []
    for folder, scale in zip(adapters, (1.0, 0.5), strict=True):
        merged = PeftModel.from_pretrained(base(llama), folder).merge_and_unload().state_dict()
        parts.append({name: scale * (merged[name] - plain[name]) for name in plain})
    for name, weights in told.state_dict().items():
        assert torch.allclose(weights, plain[name] + parts[0][name] + parts[1][name], atol=1e-5)


def test_weights_that_are_quantised_stay(llama: Path, adapters: list[Path]) -> None:
    model = base(llama)
    model.is_quantized = True
    told = apply_adapters(model, ModelConfig(lora_adapter="a"), adapters[:1])
    assert told is model
    assert torch.allclose(logits(told), logits(PeftModel.from_pretrained(base(llama), adapters[0]).eval()), atol=1e-5)
    assert [name for name, _ in told.named_parameters() if "lora" in name]


@pytest.mark.parametrize(
    ("other", "more", "reason"),
    [
        ({"hidden": 64}, {}, "shape"),
        ({"layers": 3}, {}, r"layers\.2"),
        ({}, {"target_modules": ["o_proj"]}, "dense_17"),
    ],
    ids=["size", "layers", "modules"],
)
def test_an_adapter_of_another_model_is_refused(llama: Path, tmp_path: Path, other: Any, more: Any, reason: str) -> None:
    theirs = base(make_llama(tmp_path / "other", **other))
    folder = make_adapter(theirs, tmp_path / "lora", 3, **more)
    ours: Any = base(llama)
    if not other:
        config = folder / "adapter_config.json"
        config.write_text(config.read_text().replace("o_proj", "dense_17"))
    with pytest.raises(BadWeights, match=f"lora_adapters: lora is no adapter of this LlamaForCausalLM.*{reason}") as refusal:
        apply_adapters(ours, ModelConfig(lora_adapter="a"), [folder])
    assert refusal.value.field == "lora_adapters"


def test_an_adapter_of_fewer_layers_is_refused(llama: Path, tmp_path: Path) -> None:
    folder = make_adapter(base(make_llama(tmp_path / "other", layers=1)), tmp_path / "lora", 3)
    with pytest.raises(BadWeights, match=r"no weights for .*layers\.1"):
        apply_adapters(base(llama), ModelConfig(lora_adapter="a"), [folder])


def test_every_adapter_must_be_here(llama: Path, adapters: list[Path]) -> None:
    with pytest.raises(LoadError, match="2 LoRA adapters are named, and 1"):
        apply_adapters(base(llama), ModelConfig(lora_adapters=["a", "b"]), adapters[:1])
