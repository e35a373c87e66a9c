"""Which files of a repo a model that is a folder is loaded from. Pure, by names and sizes."""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping, Sequence

import msgspec

from llmgallery.catalog import formats
from llmgallery.catalog.hub_repo import RepoFile
from llmgallery.catalog.reference import HubReference, Whole
from llmgallery.core.errors import BadWeights, HubError, HubNotFound

PICKLE = (".bin", ".pt", ".pth", ".ckpt", ".pkl")
FOLDER_WEIGHTS = (".safetensors", *PICKLE)
CONFIGS = ("config.json", "adapter_config.json")
"""What a folder of weights says of itself, that of a model and that of a LoRA adapter."""

_BESIDE = (".json", ".jinja", ".model", ".tiktoken", ".txt", ".spm", ".bpe")
_WEIGHTS: Mapping[str, tuple[str, ...]] = {formats.OPENVINO: (".xml", ".bin"), formats.PYTORCH: PICKLE}
_VARIANT = re.compile(r"(^|[./])(consolidated|.+\.(fp16|bf16|fp32|non_ema|ema))[.-][^/]*safetensors$")
_MODULE = re.compile(r"\d+_\w+")
NUMBERED = re.compile(r"-\d{5}-of-\d{5}(?=\.)")
"""In the names of shards."""

_TEMPLATES = "additional_chat_templates"
_PICKLES_ALLOWED = "options: {safetensors_only: false}"


def weight_suffixes(format_: str) -> tuple[str, ...]:
    """Of the weights files of a folder in this format."""
    return _WEIGHTS.get(format_, (".safetensors",))


def names_weights(file: str) -> bool:
    """The file is, by its name, one that is loaded together with the folder around it."""
    name = file.lower()
    return name.endswith(FOLDER_WEIGHTS) and not name.endswith(".gguf.bin")


def stands_for_folder(file: str) -> bool:
    """It can only be loaded with the folder around it, whoever names it; a .bin may be a GGUF file by another name."""
    return file.lower().endswith(".safetensors") and "/" not in file


def folder_files(files: Sequence[RepoFile], format_: str, code: bool = False) -> tuple[RepoFile, ...]:
    """What a model in a folder is loaded from: its weights in `format_`, configuration, tokenizer and templates, and the folders
    of its modules; no pickle unless that is the format, no second copy of the weights, no program text unless `code`."""
    suffixes = weight_suffixes(format_)
    modules = {_folder(file.path) for file in files if file.name == "config.json" and _MODULE.fullmatch(_folder(file.path))}
    kept_suffixes = (*suffixes, *_BESIDE, *((".py",) if code else ()))
    wanted = [file for file in files if _folder(file.path) in {"", _TEMPLATES, *modules} and file.name.endswith(kept_suffixes)]
    if format_ == formats.OPENVINO:  # of .bin files, those of a network
        paths = {file.path for file in wanted}
        wanted = [file for file in wanted if not file.name.endswith(".bin") or f"{file.path[:-4]}.xml" in paths]
    plain = [file for file in wanted if not _VARIANT.search(file.path)]
    kept = plain if any(file.name.endswith(suffixes) for file in plain) else wanted
    return tuple(sorted((file for file in kept if not file.name.startswith((".", "training_"))), key=lambda file: file.path))


def folder_format(paths: Collection[str]) -> str | None:
    """What the weights in the repo's own folder are, as far as names tell it; quantised ones are `safetensors` here."""
    names = [path for path in paths if "/" not in path]
    return formats.of_names(names, {} if any(name in names for name in CONFIGS) else None)


def as_folder(ref: HubReference, paths: Collection[str]) -> HubReference | None:
    """The reference as one of a folder, where it means that of a repo with these files; None = it means single files."""
    if ref.whole is not None:
        return ref
    if folder_format(paths) is None:
        return None
    if ref.file is not None:
        return msgspec.structs.replace(ref, whole=Whole()) if stands_for_folder(ref.file) else None
    if any(path.lower().endswith(".gguf") for path in paths):
        return None
    if ref.quant is None:
        return msgspec.structs.replace(ref, whole=Whole())
    named = [path for path in paths if names_weights(path) and path.rpartition(".")[0] == ref.quant]
    return msgspec.structs.replace(ref, file=named[0], quant=None, whole=Whole()) if named else None


def is_folder(files: Sequence[RepoFile]) -> bool:
    """They make a folder of weights, or an adapter, and no file of GGUF is among them."""
    paths = [file.path for file in files]
    return folder_format(paths) is not None and not any(path.lower().endswith(".gguf") for path in paths)


def chosen(ref: HubReference, files: Sequence[RepoFile]) -> tuple[RepoFile, ...]:
    """The files of the folder that `ref` means. Raises HubNotFound where the repo holds no such weights, BadWeights for pickles
    that nobody has allowed."""
    whole = ref.whole or Whole()
    if whole.subfolder:
        return _below(ref, whole, files)
    paths = [file.path for file in files]
    format_ = folder_format(paths)
    if format_ is None:
        raise _nothing(ref, paths)
    if format_ == formats.PYTORCH and not whole.pickles:
        raise pickled(ref.repo, [path for path in paths if path.endswith(PICKLE)])
    if whole.pickles and ref.file is not None and ref.file.endswith(PICKLE):
        format_ = formats.PYTORCH
    found = folder_files(files, format_, whole.code)
    return found if ref.file is None else _only(ref, found, format_)


def _below(ref: HubReference, whole: Whole, files: Sequence[RepoFile]) -> tuple[RepoFile, ...]:
    """Those of the subfolder, and what lies in the repo's own folder beside weights."""
    prefix = f"{whole.subfolder}/"
    inner = [msgspec.structs.replace(file, path=file.path[len(prefix) :]) for file in files if file.path.startswith(prefix)]
    if not inner:
        raise HubNotFound(f"{ref.repo} has no folder {whole.subfolder}", field="options.subfolder")
    found = chosen(msgspec.structs.replace(ref, whole=msgspec.structs.replace(whole, subfolder="")), inner)
    around = [file for file in files if "/" not in file.path and file.name.endswith(_BESIDE) and "index" not in file.name]
    return (*around, *(msgspec.structs.replace(file, path=prefix + file.path) for file in found))


def _only(ref: HubReference, files: tuple[RepoFile, ...], format_: str) -> tuple[RepoFile, ...]:
    """Of the weights in the repo's own folder the one that is named."""
    suffixes = weight_suffixes(format_)
    if not any(file.path == ref.file for file in files):
        near = tuple(file.path for file in files if file.name.endswith(suffixes))[:5]
        raise HubNotFound(f"{ref.repo} has no weights file {ref.file}; it has {', '.join(near)}", field="file", hints=near)
    return tuple(file for file in files if file.path == ref.file or "/" in file.path or not file.name.endswith(suffixes))


def _nothing(ref: HubReference, paths: Sequence[str]) -> HubError:
    hints = tuple(sorted(paths)[:20])
    if any(path.lower().endswith(".gguf") for path in paths):
        why = "holds GGUF files and no folder of weights: backend llama-cpp loads those"
    elif any(path.endswith(FOLDER_WEIGHTS) for path in paths):
        why = "holds weights without the config.json that says what they are: name a repo that has one"
    else:
        why = "holds no weights (*.safetensors) beside a config.json"
    return HubNotFound(f"{ref.repo} {why}", field="model", hints=hints)


def pickled(repo: str, names: Sequence[str]) -> BadWeights:
    """Why weights that can run code when they are read are not fetched."""
    return BadWeights(
        f"{repo} holds its weights as pickle only ({', '.join(names[:3])}), which can run any code when it is read: name a repo "
        f"that has them as safetensors or GGUF, or, if you trust this one, write `{_PICKLES_ALLOWED}` into the model's YAML",
        field="parameters.model",
        hints=(_PICKLES_ALLOWED,),
    )


def _folder(path: str) -> str:
    return path.rpartition("/")[0]
