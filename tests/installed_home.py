"""A models folder and a Hugging Face cache as installs leave them, made by hand: no Hub, no installer."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from pathlib import Path

from llmgallery.backends.loader import specs
from llmgallery.catalog.hub_cache import RepoCache
from llmgallery.catalog.index import Snapshot
from llmgallery.catalog.install.plan import store_path
from llmgallery.catalog.keep.places import Folders
from llmgallery.catalog.lock import LockedFile, LockedModel, LockFile
from llmgallery.catalog.registry import Registry

COMMIT = "a" * 40
REPO = "owner/repo"


def sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def git_sha1(data: bytes) -> str:
    """What the Hub names small files by."""
    return hashlib.sha1(b"blob %d\0" % len(data) + data, usedforsecurity=False).hexdigest()


class Home:
    def __init__(self, root: Path) -> None:
        self.models = root / "models"
        self.cache = root / "hf" / "hub"
        self.data = root / "data"
        self.models.mkdir(parents=True)

    @property
    def folders(self) -> Folders:
        return Folders(self.models, self.cache)

    @property
    def lock(self) -> LockFile:
        return LockFile.of(self.models)

    @property
    def registry(self) -> Registry:
        found = Registry([self.models], specs())
        found.read()
        return found

    @property
    def snapshot(self) -> Snapshot:
        return self.registry.snapshot

    def hub_file(self, file: str, data: bytes, repo: str = REPO, commit: str = COMMIT, lfs: bool = True) -> LockedFile:
        """A file of the Hub in the cache, as a download leaves it."""
        cache = RepoCache(self.cache, repo)
        blob = cache.blob(sha256(data) if lfs else git_sha1(data))
        blob.parent.mkdir(parents=True, exist_ok=True)
        blob.write_bytes(data)
        cache.link(commit, file, blob)
        return LockedFile(uri=f"hf://{repo}/{file}@{commit}", commit=commit, sha256=sha256(data), size=len(data))

    def stored_file(self, name: str, data: bytes) -> LockedFile:
        """A file from elsewhere."""
        uri = f"https://example.org/{name}"
        path = store_path(uri, name, sha256(data))
        (self.models / path).parent.mkdir(parents=True, exist_ok=True)
        (self.models / path).write_bytes(data)
        return LockedFile(uri=uri, path=path, sha256=sha256(data), size=len(data))

    def install(self, name: str, files: Sequence[LockedFile], yaml: str | None = None) -> Path:
        """The lock entry, and a YAML that names the first file."""
        self.lock.update(name, LockedModel(source=f"gallery@{name}", licence="mit", files=tuple(files)))
        weights = files[0].path or files[0].uri.removeprefix("hf://")
        path = self.models / (name.replace("/", "__") + ".yaml")
        path.write_text(yaml or f"name: {name!r}\nbackend: llama-cpp\nparameters: {{model: {weights}}}\n")
        return path

    def everything(self) -> list[str]:
        """All paths below both folders, links not followed."""
        roots = (self.models, self.cache)
        return sorted(f"{root.name}/{path.relative_to(root)}" for root in roots for path in root.rglob("*"))
