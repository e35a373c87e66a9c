"""What an install will do, known before its first byte: the files, and the YAML that will serve them. Plain data."""

from __future__ import annotations

import hashlib
import re

import msgspec

from llmgallery.core.errors import ConfigError

STORE = ".files"
"""The folder, under a models folder, of files that come from elsewhere than the Hub: STORE/DIGEST/NAME. By digest, since
indexes give one name to different bytes."""

_SHA256 = re.compile(r"[0-9a-f]{64}")
_PLAIN_NAME = re.compile(r"[^\W_][\w.+-]{0,199}", re.ASCII)


class PlannedFile(msgspec.Struct, frozen=True, kw_only=True):
    """One file. `uri`: `hf://owner/repo/path@COMMIT` (the commit in full), or https:// (http:// only on loopback), or file://.
    `path`: where it goes under the models folder (`store_path`); None = the Hugging Face cache, for files of the Hub.
    `sha256`: None = nobody has said it, and it is recorded once the file is here. `size` in bytes, None = not known.
    `inside`: a gallery of this machine names it, so its host may be one inside this network.
    """

    uri: str
    name: str
    path: str | None = None
    sha256: str | None = None
    size: int | None = None
    inside: bool = False


class InstallPlan(msgspec.Struct, frozen=True, kw_only=True):
    """`name`: the model's. `source`: `gallery@entry`, or `owner/repo@COMMIT`. `yaml`: the whole text of its file, which names
    the weights by pinned references. `backend`: ours. `memory_bytes`: what loading it will take, None = not known before
    it is here. `warnings`: what of the entry has no counterpart, one a line."""

    name: str
    source: str
    yaml: str
    files: tuple[PlannedFile, ...]
    backend: str
    licence: str | None = None
    memory_bytes: int | None = None
    warnings: tuple[str, ...] = ()

    @property
    def size(self) -> int | None:
        """Bytes of all files; None = of some it is not known."""
        sizes = [file.size for file in self.files]
        return None if None in sizes else sum(size for size in sizes if size is not None)


def store_path(uri: str, name: str, sha256: str | None) -> str:
    """Where a file that is not the Hub's goes, relative to the models folder. Raises ConfigError for a name that could lead
    out of it, and for what is no sha256."""
    last = name.rsplit("/", 1)[-1]
    if not _PLAIN_NAME.fullmatch(last) or ".." in last:
        raise ConfigError(
            f"{name!r} is no name for a file: letters, digits and . _ + - only, without a path that leads elsewhere"
        )
    if sha256 is not None and not _SHA256.fullmatch(sha256):
        raise ConfigError(f"{sha256!r} is no sha256: 64 hexadecimal digits, in small letters")
    return f"{STORE}/{sha256 or 'uri-' + hashlib.sha256(uri.encode()).hexdigest()[:32]}/{last}"
