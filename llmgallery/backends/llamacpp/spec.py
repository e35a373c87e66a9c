"""llama-cpp: GGUF files through llama.cpp's C API, several sequences in one decode."""

from __future__ import annotations

from typing import Annotated, Literal

import msgspec
from msgspec import Meta

from llmgallery.backends.base import CAPABILITIES, BackendSpec


class LlamaOptions(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """llama.cpp's own keys, beside the load keys that all backends share."""

    ubatch: Annotated[
        Annotated[int, Meta(ge=1)] | None,
        Meta(description="most tokens computed at once inside a decode; else 512 on a GPU, at most 128 on the CPU"),
    ] = None
    kv_unified: Annotated[
        bool, Meta(description="one KV cache of context_size tokens for all requests together; else one for each")
    ] = False
    flash_attention: Annotated[str | bool | None, Meta(description="the same as the key outside of options")] = None
    threads_batch: Annotated[Annotated[int, Meta(ge=1)] | None, Meta(description="CPU threads for prompts")] = None
    swa_full: Annotated[bool, Meta(description="keep the whole context for layers with a sliding window")] = True
    check_tensors: Annotated[bool, Meta(description="look for invalid values in the weights while loading")] = False
    repack: Annotated[
        Literal["auto", "on", "off"],
        Meta(description="store weights anew as the CPU multiplies them fastest; auto: unless the library has AMX kernels"),
    ] = "auto"
    stream_slowdown: Annotated[
        Annotated[float, Meta(ge=1.1)],
        Meta(description="how much slower a running answer's tokens may come while a prompt is computed"),
    ] = 2.8
    speculative: Annotated[
        Literal["off", "prompt-lookup", "draft"] | None,
        Meta(description="guess tokens ahead: from the text so far, or with draft_model, which is the default when it is set"),
    ] = None
    draft_p_min: Annotated[
        Annotated[float, Meta(ge=0, le=1)], Meta(description="the draft model guesses no token that it finds less likely")
    ] = 0.75
    pooling: Annotated[
        Literal["none", "mean", "cls", "last", "rank"] | None,
        Meta(description="how tokens become one embedding; else the model's own, or mean for encoders, last for all others"),
    ] = None
    use_jinja: Annotated[bool, Meta(description="accepted for LocalAI's sake: chat templates are always Jinja")] = True


KEYS = frozenset({
    "context_size", "parallel", "gpu_layers", "threads", "mmap", "mmlock", "f16", "flash_attention", "cache_type_k",
    "cache_type_v", "no_kv_offloading", "numa", "tensor_split", "main_gpu", "rope_scaling", "yarn_ext_factor",
    "yarn_attn_factor", "yarn_beta_fast", "yarn_beta_slow", "options", "parameters.batch", "parameters.rope_freq_base",
    "parameters.rope_freq_scale", "draft_model", "n_draft", "lora_adapter", "lora_scale", "lora_adapters", "lora_scales",
    "embeddings", "reranking", "parameters.pooling",
})  # fmt: skip

UNSET = {
    "context_size": "the model's own, or less where memory is short",
    "parallel": "1 to 8, by free memory",
    "gpu_layers": -1,
    "threads": "all cores, fewer for small models",
    "mmap": "llama.cpp decides",
    "mmlock": False,
    "f16": True,
    "flash_attention": "auto: off on the CPU while its memory is small, llama.cpp's choice on a GPU",
    "cache_type_k": "f16",
    "cache_type_v": "f16",
    "no_kv_offloading": False,
    "numa": False,
    "tensor_split": "by free GPU memory",
    "main_gpu": 0,
    **dict.fromkeys(sorted(key for key in KEYS if "rope_" in key or "yarn_" in key), "the model's own"),
    "parameters.batch": 512,
    "draft_model": "none",
    "n_draft": 7,
    "lora_adapter": "none",
    "lora_scale": 1,
    "lora_adapters": "none",
    "lora_scales": 1,
    "embeddings": "true for encoders",
    "reranking": "true for models that bring a classifier",
    "parameters.pooling": "the model's own",
}

LISTED = {
    **dict.fromkeys(("parallel", "n_parallel"), "parallel"),
    **dict.fromkeys(("spec_type", "speculative_type"), "speculative"),
    **dict.fromkeys(("spec_n_max", "draft_max"), "n_draft"),
    "spec_p_min": "draft_p_min",
    "unified_kv": "kv_unified",
}
"""As LocalAI's backend of llama.cpp calls them."""

SPECULATIONS = {
    "none": "off",
    **dict.fromkeys(("draft", "draft-simple"), "draft"),
    **dict.fromkeys(("ngram-simple", "ngram-map-k", "ngram-map-k4v", "ngram-mod", "ngram-cache"), "prompt-lookup"),
}
"""llama.cpp's kinds of speculation, which its library does not have: ours that make guesses from the same things."""

SPEC = BackendSpec(
    name="llama-cpp",
    implementation="llmgallery.backends.llamacpp.backend:LlamaCppBackend",
    aliases=("llama", "llamacpp", "llama.cpp", "llama_cpp", "llama-cpp-python", "go-llama", "BuiltinLlama", "LlamaCppServer"),
    options=LlamaOptions,
    formats=("gguf",),
    capabilities=frozenset(CAPABILITIES) - {"images", "tools"},
    keys=KEYS,
    unset=UNSET,
    requires=("llama_cpp",),
    listed=LISTED,
    listed_words=dict.fromkeys(("spec_type", "speculative_type"), SPECULATIONS),
)
