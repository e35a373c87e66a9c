"""GGUF files of one small tensor, for tests of what headers say."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import gguf
import numpy as np

Add = Callable[[gguf.GGUFWriter], None]


def nothing(writer: gguf.GGUFWriter) -> None:
    pass


def classifier(writer: gguf.GGUFWriter) -> None:
    """A head of one class."""
    writer.add_tensor("cls.output.weight", np.zeros((1, 4), np.float32))


def write(path: Path, architecture: str, add: Add = nothing) -> Path:
    """A model of this architecture; `add` writes what else it has."""
    writer = gguf.GGUFWriter(path, architecture)
    add(writer)
    writer.add_tensor("token_embd.weight", np.zeros((4, 4), np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path
