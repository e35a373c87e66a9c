"""The backends that are installed, found through the entry points group `llmgallery.backends`."""

from __future__ import annotations

import importlib
from functools import cache
from importlib.metadata import entry_points

from llmgallery.backends.base import BackendSpec

GROUP = "llmgallery.backends"


@cache
def specs() -> dict[str, BackendSpec]:
    """Name -> spec, in the order of names. Importing a spec imports nothing heavy."""
    found = [point.load() for point in entry_points(group=GROUP)]
    return {spec.name: spec for spec in sorted(found, key=lambda spec: spec.name)}


def places() -> dict[str, str]:
    """Name -> "module:NAME" of each spec, for an interpreter that does not have our entry points."""
    return {point.name: point.value for point in entry_points(group=GROUP)}


def spec_at(place: str) -> BackendSpec:
    """The spec that "module:NAME" means. Raises ImportError, AttributeError."""
    module, _, attribute = place.partition(":")
    spec: BackendSpec = getattr(importlib.import_module(module), attribute)
    return spec


def canonical(name: str) -> str | None:
    """The name of the backend that `name` or an alias of it means, in any case of letters; None = no such backend."""
    wanted = name.lower()
    for spec in specs().values():
        if wanted in {spec.name.lower(), *(alias.lower() for alias in spec.aliases)}:
            return spec.name
    return None
