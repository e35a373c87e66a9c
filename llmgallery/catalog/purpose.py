"""What a model is made for: text, vectors or scores, told by its header or its config.json before it is loaded."""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from functools import lru_cache
from pathlib import Path

from llmgallery.catalog import folder, gguf
from llmgallery.catalog.folder import Purpose
from llmgallery.catalog.index import Entry
from llmgallery.catalog.reference import HubReference
from llmgallery.catalog.weights import locate
from llmgallery.core.errors import GalleryError

Cached = Callable[[HubReference], Sequence[Path] | None]
"""The files of a reference that have been downloaded, or None."""

ENCODERS = frozenset({
    "bert", "modern-bert", "neo-bert", "nomic-bert", "nomic-bert-moe", "jina-bert-v2", "jina-bert-v3", "eurobert", "t5encoder",
    "gemma-embedding", "llama-embed",
})  # fmt: skip
"""llama.cpp's architectures that only read."""

RANK = 4
"""llama.cpp's pooling type of models that end in a classifier."""

CLASSIFIER = ("cls.weight", "cls.output.weight")


def purpose(header: gguf.Header) -> Purpose:
    """A classifier's head makes it a reranker; else an encoder makes vectors, and everything else text."""
    keys, architecture = header.metadata, header.architecture
    heads = any(tensor.name in CLASSIFIER for tensor in header.tensors)
    if heads or keys.get(f"{architecture}.pooling_type") == RANK:
        return "rerank"
    is_encoder = architecture in ENCODERS or keys.get(f"{architecture}.attention.causal") is False
    return "embed" if is_encoder else "generate"


def nothing_cached(reference: HubReference) -> None:
    """For who knows no cache."""


def purpose_of(entry: Entry, cached: Cached = nothing_cached, loads: Collection[str] | None = None) -> tuple[Purpose, str] | None:
    """What a model's weights are made for, and their architecture; None while they are not on this machine, or tell nothing, or
    cannot be read (loading tells why). `loads`: formats of its backend, None = not known. Blocks."""
    try:
        located = locate(entry.config, entry.folder, loads)
        files = cached(located) if isinstance(located, HubReference) else located.paths
        if not files:
            return None
        stat = files[0].stat()
        if files[0].is_dir():
            told = (files[0] / "config.json").stat()
            return _read_folder(files[0], stat.st_mtime_ns, told.st_mtime_ns, told.st_size)
        return _read(files[0], stat.st_size, stat.st_mtime_ns)
    except (GalleryError, OSError):
        return None


@lru_cache(maxsize=1024)
def _read(file: Path, size: int, mtime_ns: int) -> tuple[Purpose, str] | None:
    """Once for each state of a file."""
    if not gguf.is_gguf(file):
        return None
    header = gguf.read_header(file)
    return purpose(header), header.architecture


@lru_cache(maxsize=1024)
def _read_folder(path: Path, mtime_ns: int, told_mtime_ns: int, told_size: int) -> tuple[Purpose, str] | None:
    """Once for each state of a folder and of its config.json."""
    found = folder.read_facts(path)
    return (found.purpose, found.architecture) if found is not None and found.architecture else None
