"""What a model and a context are made with, and llama.cpp's names for the choices."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from llama_cpp import llama_cpp as c

NO_TOKEN = -1
RANDOM_SEED: int = c.LLAMA_DEFAULT_SEED
CACHE_TYPES: dict[str, int] = {
    name: getattr(c, f"GGML_TYPE_{name.upper()}") for name in ("f32", "f16", "q8_0", "q5_1", "q5_0", "q4_1", "q4_0", "iq4_nl")
} | {"bf16": 30}  # ggml.h's number, which llama-cpp-python does not name
ROPE_SCALINGS: dict[str, int] = {
    name: getattr(c, f"LLAMA_ROPE_SCALING_TYPE_{name.upper()}") for name in ("none", "linear", "yarn", "longrope")
}
FLASH_ATTENTION: dict[str, int] = {
    "auto": c.LLAMA_FLASH_ATTN_TYPE_AUTO,
    "on": c.LLAMA_FLASH_ATTN_TYPE_ENABLED,
    "off": c.LLAMA_FLASH_ATTN_TYPE_DISABLED,
}
LOAD_MODES: dict[tuple[bool, bool], int] = {  # (mmap, mlock)
    (False, False): c.LLAMA_LOAD_MODE_NONE,
    (True, False): c.LLAMA_LOAD_MODE_MMAP,
    (False, True): c.LLAMA_LOAD_MODE_MLOCK,
    (True, True): c.LLAMA_LOAD_MODE_MMAP_MLOCK,
}


@dataclass(frozen=True)
class ModelParams:
    """None = llama.cpp's default. `tensor_split`: share of each GPU. `repack`: weights may be stored anew in the layout that
    the CPU multiplies fastest. `vocabulary_only`: metadata and vocabulary, no weights."""

    gpu_layers: int | None = None
    mmap: bool | None = None
    mlock: bool | None = None
    main_gpu: int | None = None
    tensor_split: Sequence[float] = ()
    check_tensors: bool = False
    repack: bool = True
    vocabulary_only: bool = False


@dataclass(frozen=True)
class ContextParams:
    """`context`: tokens of all sequences together. `outputs`: of how many tokens one decode may compute logits, at least
    `sequences`, for which memory is set aside; 0 = of all. `extra`: more fields of llama_context_params by their C names."""

    context: int
    sequences: int
    batch: int
    ubatch: int
    threads: int
    threads_batch: int
    extra: Mapping[str, int | float | bool] = field(default_factory=dict)
    outputs: int = 0
