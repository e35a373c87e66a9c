"""A folder of weights becomes a model and a tokenizer; a folder that cannot is told apart, before torch gets lost in it."""

from __future__ import annotations

import json
import os
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from logging import CRITICAL, getLogger
from pathlib import Path
from typing import Any

from llmgallery.backends.transformers.weights.params import Arguments, Devices
from llmgallery.core.errors import BackendMissing, BadWeights, LoadError

INDEX, SINGLE = "model.safetensors.index.json", "model.safetensors"
PICKLES = (".bin", ".pt", ".pth", ".ckpt")
TOKENIZERS = (
    "tokenizer.json", "tokenizer.model", "vocab.txt", "vocab.json", "spiece.model", "sentencepiece.bpe.model", "tekken.json",
    "tokenizer_config.json",
)  # fmt: skip
REMOTE_CODE = "trust_remote_code"
HEADER_BYTES = 8


def devices() -> Devices:
    """What torch can compute with here."""
    import torch

    if torch.cuda.is_available():
        return Devices("cuda", torch.cuda.device_count())
    return Devices("mps", 1) if torch.backends.mps.is_available() else Devices()


def prepare(*, threads: int | None = None, visible_devices: str | int | None = None) -> None:
    """What holds for the whole process, before anything is loaded: which GPUs it sees, its threads, and that libraries are
    quiet."""
    if visible_devices is not None:
        os.environ["CUDA_VISIBLE_DEVICES"] = str(visible_devices)
    import torch

    quieten()
    if threads:
        torch.set_num_threads(threads)


def quieten() -> None:
    """transformers tells of progress and of warnings on stderr, which is read as the reason when a worker dies."""
    from transformers.utils import logging

    logging.set_verbosity_error()
    logging.disable_progress_bar()
    getLogger("ContinuousBatchingLogger").setLevel(CRITICAL)


def load_config(arguments: Arguments) -> Any:
    """The model's configuration with config_params in it. Raises BadWeights, LoadError."""
    from transformers import AutoConfig

    check_folder(arguments.folder)
    with _mapped_errors(arguments):
        config = AutoConfig.from_pretrained(
            arguments.folder, trust_remote_code=arguments.trust_remote_code, local_files_only=True
        )
    for name, value in arguments.attributes.items():
        own = getattr(config, name, None)
        setattr(config, name, {**own, **value} if isinstance(own, dict) and isinstance(value, dict) else value)
    return config


def load_model(
    loader: Any, arguments: Arguments, config: Any, *, further: Mapping[str, Any], progress: Callable[[float], None]
) -> Any:
    """A model in eval mode. `loader`: a class of transformers; `further`: arguments for its from_pretrained. Raises BadWeights
    for files that are not what they should be, LoadError for what this machine or the YAML makes impossible."""
    check_weights(arguments.folder, safetensors_only=arguments.safetensors_only)
    progress(0.05)
    further = {"ignore_mismatched_sizes": True, **arguments.further, **further}  # else it does not say which they are
    if arguments.max_memory:
        further["max_memory"] = dict(arguments.max_memory)
    if arguments.attention:
        further["attn_implementation"] = arguments.attention
    if arguments.safetensors_only:
        further["use_safetensors"] = True
    if arguments.on_gpu:  # models are on the CPU anyway, and device_map needs accelerate
        further["device_map"] = arguments.device_map
    with _mapped_errors(arguments), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model, told = loader.from_pretrained(
            arguments.folder,
            config=config,
            dtype=arguments.dtype,
            trust_remote_code=arguments.trust_remote_code,
            local_files_only=True,
            output_loading_info=True,
            **further,
        )
    _check_complete(model, told, arguments)
    progress(0.95)
    return model.eval()


def try_out(model: Any, tokens: Sequence[int]) -> None:
    """Raises BadWeights for a model that cannot compute, as its configuration and its weights do not go together."""
    import torch

    try:
        with torch.no_grad():
            logits = model(input_ids=torch.tensor([list(tokens)], device=model.device)).logits
    except Exception as exc:
        raise BadWeights(f"{type(model).__name__} is loaded, but does not run: {_first_lines(exc)}") from exc
    if bool(logits[0, -1].isnan().any()):
        kind = str(model.dtype).removeprefix("torch.")
        raise BadWeights(
            f"{type(model).__name__} is loaded, but computes no numbers (NaN): its files are damaged, or it cannot be computed "
            f"as {kind}; try another dtype, such as float32"
        )


def load_tokenizer(arguments: Arguments) -> Any:
    """transformers' tokenizer. Raises BadWeights."""
    from transformers import AutoTokenizer

    folder = arguments.tokenizer or arguments.folder
    if not any((folder / name).is_file() for name in TOKENIZERS):
        raise BadWeights(
            f"{folder.name}: no tokenizer among its files (such as tokenizer.json): download the whole repo, or name a folder "
            "that has one in options.tokenizer"
        )
    with _mapped_errors(arguments), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return AutoTokenizer.from_pretrained(folder, trust_remote_code=arguments.trust_remote_code, local_files_only=True)


def load_generation_config(arguments: Arguments) -> dict[str, Any]:
    """generation_config.json, where there is one."""
    file = arguments.folder / "generation_config.json"
    try:
        told = json.loads(file.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return {}
    except (OSError, ValueError) as exc:
        raise BadWeights(f"{file.name} is not readable as JSON: {exc}") from exc
    return told if isinstance(told, dict) else {}


def check_folder(folder: Path) -> None:
    """Raises BadWeights where nothing can be loaded from."""
    if not folder.exists():
        raise BadWeights(f"{folder}: no such folder")
    if not folder.is_dir():
        raise BadWeights(f"{folder.name} is a file: the transformers backend loads folders, with config.json and weights")
    file = folder / "config.json"
    if not file.is_file():
        raise BadWeights(f"{folder.name}: no config.json: this is no folder of a model, or it was not downloaded whole")
    try:
        json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError) as exc:
        raise BadWeights(f"{folder.name}: config.json is not readable as JSON: {exc}") from exc


def check_weights(folder: Path, *, safetensors_only: bool) -> None:
    """All files that the index names are there, and as long as their headers say. Raises BadWeights."""
    files = _parts(folder)
    for file in files:
        check_safetensors(file)
    if files or not safetensors_only:
        return
    pickles = sorted(file.name for file in folder.iterdir() if file.suffix in PICKLES)
    if pickles:
        raise BadWeights(
            f"{folder.name}: its weights are pickles ({pickles[0]}), which can run any code when they are loaded. Take a repo "
            "with safetensors, or, if you trust this one, set options: {safetensors_only: false} in the model's YAML"
        )
    raise BadWeights(f"{folder.name}: no weights: neither {SINGLE} nor {INDEX} is there")


def _parts(folder: Path) -> list[Path]:
    index = folder / INDEX
    if not index.is_file():
        single = folder / SINGLE
        return [single] if single.is_file() else sorted(folder.glob("*.safetensors"))
    try:
        names = sorted(map(os.fspath, set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values())))
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as exc:
        raise BadWeights(f"{folder.name}: {INDEX} is damaged: {exc}") from exc
    if missing := [name for name in names if not (folder / name).is_file()]:
        raise BadWeights(f"{folder.name}: {missing[0]} is missing, {len(missing)} of {len(names)} parts of the weights")
    return [folder / name for name in names]


def check_safetensors(file: Path) -> None:
    """Its length is the one that its header tells. Source: the format's description in the safetensors repository."""
    try:
        size = file.stat().st_size
        stream = file.open("rb")
    except OSError as exc:
        raise BadWeights(f"{file.name} cannot be read: {exc}") from exc
    with stream:
        length = int.from_bytes(stream.read(HEADER_BYTES), "little")
        if size < HEADER_BYTES or length > size - HEADER_BYTES:
            raise BadWeights(f"{file.name} is no safetensors file, or was cut: it has {size} bytes")
        try:
            header = json.loads(stream.read(length))
            ends = [entry["data_offsets"][1] for name, entry in header.items() if name != "__metadata__"]
        except (ValueError, KeyError, TypeError, AttributeError, IndexError) as exc:
            raise BadWeights(f"{file.name} is no safetensors file: its header is damaged") from exc
    expected = HEADER_BYTES + length + max(ends, default=0)
    if size < expected:
        raise BadWeights(f"{file.name} was cut: it has {size} of {expected} bytes; download it again")


def _check_complete(model: Any, told: Any, arguments: Arguments) -> None:
    """transformers fills what is missing with random numbers, and only warns."""
    if missing := sorted(told["missing_keys"]):
        what = f"{len(missing)} weights are missing, such as {missing[0]}; are the files of a model of another kind?"
        raise BadWeights(f"{arguments.folder.name} as {type(model).__name__}: {what}")
    if "ignore_mismatched_sizes" not in arguments.further and (wrong := sorted(told["mismatched_keys"])):
        name, has, wanted = wrong[0]
        sizes = f"{_size(has)} in the files, and {_size(wanted)} by config.json"
        what = f"{len(wrong)} weights have another size, such as {name}: {sizes}"
        raise BadWeights(f"{arguments.folder.name} as {type(model).__name__}: {what}")


def _size(shape: Sequence[int]) -> str:
    return " x ".join(map(str, shape))


@contextmanager
def _mapped_errors(arguments: Arguments) -> Iterator[None]:
    """transformers' errors as ours. Other exceptions than these are bugs, of somebody."""
    name = arguments.folder.name
    try:
        yield
    except ImportError as exc:
        raise LoadError(f"{name}: a library is missing: {_first_lines(exc)}") from exc
    except MemoryError as exc:
        raise LoadError(f"{name}: not enough memory to load it") from exc
    except (OSError, ValueError, LookupError, AttributeError, TypeError, ArithmeticError, RuntimeError) as exc:
        raise _refusal(name, exc) from exc
    except Exception as exc:
        if type(exc).__module__.split(".")[0] in ("safetensors", "safetensors_rust", "tokenizers", "huggingface_hub"):
            raise BadWeights(f"{name} does not load: {_first_lines(exc)}") from exc
        raise


def _refusal(name: str, exc: Exception) -> LoadError:
    text = _first_lines(exc)
    if REMOTE_CODE in str(exc):
        return LoadError(
            f"{name} brings Python code of its own, which nothing runs unless you trust it: then set trust_remote_code: true in "
            "the model's YAML",
            field=REMOTE_CODE,
        )
    if "pip install" in text and "does not recognize" not in text:
        return BackendMissing(f"{name} does not load: {text}")
    if "out of memory" in text.lower():
        return LoadError(f"{name}: not enough memory to load it: {text}")
    return BadWeights(f"{name} does not load: {text}")


def _first_lines(exc: BaseException) -> str:
    """What a foreign error says, in a line that can be read."""
    text = " ".join(str(exc).split()) or type(exc).__name__
    return text if len(text) <= 400 else text[:400] + " ..."


def free_memory() -> None:
    """Give back what torch keeps for later on GPUs; the model is gone."""
    import torch

    if torch.cuda.is_available():
        torch.cuda.empty_cache()
