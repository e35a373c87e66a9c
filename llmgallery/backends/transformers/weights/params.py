"""From a model's YAML to what from_pretrained is told. Pure: knows neither torch nor transformers, and reads no file."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import msgspec

from llmgallery.backends.transformers.spec import TransformersOptions
from llmgallery.config.model import ModelConfig
from llmgallery.core.errors import LoadError

CAUSAL, PLAIN, CLASSIFIER = "AutoModelForCausalLM", "AutoModel", "AutoModelForSequenceClassification"
VISION = "AutoModelForImageTextToText"
TYPES = {
    **{name.lower(): name for name in (CAUSAL, PLAIN, CLASSIFIER, VISION)},
    "automodelforvision2seq": VISION,
    "sentencetransformer": PLAIN,
    "automodelforfeatureextraction": PLAIN,
}
_ELSEWHERE = {
    "ovmodel": "models for OpenVINO come with a later version",
    "automodelforseq2seqlm": "models of an encoder with a decoder are not served",
    "musicgen": "only text comes out of the models that are served",
    "bark": "only text comes out of the models that are served",
    "mamba": "use AutoModelForCausalLM, which finds the class by itself",
}
DTYPES = {
    **dict.fromkeys(("float32", "fp32", "f32", "float"), "float32"),
    **dict.fromkeys(("float16", "fp16", "f16", "half"), "float16"),
    **dict.fromkeys(("bfloat16", "bf16"), "bfloat16"),
    "float64": "float64",
    "auto": "auto",
}
LOAD_FORMATS = {"auto": True, "safetensors": True, "pt": False, "bin": False, "pytorch": False}
"""Words for `load_format`; whether only safetensors are taken then."""

SPREAD = ("balanced", "balanced_low_0", "sequential")
"""Words for `device_map`: accelerate's ways of dividing a model among GPUs."""

MANAGED = {
    "state_dict": "weights come from files only",
    "config": "use config_params",
    "pretrained_model_name_or_path": "use parameters.model",
    "quantization_config": "use quantization",
    "local_files_only": "models are always loaded from local files",
    "token": "the server downloads, with its own token",
    "use_auth_token": "the server downloads, with its own token",
    "cache_dir": "the server downloads to where it wants",
    "force_download": "the server downloads",
    "proxies": "the server downloads",
    "output_loading_info": "it changes nothing that is loaded",
}
"""Arguments of from_pretrained that model_params may not hold, and why."""

_TORCH = "torch."
_DEVICE = re.compile(r"(?:(cuda|gpu|mps|cpu|xpu)[.:]?)?(\d+)?", re.I)


@dataclass(frozen=True)
class Devices:
    """What this machine computes with: `kind` of the first GPU ("cuda", "mps"; "" = there is none), and how many."""

    kind: str = ""
    count: int = 0


@dataclass(frozen=True)
class Arguments:
    """How a folder is to be loaded.

    `auto_class`: of transformers' Auto classes the one that the YAML names; None = the files decide. `device_map`: where to; a
    name of a device, "auto", or a map of modules. `dtype`: torch's name, or "auto" = as the files are. `attributes`: of the
    model's configuration, to be set before it is made. `further`: arguments of from_pretrained that are passed on as they are.
    """

    folder: Path
    device_map: str | dict[str, Any]
    dtype: str
    auto_class: str | None = None
    attention: str | None = None
    trust_remote_code: bool = False
    safetensors_only: bool = True
    quantization: str | None = None
    max_memory: Mapping[str | int, str | int] | None = None
    tokenizer: Path | None = None
    attributes: Mapping[str, Any] = field(default_factory=dict)
    further: Mapping[str, Any] = field(default_factory=dict)

    @property
    def on_gpu(self) -> bool:
        return self.device_map != "cpu"


def options_of(config: ModelConfig) -> TransformersOptions:
    """Raises LoadError for keys that are not transformers'; config/load.py finds them earlier, with their lines.

    What llm-api's model_params hold under names that are options too is taken for these, where the options do not say.
    """
    try:
        options = msgspec.convert(config.options or {}, TransformersOptions)
    except msgspec.ValidationError as exc:
        raise LoadError(f"options: {exc}", field="options") from exc
    known = set(TransformersOptions.__struct_fields__) - {"model_params", "config_params", "generate"}
    moved = {key: value for key, value in options.model_params.items() if key in known}
    if not moved:
        return options
    rest = {key: value for key, value in options.model_params.items() if key not in known}
    values = {**moved, **{key: value for key, value in _said(options).items() if key != "model_params"}, "model_params": rest}
    try:
        return msgspec.convert(values, TransformersOptions)
    except msgspec.ValidationError as exc:
        raise LoadError(f"options.model_params: {exc}", field="options.model_params") from exc


def _said(options: TransformersOptions) -> dict[str, Any]:
    """What differs from the defaults."""
    empty = TransformersOptions()
    return {name: getattr(options, name) for name in options.__struct_fields__ if getattr(options, name) != getattr(empty, name)}


def arguments(config: ModelConfig, options: TransformersOptions, folder: Path, devices: Devices) -> Arguments:
    """Raises LoadError naming the key whose value means nothing, or nothing here."""
    device_map = _device_map(config, options, devices)
    check_model_params(options)
    tokenizer = options.tokenizer or config.parameters.tokenizer
    return Arguments(
        folder=_below(folder, options.subfolder),
        device_map=device_map,
        dtype=_dtype(config, options, on_gpu=device_map != "cpu"),
        auto_class=auto_class(config.type or options.type),
        attention=_attention(config, options, on_gpu=device_map != "cpu"),
        trust_remote_code=_either(options.trust_remote_code, config.trust_remote_code) or False,
        safetensors_only=safetensors_only(config, options),
        quantization=config.quantization or options.quantization,
        max_memory={_memory_key(key): size for key, size in options.max_memory.items()} if options.max_memory else None,
        tokenizer=_below(folder, tokenizer) if tokenizer else None,
        attributes=dict(options.config_params),
        further={key: _plain(value) for key, value in options.model_params.items()},
    )


def check_model_params(options: TransformersOptions) -> None:
    """Raises LoadError for what is not the model file's to say."""
    for key, why in MANAGED.items():
        if key in options.model_params:
            raise LoadError(f"options.model_params.{key}: not possible here: {why}", field=f"options.model_params.{key}")


def auto_class(type: str | None) -> str | None:
    """The Auto class that `type:` means; None = the files decide. Raises LoadError."""
    if not type:
        return None
    word = type.strip().lower()
    if word in TYPES:
        return TYPES[word]
    reason = next((why for start, why in _ELSEWHERE.items() if word.startswith(start)), "")
    known = ", ".join(dict.fromkeys(TYPES.values()))
    raise LoadError(f"type: {type} is none of {known}{'; ' + reason if reason else ''}", field="type")


def dtypes(config: ModelConfig, options: TransformersOptions) -> list[tuple[str, str]]:
    """Where the YAML says in which numbers to compute, and what; the first counts."""
    said = (("dtype", config.dtype), ("options.dtype", options.dtype), ("options.torch_dtype", options.torch_dtype))
    return [(key, value) for key, value in said if value is not None]


def dtype_named(key: str, value: str) -> str:
    """torch's name of a type of numbers: `bfloat16` for bf16 and torch.bfloat16. Raises LoadError."""
    word = value.strip().removeprefix(_TORCH).lower()
    if word not in DTYPES:
        raise LoadError(f"{key}: {value} is none of {', '.join(dict.fromkeys(DTYPES.values()))}", field=key)
    return DTYPES[word]


def device_named(key: str, value: str | int, devices: Devices) -> str:
    """One device: cpu, cuda:0, mps, or auto. Takes LocalAI's cuda.0 and OpenVINO's AUTO:-CPU. Raises LoadError."""
    word = str(value).strip()
    lower = word.lower()
    if lower.startswith("xpu"):
        raise LoadError(f"{key}: {word}: Intel GPUs (xpu) are not served; leave the key out to use the CPU", field=key)
    if lower.startswith(("auto:", "hetero:", "multi:")):
        return _excluding(key, word, devices)
    if lower == "auto":
        return "auto" if devices.kind else "cpu"
    found = _DEVICE.fullmatch(lower)
    if not word or found is None:
        raise LoadError(f"{key}: {word} names no device; write cpu, cuda:0, mps or auto", field=key)
    kind, number = found[1] or "cuda", int(found[2] or 0)
    if kind == "cpu":
        return "cpu"
    if kind == "gpu":
        kind = devices.kind or "cuda"
    if kind != devices.kind or number >= devices.count:
        here = f"{devices.count} {devices.kind}" if devices.kind else "none"
        raise LoadError(f"{key}: {word}: there is no such GPU here (there are: {here}); write cpu, or leave it out", field=key)
    return "mps" if kind == "mps" else f"{kind}:{number}"


def _excluding(key: str, word: str, devices: Devices) -> str:
    """OpenVINO's lists of devices: the first one that is here; `-CPU` = any but it."""
    names = [name.strip().lower() for name in word.partition(":")[2].split(",") if name.strip()]
    excluded = {name[1:].partition(".")[0] for name in names if name.startswith("-")}
    wanted = [name for name in names if not name.startswith("-")] or ["gpu", "cpu"]
    for name in wanted:
        kind = name.partition(".")[0]
        if kind in excluded:
            continue
        if kind == "cpu":
            return "cpu"
        if kind in ("gpu", devices.kind) and devices.kind:
            return device_named(key, name, devices)
    has = devices.kind or "no GPU"
    raise LoadError(f"{key}: {word} leaves no device of this machine, which has {has}; write cpu, or leave it out", field=key)


def _device_map(config: ModelConfig, options: TransformersOptions, devices: Devices) -> str | dict[str, Any]:
    wanted = options.device_map
    if isinstance(wanted, dict):
        return {module: _mapped(module, place, devices) for module, place in wanted.items()}
    if isinstance(wanted, str) and wanted.lower() in SPREAD:
        return wanted.lower() if devices.kind else "cpu"
    for key, value in (
        ("options.device_map", wanted),
        ("options.device", options.device),
        ("main_gpu", config.main_gpu),
    ):
        if value is not None and value != "":
            return device_named(key, value, devices)
    if not devices.kind or config.gpu_layers == 0:
        return "cpu"
    return "auto" if options.max_memory else device_named("main_gpu", 0 if devices.kind == "cuda" else devices.kind, devices)


def _mapped(module: str, place: str | int, devices: Devices) -> str:
    return "disk" if place == "disk" else device_named(f"options.device_map.{module}", place, devices)


def _dtype(config: ModelConfig, options: TransformersOptions, *, on_gpu: bool) -> str:
    for key, value in dtypes(config, options):
        return dtype_named(key, value)
    if config.f16 is False or not on_gpu:
        return "float32"
    return "bfloat16" if config.f16 else "auto"


def _attention(config: ModelConfig, options: TransformersOptions, *, on_gpu: bool) -> str | None:
    if options.attn_implementation:
        return options.attn_implementation
    if config.flash_attention in (True, "on"):
        if not on_gpu:
            raise LoadError(
                "flash_attention: on: transformers has it for GPUs only; leave it out on the CPU", field="flash_attention"
            )
        return "flash_attention_2"
    return None


def safetensors_only(config: ModelConfig, options: TransformersOptions) -> bool:
    """Whether pickles are refused. Raises LoadError."""
    if config.load_format is None:
        return options.safetensors_only
    word = config.load_format.lower()
    if word not in LOAD_FORMATS:
        raise LoadError(f"load_format: {config.load_format} is none of {', '.join(LOAD_FORMATS)}", field="load_format")
    return LOAD_FORMATS[word] and options.safetensors_only


def _below(folder: Path, name: str | None) -> Path:
    """A folder beneath, or beside where the path is absolute."""
    return folder / name if name else folder


def _memory_key(key: str) -> str | int:
    return int(key) if key.isdecimal() else key


def _plain(value: Any) -> Any:
    """torch.bfloat16 and the like, which YAML can only write as texts."""
    return value.removeprefix(_TORCH) if isinstance(value, str) and value.startswith(_TORCH) else value


def _either(first: bool | None, second: bool | None) -> bool | None:
    return second if first is None else first
