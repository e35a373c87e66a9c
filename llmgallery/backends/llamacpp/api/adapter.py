"""LoRA adapters."""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from llama_cpp import llama_cpp as c

from llmgallery.backends.llamacpp.api.context import Context
from llmgallery.backends.llamacpp.api.model import Model


class Adapter:
    """Low-rank changes of a model's weights, in memory beside them. Made before the model's first context, closed before the
    model."""

    def __init__(self, model: Model, file: Path) -> None:
        """Raises ValueError when llama.cpp refuses; LOG says why."""
        self._adapter = c.llama_adapter_lora_init(model.pointer, bytes(file))
        if not self._adapter:
            raise ValueError(f"llama.cpp does not load {file}")

    @property
    def pointer(self) -> Any:
        return self._adapter

    def close(self) -> None:
        """After the contexts that use it."""
        if self._adapter:
            c.llama_adapter_lora_free(self._adapter)
            self._adapter = None


def set_adapters(context: Context, adapters: Sequence[tuple[Adapter, float]]) -> bool:
    """From now on the context computes with these and their scales, instead of those that it had; what is in its cache stays.
    False: llama.cpp refused."""
    pointers = (c.llama_adapter_lora_p_ctypes * len(adapters))(*(adapter.pointer for adapter, _ in adapters))
    scales = (ctypes.c_float * len(adapters))(*(scale for _, scale in adapters))
    return int(c.llama_set_adapters_lora(context.pointer, pointers, len(adapters), scales)) == 0
