"""What of a model file no machine could do, told when the file is read: a load would find it, after a download."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

from llmgallery.backends.transformers.generation import generate_arguments
from llmgallery.backends.transformers.spec import TransformersOptions
from llmgallery.backends.transformers.weights import params, quantisation
from llmgallery.config.model import ModelConfig
from llmgallery.config.outside import OptionNote
from llmgallery.core.errors import GalleryError, LoadError, RequestError

MANY = 1 << 16
"""GPUs of a machine that has any that a file may name."""


def judge(config: ModelConfig) -> Iterator[OptionNote]:
    """Words that mean nothing, and what is refused on every machine."""
    try:
        options = params.options_of(config)
    except LoadError as exc:
        yield _note(exc, exc.field or "options")
        return
    checks: list[tuple[str, Callable[[], Any]]] = [
        ("type", partial(params.auto_class, config.type or options.type)),
        ("load_format", partial(params.safetensors_only, config, options)),
        ("quantization", partial(quantisation.wanted, config, options)),
        ("options.wbits", partial(quantisation.check_bits, options)),
        ("options.model_params", partial(params.check_model_params, options)),
        ("options.generate", partial(generate_arguments.check, options.generate)),
        *((key, partial(params.dtype_named, key, value)) for key, value in params.dtypes(config, options)),
        *((key, partial(_device, key, value)) for key, value in _devices(config, options)),
    ]
    for key, check in checks:
        try:
            check()
        except (LoadError, RequestError) as exc:
            yield _note(exc, key)


def _note(fault: GalleryError, key: str) -> OptionNote:
    """`key`: what the file would be changed at; the fault's own field may lie further inside."""
    field = fault.field or key
    message = fault.message.removeprefix(f"{key}: ")
    return OptionNote(field if field.startswith(key) else key, message)


def _devices(config: ModelConfig, options: TransformersOptions) -> list[tuple[str, str | int]]:
    named = [("options.device", options.device), ("main_gpu", config.main_gpu)]
    if isinstance(options.device_map, str | int) and str(options.device_map).lower() not in params.SPREAD:
        named.append(("options.device_map", options.device_map))
    return [(key, value) for key, value in named if value is not None and value != ""]


def _device(key: str, value: str | int) -> None:
    """Whether some machine has it."""
    kind = "mps" if str(value).strip().lower().startswith("mps") else "cuda"
    params.device_named(key, value, params.Devices(kind, MANY))
