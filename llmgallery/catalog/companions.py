"""Files that a model is loaded with beside its weights: LoRA adapters, and the model that drafts. Downloads nothing."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from llmgallery.catalog import formats, gguf
from llmgallery.catalog.folder import read_json
from llmgallery.catalog.reference import HubReference, parse_reference
from llmgallery.catalog.weights import LocalFiles, check_folder, check_whole, local_path, locate, only_folders
from llmgallery.config.model import ModelConfig, Parameters
from llmgallery.core.errors import BadWeights, ConfigError, LoadError

Place = LocalFiles | HubReference
ADAPTER_KEYS = frozenset({"lora_adapter", "lora_adapters"})
DRAFT_KEY = "draft_model"
ADAPTER_CONFIG = "adapter_config.json"
ADAPTER_WEIGHTS = ("adapter_model.safetensors", "adapter_model.bin")


@dataclass(frozen=True)
class Located:
    """Where everything is that a model is loaded from. `adapters` in the order of ModelConfig.adapters; `draft` None = none."""

    weights: Place
    adapters: tuple[Place, ...] = ()
    draft: Place | None = None

    @property
    def places(self) -> tuple[Place, ...]:
        return (self.weights, *self.adapters, *([self.draft] if self.draft else []))


def locate_all(
    config: ModelConfig, folder: Path, keys: Collection[str] | None = None, loads: Collection[str] | None = None
) -> Located:
    """The weights and what comes with them, by the same forms of reference. `keys`: what the backend heeds, `loads`: the formats
    that it loads, None = not known: then the weights tell whether the others are files or folders.

    Raises LoadError, whose field is the key that names what is not there.
    """
    weights = locate(config, folder, loads)
    if loads is None and isinstance(weights, LocalFiles) and weights.paths and weights.paths[0].is_dir():
        loads = (formats.SAFETENSORS,)
    adapters = [_locate(reference, folder, key, loads) for key, reference in _adapters(config) if keys is None or key in keys]
    wanted = config.draft_model if keys is None or DRAFT_KEY in keys else None
    draft = _locate(wanted, folder, DRAFT_KEY, loads) if wanted else None
    return Located(weights, tuple(adapters), draft)


def _adapters(config: ModelConfig) -> Iterator[tuple[str, str]]:
    """(key, reference), in the order of ModelConfig.adapters."""
    if config.lora_adapter:
        yield "lora_adapter", config.lora_adapter
    for reference in config.lora_adapters:
        yield "lora_adapters", reference


def _locate(reference: str, folder: Path, key: str, loads: Collection[str] | None) -> Place:
    try:
        if not reference:
            raise LoadError("the reference is empty")
        place = locate(ModelConfig(parameters=Parameters(model=reference)), folder, loads)
        if isinstance(place, LocalFiles):
            place = _of_kind(place, key, only_folders(loads))
    except LoadError as error:
        raise type(error)(f"{key}: {error.message}", field=key, hints=error.hints) from error
    return place


def _of_kind(place: LocalFiles, key: str, folders: bool) -> LocalFiles:
    """Folders for backends that load folders, GGUF files for others. Of an adapter its weights file may be named too."""
    path = place.paths[0]
    if not folders and path.is_dir():
        raise BadWeights(f"{path} is a folder: name the GGUF file in it")
    if not folders or path.is_dir():
        return place
    if key in ADAPTER_KEYS and (path.parent / ADAPTER_CONFIG).is_file():
        return LocalFiles((path.parent,))
    what = f"a PEFT adapter, with its {ADAPTER_CONFIG}" if key in ADAPTER_KEYS else "a model, with its config.json"
    kind = "a GGUF file, which only llama-cpp loads" if gguf.is_gguf(path) else "a single file"
    raise BadWeights(f"{path} is {kind}: name the folder of {what}")


def absent(reference: str, folder: Path) -> str:
    """Why a reference of a companion names nothing that is there or could be fetched; "" = it does."""
    try:
        path = local_path(reference, folder)
        if path is not None and path.exists():
            return ""
        if parse_reference(reference) is not None and not Path(reference).is_absolute():
            return ""
    except (OSError, LoadError, ConfigError) as error:
        return error.message if isinstance(error, LoadError | ConfigError) else str(error)
    return f"there is no {reference}" if Path(reference).is_absolute() else f"there is no {reference} in {folder}"


# --- what is in them ---------------------------------------------------------------------------------------------------------


def check_companions(weights: Sequence[Path], adapters: Sequence[Path], draft: Sequence[Path]) -> None:
    """What the headers tell: llama.cpp ends the process over some of it. Raises BadWeights."""
    if not adapters and not draft:
        return
    if weights and weights[0].is_dir():
        _check_folders(adapters, draft)
        return
    for file in draft:
        _check_gguf(file, DRAFT_KEY)
    base = gguf.read_header(weights[0]) if weights and gguf.is_gguf(weights[0]) else None
    for file in adapters:
        _check_adapter(file, base)


def _check_folders(adapters: Sequence[Path], draft: Sequence[Path]) -> None:
    """Format of adapters: PEFT's adapter_config.json."""
    key = "lora_adapters"
    for folder in adapters:
        said = read_json(folder / ADAPTER_CONFIG)
        if said is None:
            raise BadWeights(f"{key}: {folder} is no PEFT adapter: it has no {ADAPTER_CONFIG} that can be read", field=key)
        if (kind := str(said.get("peft_type") or "LORA").upper()) != "LORA":
            raise BadWeights(f"{key}: {folder} is an adapter of type {kind}, only LORA is known", field=key)
        if not any((folder / name).is_file() for name in ADAPTER_WEIGHTS):
            raise BadWeights(f"{key}: {folder} holds no {ADAPTER_WEIGHTS[0]}", field=key)
    for folder in draft:
        if read_json(folder / "config.json") is None:
            raise BadWeights(f"{DRAFT_KEY}: {folder} holds no config.json that can be read", field=DRAFT_KEY)
        check_folder(folder)


def _check_gguf(file: Path, key: str) -> gguf.Header:
    if not gguf.is_gguf(file):
        raise BadWeights(f"{key}: {file} is no GGUF file", field=key)
    check_whole(file)
    return gguf.read_header(file)


def _check_adapter(file: Path, base: gguf.Header | None) -> None:
    """Format: llama.cpp's convert_lora_to_gguf.py."""
    key = "lora_adapters"
    header = _check_gguf(file, key)
    kind, form = header.metadata.get("general.type"), header.metadata.get("adapter.type")
    if kind != "adapter":
        what = "a whole model" if kind in (None, "model") else f"of type {kind}"
        raise BadWeights(f"{key}: {file} is {what}, not an adapter: make one with llama.cpp's convert_lora_to_gguf.py", field=key)
    if form != "lora":
        raise BadWeights(f"{key}: {file} is an adapter of type {form}, only lora is known", field=key)
    if not isinstance(header.metadata.get("adapter.lora.alpha", 0.0), float):
        raise BadWeights(f"{key}: {file}: metadata key adapter.lora.alpha is no float", field=key)
    if base is not None and base.architecture != header.architecture:
        theirs, ours = header.architecture or "no named one", base.architecture
        raise BadWeights(f"{key}: {file} is for the architecture {theirs}, this model is {ours}", field=key)
