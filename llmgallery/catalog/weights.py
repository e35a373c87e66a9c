"""Where a model's weights are: files of this machine, or a reference to the Hub. Downloads nothing."""

from __future__ import annotations

import difflib
import re
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from llmgallery.catalog import folder as folders
from llmgallery.catalog import formats, gguf
from llmgallery.catalog.engines import E, able
from llmgallery.catalog.reference import HubReference, Whole, parse_reference
from llmgallery.catalog.repo_folder import names_weights
from llmgallery.catalog.safetensors import check_whole as check_safetensors
from llmgallery.catalog.shards import missing_shards
from llmgallery.config.model import ModelConfig
from llmgallery.config.outside import Spec
from llmgallery.config.regular import irregular
from llmgallery.core.errors import BadWeights, ConfigError, LoadError

__all__ = [
    "HubReference",
    "LocalFiles",
    "backend_for",
    "check_format",
    "local_path",
    "locate",
    "malformed",
    "recognise",
    "trained_context",
]


PICKLE_FORMATS = ("pt", "pth", "bin", "pytorch", "pickle")
"""Values of load_format by which weights that can run code are allowed."""


@dataclass(frozen=True)
class LocalFiles:
    """Files or folders of this machine, the weights (or their first part) first; () = the backend needs none."""

    paths: tuple[Path, ...] = ()


def locate(config: ModelConfig, folder: Path, loads: Collection[str] | None = None) -> LocalFiles | HubReference:
    """Where the weights are. `folder` is the YAML's: relative paths start there and never leave it. `loads`: formats of the
    backend, which tell whether a repo's folder is meant or a GGUF file in it; None = not known.

    Raises LoadError (BadWeights for a split model with a missing part) with what to do.
    """
    reference = config.weights
    if not reference:
        return LocalFiles()
    path = local_path(reference, folder)
    if path is not None and _exists(path):
        try:
            return LocalFiles(_files(path, config.model_base_name, loads))
        except OSError as error:
            raise LoadError(f"{path} cannot be read: {error.strerror or error}", field="parameters.model") from error
    if path is not None and (Path(reference).is_absolute() or reference.startswith("~")):
        raise _not_found(f"{path} does not exist", _near(path))
    try:
        found = parse_reference(reference)
    except ConfigError as error:
        raise LoadError(error.message, field="parameters.model", hints=error.hints) from error
    if found is None:
        raise _not_found(f"there is no {reference} in {folder}, and it is no Hub reference", _near(folder / reference))
    return _whole(found, config) if only_folders(loads) else _with_base_name(found, config.model_base_name)


def only_folders(loads: Collection[str] | None) -> bool:
    """A backend that loads these formats takes folders and no single files."""
    return bool(loads) and formats.GGUF not in (loads or ())


def _not_found(what: str, near: tuple[str, ...]) -> LoadError:
    advice = f"; did you mean {near[0]}?" if near else ""
    return LoadError(f"weights not found: {what}{advice}", field="parameters.model", hints=near)


def local_path(reference: str, folder: Path) -> Path | None:
    """The path on this machine that a reference would be, whether it exists or not; None = it cannot be one.

    Raises LoadError for a relative path that leaves the folder, and for the home of a user that is not known.
    """
    text = reference.removeprefix("file://")
    if "://" in text or "\0" in text:
        return None
    if text.startswith("~"):
        try:
            return Path(text).expanduser()
        except RuntimeError as error:
            raise LoadError(f"{reference}: no such home folder: write an absolute path", field="parameters.model") from error
    if Path(text).is_absolute():
        return Path(text)
    if ".." in re.split(r"[/\\]", text):
        raise LoadError(f"{reference} leads out of the models folder: write an absolute path", field="parameters.model")
    return folder / text


def _exists(path: Path) -> bool:
    """Also of names that no file system takes."""
    try:
        return path.exists()
    except OSError:
        return False


def _files(path: Path, base_name: str | None, loads: Collection[str] | None = None) -> tuple[Path, ...]:
    if path.is_dir():
        return _of_folder(path, base_name, loads)
    if kind := irregular(path):
        raise BadWeights(f"{path} is {kind}, not a regular file", field="parameters.model")
    if _is_of_folder(path):
        return (path.parent,)
    parts = formats.split_parts(path)
    if missing := [part.name for part in parts if not part.is_file()]:
        raise BadWeights(
            f"{path.name} is a part of a split model, and {', '.join(missing)} is not beside it", hints=tuple(missing)
        )
    return parts


def _is_of_folder(path: Path) -> bool:
    """Weights that are loaded with what lies beside them (llm-api names GPTQ files so)."""
    if not names_weights(path.name) or not (path.parent / "config.json").is_file():
        return False
    return formats.detect(path) in (formats.SAFETENSORS, formats.PYTORCH)


def _of_folder(folder: Path, base_name: str | None, loads: Collection[str] | None) -> tuple[Path, ...]:
    """The folder itself, or the GGUF file in it."""
    if only_folders(loads) and (base_name is None or not _has(folder, base_name)):
        return (folder,)
    if base_name is not None:
        files = sorted(file for file in folder.iterdir() if file.is_file())
        for file in files:
            if base_name in (file.name, file.stem):
                return _files(file, None)
        names = near_files(base_name, [file.name for file in files]) or tuple(file.name for file in files[:3])
        raise LoadError(f"{folder} holds no weights file called {base_name}", field="model_base_name", hints=names)
    if formats.detect(folder) != formats.GGUF:
        return (folder,)
    models = formats.gguf_models(folder)
    if len(models) == 1:
        return _files(models[0], None)
    names = tuple(file.stem for file in models)
    one = f"{folder.name}/{models[0].name}"
    message = f"{folder} holds several models ({listed(names)}): name one as in parameters.model: {one}, or set model_base_name"
    raise LoadError(message, field="model_base_name", hints=names)


def _has(folder: Path, base_name: str) -> bool:
    """A file of that name, with or without its suffix. GPTQ's loaders also take what is no file's."""
    return any(base_name in (file.name, file.stem) for file in folder.iterdir())


def listed(names: Sequence[str]) -> str:
    """At most four names, for a message."""
    return ", ".join([*names[:4], f"{len(names) - 4} more"] if len(names) > 5 else names)


def _whole(found: HubReference, config: ModelConfig) -> HubReference:
    """The repo's folder, with what the YAML allows to come along."""
    options = config.options if isinstance(config.options, dict) else {}
    safe = options.get("safetensors_only", True) is not False
    whole = Whole(
        pickles=not safe or str(config.load_format or "").lower() in PICKLE_FORMATS,
        code=bool(config.trust_remote_code or options.get("trust_remote_code")),
        subfolder=str(options.get("subfolder") or "").strip("/"),
    )
    return HubReference(found.repo, found.file, None, found.revision, whole)


def _with_base_name(found: HubReference, base_name: str | None) -> HubReference:
    if base_name is None or found.file is not None or found.quant is not None:
        return found
    try:
        # Part of a file's name is what a quantisation is to a Hub reference too.
        return HubReference(found.repo, None, base_name.removesuffix(".gguf"), found.revision)
    except ConfigError as error:
        raise LoadError(error.message, field="model_base_name") from error


def _near(path: Path) -> tuple[str, ...]:
    """Names of weights, or of folders, beside a path that does not exist, most alike first."""
    try:
        beside = [entry for entry in path.parent.iterdir() if not entry.name.startswith(".")]
        names = [entry.name for entry in beside if not entry.name.lower().endswith(formats.NO_WEIGHTS) or entry.is_dir()]
    except OSError:
        return ()
    return near_files(path.name, names)


def near_files(name: str, names: Iterable[str]) -> tuple[str, ...]:
    """At most three of `names`, most alike first. Suffixes do not count: they make all weights files alike."""
    plain: dict[str, list[str]] = {}
    for other in names:
        plain.setdefault(_stem(other), []).append(other)
    alike = difflib.get_close_matches(_stem(name), plain, n=3, cutoff=0.6)
    return tuple(other for stem in alike for other in plain[stem])[:3]


def _stem(name: str) -> str:
    return re.sub(r"(\.gguf)?\.[a-z]{2,11}$", "", name.lower())


def malformed(reference: str, folder: Path) -> str:
    """Why a reference can mean nothing, neither here nor on the Hub; "" = it can, also while what it names is not there."""
    try:
        path = local_path(reference, folder)
        if path is None or not _exists(path):
            parse_reference(reference)
    except (LoadError, ConfigError) as error:
        return error.message
    return ""


def recognise(reference: str, folder: Path) -> str | None:
    """The format of a weights reference: by its contents when it lies here, by its name while it is still on the Hub."""
    try:
        path = local_path(reference, folder)
        if path is not None and _exists(path):
            return formats.detect(path)
        found = parse_reference(reference)
    except (OSError, LoadError, ConfigError):
        return None
    if found is None:
        return None
    file = (found.file or "").lower()
    if found.quant is not None or file.endswith((".gguf", ".gguf.bin")):
        return formats.GGUF
    return formats.SAFETENSORS if file.endswith(".safetensors") else None


def trained_context(reference: str, folder: Path) -> int | None:
    """How many tokens of context weights on this machine were trained for; None = not here, or they do not say."""
    try:
        path = local_path(reference, folder)
        if path is None or not path.exists():
            return None
        file = _files(path, None)[0]
        if file.is_dir():
            facts = folders.read_facts(file)
            return facts.context or None if facts is not None and facts.purpose == "generate" else None
        return gguf.read_header(file).context_length or None if gguf.is_gguf(file) else None
    except (OSError, LoadError):
        return None


def backend_for(files: Sequence[Path], specs: Mapping[str, E]) -> str:
    """The name of the backend that loads these files, rather one that can do so here. Raises LoadError, BadWeights also for
    files that are cut."""
    if not files:
        raise LoadError("no backend is set and there are no weights to tell it by: set backend:", field="backend")
    found = _format(files[0])
    if ables := able([found] if found else [], specs):
        _check_whole(files, found)
        return next((spec for _, spec in ables if not spec.lacks(found)), ables[0][1]).name
    what = f"holds {found} weights, which no backend here loads" if found else "is in no format that is known here"
    raise BadWeights(f"{files[0]} {what}; available backends: {', '.join(sorted(specs))}")


def check_whole(file: Path) -> None:
    """Raises BadWeights for a GGUF file that is cut: shorter than its header says, or cut within the header."""
    header = gguf.read_header(file)
    size = file.stat().st_size
    if header.tensors and size < header.data_end:
        raise BadWeights(f"{file} is cut: {size:,} of {header.data_end:,} bytes are here; copy or download it again")


def check_format(files: Sequence[Path], spec: Spec) -> None:
    """Raises LoadError for weights that this backend does not load, by what is in them, and for files that are cut."""
    found: str | None = None
    if files and spec.formats and (found := _format(files[0])) not in spec.formats:
        what = f"holds {found} weights" if found else "is in no format that is known here"
        raise BadWeights(f"{files[0]} {what}; backend {spec.name} loads {', '.join(spec.formats)}")
    _check_whole(files, found)


def _check_whole(files: Sequence[Path], found: str | None) -> None:
    for file in files:
        if file.is_dir():
            check_folder(file)
        elif found == formats.GGUF:
            check_whole(file)


def check_folder(folder: Path) -> None:
    """Raises BadWeights for a folder that lacks weights files, or in which one is cut. Reads headers. Blocks."""
    try:
        if missing := missing_shards(folder):
            raise BadWeights(f"{folder} is not whole: {listed(missing)} {'is' if len(missing) == 1 else 'are'} missing")
        for file in folders.weights_in(folder):
            if file.suffix == ".safetensors":
                check_safetensors(file)
    except OSError as error:
        raise LoadError(f"{error.filename or folder} cannot be read: {error.strerror or error}") from error


def _format(path: Path) -> str | None:
    try:
        return formats.detect(path)
    except OSError as error:
        raise LoadError(f"{path} cannot be read: {error.strerror or error}") from error
