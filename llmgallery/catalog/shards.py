"""Whether the weights of a folder are all there: by the index of its shards, else by the numbers in their names."""

from __future__ import annotations

import re
from pathlib import Path

import msgspec

from llmgallery.config.regular import open_regular

INDEXES = ("model.safetensors.index.json", "pytorch_model.bin.index.json")
MOST = 64 << 20
"""Bytes of an index; those of the largest models have a few MiB."""

_NUMBERED = re.compile(r"^(?P<stem>.+)-(?P<number>\d{5})-of-(?P<count>\d{5})(?P<suffix>\.safetensors|\.bin)$")


class _Index(msgspec.Struct, frozen=True):
    weight_map: dict[str, str] = {}


def missing_shards(folder: Path) -> list[str]:
    """Names of weights files that should be there and are not. Raises OSError.

    An index of which nothing is there is one that somebody left behind when he converted the weights, and does not count.
    """
    names = {entry.name for entry in folder.iterdir() if entry.is_file()}
    missing: set[str] = set()
    for index in INDEXES:
        wanted = _indexed(folder / index) if index in names else set()
        if wanted & names or (wanted and not any(name.endswith(_suffix(index)) for name in names)):
            missing |= wanted - names
    return sorted(missing | (_numbered(names) - names))


def _suffix(index: str) -> str:
    return ".safetensors" if "safetensors" in index else ".bin"


def _indexed(path: Path) -> set[str]:
    try:
        with open_regular(path) as file:
            return set(msgspec.json.decode(file.read(MOST), type=_Index).weight_map.values())
    except (msgspec.MsgspecError, UnicodeDecodeError):
        return set()


def _numbered(names: set[str]) -> set[str]:
    """All shards of those of which one is there."""
    found: set[str] = set()
    for match in filter(None, map(_NUMBERED.match, names)):
        stem, count, suffix = match["stem"], int(match["count"]), match["suffix"]
        if 0 < int(match["number"]) <= count <= 10_000:
            found.update(f"{stem}-{number:05d}-of-{match['count']}{suffix}" for number in range(1, count + 1))
    return found
