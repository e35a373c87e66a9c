"""Deleting files of a model that nobody else needs. What cannot be told for sure stays. Everything here blocks."""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from yaml.nodes import MappingNode, Node, ScalarNode, SequenceNode

from llmgallery.catalog.formats import YAML_SUFFIXES
from llmgallery.catalog.hub_cache import RepoCache
from llmgallery.catalog.install.plan import PlannedFile
from llmgallery.catalog.install.store import Store, planned
from llmgallery.catalog.lock import Locked
from llmgallery.catalog.partial import Place
from llmgallery.catalog.reference import HubReference, parse_reference, split_parts
from llmgallery.config.nodes import Unreadable, compose
from llmgallery.core.errors import ConfigError

_TAIL = r"""[^\s"'#,\]}]*"""
_LOCK_WAIT = 0.2
_NAMES = ("name", "aliases", "description", "owned_by")
"""Keys of a model file that name no file."""


@dataclass(frozen=True)
class Needs:
    """`finals`: where files lie that others need. `digests`: of files that others need, wherever they lie. `texts`: of YAMLs."""

    finals: frozenset[Path]
    digests: frozenset[str]
    texts: tuple[str, ...]


def needs(store: Store, folders: Sequence[Path], locked: Locked, files: Iterable[PlannedFile], *, without: str | None) -> Needs:
    """What all others need: models of the lock but `without`, YAMLs in `folders`, and `files`, of other jobs."""
    others = [*files, *(planned(file) for name, model in locked.models.items() if name != without for file in model.files)]
    digests = frozenset(file.sha256 for file in others if file.sha256)
    return Needs(frozenset(store.final(file) for file in others), digests, tuple(_texts(folders)))


def _texts(folders: Sequence[Path]) -> Iterator[str]:
    """The YAMLs without their comments, which name where a model comes from, not what it needs."""
    for folder in dict.fromkeys(folders):
        with suppress(FileNotFoundError, NotADirectoryError):
            for path in sorted(folder.iterdir()):
                if path.name.lower().endswith(YAML_SUFFIXES) and not path.name.startswith("."):
                    with suppress(FileNotFoundError, IsADirectoryError):
                        lines = path.read_text(encoding="utf-8", errors="replace").splitlines()
                        yield "\n".join(re.sub(r"(^|\s)#.*", "", line) for line in lines)


def is_needed(store: Store, file: PlannedFile, others: Needs) -> bool:
    """Somebody else needs the finished file."""
    if store.final(file) in others.finals:
        return True
    if file.path is not None:
        return any(file.path in text for text in others.texts)
    ref = store.hub(file)
    return ref is not None and any(_mentions(text, ref) and _mentions(_without_names(text), ref) for text in others.texts)


def _without_names(text: str) -> str:
    """What a YAML holds beside what it is called: a model of the Hub bears the id that it was asked for by, and so names its
    repo, whichever of its files it needs."""
    try:
        root = compose(text.encode(), Path("model.yaml"))
    except Unreadable:
        return text
    if not isinstance(root, MappingNode):
        return text
    kept = [value for key, value in root.value if not (isinstance(key, ScalarNode) and key.value in _NAMES)]
    return "\n".join(_scalars(kept, set()))


def _scalars(nodes: Iterable[Node], seen: set[int]) -> Iterator[str]:
    for node in nodes:
        if id(node) in seen:
            continue
        seen.add(id(node))
        if isinstance(node, ScalarNode):
            yield str(node.value)
        elif isinstance(node, SequenceNode):
            yield from _scalars(node.value, seen)
        elif isinstance(node, MappingNode):
            yield from _scalars((part for pair in node.value for part in pair), seen)


def _mentions(text: str, ref: HubReference) -> bool:
    """A YAML refers to the file, or to its repo in a way that may mean it."""
    for match in re.finditer(rf"(https?://\S*?/)?(?<![\w.-]){re.escape(ref.repo)}({_TAIL})", text, re.IGNORECASE):
        url, tail = match[1], match[2]
        if not tail:
            if not url:
                return True
            continue  # the page of a repo: where to read about it
        if tail[0] not in ":@/":
            continue  # a longer name
        try:
            found = parse_reference(match[0] if url else ref.repo + tail)
        except ConfigError:
            return True
        if found is not None and found.pinned and found.revision != ref.revision:
            continue
        if found is None or found.file is None or ref.file in split_parts(found.file):
            return True
    return False


def delete(store: Store, files: Iterable[PlannedFile], others: Needs) -> None:
    """These files, finished or not, as far as nobody else needs them."""
    for file in files:
        begun = store.begun(file)
        if begun is not None and file.sha256 not in others.digests and store.final(file) not in others.finals:
            _discard(begun)
        if not is_needed(store, file, others):
            _delete_final(store, file)
        _tidy(store, file)


def _discard(place: Place) -> None:
    """What has come of a file, unless somebody is at work on it."""
    lock = place.new_lock(_LOCK_WAIT)
    if lock.acquire():
        try:
            place.part.unlink(missing_ok=True)
            place.journal.unlink(missing_ok=True)
        finally:
            lock.release()


def _delete_final(store: Store, file: PlannedFile) -> None:
    final, ref = store.final(file), store.hub(file)
    if not os.path.lexists(final):
        return
    blob = final.resolve() if final.is_symlink() else None
    final.unlink()
    if blob is None or ref is None:
        return
    cache = RepoCache(store.cache, ref.repo)
    if blob.parent == (cache.folder / "blobs").resolve() and not _is_linked(cache, blob):
        lock = store.place(file, blob.name).new_lock(_LOCK_WAIT)
        if lock.acquire():
            try:
                if not _is_linked(cache, blob):
                    blob.unlink(missing_ok=True)
            finally:
                lock.release()


def _is_linked(cache: RepoCache, blob: Path) -> bool:
    """A snapshot has an entry for the blob."""
    links = (path for path in (cache.folder / "snapshots").rglob("*") if path.is_symlink())
    return any(path.resolve() == blob for path in links)


def _tidy(store: Store, file: PlannedFile) -> None:
    """Folders that have become empty, and what the cache says of a repo of which nothing is here."""
    final, ref = store.final(file), store.hub(file)
    if file.path is not None:
        _prune(final.parent, store.folder)
    elif ref is not None:
        cache = RepoCache(store.cache, ref.repo)
        _prune(final.parent, cache.folder)
        cache.forget_listing(ref.revision)
        _prune(cache.folder / "blobs", cache.folder.parent)


def _prune(folder: Path, top: Path) -> None:
    """Remove empty folders from `folder` up to `top`, which stays."""
    with suppress(OSError):
        while folder != top and folder.is_relative_to(top):
            folder.rmdir()
            folder = folder.parent
