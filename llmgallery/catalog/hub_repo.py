"""What the Hub's API says of a repo: GET /api/models/{repo}/revision/{revision}?blobs=true, as far as we read it.

Shapes: https://huggingface.co/docs/hub/api and huggingface_hub's ModelInfo.
"""

from __future__ import annotations

import difflib
import re
from typing import Any

import msgspec

from llmgallery.catalog.reference import check_file
from llmgallery.core.errors import ConfigError

_COMMIT = re.compile(r"[0-9a-f]{40}")
_SHA256 = re.compile(r"[0-9a-f]{64}")
_MAX_WORD = 100

MAX_COMPARED = 1000
"""Names of a repo among which near ones are looked for: that takes a fifth of a second."""


class RepoFile(msgspec.Struct, frozen=True):
    """A file at a commit. `sha256`: None for small files, of which the Hub knows git's id only. `size` in bytes, None = not
    told."""

    path: str
    size: int | None = None
    sha256: str | None = None

    @property
    def name(self) -> str:
        return self.path.rsplit("/", 1)[-1]


class Repo(msgspec.Struct, frozen=True):
    """A model repo at a commit. `task`: its pipeline tag, such as text-generation. `gated`: its terms must be accepted."""

    name: str
    commit: str
    files: tuple[RepoFile, ...]
    licence: str | None = None
    task: str | None = None
    library: str | None = None
    gated: bool = False

    def file(self, path: str) -> RepoFile | None:
        return next((file for file in self.files if file.path == path), None)


class _Lfs(msgspec.Struct, frozen=True):
    sha256: str
    size: int


class _Sibling(msgspec.Struct, frozen=True):
    rfilename: str
    size: int | None = None
    lfs: _Lfs | None = None


class _Answer(msgspec.Struct, frozen=True):
    sha: str
    siblings: list[_Sibling] = []
    tags: Any = None
    pipeline_tag: Any = None
    library_name: Any = None
    card: Any = msgspec.field(default=None, name="cardData")
    gated: Any = False


def read_repo(name: str, answer: bytes) -> Repo:
    """Raises msgspec.DecodeError or ValueError for what is no such answer. Paths that no repo can hold are left out."""
    found = msgspec.json.decode(answer, type=_Answer)
    if not _COMMIT.fullmatch(found.sha):
        raise ValueError("it names no commit")
    files = tuple(_file(sibling) for sibling in found.siblings if _is_plain(sibling.rfilename))
    return Repo(
        name,
        found.sha,
        files,
        licence=_licence(found),
        task=_word(found.pipeline_tag),
        library=_word(found.library_name),
        gated=found.gated not in (None, False, ""),
    )


def _file(sibling: _Sibling) -> RepoFile:
    lfs = sibling.lfs
    size = lfs.size if lfs is not None else sibling.size
    sha256 = lfs.sha256 if lfs is not None and _SHA256.fullmatch(lfs.sha256) else None
    return RepoFile(sibling.rfilename, size if size is not None and size >= 0 else None, sha256)


def _licence(answer: _Answer) -> str | None:
    """The card's, by its own name where that is `other`; else the tag's."""
    card = answer.card if isinstance(answer.card, dict) else {}
    said = card.get("license")
    said = said[0] if isinstance(said, list) and said else said
    tags = answer.tags if isinstance(answer.tags, list) else []
    tagged = next((tag[8:] for tag in tags if isinstance(tag, str) and tag.startswith("license:")), None)
    licence = _word(said) or _word(tagged)
    return _word(card.get("license_name")) or licence if licence == "other" else licence


def _word(value: Any) -> str | None:
    """A short text without control characters, as it may enter comments and lists."""
    return value.strip() if isinstance(value, str) and 0 < len(value.strip()) <= _MAX_WORD and value.isprintable() else None


def _is_plain(path: str) -> bool:
    try:
        check_file(path)
    except ConfigError:
        return False
    return True


def near_names(file: str, files: list[str]) -> tuple[str, ...]:
    """At most five of `files`, nearest first, without regard to case; by path, then by last name alone. Of very many, those
    are compared that end alike."""
    ending = file.lower().rpartition(".")[2]
    files = sorted(files, key=lambda name: not name.lower().endswith(ending))[:MAX_COMPARED]
    by_lower = {name.lower(): name for name in files}
    by_last = {name.lower().rsplit("/", 1)[-1]: name for name in files}
    near = [by_lower[key] for key in difflib.get_close_matches(file.lower(), by_lower, n=5, cutoff=0.5)]
    near += [by_last[key] for key in difflib.get_close_matches(file.lower().rsplit("/", 1)[-1], by_last, n=5, cutoff=0.6)]
    return tuple(dict.fromkeys(near))[:5]
