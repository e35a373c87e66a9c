"""The little of tar that bundles need: plain files, one after another. What is no plain file is refused, not interpreted.

Format: GNU tar's manual, "Basic Tar Format"; sizes of 8 GiB and more in base 256.
"""

from __future__ import annotations

import tarfile
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

from llmgallery.core.errors import ConfigError

BLOCK = 512
END = bytes(2 * BLOCK)


def header(name: str, size: int) -> bytes:
    """What stands before a file's bytes. The same for the same file, whoever packs it and when."""
    info = tarfile.TarInfo(name)
    info.size = size
    found = info.tobuf(tarfile.GNU_FORMAT)
    assert len(found) == BLOCK, "names of bundles' members are short"
    return found


def padding(size: int) -> bytes:
    """What stands after them."""
    return bytes(-size % BLOCK)


class Member:
    """A file in the archive. `pieces` must be read to the end, or `skip` called, before the next one is asked for."""

    def __init__(self, name: str, size: int, file: BinaryIO, path: Path) -> None:
        self.name = name
        self.size = size
        self._file = file
        self._path = path

    def pieces(self, most: int) -> Iterator[bytes]:
        """Its bytes. Raises ConfigError when the archive ends before."""
        left = self.size
        while left:
            piece = self._file.read(min(most, left))
            if not piece:
                raise _cut(self._path)
            left -= len(piece)
            yield piece
        if len(self._file.read(-self.size % BLOCK)) != -self.size % BLOCK:
            raise _cut(self._path)


def members(file: BinaryIO, path: Path) -> Iterator[Member]:
    """The files of an archive that is read from its beginning. `path` names it. Raises ConfigError for everything in it that
    is no plain file, and for an archive that is cut."""
    while True:
        block = file.read(BLOCK)
        if block == bytes(BLOCK):
            return
        if len(block) < BLOCK:
            raise _cut(path)
        try:
            info = tarfile.TarInfo.frombuf(block, "utf-8", "strict")
        except (tarfile.HeaderError, UnicodeDecodeError) as error:
            raise ConfigError(f"{path} is no tar archive, or a damaged one: pack it again with `llmgallery bundle`") from error
        if info.type not in (tarfile.REGTYPE, tarfile.AREGTYPE) or info.linkname or info.size < 0:
            raise ConfigError(f"{path}: {info.name!r} is no plain file: `llmgallery bundle` packs nothing else, so it is refused")
        yield Member(info.name, info.size, file, path)


def _cut(path: Path) -> ConfigError:
    return ConfigError(f"{path} is cut: copy it again")
