"""What explain tells: every value that holds for a model, and who says so: its file, a preset, the weights, a default."""

from __future__ import annotations

import math
from pathlib import Path

import msgspec

from llmgallery.backends.base import Loaded
from llmgallery.backends.loader import specs
from llmgallery.catalog import gguf
from llmgallery.catalog.registry import YAML_SUFFIXES, Entry
from llmgallery.chat.prompt import pick_format
from llmgallery.cli.stack import files_here, folder_registry, interpreters_of, loader, outside
from llmgallery.config.load import LoadedModel, load_model
from llmgallery.config.merge import EffectiveValue, explain
from llmgallery.config.presets import Lent
from llmgallery.config.problems import shown
from llmgallery.config.settings import Settings
from llmgallery.config.templates import SIDECAR_KEYS
from llmgallery.core.errors import BadWeights, LoadError
from llmgallery.core.sampling import Sampling
from llmgallery.service.names import resolve

Row = tuple[str, ...]
RECOGNISED = "recognised"
SIDECARS = frozenset(f"template.{key}" for key in SIDECAR_KEYS)


def effective(settings: Settings, name: str) -> list[Row]:
    """(key, value, source) of everything that holds for a model, whether its weights are here or not. Raises ModelNotFound,
    ModelBroken, LoadError (they are damaged)."""
    entry = resolve(name, folder_registry(settings).read())
    written = entry.path.suffix.lower() in YAML_SUFFIXES
    loaded = (
        load_model(entry.path, interpreters_of(settings).specs(), outside()) if written else LoadedModel(entry.path, entry.name)
    )
    places = loaded.places
    more = [*_of_weights(entry), *_of_backend(entry, written), _keep_alive(settings)]
    values = explain(entry.config, path=entry.path if written else None, places=places, lent=loaded.lent, more=more)
    template = _of_template(entry, loaded.lent)
    brought, written_keys = {value.key for value in template}, {value.key for value in values}
    template = [value for value in template if value.key == "stopwords" or value.key not in written_keys]
    values = [value for value in values if not (value.key in brought and value.value == [])] + template
    values = [_beside(value, entry) for value in _of_endpoint(values, entry)]
    first = [value for value in values if value.key == "name"] or [EffectiveValue("name", entry.name, "the file's name")]
    rest = [value for value in values if value.key not in ("name", "options", "template.chat_template")]
    return [
        _row(value) for value in (*first, EffectiveValue("file", str(entry.path), ""), *_preset(loaded), *_missing(entry), *rest)
    ]


def _preset(loaded: LoadedModel) -> list[EffectiveValue]:
    """The file of the user's own preset, and who names it."""
    if loaded.preset is None:
        return []
    source = f"template.preset ({shown(loaded.path)}:{loaded.preset_at[0]})"
    return [EffectiveValue("preset file", shown(loaded.preset), source)]


def _of_weights(entry: Entry) -> list[EffectiveValue]:
    """What the weights say where the file is silent."""
    found = []
    if (backend := _backend(entry)) is not None:
        here = not specs()[backend].needs_weights or _files(entry) is not None
        source = "the weights" if here else "the weights' name"
        found.append(EffectiveValue("backend", backend, f"recognised from {source}"))
    else:
        found.append(EffectiveValue("backend", "told by the weights once they are here", "default"))
    if (header := _header(entry)) is not None and header.context_length:
        found.append(EffectiveValue("context_size", header.context_length, "the weights"))
    return found


def _backend(entry: Entry) -> str | None:
    """None = nobody says so before the weights are here. Raises LoadError."""
    if entry.backend is not None:
        return entry.backend
    files = _files(entry)
    return loader(entry, files) if files else None


def _files(entry: Entry) -> list[Path] | None:
    """The weights, where they lie. None = they are not here."""
    try:
        return files_here(entry)
    except LoadError:
        return None


def _missing(entry: Entry) -> list[EffectiveValue]:
    """Why there are no weights, where the first request would not fetch them either."""
    if entry.backend is not None and not specs()[entry.backend].needs_weights:
        return []
    try:
        files_here(entry)
    except LoadError as exc:
        return [EffectiveValue("weights", exc.message, "the models folder")]
    return []


def _of_backend(entry: Entry, written: bool) -> list[EffectiveValue]:
    """What the backend takes for its keys, and each of its options, set or not."""
    if (name := _backend(entry)) is None:
        return []
    spec, source = specs()[name], f"backend {name}"
    found = [EffectiveValue(key, value, source) for key, value in spec.unset.items()]
    options = entry.config.options if isinstance(entry.config.options, dict) else {}
    for field in msgspec.structs.fields(spec.options):
        key = f"options.{field.name}"
        if field.name in options:
            line = entry.places.get(key, entry.places.get("options", (0, 0)))[0]
            found.append(EffectiveValue(key, options[field.name], f"{shown(entry.path)}:{line}" if written else RECOGNISED))
        else:
            default = field.default if field.default_factory is msgspec.NODEFAULT else field.default_factory()
            found.append(EffectiveValue(key, "not set" if default is None else default, source))
    return found


def _of_endpoint(values: list[EffectiveValue], entry: Entry) -> list[EffectiveValue]:
    """Of a model that is elsewhere: what nobody here says is the endpoint's own, as is the prompt; and no secret is shown."""
    if (name := _backend(entry)) is None or specs()[name].level != "chat":
        return values
    ours = {f"parameters.{key}" for key in Sampling.__struct_fields__}
    said = [value for value in values if not (value.key in ours and value.source == "default")]
    told = [EffectiveValue("parameters", "what neither request nor file sets is the endpoint's own", f"backend {name}")]
    told += [EffectiveValue("template", "the endpoint writes the prompt", f"backend {name}")]
    return [*map(_hidden, said), *told]


def _hidden(value: EffectiveValue) -> EffectiveValue:
    """Keys, and headers that may hold some, are not shown; the environment's variables that hold them are."""
    if value.key == "options.api_key" and value.source.partition(" ")[0] != "backend":
        return value._replace(value=_masked(value.value))
    if value.key == "options.headers" and isinstance(value.value, dict):
        return value._replace(value={name: _masked(header) for name, header in value.value.items()})
    if value.key == "options.base_url" and isinstance(value.value, str):
        return value._replace(value=_without_login(value.value))
    return value


def _without_login(url: str) -> str:
    """An address may hold a name with a password, and a key in its query."""
    plain, asked, query = url.partition("?")
    scheme, slashes, rest = plain.partition("://")
    login, at, place = rest.rpartition("@")
    return "".join((scheme, slashes, _masked(login) + at if at else "", place, asked, _masked(query) if asked else ""))


def _masked(secret: object) -> str:
    text = str(secret)
    return text if "${" in text else "(set, not shown)"


def _keep_alive(settings: Settings) -> EffectiveValue:
    seconds = "never" if math.isinf(settings.keep_alive) else f"{settings.keep_alive:g}s"
    return EffectiveValue("keep_alive", seconds, "settings" if settings.keep_alive != Settings().keep_alive else "default")


def _of_template(entry: Entry, lent: Lent) -> list[EffectiveValue]:
    """Which chat template is used, and the stop strings that its format brings. Unknown before the weights are here."""
    header = _header(entry)
    template = entry.config.template
    if header is None and not template.is_written:
        return []
    loaded = _as_loaded(entry, header)
    format = pick_format(entry.config, loaded)
    origin = format.origin
    key = "template.preset" if origin.startswith("template.preset ") else origin
    stops = [EffectiveValue("stopwords", list(format.stops), origin)] if format.stops else []
    key = "template.chat_template_file" if origin == template.chat_template_file else key
    at = lent[key][:2] if key in lent else (entry.path, entry.places[key][0]) if key in entry.places else None
    line = f" ({shown(at[0])}:{at[1]})" if at else ""
    return [*(EffectiveValue(name, text, origin + line) for name, text in format.texts.items()), *stops]


def _beside(value: EffectiveValue, entry: Entry) -> EffectiveValue:
    """Where a template is from that the YAML does not have: LocalAI's file beside the weights."""
    if value.key not in SIDECARS or value.source != RECOGNISED or not entry.config.weights:
        return value
    path = entry.folder / f"{entry.config.weights.removeprefix('file://')}.tmpl"
    return value._replace(source=shown(path))


def _as_loaded(entry: Entry, header: gguf.Header | None) -> Loaded:
    """What a worker would know of the weights' templates."""
    files = _files(entry) if header is not None else None
    if header is None or not files:
        return Loaded(0)
    return Loaded(0, chat_template=header.chat_template, templates=header.templates, clues=gguf.clues_of(files[0]))


def _header(entry: Entry) -> gguf.Header | None:
    """The header of the weights when they are here and are GGUF. Raises LoadError when it is damaged."""
    if entry.backend is not None and not specs()[entry.backend].needs_weights:
        return None
    files = _files(entry)
    try:
        return gguf.read_header(files[0]) if files and gguf.is_gguf(files[0]) else None
    except BadWeights as exc:
        raise LoadError(exc.message, hints=exc.hints) from exc


def _row(value: EffectiveValue) -> Row:
    text = value.value if isinstance(value.value, str) else msgspec.json.encode(value.value, enc_hook=str).decode()
    return (value.key, text, value.source)
