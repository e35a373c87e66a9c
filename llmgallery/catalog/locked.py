"""What a lock file holds, as plain data: which bytes lie behind each installed model."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Annotated, Any

import msgspec

from llmgallery.catalog.reference import HubReference, parse_reference
from llmgallery.core.errors import ConfigError

Sha256 = Annotated[str, msgspec.Meta(pattern="^[0-9a-f]{64}$")]
Commit = Annotated[str, msgspec.Meta(pattern="^[0-9a-f]{40}$")]
Text = Annotated[str, msgspec.Meta(min_length=1)]


class LockedFile(msgspec.Struct, frozen=True, kw_only=True):
    """One file. `uri`: where it came from, as in PlannedFile. `path`: where it lies under the models folder; None = in the
    Hugging Face cache, at `commit`. `size` in bytes."""

    uri: Text
    sha256: Sha256
    size: Annotated[int, msgspec.Meta(ge=0)]
    path: Text | None = None
    commit: Commit | None = None


class LockedModel(msgspec.Struct, frozen=True, kw_only=True):
    """`source`: `gallery@entry`, or a Hub reference with its commit. `licence` None = nobody has said it."""

    source: Text
    files: tuple[LockedFile, ...]
    licence: Text | None = None


@dataclass(frozen=True)
class Locked:
    """What a lock file says: models by name. `data`: all of it, with what a newer version may have added."""

    models: Mapping[str, LockedModel] = field(default_factory=dict)
    data: Mapping[str, Any] = field(default_factory=dict)


def check_locked(file: LockedFile) -> None:
    """Raises ConfigError for a file that lies nowhere: a path that leaves the folder, a Hub address without its commit."""
    if file.path is None:
        hub_reference(file)
    else:
        check_relative(file.path)


def check_relative(path: str) -> None:
    """Raises ConfigError for a path that leads out of the folder that it starts in."""
    parts = path.split("/")
    if any(part in ("", ".", "..") for part in parts) or "\\" in path or not path.isprintable():
        raise ConfigError(
            f"path: {path!r} is no path inside the models folder: it must be relative, without empty parts, . or .."
        )


def hub_reference(file: LockedFile) -> HubReference:
    """What a file of the Hub is, its commit in full. Raises ConfigError."""
    found = parse_reference(file.uri) if file.uri.startswith("hf://") else None
    if found is None or found.file is None or not found.pinned or file.commit not in (None, found.revision):
        raise ConfigError(
            f"uri: {file.uri!r} names no file at its commit, and no path says where it lies: hf://owner/repo/FILE@COMMIT"
        )
    return found
