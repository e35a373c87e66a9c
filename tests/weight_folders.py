"""Folders of weights made for a test, without the libraries that would load them."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

BYTES = {"F32": 4, "F16": 2, "BF16": 2, "I32": 4, "U8": 1}
LLAMA = {
    "architectures": ["LlamaForCausalLM"],
    "model_type": "llama",
    "hidden_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 16,
    "max_position_embeddings": 512,
    "vocab_size": 256,
    "dtype": "float16",
}


def safetensors(tensors: Mapping[str, tuple[str, Sequence[int]]], metadata: Mapping[str, str] | None = None) -> bytes:
    """A file of zeros: name -> (type, shape)."""
    header: dict[str, Any] = {"__metadata__": dict(metadata)} if metadata else {}
    at = 0
    for name, (type_, shape) in tensors.items():
        size = BYTES[type_]
        for number in shape:
            size *= number
        header[name] = {"dtype": type_, "shape": list(shape), "data_offsets": [at, at + size]}
        at += size
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    return len(text).to_bytes(8, "little") + text + bytes(at)


def llama_files(**changes: Any) -> dict[str, bytes]:
    """By name: a model of two shards with their index, a tokenizer's files and a chat template."""
    second = {"lm_head.weight": ("F16", (256, 64)), "model.norm.weight": ("F16", (64,))}
    shards = {
        "model-00001-of-00002.safetensors": safetensors({"model.embed_tokens.weight": ("F16", (256, 64))}),
        "model-00002-of-00002.safetensors": safetensors(second),
    }
    names = {"model.embed_tokens.weight": 1, "lm_head.weight": 2, "model.norm.weight": 2}
    index = {"metadata": {}, "weight_map": {name: f"model-0000{number}-of-00002.safetensors" for name, number in names.items()}}
    return {
        "config.json": json.dumps({**LLAMA, **changes}).encode(),
        "generation_config.json": b"{}",
        "tokenizer.json": b'{"version": "1.0"}',
        "tokenizer_config.json": b"{}",
        "chat_template.jinja": b"{{ messages }}",
        "model.safetensors.index.json": json.dumps(index).encode(),
        **shards,
    }


def write_folder(folder: Path, files: Mapping[str, bytes]) -> Path:
    for name, data in files.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)
    return folder
