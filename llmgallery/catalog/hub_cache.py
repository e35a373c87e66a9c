"""The Hugging Face cache on disk: models--owner--repo/{blobs,refs,snapshots}. Knows no network.

Layout: https://huggingface.co/docs/huggingface_hub/guides/manage-cache
"""

from __future__ import annotations

import os
import re
import uuid
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

import msgspec

from llmgallery.catalog import formats
from llmgallery.catalog.hub_repo import RepoFile
from llmgallery.catalog.reference import HubReference, Whole, check_file, choose_file, choose_surely, split_parts
from llmgallery.catalog.repo_folder import CONFIGS, as_folder, chosen
from llmgallery.catalog.shards import missing_shards
from llmgallery.core.errors import BadWeights, ConfigError, HubError, HubNotFound

_COMMIT = re.compile(r"[0-9a-f]{40}")
_LISTINGS = ".llmgallery"


class Listing(msgspec.Struct, frozen=True):
    """What a commit of a repo holds, kept beside its snapshot, so that a folder that is not whole is told from one that is
    without asking. `files`: sizes in bytes by path, None = not known. `full`: all of its files, not only those of a model."""

    files: dict[str, int | None]
    full: bool


class RepoCache:
    """One repo's folder in a cache. Names given to it come from a HubReference or have passed the client's checks."""

    def __init__(self, cache_dir: Path, repo: str) -> None:
        name = "models--" + repo.replace("/", "--")
        self.folder = cache_dir / name
        self.locks = cache_dir / ".locks" / name

    @staticmethod
    def at(folder: Path) -> RepoCache:
        """That of a repo's folder."""
        return RepoCache(folder.parent, folder.name.removeprefix("models--").replace("--", "/"))

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

    def snapshot(self, commit: str) -> Path:
        return self.folder / "snapshots" / commit

    def listing(self, commit: str) -> Listing | None:
        """What is known of a commit's files; None = nothing."""
        try:
            return msgspec.json.decode(self._listing(commit).read_bytes(), type=Listing)
        except (OSError, ValueError, RecursionError):
            return None

    def write_listing(self, commit: str, files: Sequence[RepoFile], *, full: bool) -> None:
        """To be called before the first file of a folder is fetched. One that says more stays."""
        before = self.listing(commit)
        if before is not None and (before.full or not full) and all(file.path in before.files for file in files):
            return
        data = msgspec.json.encode(Listing({file.path: file.size for file in files}, full))
        path = self._listing(commit)
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary = path.with_name(f"{path.name}.{uuid.uuid4().hex[:8]}.tmp")
        temporary.write_bytes(data)
        temporary.replace(path)

    def forget_listing(self, commit: str) -> None:
        """Of a snapshot that is no more."""
        if not self.snapshot(commit).exists():
            with suppress(OSError):
                self._listing(commit).unlink(missing_ok=True)
                self._listing(commit).parent.rmdir()

    def _listing(self, commit: str) -> Path:
        return self.folder / _LISTINGS / f"{commit}.json"

    def files(self, commit: str) -> list[str]:
        """The cached files of a commit, as paths in the repo."""
        root = self.snapshot(commit)
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
    """The files of `ref` that lie in the cache, all of them or None; of a folder its snapshot. `surely`: None as well when a
    listing of the repo could choose other files.
    """
    cache = RepoCache(cache_dir, ref.repo)
    commit = cache.commit(ref.revision)
    if commit is None:
        return None
    listing = cache.listing(commit)
    folder = as_folder(ref, cache.files(commit) if listing is None else list(listing.files))
    if folder is not None:
        return _folder_of(cache, commit, folder, listing, surely)
    file = ref.file or _choose_cached(cache.files(commit), ref.quant, surely)
    if file is None:
        return None
    paths = [cache.pointer(commit, part) for part in split_parts(file)]
    return paths if all(path.is_file() for path in paths) else None


def cached_files(cache_dir: Path, ref: HubReference) -> list[Path] | None:
    """As find_cached, with all files of a folder that the model is loaded from in the place of the folder."""
    found = find_cached(cache_dir, ref)
    if not found or not found[0].is_dir():
        return found
    cache, commit = RepoCache(cache_dir, ref.repo), found[0].name
    names = cache.files(commit)
    folder = as_folder(ref, names) or ref
    with suppress(HubError, BadWeights):
        names = [file.path for file in chosen(folder, [RepoFile(name) for name in names])]
    return [cache.pointer(commit, name) for name in names]


def _folder_of(cache: RepoCache, commit: str, ref: HubReference, listing: Listing | None, surely: bool) -> list[Path] | None:
    """The snapshot, when everything is in it that the model is loaded from. Without a listing its own files must tell that: the
    index of its shards, or their numbers."""
    root = cache.snapshot(commit)
    below = root / (ref.whole.subfolder if ref.whole is not None else "")
    if not any((below / name).is_file() for name in CONFIGS):
        return None
    if listing is not None and (listing.full or ref.whole == Whole()):
        return [root] if _is_whole(root, listing, ref) else None
    if surely:
        return None
    try:
        kind = formats.detect(below)
        return [root] if kind not in (None, formats.GGUF) and not missing_shards(below) else None
    except OSError:
        return None


def _is_whole(root: Path, listing: Listing, ref: HubReference) -> bool:
    try:
        wanted = chosen(ref, [RepoFile(path, size) for path, size in listing.files.items()])
        for file in wanted:
            check_file(file.path)
            size = (root / file.path).stat().st_size
            if file.size is not None and size != file.size:
                return False
    except (OSError, HubError, BadWeights, ConfigError):
        return False
    return True


def _choose_cached(files: list[str], quant: str | None, surely: bool) -> str | None:
    if sure := choose_surely(files, quant):
        return sure
    if surely:
        return None
    try:
        return choose_file(files, quant)
    except HubNotFound:
        return None
