"""How large a model's context is, how many requests run at once, and what it all takes in memory."""

from __future__ import annotations

import os
from typing import Any

from llmgallery.config.model import ModelConfig
from llmgallery.core.errors import LoadError

BATCH, BATCH_ON_GPU = 256, 512
SLOTS = 8
UNKNOWN_CONTEXT = 2048
_LENGTHS = ("max_position_embeddings", "n_positions", "max_seq_len", "max_sequence_length", "seq_length", "n_ctx")
"""Names under which configurations tell the longest text."""


def own_context(own: Any) -> int:
    """Tokens that the model was made for; 0 = its configuration does not say. `own`: transformers' configuration."""
    text = own.get_text_config()
    for name in _LENGTHS:
        value = getattr(text, name, None)
        if isinstance(value, int) and value > 0:
            return value
    return 0


def sizes(config: ModelConfig, own: Any, number_bytes: int, memory: int) -> tuple[int, int]:
    """Context size and slots, as the YAML says, else as a quarter of the memory, in bytes, holds. Raises LoadError."""
    trained = own_context(own)
    asked = config.context_size or config.max_model_len
    if asked and trained and asked > trained and not _rotates(own):
        raise LoadError(
            f"context_size: {asked} tokens: this model has a table of {trained} positions, and cannot read further",
            field="context_size",
        )
    per_token = max(1, cache_bytes_per_token(own, number_bytes))
    room = max(1, memory // 4 // per_token)
    context_size = asked or min(trained or UNKNOWN_CONTEXT, max(512, room))
    slots = config.parallel or max(1, min(SLOTS, room // context_size))
    need = context_size * slots * per_token
    if need > memory:
        raise LoadError(
            f"{slots} x {context_size} tokens need about {need >> 20} MiB for their KV cache, there are "
            f"{memory >> 20} MiB: lower context_size or parallel",
            field="context_size",
        )
    return context_size, slots


def cache_bytes_per_token(own: Any, number_bytes: int) -> int:
    """Keys and values of all layers; 0 = the configuration does not say."""
    text = own.get_text_config()
    layers, heads = getattr(text, "num_hidden_layers", 0), getattr(text, "num_attention_heads", 0)
    if not (layers and heads):
        return 0
    width = getattr(text, "head_dim", None) or getattr(text, "hidden_size", 0) // heads
    return int(2 * layers * (getattr(text, "num_key_value_heads", None) or heads) * width * number_bytes)


def number_bytes(model: Any) -> int:
    """Of one number in the KV cache."""
    return int(model.dtype.itemsize)


def model_bytes(model: Any) -> int:
    """Parameters and buffers, each once."""
    tensors = {id(each): each for each in (*model.parameters(), *model.buffers())}
    return sum(each.numel() * each.element_size() for each in tensors.values())


def memory(model: Any) -> int:
    """Bytes of the machine; or what is free on its GPU, where that is what the cache will be in."""
    if model.device.type == "cuda":
        import torch

        return int(torch.cuda.mem_get_info(model.device)[0])
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


def _rotates(own: Any) -> bool:
    """Positions are angles (RoPE), or added slopes: further ones can be computed."""
    text = own.get_text_config()
    names = ("rope_theta", "rope_parameters", "rope_scaling", "rotary_dim", "rotary_pct", "alibi")
    return any(getattr(text, name, None) for name in names)
