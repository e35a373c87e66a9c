"""From a model's YAML to a library's plan. Pure."""

from __future__ import annotations

from pathlib import Path

import msgspec

from llmgallery.backends.base import Files
from llmgallery.backends.exllama.library import Plan
from llmgallery.backends.exllama.spec import ExllamaOptions
from llmgallery.config.model import ModelConfig
from llmgallery.core.errors import BadWeights, LoadError

PAGE = 256
"""Tokens; both libraries' caches are made of such pages."""
SLOTS = 8
CHUNK = 2048
DRAFTS = 4
QUERY = 16
DEFAULT_CONTEXT = 4096
"""For a config.json that does not tell."""

_BITS = {"f16": 16, "f32": 16, "bf16": 16, "q8_0": 8, "q5_1": 6, "q5_0": 6, "q4_1": 4, "q4_0": 4, "iq4_nl": 4}
_MODES = {"FP16": 16, "Q8": 8, "Q6": 6, "Q4": 4}


def options_of(config: ModelConfig) -> ExllamaOptions:
    return msgspec.convert(config.options, ExllamaOptions) if isinstance(config.options, dict) else ExllamaOptions()


def make_plan(config: ModelConfig, files: Files, *, trained_context: int, ends: tuple[int, ...]) -> Plan:
    """Raises LoadError for impossible settings, BadWeights for a folder that is none."""
    options = options_of(config)
    context_size = config.context_size or config.max_model_len or trained_context or DEFAULT_CONTEXT
    slots = config.parallel or SLOTS
    # A page more for each request: both libraries may draft beyond an answer's end.
    wanted = options.cache_size or (_rounded(context_size) + PAGE) * slots
    if wanted < context_size:
        what = f"options.cache_size: {wanted} tokens cannot hold one request of context_size {context_size}"
        raise LoadError(what, field="options.cache_size")
    return Plan(
        folder=_folder(files.weights, "parameters.model"),
        context_size=context_size,
        slots=slots,
        cache_size=_rounded(wanted),
        chunk=max(PAGE, min(_rounded(config.parameters.batch or CHUNK), CHUNK)),
        bits=_bits(config, options),
        gpu_split=_split(config, options),
        paged=_paged(config, options),
        adapters=_adapters(config, files),
        draft=_folder(files.draft, "draft_model") if files.draft else None,
        drafts=DRAFTS if config.n_draft is None else config.n_draft,
        ends=ends,
    )


def lengths(plan: Plan, size: int, slots: int) -> tuple[int, int]:
    """What ExLlamaV2 is told of a cache of `size` tokens: the longest chunk of a prompt, a multiple of a page, and how many
    positions there are. It loads by computing such a chunk, which the cache must hold and the positions too; its steps have up
    to QUERY tokens of each request, those that are drafted beyond an answer's end among them."""
    chunk = min(max(plan.chunk, _rounded(QUERY * slots)), size)
    return chunk, max(plan.context_size + (plan.drafts if plan.draft else 0), chunk)


def _rounded(tokens: int) -> int:
    return -(-tokens // PAGE) * PAGE


def _folder(paths: tuple[Path, ...], key: str) -> Path:
    if not paths:
        raise LoadError("no weights: name a folder in parameters.model", field="parameters.model")
    if not paths[0].is_dir():
        raise BadWeights(f"{key}: {paths[0]} is no folder: these weights are one, with config.json and tokenizer.json", field=key)
    return paths[0]


def _bits(config: ModelConfig, options: ExllamaOptions) -> int:
    """The coarser of the two caches' types: ExLlamaV2 has one for both."""
    if options.cache_mode is not None:
        return _MODES[options.cache_mode]
    return min(_BITS[(name or "f16").lower()] for name in (config.cache_type_k, config.cache_type_v))


def _split(config: ModelConfig, options: ExllamaOptions) -> tuple[float, ...] | None:
    """GiB for each GPU, from options.gpu_split or tensor_split ("16,24")."""
    key, said = ("options.gpu_split", options.gpu_split) if options.gpu_split else ("tensor_split", config.tensor_split)
    if said is None or said == []:
        return None
    try:
        parts = tuple(float(part) for part in (said.split(",") if isinstance(said, str) else said))
    except ValueError:
        raise LoadError(f"{key}: expected numbers such as 16,24, found {said!r}", field=key) from None
    if any(part < 0 for part in parts) or not any(parts):
        raise LoadError(f"{key}: expected GiB of weights for each GPU, such as 16,24, found {said!r}", field=key)
    return parts


def _paged(config: ModelConfig, options: ExllamaOptions) -> bool | None:
    """None = as flash-attn is there or not."""
    if options.flash_attention is not None:
        return options.flash_attention
    asked = config.flash_attention
    return None if asked in (None, "auto") else asked in (True, "on")


def _adapters(config: ModelConfig, files: Files) -> tuple[tuple[Path, float], ...]:
    scales = [scale for _, scale in config.adapters]
    folders = [_adapter(path) for path in files.adapters]
    return tuple(zip(folders, scales, strict=True))


def _adapter(path: Path) -> Path:
    if not (path / "adapter_config.json").is_file():
        raise BadWeights(f"lora_adapters: {path} is no folder with adapter_config.json, as peft writes it", field="lora_adapters")
    if not (path / "adapter_model.safetensors").is_file():
        raise BadWeights(
            f"lora_adapters: {path} has no adapter_model.safetensors; .bin files can hold code, and are not loaded",
            field="lora_adapters",
        )
    return path
