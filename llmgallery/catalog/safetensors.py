"""Headers of safetensors files, without the library: which tensors are in one, of what type and how large.

Format: https://github.com/huggingface/safetensors#format (8 bytes length, JSON, then the bytes of all tensors).
"""

from __future__ import annotations

import math
from pathlib import Path
from typing import Annotated

import msgspec

from llmgallery.config.regular import open_regular
from llmgallery.core.errors import BadWeights

MOST = 100_000_000
"""Bytes of a header, as the library bounds it."""

BITS = {
    "F64": 64, "I64": 64, "U64": 64, "C64": 64, "F32": 32, "I32": 32, "U32": 32, "F16": 16, "BF16": 16, "I16": 16, "U16": 16,
    "F8_E4M3": 8, "F8_E5M2": 8, "F8_E8M0": 8, "F8_E4M3FNUZ": 8, "F8_E5M2FNUZ": 8, "I8": 8, "U8": 8, "BOOL": 8,
    "F6_E2M3": 6, "F6_E3M2": 6, "F4": 4,
}  # fmt: skip
"""Bits of a number by its type."""

FLOATS = frozenset({"F64", "F32", "F16", "BF16"})
"""Types that a loader converts to the one that it computes in."""

Whole = Annotated[int, msgspec.Meta(ge=0, le=2**53)]


class Tensor(msgspec.Struct, frozen=True):
    """`type`: of BITS, or one that came later; `start` and `end` in bytes after the header."""

    type: str
    shape: tuple[int, ...]
    start: int
    end: int

    @property
    def numbers(self) -> int:
        """How many it holds."""
        return math.prod(self.shape)

    @property
    def size(self) -> int:
        """Bytes."""
        return self.end - self.start


class Header(msgspec.Struct, frozen=True):
    """`data_start`, `data_end`: where the tensors' bytes begin in the file and where it must end."""

    tensors: dict[str, Tensor]
    metadata: dict[str, str]
    data_start: int
    data_end: int


class _Raw(msgspec.Struct, frozen=True):
    dtype: str
    shape: list[Whole]
    data_offsets: tuple[Whole, Whole]


def read_header(source: Path | bytes) -> Header:
    """Of a file, or of the bytes that one begins with. Raises BadWeights for what is none, OSError."""
    if isinstance(source, bytes):
        return _header(source, "these bytes")
    with open_regular(source) as file:
        head = file.read(8)
        return _header(head + file.read(_length(head, str(source))), str(source))


def check_whole(file: Path) -> Header:
    """The header. Raises BadWeights for a file that is shorter or longer than its header says, OSError."""
    header, size = read_header(file), file.stat().st_size
    if size < header.data_end:
        raise BadWeights(f"{file} is cut: {size:,} of {header.data_end:,} bytes are here; copy or download it again")
    if size > header.data_end:
        raise BadWeights(f"{file} has {size - header.data_end:,} bytes more than its header says; copy or download it again")
    return header


def _length(head: bytes, where: str) -> int:
    length = int.from_bytes(head[:8], "little")
    if len(head) < 8 or not 2 <= length <= MOST:
        raise BadWeights(f"{where} is no safetensors file: it does not begin with the length of a header")
    return length


def _header(data: bytes, where: str) -> Header:
    length = _length(data, where)
    if len(data) < 8 + length:
        raise BadWeights(f"{where} is cut within its header: {len(data):,} of {8 + length:,} bytes are here")
    try:
        raw = msgspec.json.decode(data[8 : 8 + length], type=dict[str, msgspec.Raw])
        metadata = msgspec.json.decode(raw.pop("__metadata__", msgspec.Raw(b"{}")), type=dict[str, str])
        tensors = {name: _tensor(name, value) for name, value in raw.items()}
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError, ValueError) as error:
        raise BadWeights(f"{where} is no safetensors file: its header cannot be read: {error}") from error
    end = max((tensor.end for tensor in tensors.values()), default=0)
    return Header(tensors, metadata, 8 + length, 8 + length + end)


def _tensor(name: str, value: msgspec.Raw) -> Tensor:
    """Raises ValueError where its place does not hold what its type and shape say."""
    found = msgspec.json.decode(value, type=_Raw)
    tensor = Tensor(found.dtype, tuple(found.shape), *found.data_offsets)
    bits = BITS.get(tensor.type)
    if tensor.end < tensor.start or (bits is not None and tensor.size != -(-tensor.numbers * bits // 8)):
        raise ValueError(f"the tensor {name!r} has {tensor.size:,} bytes for {list(tensor.shape)} of {tensor.type}")
    return tensor
