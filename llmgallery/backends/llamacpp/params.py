"""From a model's YAML to llama.cpp's parameters."""

from __future__ import annotations

import math
import os
from collections.abc import Mapping
from pathlib import Path
from typing import TypeVar

import msgspec

from llmgallery.backends.llamacpp.api import (
    CACHE_TYPES,
    FLASH_ATTENTION,
    ROPE_SCALINGS,
    ContextParams,
    ModelParams,
    can_offload,
    has_amx,
)
from llmgallery.backends.llamacpp.spec import LlamaOptions
from llmgallery.config.model import ModelConfig
from llmgallery.core.errors import LoadError

BATCH = 512  # a prompt's share of one step: more would stall the streams beside it
GPU_UBATCH, CPU_UBATCH, LEAST_UBATCH = 512, 128, 32
SCORE_BYTES = 64 * 1024 * 1024
SLOTS = 8
BYTES_PER_THREAD = 8 * 1024 * 1024
PADDING = 256  # llama.cpp rounds each sequence's cells up to this
OUTPUT_BYTES = 16 * 1024 * 1024
MOST_OUTPUTS = 64
FULL_PRECISION = ("f32", "f16", "bf16")
CHOICE = TypeVar("CHOICE")


def options_of(config: ModelConfig) -> LlamaOptions:
    """Raises LoadError for keys that are not llama-cpp's; config/load.py finds them earlier, with their lines."""
    try:
        return msgspec.convert(config.options or {}, LlamaOptions)
    except msgspec.ValidationError as exc:
        raise LoadError(f"options: {exc}") from exc


def model_params(config: ModelConfig, options: LlamaOptions) -> ModelParams:
    """Raises LoadError."""
    return ModelParams(
        gpu_layers=config.gpu_layers,
        mmap=config.mmap,
        mlock=config.mmlock,
        main_gpu=_number(config.main_gpu),
        tensor_split=_shares(config.tensor_split),
        check_tensors=options.check_tensors,
        repack=may_repack(options, has_amx()),
    )


def may_repack(options: LlamaOptions, with_amx: bool) -> bool:
    """GCC 12 compiles llama.cpp's AMX kernels so that they crash, and they are among those that repack weights."""
    return options.repack == "on" or (options.repack == "auto" and not with_amx)


def context_params(
    config: ModelConfig,
    options: LlamaOptions,
    *,
    context_size: int,
    slots: int,
    weights_bytes: int,
    vocab_size: int = 0,
    heads: int = 0,
    drafts: int = 0,
) -> ContextParams:
    """`context_size`: of each request. `heads`: of the attention. `drafts`: most guesses for one request in a step. Raises
    LoadError, for a value that names nothing, or that another excludes."""
    threads = config.threads or default_threads(weights_bytes)
    batch = max(config.parameters.batch or BATCH, slots * (1 + drafts))
    cells = -(-context_size // PADDING) * PADDING
    flash, ubatch = attention(config, options, 4 * heads * cells, max(SCORE_BYTES, weights_bytes // 16))
    return ContextParams(
        context=cells * num_caches(options, slots),
        sequences=slots,
        batch=batch,
        ubatch=min(ubatch, batch),
        threads=threads,
        threads_batch=options.threads_batch or threads,
        outputs=min(batch, num_outputs(vocab_size, slots, drafts)),
        extra={name: value for name, value in _extra(config, options, flash).items() if value is not None},
    )


def num_caches(options: LlamaOptions, slots: int) -> int:
    """How many times the cache holds `context_size` tokens."""
    return 1 if options.kv_unified else slots


def num_outputs(vocab_size: int, slots: int, drafts: int) -> int:
    """Of how many tokens a step may give logits. llama.cpp sets a row of the whole vocabulary aside for each, before the first
    request: with rows for a batch of 512, a gigabyte for some models. More than the answers need speed up the log
    probabilities of prompts."""
    spare = OUTPUT_BYTES // (4 * vocab_size) if vocab_size else 0
    return max(slots * (1 + drafts), min(spare, MOST_OUTPUTS))


def _extra(config: ModelConfig, options: LlamaOptions, flash: str) -> dict[str, int | float | bool | None]:
    """Fields of llama_context_params; None = llama.cpp's default."""
    return {
        "flash_attn_type": FLASH_ATTENTION[flash],
        "type_k": _chosen("cache_type_k", _cache_type(config, "cache_type_k"), CACHE_TYPES),
        "type_v": _chosen("cache_type_v", _cache_type(config, "cache_type_v"), CACHE_TYPES),
        "rope_scaling_type": _chosen("rope_scaling", config.rope_scaling, ROPE_SCALINGS),
        "rope_freq_base": config.parameters.rope_freq_base,
        "rope_freq_scale": config.parameters.rope_freq_scale,
        "yarn_ext_factor": config.yarn_ext_factor,
        "yarn_attn_factor": config.yarn_attn_factor,
        "yarn_beta_fast": config.yarn_beta_fast,
        "yarn_beta_slow": config.yarn_beta_slow,
        "offload_kqv": False if config.no_kv_offloading else None,
        "swa_full": options.swa_full,
        "kv_unified": options.kv_unified,
    }


def _cache_type(config: ModelConfig, key: str) -> str | None:
    chosen: str | None = getattr(config, key)
    return "f32" if chosen is None and config.f16 is False else chosen


def attention(config: ModelConfig, options: LlamaOptions, bytes_per_token: int, room: int) -> tuple[str, int]:
    """Flash attention (auto, on, off), and how many tokens are computed at once.

    On a CPU llama.cpp decodes faster without it, and needs memory for the attention's scores: `bytes_per_token` for each token
    computed at once, for which there is `room`. docs/engine.md has what was measured. Raises LoadError.
    """
    asked = _flash(config, options)
    if config.gpu_layers != 0 and can_offload():
        return asked, options.ubatch or GPU_UBATCH
    fitting = min(CPU_UBATCH, room // bytes_per_token) if bytes_per_token else CPU_UBATCH
    if asked != "auto":
        return asked, options.ubatch or CPU_UBATCH
    if (options.ubatch or LEAST_UBATCH) <= fitting:
        return "off", options.ubatch or fitting // LEAST_UBATCH * LEAST_UBATCH
    return "auto", options.ubatch or CPU_UBATCH


def _flash(config: ModelConfig, options: LlamaOptions) -> str:
    """What is asked for, or what a quantised V cache needs."""
    asked = _switch(config.flash_attention if config.flash_attention is not None else options.flash_attention) or "auto"
    _chosen("flash_attention", asked, FLASH_ATTENTION)
    cache_type = (config.cache_type_v or "f16").lower()
    if cache_type in FULL_PRECISION:
        return asked.lower()
    if asked.lower() == "off":
        raise LoadError(f"cache_type_v: {config.cache_type_v} requires flash_attention: on or auto", field="cache_type_v")
    return "on"


def default_threads(weights_bytes: int) -> int:
    """All cores; fewer for tiny models, whose threads would mostly wait for each other."""
    return max(1, min(cores(), weights_bytes // BYTES_PER_THREAD))


def cores() -> int:
    """CPUs that this process may use: by affinity, or fewer when a container's quota says so."""
    usable = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    try:
        quota, period = Path("/sys/fs/cgroup/cpu.max").read_text().split()
        return max(1, min(usable, math.ceil(int(quota) / int(period))))
    except (OSError, ValueError):
        return usable


def default_slots(bytes_per_slot: int) -> int:
    """As many as a quarter of the machine's memory holds, 1 to 8. For loads that no server has planned."""
    return max(1, min(SLOTS, _memory() // 4 // max(1, bytes_per_slot)))


def check_size(context_size: int, slots: int, bytes_per_token: int) -> None:
    """llama.cpp would be killed for its memory, or wrap its 32 bits. Raises LoadError."""
    need = context_size * slots * bytes_per_token
    if context_size * slots >= 1 << 31 or need > _memory():
        raise LoadError(
            f"{slots} x {context_size} tokens need about {need >> 20} MiB for their KV cache, "
            f"this machine has {_memory() >> 20} MiB: lower context_size or parallel",
            field="context_size",
        )


def _memory() -> int:
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


def _switch(value: str | bool | None) -> str | None:
    if isinstance(value, bool):
        return "on" if value else "off"
    return value


def _chosen(key: str, name: str | None, choices: Mapping[str, CHOICE]) -> CHOICE | None:
    if name is None:
        return None
    if name.lower() not in choices:
        raise LoadError(f"{key}: {name} is none of {', '.join(choices)}", field=key)
    return choices[name.lower()]


def _number(value: str | int | None) -> int | None:
    try:
        return None if value in (None, "") else int(value)
    except ValueError:
        raise LoadError(f"main_gpu: {value} is no number of a GPU", field="main_gpu") from None


def _shares(value: str | list[float] | None) -> list[float]:
    try:
        return [float(share) for share in (value.split(",") if isinstance(value, str) else value or [])]
    except ValueError:
        raise LoadError(f"tensor_split: {value!r} is no list of numbers such as 3,1", field="tensor_split") from None
