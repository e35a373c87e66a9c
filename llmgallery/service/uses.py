"""What a model may be asked for: text, embeddings, or scores. By its YAML, its weights' header, and what its worker says."""

from __future__ import annotations

from collections.abc import Collection

from llmgallery.backends.loader import specs
from llmgallery.catalog.folder import Purpose
from llmgallery.catalog.purpose import Cached, purpose_of
from llmgallery.catalog.registry import Entry
from llmgallery.core.errors import UnsupportedField

Use = Purpose

_MAKES = {"generate": "writes no text", "embed": "makes no embeddings", "rerank": "scores no documents"}
_MADE_FOR = {"generate": "writing text", "embed": "embeddings", "rerank": "reranking"}
_KEYS = {"embed": "embeddings", "rerank": "reranking"}


def check_use(entry: Entry, use: Use, cached: Cached) -> None:
    """Before the model is loaded; passes what cannot be told yet. Blocks. Raises UnsupportedField."""
    if (switched := _switch(entry, use)) is not None:
        if not switched:
            raise _refusal(entry, use, f"`{_KEYS[use]}: false` is set in its YAML")
        return
    spec = specs().get(entry.backend) if entry.backend is not None else None
    known = purpose_of(entry, cached, spec.formats if spec is not None else None)
    if known is not None and known[0] != use and not _pools_otherwise(entry):
        purpose, architecture = known
        raise _refusal(entry, use, f"its weights ({architecture}) are made for {_MADE_FOR[purpose]}")


def check_loaded(entry: Entry, use: Use, capabilities: Collection[str]) -> None:
    """Once the worker has said what it can do. Raises UnsupportedField."""
    if use in capabilities or (use == "generate" and not capabilities):
        return
    able = [_MADE_FOR[other] for other in _MADE_FOR if other in capabilities]
    raise _refusal(entry, use, f"it is loaded for {' and '.join(able) or 'nothing that can be asked for'}")


def _switch(entry: Entry, use: Use) -> bool | None:
    """What the YAML says; None = nothing."""
    config = entry.config
    return {"generate": None, "embed": config.embeddings, "rerank": config.reranking}[use]


def _pools_otherwise(entry: Entry) -> bool:
    """The YAML names a pooling of its own, which the backend judges."""
    options = entry.config.options
    named = options if isinstance(options, dict) else [item.partition(":")[0] for item in options]
    return "pooling" in named or entry.config.parameters.pooling is not None


def _refusal(entry: Entry, use: Use, why: str) -> UnsupportedField:
    if use == "generate":
        advice = "ask another model"
    elif _switch(entry, use):
        advice = f"`{_KEYS[use]}: true` is in its YAML, but its backend cannot do it: choose another model"
    elif use == "rerank":
        advice = f"ask a reranking model, or set `{_KEYS[use]}: true` in its YAML if these weights hold a classifier"
    else:
        advice = f"set `{_KEYS[use]}: true` in its YAML, or ask another model"
    return UnsupportedField(f"model {entry.name} {_MAKES[use]}: {why}; {advice}", field="model")
