"""LoRA adapters in peft's format, put into a model that is loaded: merged into its weights where these are numbers."""

from __future__ import annotations

import json
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from llmgallery.backends.transformers.weights.params import options_of
from llmgallery.config.model import ModelConfig
from llmgallery.core.errors import BackendMissing, BadWeights, LoadError

KEY = "lora_adapters"
CONFIG = "adapter_config.json"
SAFE, PICKLE = "adapter_model.safetensors", "adapter_model.bin"
GGUF_MAGIC = b"GGUF"


def apply_adapters(model: Any, config: ModelConfig, folders: Sequence[Path]) -> Any:
    """The model with the adapters that the YAML names, whose folders these are, each times its scale. Quantised weights stay as
    they are, and the adapters are computed beside them.

    Raises BadWeights for a folder that holds no adapter of this model, LoadError and BackendMissing.
    """
    named = config.adapters
    if len(named) != len(folders):
        raise LoadError(f"{len(named)} LoRA adapters are named, and {len(folders)} folders of them are here", field=KEY)
    if not named:
        return model
    safetensors_only = options_of(config).safetensors_only
    for folder in folders:
        check_adapter(folder, safetensors_only=safetensors_only)
    try:
        import peft  # noqa: F401 - tells at once whether it is there
    except ImportError as exc:
        raise BackendMissing(f"{KEY}: LoRA adapters need peft: llmgallery backends install transformers", field=KEY) from exc
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return _applied(model, folders, [scale for _, scale in named])


def check_adapter(folder: Path, *, safetensors_only: bool = True) -> None:
    """What the files tell. Raises BadWeights."""
    if folder.is_file():
        with folder.open("rb") as stream:
            is_gguf = stream.read(len(GGUF_MAGIC)) == GGUF_MAGIC
        kind = "an adapter in GGUF, which only llama-cpp takes" if is_gguf else "a file"
        raise BadWeights(f"{KEY}: {folder.name} is {kind}: transformers takes peft's folders, with {CONFIG} in them", field=KEY)
    if not folder.is_dir():
        raise BadWeights(f"{KEY}: {folder}: no such folder", field=KEY)
    described = _described(folder)
    if (method := described.get("peft_type")) != "LORA":
        raise BadWeights(f"{KEY}: {folder.name} is an adapter of type {method or 'unknown'}, only LORA is known", field=KEY)
    if (folder / SAFE).is_file():
        return
    if not (folder / PICKLE).is_file():
        raise BadWeights(f"{KEY}: {folder.name}: no {SAFE} is in it", field=KEY)
    if safetensors_only:
        raise BadWeights(
            f"{KEY}: {folder.name}: its weights are a pickle ({PICKLE}), which can run any code when it is loaded. Take one with "
            "safetensors, or, if you trust this one, set options: {safetensors_only: false} in the model's YAML",
            field=KEY,
        )


def _described(folder: Path) -> dict[str, Any]:
    try:
        described = json.loads((folder / CONFIG).read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise BadWeights(f"{KEY}: {folder.name}: no {CONFIG}: this is no folder of a LoRA adapter", field=KEY) from None
    except (OSError, ValueError) as exc:
        raise BadWeights(f"{KEY}: {folder.name}: {CONFIG} is not readable as JSON: {exc}", field=KEY) from exc
    return described if isinstance(described, dict) else {}


def _applied(model: Any, folders: Sequence[Path], scales: Sequence[float]) -> Any:
    """All adapters at once: the weights of each are added to the model's own, not to those of the one before."""
    from peft import PeftConfig, PeftModel
    from peft.tuners.lora import LoraLayer

    names = [f"adapter{place}" for place in range(len(folders))]
    wrapped: Any = None
    for folder, name in zip(folders, names, strict=True):
        try:
            config = PeftConfig.from_pretrained(str(folder))
            config.inference_mode = True
            if wrapped is None:
                wrapped = PeftModel(model, config, adapter_name=name)
            else:
                wrapped.add_adapter(name, config)
            _fill(wrapped, folder, name)
        except (ValueError, TypeError, RuntimeError, KeyError, OSError, AttributeError) as exc:
            raise _refusal(folder, model, config_of=_described(folder), reason=str(exc)) from exc
    layers = [module for module in wrapped.modules() if isinstance(module, LoraLayer)]
    for name, scale in zip(names, scales, strict=True):
        for layer in layers:
            if name in layer.scaling:
                layer.set_scale(name, scale)
    wrapped.base_model.set_adapter(names, inference_mode=True)
    if getattr(model, "is_quantized", False) or getattr(model, "quantization_method", None) is not None:
        return wrapped.base_model.model.eval()
    return wrapped.merge_and_unload(adapter_names=names).eval()


def _fill(wrapped: Any, folder: Path, name: str) -> None:
    """peft says nothing of weights that have no place, and leaves places without weights as they are."""
    from peft import load_peft_weights, set_peft_model_state_dict

    told = set_peft_model_state_dict(wrapped, load_peft_weights(str(folder), device="cpu"), adapter_name=name)
    missing = [key for key in told.missing_keys if f".{name}" in key]
    if told.unexpected_keys:
        raise ValueError(f"it has weights for {told.unexpected_keys[0]}, which this model does not have")
    if missing:
        raise ValueError(f"it has no weights for {missing[0]}")


def _refusal(folder: Path, model: Any, *, config_of: dict[str, Any], reason: str) -> BadWeights:
    base = config_of.get("base_model_name_or_path")
    made_for = f" (it was made for {base})" if base else ""
    text = " ".join(reason.split())
    text = text.partition("size mismatch for ")[2].partition(" size mismatch for ")[0] or text
    return BadWeights(f"{KEY}: {folder.name} is no adapter of this {type(model).__name__}{made_for}: {text[:400]}", field=KEY)
