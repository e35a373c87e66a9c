"""What config may not import and is handed: backends' specs, the templates' syntax, the files' formats."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple, Protocol, TypeVar

import msgspec

if TYPE_CHECKING:  # they read YAML, which workers, who see this through backends.base, never do
    from llmgallery.config.answers import RegexpCheck
    from llmgallery.config.kobold import AdapterCheck
    from llmgallery.config.model import ModelConfig


class OptionNote(NamedTuple):
    """What a backend says of a model file. `key`: the one that it is about, such as `options.base_url`, or one that the file has
    below `options`; `warning`: the file is good all the same."""

    key: str
    message: str
    suggestion: str = ""
    warning: bool = False


class Spec(Protocol):
    """What a BackendSpec says of its YAML keys."""

    @property
    def name(self) -> str: ...
    @property
    def aliases(self) -> tuple[str, ...]: ...
    @property
    def options(self) -> type[msgspec.Struct]: ...
    @property
    def formats(self) -> tuple[str, ...]: ...
    @property
    def keys(self) -> frozenset[str]: ...
    @property
    def needs_weights(self) -> bool: ...
    @property
    def listed(self) -> Mapping[str, str]: ...
    @property
    def listed_words(self) -> Mapping[str, Mapping[str, str]]: ...
    @property
    def beside(self) -> frozenset[str]: ...
    @property
    def judge(self) -> Callable[[ModelConfig], Iterable[OptionNote]]: ...


PREFERRED = ("llama-cpp", "transformers", "exllamav2")
"""Backends before all others, where several load a format."""

S = TypeVar("S", bound=Spec)
Lacks = Callable[[Spec, str | None], str]


def in_order(specs: Iterable[S]) -> list[S]:
    """The order of preference; the others as they come."""
    return sorted(specs, key=lambda spec: PREFERRED.index(spec.name) if spec.name in PREFERRED else len(PREFERRED))


def backend_of_format(format_: str | None, specs: Mapping[str, S], lacks: Lacks | None = None) -> S | None:
    """The backend that loads a format, rather one that can do so here."""
    able = [spec for spec in in_order(specs.values()) if format_ in spec.formats]
    here = able if lacks is None else [spec for spec in able if not lacks(spec, format_)]
    return next(iter([*here, *able]), None)


class TemplateFault(Protocol):
    """Why a template does not parse; line and column count from 1 in its own text."""

    @property
    def line(self) -> int: ...
    @property
    def column(self) -> int: ...
    @property
    def message(self) -> str: ...


@dataclass(frozen=True)
class Outside:
    """What config may not import. `template`: Jinja source -> its fault; `go_template`, `ollama_template`: the same of Go's
    and Ollama's. `presets`: their names; None = not checked. `adapter`: KoboldCpp's, or the name of one -> what is wrong with it.
    `regexp`: what answers.check asks of an expression.

    `recognise`: (weights reference, folder of the YAML) -> file format, None = not known (yet).
    `malformed`: the same -> why the reference can mean nothing, neither here nor on the Hub; "" = it can.
    `absent`: the same -> why what the reference names is not there now, and cannot be fetched; "" = it is, or it can.
    `lacks`: (backend, format of the weights, None = not known) -> why it cannot load them here, and what to do; "" = it can.
    `pending`: preset files that are about to be written, which count as if they were there.
    `trained`: the same -> the context in tokens that weights on this machine were trained for, None = not known (yet).
    """

    template: Callable[[str], TemplateFault | None] | None = None
    presets: Collection[str] | None = None
    recognise: Callable[[str, Path], str | None] | None = None
    malformed: Callable[[str, Path], str] | None = None
    trained: Callable[[str, Path], int | None] | None = None
    absent: Callable[[str, Path], str] | None = None
    go_template: Callable[[str], TemplateFault | None] | None = None
    adapter: AdapterCheck | None = None
    ollama_template: Callable[[str], TemplateFault | None] | None = None
    regexp: RegexpCheck | None = None
    lacks: Lacks | None = None
    pending: Mapping[Path, bytes] = field(default_factory=dict)
