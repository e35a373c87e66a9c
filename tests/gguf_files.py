"""GGUF files made for a test: a model with other weights, LoRA adapters."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import gguf
import numpy as np

Weights = np.ndarray[Any, Any]


def rewrite(
    source: Path,
    target: Path,
    change: Callable[[str, Weights], Weights] = lambda name, weights: weights,
    metadata: Mapping[str, Any] | None = None,
) -> Path:
    """The model in F32, each tensor (name, rows x columns) as `change` returns it; `metadata` replaces values of its keys."""
    reader = gguf.GGUFReader(source)
    writer = gguf.GGUFWriter(target, str(reader.fields["general.architecture"].contents()))
    for name, field in reader.fields.items():
        if name.startswith("GGUF.") or name in ("general.architecture", "general.file_type"):
            continue
        value = (metadata or {}).get(name, field.contents())
        writer.add_key_value(name, value, field.types[0], field.types[-1] if len(field.types) > 1 else None)
    writer.add_file_type(gguf.LlamaFileType.ALL_F32)
    for tensor in reader.tensors:
        plain = np.asarray(gguf.dequantize(tensor.data, tensor.tensor_type), np.float32)
        writer.add_tensor(tensor.name, np.ascontiguousarray(change(tensor.name, plain), np.float32))
    finish(writer)
    return target


def lora(
    target: Path,
    pairs: Mapping[str, tuple[Weights, Weights]],
    *,
    alpha: float | int | None = 1.0,
    architecture: str = "llama",
    kind: str = "adapter",
    form: str = "lora",
) -> Path:
    """An adapter. `pairs`: tensor name -> (A: rank x columns, B: rows x rank); it adds scale * alpha / rank * B @ A."""
    writer = gguf.GGUFWriter(target, architecture)
    writer.add_type(kind)
    writer.add_string("adapter.type", form)
    if isinstance(alpha, int):
        writer.add_uint32("adapter.lora.alpha", alpha)
    elif alpha is not None:
        writer.add_float32("adapter.lora.alpha", alpha)
    for name, (a, b) in pairs.items():
        writer.add_tensor(f"{name}.lora_a", np.ascontiguousarray(a, np.float32))
        writer.add_tensor(f"{name}.lora_b", np.ascontiguousarray(b, np.float32))
    finish(writer)
    return target


def finish(writer: gguf.GGUFWriter) -> None:
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
