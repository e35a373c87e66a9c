"""What show tells: every value that holds for a model, and who says so: its file, a preset, the weights, a default."""

from __future__ import annotations

from pathlib import Path

import msgspec

from llmgallery.backends.base import Loaded
from llmgallery.backends.loader import specs
from llmgallery.catalog import gguf
from llmgallery.catalog.hub_cache import find_cached
from llmgallery.catalog.hub_settings import HubSettings
from llmgallery.catalog.reference import HubReference
from llmgallery.catalog.registry import YAML_SUFFIXES, Entry
from llmgallery.catalog.weights import locate
from llmgallery.chat.prompt import pick_template
from llmgallery.cli.stack import folder_registry, outside
from llmgallery.config.load import load_model
from llmgallery.config.merge import EffectiveValue, explain
from llmgallery.config.settings import Settings
from llmgallery.core.errors import BadWeights, LoadError
from llmgallery.service.names import resolve

Row = tuple[str, ...]


def effective(settings: Settings, name: str) -> list[Row]:
    """(key, value, source) of everything that holds for a model. Raises ModelNotFound, ModelBroken, LoadError."""
    entry = resolve(name, folder_registry(settings).read())
    written = entry.path.suffix.lower() in YAML_SUFFIXES
    places = load_model(entry.path, specs(), outside()).places if written else {}
    keep_alive = (f"{settings.keep_alive:g}s", "settings" if settings.keep_alive != Settings().keep_alive else "default")
    values = explain(entry.config, path=entry.path if written else None, places=places, keep_alive=keep_alive)
    known = {value.key for value in values}
    values += [value for value in _unwritten(entry) if value.key not in known]
    values += _of_template(entry)
    first = [value for value in values if value.key == "name"] or [EffectiveValue("name", entry.name, "the file's name")]
    rest = [value for value in values if value.key not in ("name", "template.chat_template")]
    return [_row(value) for value in (*first, EffectiveValue("file", str(entry.path), ""), *rest)]


def _unwritten(entry: Entry) -> list[EffectiveValue]:
    """What the weights say where the file is silent."""
    found = [EffectiveValue("backend", entry.backend, "recognised from the weights")]
    if (header := _header(entry)) is not None:
        found.append(EffectiveValue("context_size", header.context_length, "the weights"))
    return found


def _of_template(entry: Entry) -> list[EffectiveValue]:
    """Which chat template is used, and the stop strings that its format brings. Unknown before the weights are here."""
    header = _header(entry)
    template = entry.config.template
    if header is None and template.chat_template is None and template.preset is None:
        return []
    loaded = Loaded(0, chat_template=header.chat_template, templates=header.templates) if header else Loaded(0)
    choice = pick_template(entry.config, loaded)
    stops = [EffectiveValue("stopwords", list(choice.stops), choice.origin)] if choice.stops else []
    return [EffectiveValue("template", choice.source, choice.origin), *stops]


def _header(entry: Entry) -> gguf.Header | None:
    """The header of the weights when they are here and are GGUF. Raises LoadError when they cannot be found."""
    located = locate(entry.config, entry.folder)
    if isinstance(located, HubReference):
        files: list[Path] = list(find_cached(HubSettings.from_env().cache_dir, located) or [])
    else:
        files = list(located.paths)
    try:
        return gguf.read_header(files[0]) if files and gguf.is_gguf(files[0]) else None
    except BadWeights as exc:
        raise LoadError(exc.message, hints=exc.hints) from exc


def _row(value: EffectiveValue) -> Row:
    text = value.value if isinstance(value.value, str) else msgspec.json.encode(value.value, enc_hook=str).decode()
    return (value.key, text, value.source)
