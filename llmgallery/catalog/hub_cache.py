"""The Hugging Face cache on disk: models--owner--repo/{blobs,refs,snapshots}. Knows no network.

Layout: https://huggingface.co/docs/huggingface_hub/guides/manage-cache
"""

from __future__ import annotations

import os
import re
import uuid
from pathlib import Path

from llmgallery.catalog.reference import HubReference, check_file, choose_file, choose_surely, split_parts
from llmgallery.core.errors import HubNotFound

_COMMIT = re.compile(r"[0-9a-f]{40}")


class RepoCache:
    """One repo's folder in a cache. Names given to it come from a HubReference or have passed the client's checks."""

    def __init__(self, cache_dir: Path, repo: str) -> None:
        name = "models--" + repo.replace("/", "--")
        self.folder = cache_dir / name
        self.locks = cache_dir / ".locks" / name

    def blob(self, etag: str) -> Path:
        return self.folder / "blobs" / etag

    def lock(self, etag: str) -> Path:
        """The file that huggingface_hub locks while it writes this blob."""
        return self.locks / f"{etag}.lock"

    def partial(self, etag: str) -> Path:
        return self.folder / "blobs" / f"{etag}.llmgallery.part"

    def journal(self, etag: str) -> Path:
        return self.folder / "blobs" / f"{etag}.llmgallery.json"

    def pointer(self, commit: str, file: str) -> Path:
        check_file(file)
        return self.folder / "snapshots" / commit / file

    def commit(self, revision: str) -> str | None:
        """The commit that a revision was when it was last asked for; a full commit is itself."""
        if _COMMIT.fullmatch(revision):
            return revision
        try:
            commit = (self.folder / "refs" / revision).read_text().strip()
        except (FileNotFoundError, NotADirectoryError, IsADirectoryError):
            return None
        return commit if _COMMIT.fullmatch(commit) else None

    def write_ref(self, revision: str, commit: str) -> None:
        if revision == commit or self.commit(revision) == commit:
            return
        path = self.folder / "refs" / revision
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary = path.with_name(f"{path.name}.{uuid.uuid4().hex[:8]}.tmp")
        temporary.write_text(commit)
        temporary.replace(path)

    def files(self, commit: str) -> list[str]:
        """The cached files of a commit, as paths in the repo."""
        root = self.folder / "snapshots" / commit
        return sorted(path.relative_to(root).as_posix() for path in root.rglob("*") if path.is_file())

    def link(self, commit: str, file: str, blob: Path) -> Path:
        """Make the snapshot's entry for a blob: a relative symlink, else (where links fail) the file itself."""
        pointer = self.pointer(commit, file)
        if pointer.is_file():
            return pointer
        pointer.parent.mkdir(parents=True, exist_ok=True)
        temporary = pointer.with_name(f"{pointer.name}.{uuid.uuid4().hex[:8]}.tmp")
        try:
            temporary.symlink_to(os.path.relpath(blob, pointer.parent))
        except OSError:
            temporary = blob  # moved, not copied: weights are large; huggingface_hub does the same
        temporary.replace(pointer)
        return pointer


def find_cached(cache_dir: Path, ref: HubReference, *, surely: bool = False) -> list[Path] | None:
    """The files of `ref` that lie in the cache, all of them or None. `surely`: None as well when a listing of the repo
    could choose other files.
    """
    cache = RepoCache(cache_dir, ref.repo)
    commit = cache.commit(ref.revision)
    if commit is None:
        return None
    file = ref.file or _choose_cached(cache.files(commit), ref.quant, surely)
    if file is None:
        return None
    paths = [cache.pointer(commit, part) for part in split_parts(file)]
    return paths if all(path.is_file() for path in paths) else None


def _choose_cached(files: list[str], quant: str | None, surely: bool) -> str | None:
    if sure := choose_surely(files, quant):
        return sure
    if surely:
        return None
    try:
        return choose_file(files, quant)
    except HubNotFound:
        return None
