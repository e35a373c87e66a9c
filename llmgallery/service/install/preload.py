"""What the operator wants installed at the start: names, and LocalAI's two variables. Pure, but for the file that one names.

Format: LocalAI's docs, "Preloading models": a JSON list of what POST /models/apply takes, or a file with one, in YAML or JSON.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

import msgspec
import yaml
from msgspec import Meta

from llmgallery.catalog.install.job import Asked
from llmgallery.core.errors import ConfigError

LIST, FILE = "PRELOAD_MODELS", "PRELOAD_MODELS_CONFIG"
MAX_BYTES = 1 << 20
_Text = Annotated[str, Meta(min_length=1)]


class _File(msgspec.Struct, frozen=True):
    uri: _Text
    filename: _Text | None = None
    sha256: _Text | None = None


class _Apply(msgspec.Struct, frozen=True):
    """LocalAI's apply object. Of `id`, `url` and `config_url` (its old name) one is there; other keys are its own."""

    id: _Text | None = None
    url: _Text | None = None
    config_url: _Text | None = None
    name: _Text | None = None
    variant: _Text | None = None
    overrides: dict[str, Any] = {}
    files: list[_File] = []


def asked_for(name: str) -> Asked:
    """A name of the setting `preload`."""
    return Asked(reference=name)


def preloads(environ: Mapping[str, str]) -> list[Asked]:
    """What LocalAI's variables say. Blocks (a file). Raises ConfigError, which names the variable and the place."""
    found: list[Asked] = []
    if text := environ.get(LIST, "").strip():
        found += _read(text, LIST)
    if path := environ.get(FILE, "").strip():
        found += _read(_text_of(Path(path).expanduser()), f"{FILE}={path}")
    return found


def _text_of(path: Path) -> str:
    try:
        with path.open("rb") as file:
            data = file.read(MAX_BYTES + 1)
        if len(data) > MAX_BYTES:
            raise ConfigError(f"{FILE}={path}: the file is larger than {MAX_BYTES:,} bytes", field=FILE)
        return data.decode()
    except OSError as error:
        raise ConfigError(f"{FILE}={path}: cannot be read: {error.strerror or error}", field=FILE) from error
    except UnicodeDecodeError as error:
        raise ConfigError(f"{FILE}={path}: the file is not UTF-8", field=FILE) from error


def _read(text: str, where: str) -> list[Asked]:
    variable = where.partition("=")[0]
    try:
        items = msgspec.convert(yaml.load(text, yaml.CSafeLoader), list[_Apply] | None) or []
    except (yaml.YAMLError, msgspec.ValidationError) as error:
        advice = """expected a list such as [{"id": "qwen3-0.6b"}]"""
        raise ConfigError(f"{where}: {' '.join(str(error).split())}; {advice}", field=variable) from error
    return [_asked(item, f"{where}[{index}]", variable) for index, item in enumerate(items)]


def _asked(item: _Apply, where: str, variable: str) -> Asked:
    reference = item.id or item.url or item.config_url
    if reference is None:
        raise ConfigError(
            f"{where}: neither id nor url is there: name a gallery's entry, or a Hub id such as owner/repo", field=variable
        )
    if item.variant is not None:
        reference = f"{reference}:{item.variant.rpartition('@')[2]}"
    files = tuple({key: value for key, value in msgspec.structs.asdict(file).items() if value} for file in item.files)
    return Asked(reference=reference, name=item.name, overrides=item.overrides, files=files)
