"""Which models can share a worker."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from typing import Any

import msgspec

from llmgallery.backends.base import Files
from llmgallery.backends.loader import specs
from llmgallery.catalog.companions import ADAPTER_KEYS, DRAFT_KEY
from llmgallery.catalog.index import Entry
from llmgallery.catalog.weights import backend_for
from llmgallery.config.model import ModelConfig, load_options
from llmgallery.core.errors import LoadError


def backend_of(entry: Entry, files: Files) -> str:
    """The one that the entry names, or that its files tell. Raises LoadError."""
    return entry.backend or backend_for(files.weights, specs())


OF_VOCABULARIES = frozenset({"context_size", "options", "parameters.tokenizer", "trust_remote_code", "type"})
"""The load keys that a vocabulary without its weights may depend on."""


def load_key(backend: str, config: ModelConfig, files: Files) -> str:
    """Equal for models that can share a worker: backend, files by path, size and time, load options. Raises LoadError."""
    # What these name is in the files.
    named = {"backend", "model", "parameters.model", DRAFT_KEY, *ADAPTER_KEYS}
    return _key(backend, files, {key: value for key, value in load_options(config).items() if key not in named})


def vocabulary_key(backend: str, config: ModelConfig, files: Files) -> str:
    """Equal for models that can share a worker which only writes prompts. Raises LoadError."""
    weights = Files(files.weights)
    return _key(backend, weights, {key: value for key, value in load_options(config).items() if key in OF_VOCABULARIES})


def _key(backend: str, files: Files, options: Mapping[str, Any]) -> str:
    try:
        identity = [
            [(str(file.resolve()), file.stat().st_size, file.stat().st_mtime_ns) for file in group]
            for group in (files.weights, files.adapters, files.draft)
        ]
    except OSError as exc:
        raise LoadError(f"{exc.filename} cannot be read: {exc.strerror}") from exc
    return hashlib.sha256(msgspec.json.encode([backend, identity, options], order="sorted")).hexdigest()[:16]
