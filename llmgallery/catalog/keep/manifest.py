"""What a bundle says of itself: its models, and where each of its files belongs. Pure; nothing in it is trusted unchecked."""

from __future__ import annotations

import hashlib
from collections import Counter
from pathlib import Path
from typing import Annotated, Literal

import msgspec

from llmgallery.catalog.formats import YAML_SUFFIXES
from llmgallery.catalog.install.plan import STORE
from llmgallery.catalog.lock import LOCK_NAME, Commit, LockedModel, Sha256, check_locked, check_relative
from llmgallery.catalog.reference import HubReference
from llmgallery.config.checks import name_fault
from llmgallery.config.presets import FOLDER as PRESETS
from llmgallery.config.presets import SUFFIX, preset_path
from llmgallery.core.errors import ConfigError

MANIFEST = "the manifest"
FILES = "files/"
VERSION = 1
MOST = 64 << 20
"""Bytes of a manifest; YAMLs are in it."""


class HubPlace(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A place in the Hugging Face cache. `blob`: the file's name among the blobs, its sha256 or git's sha1. `revisions`: names
    that meant the commit where it was packed, and by which a YAML names it."""

    repo: str
    file: str
    commit: Commit
    blob: Annotated[str, msgspec.Meta(pattern="^([0-9a-f]{40}|[0-9a-f]{64})$")]
    revisions: tuple[str, ...] = ()


class BundledFile(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A file that belongs at `path` under the models folder, or into the cache. Its bytes are the member FILES + sha256."""

    sha256: Sha256
    size: Annotated[int, msgspec.Meta(ge=0)]
    path: str | None = None
    hub: HubPlace | None = None


class BundledPreset(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A preset file of the user's own, by the name that `template.preset` has."""

    name: str
    yaml: str

    @property
    def path(self) -> str:
        """Its place under the models folder."""
        return f"{PRESETS}/{self.name}{SUFFIX}"


class BundledModel(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """`yaml`: the text of the model's file `path`; both None for weights that are served without one. `locked`: None = all
    its files are the user's own, which no lock knows. `preset`: the one below the model file, where that is a file."""

    name: str
    path: str | None = None
    yaml: str | None = None
    locked: LockedModel | None = None
    preset: BundledPreset | None = None


class Manifest(msgspec.Struct, frozen=True, kw_only=True):
    """The first member of a bundle."""

    format: Literal["llmgallery-bundle"] = "llmgallery-bundle"
    version: int = VERSION
    models: tuple[BundledModel, ...]
    files: tuple[BundledFile, ...]

    @property
    def sizes(self) -> dict[str, int]:
        """Of all members but this, by sha256, in the order in which they come."""
        return {file.sha256: file.size for file in sorted(self.files, key=lambda file: file.sha256)}


def member_name(data: bytes) -> str:
    """What the first member of a bundle is called: its own digest too is in its name."""
    return f"llmgallery-bundle-{hashlib.sha256(data).hexdigest()}.json"


def encode(manifest: Manifest) -> bytes:
    """Readable, and the same for the same bundle."""
    return msgspec.json.format(msgspec.json.encode(manifest, order="deterministic"), indent=1) + b"\n"


def decode(data: bytes) -> Manifest:
    """Raises ConfigError for what `llmgallery bundle` would not write, above all for places that lead out of the folders."""
    try:
        version = msgspec.json.decode(data, type=_Version).version
        if version > VERSION:
            raise ConfigError(f"it was packed by a newer llmgallery (format {version}, known here is {VERSION}): update this one")
        manifest = msgspec.json.decode(data, type=Manifest)
    except (msgspec.MsgspecError, UnicodeDecodeError) as error:
        raise ConfigError(f"{MANIFEST}: {error}") from error
    for model in manifest.models:
        _check_model(model)
    for file in manifest.files:
        _check_file(file, manifest)
    _check_once([model.name for model in manifest.models])
    _check_presets(manifest)
    _check_once([model.path.lower() for model in manifest.models if model.path])
    _check_once([file.path.lower() for file in manifest.files if file.path])
    _check_once([f"{file.hub.repo} {file.hub.commit} {file.hub.file}" for file in manifest.files if file.hub])
    _check_locked(manifest)
    return manifest


class _Version(msgspec.Struct):
    version: int


def _check_model(model: BundledModel) -> None:
    if fault := name_fault(model.name):
        raise ConfigError(f"{MANIFEST}: {model.name!r}: {fault}")
    if (model.path is None) != (model.yaml is None):
        raise ConfigError(f"{MANIFEST}: {model.name}: `path` and `yaml` come together")
    if model.path is not None:
        check_relative(model.path)
        if "/" in model.path or model.path.startswith((".", "#")) or not model.path.lower().endswith(YAML_SUFFIXES):
            raise ConfigError(f"{MANIFEST}: {model.path!r} is no name for a model's YAML")


def _check_file(file: BundledFile, manifest: Manifest) -> None:
    if (file.path is None) == (file.hub is None):
        raise ConfigError(f"{MANIFEST}: {file.sha256}: a file has a `path` or a place in the cache")
    if manifest.sizes[file.sha256] != file.size:
        raise ConfigError(f"{MANIFEST}: {file.sha256} has two sizes")
    if file.path is not None:
        check_relative(file.path)
        first, *others = file.path.split("/")
        hidden = any(part.startswith(".") for part in (others if first == STORE else [first, *others]))
        if hidden or (first == STORE) > len(others) or file.path.lower().endswith((*YAML_SUFFIXES, LOCK_NAME)):
            raise ConfigError(f"{MANIFEST}: {file.path!r} is no place for a file of weights")
    if file.hub is not None:
        HubReference(file.hub.repo, file.hub.file, None, file.hub.commit)
        for revision in file.hub.revisions:
            HubReference(file.hub.repo, revision=revision)
        if len(file.hub.blob) == 64 and file.hub.blob != file.sha256:
            raise ConfigError(f"{MANIFEST}: {file.hub.file}: the blob {file.hub.blob} is not its sha256")


def _check_presets(manifest: Manifest) -> None:
    texts: dict[str, str] = {}
    for preset in (model.preset for model in manifest.models if model.preset is not None):
        if preset_path(preset.name, Path()) is None:
            raise ConfigError(f"{MANIFEST}: {preset.name!r} is no name for a preset file")
        if texts.setdefault(preset.path.lower(), preset.yaml) != preset.yaml:
            raise ConfigError(f"{MANIFEST}: {preset.path} is there twice, with two texts")


def _check_once(places: list[str]) -> None:
    if doubled := [place for place, count in Counter(places).items() if count > 1]:
        raise ConfigError(f"{MANIFEST}: {doubled[0]} is there twice")


def _check_locked(manifest: Manifest) -> None:
    """The lock entries speak of files that come along."""
    there = {(file.sha256, file.size) for file in manifest.files}
    for model in manifest.models:
        for file in model.locked.files if model.locked else ():
            check_locked(file)
            if (file.sha256, file.size) not in there:
                raise ConfigError(f"{MANIFEST}: {model.name}: {file.uri} is in its lock entry, and does not come along")
