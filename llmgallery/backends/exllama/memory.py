"""The GPUs' memory, as torch counts it."""

from __future__ import annotations

import gc

import torch


def allocated() -> int:
    """Bytes on all GPUs that torch holds for this process."""
    return sum(torch.cuda.memory_reserved(device) for device in range(torch.cuda.device_count()))


def free() -> None:
    """Give back what nothing refers to any more."""
    gc.collect()
    torch.cuda.empty_cache()
