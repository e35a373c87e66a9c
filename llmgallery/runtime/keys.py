"""Which models can share a worker."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import msgspec

from llmgallery.backends.base import BackendSpec, Files
from llmgallery.backends.loader import specs
from llmgallery.catalog.companions import ADAPTER_KEYS, DRAFT_KEY
from llmgallery.catalog.folder import meant_file
from llmgallery.catalog.index import Entry
from llmgallery.catalog.weights import backend_for
from llmgallery.config.model import ModelConfig, load_options
from llmgallery.core.errors import LoadError


def is_shared(backend: str) -> bool:
    """All models of this backend share one worker, which takes no model's memory."""
    spec = specs().get(backend)
    return spec is not None and spec.shared


def backend_of(entry: Entry, files: Files, known: Mapping[str, BackendSpec] | None = None) -> str:
    """The one that the entry names, or that its files tell, of all or of the `known` ones. Raises LoadError."""
    return entry.backend or backend_for(files.weights, specs() if known is None else known)


OF_VOCABULARIES = frozenset({"context_size", "options", "parameters.tokenizer", "trust_remote_code", "type"})
"""The load keys that a vocabulary without its weights may depend on."""


def load_key(backend: str, config: ModelConfig, files: Files) -> str:
    """Equal for models that can share a worker: backend, files by path, size and time, load options; of models that are
    elsewhere only the backend. Raises LoadError."""
    if is_shared(backend):
        return _key(backend, Files(), {})
    # What these name is in the files.
    named = {"backend", "model", "parameters.model", DRAFT_KEY, *ADAPTER_KEYS}
    options = {key: value for key, value in load_options(config).items() if key not in named}
    if files.weights and files.weights[0].is_dir() and (file := meant_file(config.model_base_name, config.weights)):
        options["file"] = file  # the folder holds others beside it
    return _key(backend, files, options)


def vocabulary_key(backend: str, config: ModelConfig, files: Files) -> str:
    """Equal for models that can share a worker which only writes prompts. Raises LoadError."""
    weights = Files(files.weights)
    return _key(backend, weights, {key: value for key, value in load_options(config).items() if key in OF_VOCABULARIES})


def _files(path: Path) -> list[Path]:
    """The file, or all files of a folder but hidden ones: a folder's own time tells nothing of what is written into them."""
    if not path.is_dir():
        return [path]
    inside = sorted(path.rglob("*"))
    return [file for file in inside if file.is_file() and not any(part[0] == "." for part in file.relative_to(path).parts)]


def _key(backend: str, files: Files, options: Mapping[str, Any]) -> str:
    try:
        identity = [
            [(str(file.resolve()), file.stat().st_size, file.stat().st_mtime_ns) for path in group for file in _files(path)]
            for group in (files.weights, files.adapters, files.draft)
        ]
    except OSError as exc:
        raise LoadError(f"{exc.filename} cannot be read: {exc.strerror}") from exc
    return hashlib.sha256(msgspec.json.encode([backend, identity, options], order="sorted")).hexdigest()[:16]
