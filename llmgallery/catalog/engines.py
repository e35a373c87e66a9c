"""What planning asks of a backend: whether its library and its hardware are here. Knows no backend."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Protocol, TypeVar

from llmgallery.config.outside import Spec, in_order
from llmgallery.core.errors import BackendMissing


class Engine(Spec, Protocol):
    """A backend as planning an install sees it."""

    @property
    def extra(self) -> str: ...
    @property
    def level(self) -> str: ...
    def lacks(self, format: str | None = None) -> str:
        """Why it cannot load weights of this format here, and what to do; "" = it can."""


E = TypeVar("E", bound=Engine)


def able(kinds: Iterable[str], specs: Mapping[str, E]) -> list[tuple[str, E]]:
    """(format, backend) of all backends for the formats: in the order of these, then in that of preference."""
    ordered = in_order(specs.values())
    return [(kind, spec) for kind in kinds for spec in ordered if kind in spec.formats]


def check_here(spec: Engine, subject: str, format: str | None = None) -> None:
    """Raises BackendMissing, with what to do, when the backend's library or its hardware is not here."""
    if fault := spec.lacks(format):
        raise BackendMissing(f"{subject}: {fault}", field="backend")
