"""The JSON schema (draft 2020-12) of model and settings files, for editors; made from the structs."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, get_args

import msgspec

from llmgallery.config.checks import CACHE_TYPES
from llmgallery.config.model import LOAD_PARAMETERS, Demand, ModelConfig
from llmgallery.config.outside import Spec
from llmgallery.config.presets import PresetFile
from llmgallery.config.settings import Settings
from llmgallery.config.units import Bytes, Seconds

DIALECT = "https://json-schema.org/draft/2020-12/schema"
_DURATION = {
    "anyOf": [
        {"type": "number"},
        {"type": "string", "pattern": r"^(never|forever|-?[0-9]+(\.[0-9]+)?|-?\s*([0-9.]+\s*[a-zA-Z]+\s*)+)$"},
    ]
}
_SIZE = {"anyOf": [{"type": "integer", "minimum": 0}, {"type": "string", "pattern": r"^[0-9.]+\s*[kKmMgGtT]?i?[bB]?$"}]}


def model_schema(specs: Mapping[str, Spec]) -> dict[str, Any]:
    """The schema of a model file; `options` is checked against the backend that the file names."""
    schema = _schema(ModelConfig, "A model of llmgallery")
    properties: dict[str, Any] = schema["$defs"]["ModelConfig"]["properties"]
    names = {spec.name: [spec.name, *spec.aliases] for spec in specs.values()}
    every = [name for group in names.values() for name in group]
    properties["backend"] |= {"anyOf": [{"enum": every}, _any_case(every), {"type": "null"}]}
    properties["keep_alive"] |= {"anyOf": [*_DURATION["anyOf"], {"type": "null"}]}
    for key in ("cache_type_k", "cache_type_v"):
        properties[key] |= {"anyOf": [{"enum": list(CACHE_TYPES)}, _any_case(CACHE_TYPES), {"type": "null"}]}
    schema["$defs"]["Parameters"]["properties"]["max_tokens"] |= {"not": {"const": 0}}
    properties["on_unsupported"]["anyOf"].insert(0, {"enum": list(get_args(Demand))})
    rules = []
    for spec in specs.values():
        options = _schema(spec.options, "")
        schema["$defs"] |= options["$defs"]
        named = {"properties": {"backend": _any_case(names[spec.name])}, "required": ["backend"]}
        mapping = {"properties": {"options": {"anyOf": [{"type": ["array", "null"]}, {"$ref": options["$ref"]}]}}}
        rules.append({"if": named, "then": mapping})
    schema["allOf"] = rules
    return schema


def preset_schema() -> dict[str, Any]:
    """The schema of a preset file."""
    schema = _schema(PresetFile, "A preset of llmgallery")
    parameters: dict[str, Any] = schema["$defs"]["Parameters"]["properties"]
    parameters["max_tokens"] |= {"not": {"const": 0}}
    for key in LOAD_PARAMETERS:
        del parameters[key]
    return schema


def settings_schema() -> dict[str, Any]:
    """The schema of a settings file."""
    properties = {
        field.name: _nullable(msgspec.json.schema(field.type, schema_hook=_hook)) for field in msgspec.structs.fields(Settings)
    }
    shape = {"type": "object", "properties": properties, "additionalProperties": False}
    return {"$schema": DIALECT, "title": "Settings of llmgallery", **shape}


def _any_case(names: Iterable[str]) -> dict[str, Any]:
    """One of these words, as the reader takes them: in capitals or not. JSON schema's patterns have no flag for that."""
    words = ("".join(f"[{c.lower()}{c.upper()}]" if c.isalpha() else c.replace(".", r"\.") for c in name) for name in names)
    return {"type": "string", "pattern": f"^({'|'.join(words)})$"}


def _schema(cls: type[msgspec.Struct], title: str) -> dict[str, Any]:
    (root,), definitions = msgspec.json.schema_components([cls], schema_hook=_hook, ref_template="#/$defs/{name}")
    for definition in definitions.values():
        _polish(definition)
    return {"$schema": DIALECT, "title": title, **root, "$defs": definitions}


def _polish(definition: dict[str, Any]) -> None:
    """No class docstrings as titles; a key without a value counts as not written, so null is allowed."""
    definition.pop("title", None)
    required = definition.get("required", ())
    for name, value in definition.get("properties", {}).items():
        value.pop("default", None)
        if name not in required:
            definition["properties"][name] = _nullable(value)


def _nullable(value: dict[str, Any]) -> dict[str, Any]:
    if {"type": "null"} in value.get("anyOf", ()):
        return value
    kept = {"description": value["description"]} if "description" in value else {}
    rest = {key: item for key, item in value.items() if key != "description"}
    if not rest:
        return kept
    return {**kept, "anyOf": [*(rest["anyOf"] if set(rest) == {"anyOf"} else [rest]), {"type": "null"}]}


def _hook(type_: type) -> dict[str, Any]:
    if type_ is Path:
        return {"type": "string"}
    if type_ is Seconds:
        return dict(_DURATION)
    if type_ is Bytes:
        return dict(_SIZE)
    raise NotImplementedError(f"no JSON schema for {type_}")
