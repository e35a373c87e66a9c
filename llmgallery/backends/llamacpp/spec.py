"""llama-cpp: GGUF files through llama.cpp's C API, several sequences in one decode."""

from __future__ import annotations

from typing import Annotated

import msgspec
from msgspec import Meta

from llmgallery.backends.base import BackendSpec


class LlamaOptions(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """llama.cpp's own keys, beside the load keys that all backends share."""

    ubatch: Annotated[Annotated[int, Meta(ge=1)], Meta(description="most tokens computed at once inside a decode")] = 512
    kv_unified: Annotated[bool, Meta(description="one KV cache for all requests, each may fill it; else one per request")] = False
    flash_attention: Annotated[str | bool | None, Meta(description="the same as the key outside of options")] = None
    threads_batch: Annotated[Annotated[int, Meta(ge=1)] | None, Meta(description="CPU threads for prompts")] = None
    swa_full: Annotated[bool, Meta(description="keep the whole context for layers with a sliding window")] = True
    check_tensors: Annotated[bool, Meta(description="look for invalid values in the weights while loading")] = False
    use_jinja: Annotated[bool, Meta(description="accepted for LocalAI's sake: chat templates are always Jinja")] = True


KEYS = frozenset({
    "context_size", "parallel", "gpu_layers", "threads", "mmap", "mmlock", "f16", "flash_attention", "cache_type_k",
    "cache_type_v", "no_kv_offloading", "numa", "tensor_split", "main_gpu", "rope_scaling", "yarn_ext_factor",
    "yarn_attn_factor", "yarn_beta_fast", "yarn_beta_slow", "options", "parameters.batch", "parameters.rope_freq_base",
    "parameters.rope_freq_scale",
})  # fmt: skip

UNSET = {
    "context_size": "the model's own, or less where memory is short",
    "parallel": "1 to 8, by free memory",
    "gpu_layers": -1,
    "threads": "all cores, fewer for small models",
    "mmap": "llama.cpp decides",
    "mmlock": False,
    "f16": True,
    "flash_attention": "auto",
    "cache_type_k": "f16",
    "cache_type_v": "f16",
    "no_kv_offloading": False,
    "numa": False,
    "tensor_split": "by free GPU memory",
    "main_gpu": 0,
    **dict.fromkeys(sorted(key for key in KEYS if "rope_" in key or "yarn_" in key), "the model's own"),
    "parameters.batch": 512,
}

SPEC = BackendSpec(
    name="llama-cpp",
    implementation="llmgallery.backends.llamacpp.backend:LlamaCppBackend",
    aliases=("llama", "llamacpp", "llama.cpp", "llama_cpp", "llama-cpp-python", "go-llama", "BuiltinLlama"),
    options=LlamaOptions,
    formats=("gguf",),
    keys=KEYS,
    unset=UNSET,
    requires=("llama_cpp",),
)
