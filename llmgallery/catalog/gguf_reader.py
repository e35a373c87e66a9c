"""The bytes of a GGUF header, versions 2 and 3: metadata and tensor list. Knows the format, not what the keys mean.

Everything in the file is a claim: each length is checked against what is left before anything is read or allocated.
"""

from __future__ import annotations

import io
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import msgspec

from llmgallery.catalog.gguf_types import ARRAY, GGML_TYPES, SCALARS, STRING, VALUE_NAMES
from llmgallery.config.regular import open_regular
from llmgallery.core.errors import BadWeights

MAGIC = b"GGUF"
MAX_HEADER = 128 * 1024 * 1024
MAX_STRING = 16 * 1024 * 1024
MAX_DEPTH = 4
SHORT_ARRAY = 1024  # longer arrays, and arrays of strings, are summarised unless asked for
_PAGE = 1024 * 1024


class Array(msgspec.Struct, frozen=True):
    """A summarised array: what it holds, and how much."""

    type: str
    count: int


class Tensor(msgspec.Struct, frozen=True):
    """One tensor: `shape` with the fastest dimension first, `offset` in bytes from the start of the data."""

    name: str
    shape: tuple[int, ...]
    type: int
    offset: int

    @property
    def elements(self) -> int:
        count = 1
        for length in self.shape:
            count *= length
        return count

    @property
    def bytes(self) -> int:
        """0 for a type that we do not know."""
        kind = GGML_TYPES.get(self.type)
        return kind.bytes_of(self.elements) if kind else 0


@dataclass(frozen=True)
class Contents:
    """A header as it stands in the file. `data_offset`: where the tensors' data begin."""

    version: int
    metadata: dict[str, Any]
    tensors: tuple[Tensor, ...]
    data_offset: int


def read(source: Path | bytes, *, arrays: bool = False) -> Contents:
    """Read a file's header, or a header in memory (the beginning of a file will do). `arrays`: keep all arrays whole.

    Raises BadWeights with the offset at which the file is not what it should be.
    """
    if isinstance(source, bytes):
        return _Reader(io.BytesIO(source), len(source), "these bytes", arrays).read()
    try:
        with open_regular(source) as stream:
            return _Reader(stream, source.stat().st_size, str(source), arrays).read()
    except OSError as exc:
        raise BadWeights(f"{source} cannot be read: {exc.strerror or exc}") from exc


class _Reader:
    def __init__(self, stream: BinaryIO, size: int, name: str, arrays: bool) -> None:
        self._stream = stream
        self._size = size
        self._name = name
        self._arrays = arrays
        self._buffer = bytearray()
        self._at = 0

    def read(self) -> Contents:
        if self._take(min(4, self._size)) != MAGIC:
            raise self._bad("no GGUF file: it does not begin with GGUF", at=0)
        version = self._scalar(4)
        if version not in (2, 3):
            swapped = " (big-endian?)" if int.from_bytes(version.to_bytes(4, "little"), "big") in (2, 3) else ""
            raise self._bad(f"GGUF version {version}{swapped}; 2 and 3 can be read", at=4)
        num_tensors, num_values = self._count("tensors", least=24), self._count("metadata values", least=13)
        metadata = self._metadata(num_values)
        tensors = self._tensors(num_tensors)
        alignment = metadata.get("general.alignment", 32)
        if not isinstance(alignment, int) or alignment <= 0 or alignment & (alignment - 1):
            raise self._bad(f"general.alignment is {alignment!r}, no power of two")
        return Contents(version, metadata, tensors, -(-self._at // alignment) * alignment)

    def _metadata(self, count: int) -> dict[str, Any]:
        metadata: dict[str, Any] = {}
        for _ in range(count):
            at, key = self._at, self._string()
            if key in metadata:
                raise self._bad(f"metadata key {key!r} twice", at=at)
            metadata[key] = self._value(self._scalar(4), depth=0)
        return metadata

    def _tensors(self, count: int) -> tuple[Tensor, ...]:
        return tuple(self._tensor() for _ in range(count))

    def _tensor(self) -> Tensor:
        at, name = self._at, self._string()
        num_dimensions = self._scalar(4)
        if num_dimensions > 4:
            raise self._bad(f"tensor {name!r} has {num_dimensions} dimensions, more than 4", at=at)
        shape = tuple(self._scalar(10) for _ in range(num_dimensions))
        kind, offset = self._scalar(4), self._scalar(10)
        return Tensor(name, shape, kind, offset)

    def _value(self, kind: int, depth: int) -> Any:
        if kind == STRING:
            return self._string()
        if kind == ARRAY:
            return self._array(depth + 1)
        if kind not in SCALARS:
            raise self._bad(f"metadata value of unknown type {kind}", at=self._at - 4)
        return self._scalar(kind)

    def _array(self, depth: int) -> Any:
        at, kind = self._at, self._scalar(4)
        if depth > MAX_DEPTH or kind >= len(VALUE_NAMES):
            raise self._bad(f"array of unknown type {kind}, or nested deeper than {MAX_DEPTH}", at=at)
        if kind in SCALARS:
            return self._scalars(kind)
        count = self._count("array items", least=8 if kind == STRING else 12)
        if self._arrays or kind == ARRAY:
            return tuple(self._value(kind, depth) for _ in range(count))
        self._skip_strings(count)
        return Array(VALUE_NAMES[kind], count)

    def _skip_strings(self, count: int) -> None:
        """A vocabulary has hundreds of thousands, so this loop calls nothing that it need not."""
        unpack, buffer, at = SCALARS[10].unpack_from, self._buffer, self._at
        end = len(buffer)
        for _ in range(count):
            if at + 8 > end:
                self._at = at
                self._need(8)
                end = len(buffer)
            at += 8 + unpack(buffer, at)[0]
        self._at = at
        self._need(0)

    def _scalars(self, kind: int) -> Any:
        layout = SCALARS[kind]
        count = self._count("array items", least=layout.size)
        if not self._arrays and count > SHORT_ARRAY:
            self._skip(count * layout.size)
            return Array(VALUE_NAMES[kind], count)
        return tuple(item[0] for item in layout.iter_unpack(self._take(count * layout.size)))

    def _scalar(self, kind: int) -> Any:
        layout = SCALARS[kind]
        self._need(layout.size)
        value = layout.unpack_from(self._buffer, self._at)[0]
        self._at += layout.size
        return value

    def _string(self) -> str:
        return self._take(self._length()).decode(errors="replace")

    def _length(self) -> int:
        at, length = self._at, self._scalar(10)
        if length > MAX_STRING:
            raise self._bad(f"a text of {length} bytes", at=at)
        return int(length)

    def _count(self, what: str, least: int) -> int:
        """A number of items of at least so many bytes each."""
        at, count = self._at, int(self._scalar(10))
        if count * least > self._size - self._at:
            raise self._bad(f"{count} {what}, more than the {self._size} bytes of the file can hold: truncated?", at=at)
        return count

    def _take(self, length: int) -> bytes:
        self._need(length)
        self._at += length
        return bytes(self._buffer[self._at - length : self._at])

    def _skip(self, length: int) -> None:
        self._need(length)
        self._at += length

    def _need(self, length: int) -> None:
        end = self._at + length
        if end <= len(self._buffer):
            return
        if end > min(self._size, MAX_HEADER):
            raise self._bad(f"the header goes on to byte {end}, but the file ends at {self._size}: truncated?")
        self._buffer += self._stream.read(max(end - len(self._buffer), _PAGE))
        if end > len(self._buffer):
            raise self._bad("the file became shorter while it was read")

    def _bad(self, what: str, at: int | None = None) -> BadWeights:
        return BadWeights(f"{self._name}: {what} (at byte {self._at if at is None else at})")
