"""Weights that are quantised, by their files or by the YAML: what from_pretrained is told, and what must be installed for it."""

from __future__ import annotations

import importlib.util
import json
import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from llmgallery.backends.transformers.spec import TransformersOptions
from llmgallery.config.model import ModelConfig
from llmgallery.core.errors import BackendMissing, BadWeights, LoadError

KEY = "quantization"
WORDS: Mapping[str, str] = {
    **dict.fromkeys(("bnb_4bit", "bnb-4bit", "4bit", "nf4", "int4", "bitsandbytes", "load_in_4bit"), "bnb_4bit"),
    **dict.fromkeys(("fp4", "bnb_fp4"), "bnb_fp4"),
    **dict.fromkeys(("bnb_8bit", "bnb-8bit", "8bit", "int8", "load_in_8bit"), "bnb_8bit"),
    **dict.fromkeys(("gptq", "autogptq", "auto_gptq", "gptq_marlin"), "gptq"),
    **dict.fromkeys(("awq", "autoawq", "awq_marlin"), "awq"),
}
"""Values of `quantization`, LocalAI's and others' spellings among them."""

LEGACY = "quantize_config.json"
MODULES: Mapping[str, tuple[str, ...]] = {
    "bitsandbytes": ("bitsandbytes", "accelerate"),
    "gptq": ("gptqmodel", "optimum"),
    "awq": ("gptqmodel", "accelerate"),
    "compressed-tensors": ("compressed_tensors",),
    "aqlm": ("aqlm",),
    "hqq": ("hqq",),
    "quanto": ("optimum.quanto",),
    "eetq": ("kernels",),
    "torchao": ("torchao",),
    "auto-round": ("auto_round",),
    "vptq": ("vptq",),
    "spqr": ("spqr_quant",),
}
"""What must be importable for weights of a method; those not named need nothing more, or say it themselves."""

CPU_WORKERS = "GPTQMODEL_CPU_WORKERS"
BITS = (2, 3, 4, 8)


@dataclass(frozen=True)
class Quantisation:
    """How weights are quantised. `method`: transformers' name; `source`: where it is said. `from_pretrained`: arguments;
    `attributes`: of the model's configuration, to be set before."""

    method: str = ""
    source: str = ""
    from_pretrained: Mapping[str, Any] = field(default_factory=dict)
    attributes: Mapping[str, Any] = field(default_factory=dict)

    def check(self) -> None:
        """What must be there, before anything is loaded; sets what gptqmodel reads from the environment at its import. Raises
        BackendMissing with the command, LoadError for hardware."""
        if missing := [name for name in MODULES.get(self.method, ()) if not _is_installed(name)]:
            raise BackendMissing(
                f"{self.source}: weights of the kind {self.method} need {', '.join(missing)}: {_command(self.method)}", field=KEY
            )
        if self.method == "bitsandbytes":
            _check_bitsandbytes(self.source)
        if self.method in ("gptq", "awq"):
            os.environ.setdefault(CPU_WORKERS, str(max(2, os.cpu_count() or 1)))


def quantisation_of(folder: Path, config: ModelConfig, options: TransformersOptions) -> Quantisation:
    """What the files say, else the YAML. Raises LoadError where both say different things, BadWeights for damaged files."""
    described, source = _described(folder)
    said = wanted(config, options)
    attributes = _named_file(folder, config)
    if described:
        method = str(described.get("quant_method") or "gptq")
        if said and not _same(said, described, method):
            raise LoadError(f"{KEY}: {said}, but by {source} the weights are {method} already: leave it out", field=KEY)
        if source == LEGACY:
            return Quantisation(method, source, {}, {**attributes, "quantization_config": _gptq(described)})
        return Quantisation(method, source, {}, attributes)
    if said == "gptq" or (not said and options.wbits):
        bits, group_size = options.wbits, options.group_size
        if bits is None:
            what = "no file says how many bits these GPTQ weights have"
            raise LoadError(f"options.wbits: {what}: write options: {{wbits: 4}}", field="options.wbits")
        check_bits(options)
        told = {"bits": bits, "group_size": -1 if group_size is None else group_size}
        return Quantisation("gptq", "options.wbits", {}, {**attributes, "quantization_config": _gptq(told)})
    if said == "awq":
        raise BadWeights(f"{KEY}: awq: config.json of {folder.name} says nothing of AWQ weights", field=KEY)
    if said:
        return Quantisation("bitsandbytes", f"{KEY}: {said}", {"quantization_config": _bitsandbytes(said)}, attributes)
    return Quantisation(attributes=attributes)


def wanted(config: ModelConfig, options: TransformersOptions) -> str:
    """Of WORDS' values what the YAML says; "" = nothing. Raises LoadError."""
    said = config.quantization or options.quantization
    if not said or said.lower() == "none":
        return ""
    if said.lower() not in WORDS:
        known = ", ".join(dict.fromkeys(WORDS.values()))
        if said.lower().startswith("xpu"):
            raise LoadError(f"{KEY}: {said}: Intel GPUs (xpu) are not served; the kinds are {known}", field=KEY)
        raise LoadError(f"{KEY}: {said} is none of {known}; files that are quantised say so themselves", field=KEY)
    return WORDS[said.lower()]


def check_bits(options: TransformersOptions) -> None:
    """Raises LoadError."""
    if options.wbits is not None and options.wbits not in BITS:
        raise LoadError(f"options.wbits: {options.wbits} is none of {', '.join(map(str, BITS))}", field="options.wbits")


def _described(folder: Path) -> tuple[dict[str, Any], str]:
    """What the files say of themselves, and which file it is."""
    own = _read(folder / "config.json").get("quantization_config")
    if isinstance(own, dict) and own:
        return own, "config.json"
    return _read(folder / LEGACY), LEGACY


def _read(file: Path) -> dict[str, Any]:
    try:
        told = json.loads(file.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return {}
    except (OSError, ValueError) as exc:
        raise BadWeights(f"{file.parent.name}: {file.name} is not readable as JSON: {exc}") from exc
    return told if isinstance(told, dict) else {}


def _same(wanted: str, described: Mapping[str, Any], method: str) -> bool:
    if method != "bitsandbytes":
        return wanted == method
    return wanted == ("bnb_8bit" if described.get("load_in_8bit") else "bnb_4bit")


def _named_file(folder: Path, config: ModelConfig) -> dict[str, Any]:
    """Old repos name their one file of weights as they like; the YAML says which it is, where there are several."""
    known = ("model.safetensors", "model.safetensors.index.json")
    files = sorted(file.name for file in folder.glob("*.safetensors"))
    named = config.model_base_name or _file_name(config)
    if named:
        stem = named.removesuffix(".safetensors")
        if stem == "model":
            return {}
        file = next((name for name in files if name.removesuffix(".safetensors") == stem), None)
        if file is None:
            if any((folder / f"{stem}{suffix}").is_file() for suffix in ("", ".pt", ".bin")):
                raise BadWeights(
                    f"model_base_name: {named} is a pickle in an old format of GPTQ weights: take a repo with .safetensors",
                    field="model_base_name",
                )
            found = ", ".join(files) or "none"
            raise BadWeights(
                f"model_base_name: there is no {stem}.safetensors in {folder.name}, but {found}", field="model_base_name"
            )
        return {"transformers_weights": file}
    if not any((folder / name).is_file() for name in known) and len(files) == 1:
        return {"transformers_weights": files[0]}
    return {}


def _file_name(config: ModelConfig) -> str:
    """The last part of the reference, where it is a file."""
    last = (config.weights or "").partition("@")[0].rstrip("/").rpartition("/")[2]
    return last if last.endswith((".safetensors", ".pt")) else ""


def _gptq(described: Mapping[str, Any]) -> dict[str, Any]:
    """As config.json would say it: given to from_pretrained, it would mean that weights are to be quantised now. `described`:
    AutoGPTQ's quantize_config.json, of which only what loading needs is taken."""
    bits = described.get("bits")
    if bits not in BITS:
        raise BadWeights(f"{LEGACY}: bits: {bits} is none of {', '.join(map(str, BITS))}")
    known = ("bits", "group_size", "desc_act", "sym", "true_sequential", "damp_percent")
    told = {name: described[name] for name in known if described.get(name) is not None}
    format = str(described.get("checkpoint_format") or described.get("format") or "gptq")
    return {**told, "quant_method": "gptq", "format": format, "checkpoint_format": format}


def _bitsandbytes(kind: str) -> Any:
    import torch
    from transformers import BitsAndBytesConfig

    if kind == "bnb_8bit":
        return BitsAndBytesConfig(load_in_8bit=True)
    return BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type="fp4" if kind == "bnb_fp4" else "nf4",
        bnb_4bit_compute_dtype=torch.bfloat16 if torch.cuda.is_available() else torch.float32,
        bnb_4bit_use_double_quant=True,
    )


def _check_bitsandbytes(source: str) -> None:
    """Which devices it computes on it says itself."""
    import torch

    bitsandbytes = importlib.import_module("bitsandbytes")
    known = set(getattr(bitsandbytes, "supported_torch_devices", {"cuda"}))
    here = (
        {"cpu"} | ({"cuda"} if torch.cuda.is_available() else set()) | ({"mps"} if torch.backends.mps.is_available() else set())
    )
    if not known & here:
        raise LoadError(
            f"{source}: bitsandbytes computes on {', '.join(sorted(known))}, and this machine has {', '.join(sorted(here))}: "
            "leave it out, or take a GGUF of this model with the backend llama-cpp",
            field=KEY,
        )


def _is_installed(name: str) -> bool:
    try:
        return importlib.util.find_spec(name) is not None
    except ModuleNotFoundError:
        return False


def _command(method: str) -> str:
    if method in ("gptq", "awq", "bitsandbytes"):
        return f"llmgallery backends install transformers --with {'bitsandbytes' if method == 'bitsandbytes' else 'gptq'}"
    return f"pip install {' '.join(name.partition('.')[0].replace('_', '-') for name in MODULES[method])}"
