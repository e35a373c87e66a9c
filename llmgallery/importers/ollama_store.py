"""Models that Ollama keeps on this machine: a manifest for each name, whose layers are files by digest.

Source: manifest/ and types/model/name.go of https://github.com/ollama/ollama.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import msgspec

from llmgallery.importers.modelfile import Instruction

HOST, NAMESPACE, TAG = "registry.ollama.ai", "library", "latest"
_LAYER = "application/vnd.ollama.image."
_TEXTS = {"template": "TEMPLATE", "prompt": "TEMPLATE", "system": "SYSTEM", "license": "LICENSE"}
_FILES = {"model": "FROM", "projector": "FROM", "adapter": "ADAPTER"}
_DIGEST = re.compile(r"sha256[:-][0-9a-f]{64}")
_PART = re.compile(r"[A-Za-z0-9_][A-Za-z0-9._-]{0,79}")
_MOST = 4 * 1024 * 1024


class _Layer(msgspec.Struct):
    mediaType: str
    digest: str


class _Manifest(msgspec.Struct):
    layers: list[_Layer] = []
    config: _Layer | None = None


class _Config(msgspec.Struct):
    renderer: str = ""
    parser: str = ""
    requires: str = ""


class _Said(msgspec.Struct):
    role: str
    content: str = ""


def folder(env: Mapping[str, str]) -> Path:
    """Where Ollama keeps models."""
    return Path(env.get("OLLAMA_MODELS") or "~/.ollama/models").expanduser()


def is_store(path: Path) -> bool:
    """The folder is one of Ollama's."""
    return (path / "manifests").is_dir() and (path / "blobs").is_dir()


def manifest_of(store: Path, name: str) -> Path | None:
    """The manifest of a name such as `llama3.2`, `llama3.2:1b` or `me/mario`; None = it is not here."""
    *before, last = name.removeprefix("https://").removeprefix("http://").split("/")
    model, _, tag = last.partition(":")
    host, namespace = {0: (HOST, NAMESPACE), 1: (HOST, before[-1] if before else ""), 2: tuple(before)}.get(len(before), ("", ""))
    parts = (host, namespace, model, tag or TAG)
    if not all(_PART.fullmatch(part.replace(":", "_")) for part in parts):
        return None
    path = store.joinpath("manifests", *parts)
    return path if path.is_file() else None


def names(store: Path) -> dict[str, Path]:
    """All that is there: name as `ollama list` shows it -> manifest."""
    found = {}
    for path in sorted((store / "manifests").glob("*/*/*/*")):
        host, namespace, model, tag = path.relative_to(store / "manifests").parts
        if tag.startswith("."):
            continue  # such as .DS_Store
        short = [part for part, usual in ((host, HOST), (namespace, NAMESPACE)) if part != usual]
        if host != HOST and namespace == NAMESPACE:
            short = [host, namespace]
        found["/".join([*short, f"{model}:{tag}"])] = path
    return found


def instructions(store: Path, manifest: Path) -> list[Instruction]:
    """What the layers say, as a Modelfile would. Raises OSError and msgspec.DecodeError for a store that is broken."""
    whole = msgspec.json.decode(manifest.read_bytes()[:_MOST], type=_Manifest)
    found = _of_config(store, manifest, whole.config)
    for layer in whole.layers:
        kind = layer.mediaType.removeprefix(_LAYER)
        if not layer.mediaType.startswith(_LAYER) or not _DIGEST.fullmatch(layer.digest):
            continue
        blob = _blob(store, layer)
        if kind in _FILES:
            found.append(Instruction(_FILES[kind], str(blob), manifest, "projector" if kind == "projector" else ""))
        elif kind in _TEXTS:
            found.append(Instruction(_TEXTS[kind], _text(blob), manifest))
        elif kind == "params":
            values = msgspec.json.decode(_text(blob), type=dict[str, Any])
            found += [Instruction("PARAMETER", text, manifest, name) for name, value in values.items() for text in _values(value)]
        elif kind == "messages":
            said = msgspec.json.decode(_text(blob), type=list[_Said])
            found += [Instruction("MESSAGE", message.content, manifest, message.role) for message in said]
    return found


def _of_config(store: Path, manifest: Path, layer: _Layer | None) -> list[Instruction]:
    """What is said of a model beside its layers; nothing where Ollama did not keep it."""
    if layer is None or not _DIGEST.fullmatch(layer.digest) or not _blob(store, layer).is_file():
        return []
    said = msgspec.json.decode(_text(_blob(store, layer)), type=_Config)
    named = (("RENDERER", said.renderer), ("PARSER", said.parser), ("REQUIRES", said.requires))
    return [Instruction(name, value, manifest) for name, value in named if value]


def _blob(store: Path, layer: _Layer) -> Path:
    return store / "blobs" / layer.digest.replace(":", "-")


def _text(blob: Path) -> str:
    with blob.open("rb") as file:
        return file.read(_MOST).decode("utf-8", "replace")


def _values(value: Any) -> list[str]:
    items = value if isinstance(value, list) else [value]
    return [item if isinstance(item, str) else msgspec.json.encode(item).decode() for item in items]
