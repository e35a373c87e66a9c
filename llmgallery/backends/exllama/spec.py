"""exllamav2: EXL2, GPTQ and half-precision folders through ExLlamaV2, EXL3 ones through ExLlamaV3, on NVIDIA GPUs."""

from __future__ import annotations

from typing import Annotated, Literal

import msgspec
from msgspec import Meta

from llmgallery.backends.base import BackendSpec

CacheMode = Literal["FP16", "Q8", "Q6", "Q4"]


class ExllamaOptions(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """ExLlama's own keys, beside the load keys that all backends share."""

    cache_mode: Annotated[
        CacheMode | None, Meta(description="how keys and values are kept; else by cache_type_k: q8_0, q4_0, or FP16")
    ] = None
    cache_size: Annotated[
        Annotated[int, Meta(ge=256)] | None,
        Meta(description="tokens that all requests together may keep; else context_size times parallel"),
    ] = None
    gpu_split: Annotated[
        list[float] | None, Meta(description="GiB of weights on each GPU; else the GPUs are filled one after the other")
    ] = None
    flash_attention: Annotated[
        bool | None, Meta(description="ExLlamaV2 pages its cache with flash-attn; false, or without it: one request at a time")
    ] = None
    tokenizer: Annotated[str | None, Meta(description="a tokenizer.json elsewhere, for weights that bring none")] = None


KEYS = frozenset({
    "context_size", "parallel", "cache_type_k", "cache_type_v", "tensor_split", "options", "parameters.batch", "draft_model",
    "n_draft", "lora_adapter", "lora_scale", "lora_adapters", "lora_scales", "flash_attention", "max_model_len",
})  # fmt: skip

UNSET = {
    "context_size": "the model's own",
    "parallel": 8,
    "cache_type_k": "f16",
    "cache_type_v": "f16",
    "tensor_split": "by free GPU memory",
    "parameters.batch": 2048,
    "flash_attention": "as it is installed",
    "max_model_len": "context_size",
    "draft_model": "none",
    "n_draft": 4,
    "lora_adapter": "none",
    "lora_scale": 1,
    "lora_adapters": "none",
    "lora_scales": 1,
}

SPEC = BackendSpec(
    name="exllamav2",
    implementation="llmgallery.backends.exllama.backend:ExllamaBackend",
    aliases=("exllama", "exllama2", "exllamav3", "exllama3"),
    options=ExllamaOptions,
    formats=("exl2", "gptq", "safetensors", "exl3"),
    capabilities=frozenset({"generate", "logprobs", "constraints", "seed", "lora"}),
    keys=KEYS,
    unset=UNSET,
    requires=("torch", "tokenizers"),
    requires_for={
        "exl2": ("exllamav2",),
        "gptq": ("exllamav2",),
        "safetensors": ("exllamav2",),
        "exl3": ("exllamav3",),
    },
    extra="exllamav2",
    hardware=("cuda",),
)
