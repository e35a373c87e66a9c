"""What a request may bring along with the name of a model: files, and keys of its YAML. Pure.

An entry is no cover for other files: who may install only what galleries have names none, in whatever key.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from llmgallery.backends.loader import specs
from llmgallery.catalog.gallery.compose import compose
from llmgallery.catalog.gallery.entry import Composed, GalleryEntry
from llmgallery.catalog.gallery.sources import WebPlace, check_reach
from llmgallery.catalog.install.entry_files import references
from llmgallery.catalog.install.job import Asked
from llmgallery.config.settings import Settings
from llmgallery.core.errors import ConfigError, InvalidField
from llmgallery.service.demands import is_elsewhere
from llmgallery.service.install.policy import check_source

OPERATORS = ("trust_remote_code", "chat_template_file", "prompt_cache_path")
"""Keys by which a YAML runs code that comes with the weights, or reads and writes files of this machine."""

ENDPOINTS = (
    "base_url",
    "api_key",
    "api_key_env",
    "api_key_file",
    "headers",
    "organization",
    "project",
    "ca_bundle",
    "verify",
    "proxy",
)
"""Keys that send what this machine's environment and files hold to an address."""

ANYWHERE = WebPlace("https://example.com/")
"""A place on the network: what a request names may lead where a gallery from there may."""


def unread_keys(overrides: Mapping[str, Any]) -> tuple[str, ...]:
    """What of a request's keys a model file has no place for, or has elsewhere; one sentence each."""
    composed = _composed(overrides)
    return (*composed.warnings, *composed.lifted)


def check_brought(settings: Settings, asked: Asked) -> None:
    """Raises InvalidField for what is the operator's to write, for files of this machine and addresses inside its network; and
    NotAllowed where requests install only what a gallery has, for files of the request's own."""
    composed = _composed(asked.overrides)
    for key in (*_keys(composed.config), *_listed(composed.config)):
        if key.rpartition(".")[2] in (*OPERATORS, *ENDPOINTS):
            message = f"overrides.{key}: requests cannot set it; write it into the model's YAML once it is installed"
            raise InvalidField(message, field=f"overrides.{key}")
    _check_backend(composed.config.get("backend"))
    named = {f"overrides.{key}": value for key, value in references(composed.config).items()}
    named |= {f"overrides.download_files[{index}].uri": file.uri for index, file in enumerate(composed.files)}
    named |= {f"files[{index}].uri": str(file.get("uri") or "") for index, file in enumerate(asked.files)}
    for field, uri in named.items():
        _check_address(field, uri)
    if named:
        check_source(settings, asked.name or asked.reference, "hub", f"{next(iter(named))} is a file of the request's own")


def _check_backend(name: Any) -> None:
    """A model at an endpoint is asked with the keys of this machine, and gets what everybody says to it."""
    found = next((spec for spec in specs().values() if name in (spec.name, *spec.aliases)), None)
    if is_elsewhere(found):
        message = f"overrides.backend: requests cannot make models of the backend {name}, which are elsewhere: write a YAML"
        raise InvalidField(message, field="overrides.backend")


def _check_address(field: str, uri: str) -> None:
    lower = uri.strip().lower()
    if lower.startswith("file:"):
        raise InvalidField(f"{field}: requests cannot name files of the server's machine: {uri!r}", field=field)
    if lower.startswith(("http://", "https://")):
        try:
            check_reach(ANYWHERE, WebPlace(uri.strip()))
        except (ConfigError, ValueError) as error:
            raise InvalidField(
                f"{field}: requests cannot name addresses inside the server's network: {error}", field=field
            ) from error


def _composed(overrides: Mapping[str, Any]) -> Composed:
    return compose(GalleryEntry(name="request", gallery="request"), None, overrides)


def _listed(values: Mapping[str, Any]) -> Iterator[str]:
    """Options in LocalAI's list of key:value."""
    options = values.get("options")
    for item in options if isinstance(options, list) else ():
        yield f"options.{str(item).partition(':')[0].strip().lstrip('-').replace('-', '_')}"


def _keys(values: Mapping[str, Any], level: str = "") -> Iterator[str]:
    """Dotted, of every level."""
    for key, value in values.items():
        yield f"{level}{key}"
        if isinstance(value, Mapping):
            yield from _keys(value, f"{level}{key}.")
