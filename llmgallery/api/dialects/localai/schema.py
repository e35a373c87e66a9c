"""The wire of LocalAI's model gallery: bodies as its clients send them."""

from __future__ import annotations

from typing import Any

import msgspec

from llmgallery.api import bodies


class AskedFile(msgspec.Struct):
    """A further file of an install. `filename`: what it is called under the models folder."""

    uri: str
    filename: str | None = None
    sha256: str | None = None


class ApplyBody(msgspec.Struct, kw_only=True):
    """POST /models/apply. `id`: `name`, `gallery@name` or a Hub id; `url`: the address of an entry that no gallery has, which
    older clients call `config_url`. `name`: what the model shall be called. `update`: ours."""

    id: str | None = None
    url: str | None = None
    config_url: str | None = None
    name: str | None = None
    variant: str | None = None
    overrides: dict[str, Any] | None = None
    files: list[AskedFile] | None = None
    update: bool | None = None


class Preferences(msgspec.Struct, kw_only=True):
    """Of an import: what it is called, and the quantisations that will do, the best first, between commas."""

    name: str | None = None
    quantizations: str | None = None


class ImportBody(msgspec.Struct, kw_only=True):
    """POST /models/import-uri: a Hub repo or file by its address."""

    uri: str
    preferences: Preferences | None = None


def read_apply(data: bytes) -> tuple[ApplyBody, dict[str, Any]]:
    """The body, and the fields that it does not know. Raises BadBody, InvalidField (bodies.read)."""
    return bodies.read(data, ApplyBody, {})


def read_import(data: bytes) -> ImportBody:
    """Raises BadBody, InvalidField (bodies.read)."""
    return bodies.read(data, ImportBody, {})[0]
