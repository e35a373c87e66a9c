"""What a model that is a folder of weights takes in memory, by the headers of its files and its config.json."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from llmgallery.catalog.folder import Facts, meant_file, read_facts, weights_in
from llmgallery.catalog.safetensors import FLOATS, read_header
from llmgallery.config.model import ModelConfig
from llmgallery.core.errors import BadWeights

PROCESS_BYTES = 450 << 20  # Python with torch and transformers imported: measured
ACTIVATION_NUMBERS = 16  # of each number of an embedding, for each token that is computed at once
WIDTHS = {
    "float64": 8,
    "float32": 4,
    "float16": 2,
    "bfloat16": 2,
    "half": 2,
    "float": 4,
    "double": 8,
    "fp32": 4,
    "fp16": 2,
    "bf16": 2,
}
DEVICES = "nvidia[0-9]*"


@dataclass(frozen=True)
class Needs:
    """`weights` in bytes, with the process around them. `context`: the model's own, 0 = not known. `cache`: bytes of a token in
    the KV cache, 0 = it keeps none. `hidden`, `heads`: of its layers, for what an input takes while it is computed."""

    weights: int
    context: int = 0
    cache: int = 0
    hidden: int = 0
    heads: int = 0
    width: int = 4
    reads_only: bool = False

    def computing(self, context: int) -> int:
        """Bytes beside the cache, of a model that computes inputs of `context` tokens at once, attention matrix included."""
        if not self.reads_only:
            return 0
        return self.width * context * (ACTIVATION_NUMBERS * self.hidden + self.heads * min(context, 8192))


def needs(config: ModelConfig, folder: Path) -> Needs:
    """Raises OSError."""
    facts = read_facts(folder)
    files = weights_in(folder, meant_file(config.model_base_name, config.weights))
    if facts is None:
        return Needs(PROCESS_BYTES + sum(file.stat().st_size for file in files))
    width = _width(config, facts)
    packed = bool(facts.quantised)
    total = sum(_bytes(file, None if packed else width, facts) for file in files)
    weights = PROCESS_BYTES + int(total * _share(config, width))
    return Needs(
        weights, facts.context, facts.cache_numbers * width, facts.hidden, facts.heads, width, facts.purpose != "generate"
    )


def _bytes(file: Path, width: int | None, facts: Facts) -> int:
    """Of a file's tensors once they are loaded: plain numbers take `width` bytes each, None = they stay as they are."""
    size = file.stat().st_size
    if width is None:
        return size
    try:
        tensors = read_header(file).tensors.values() if file.suffix == ".safetensors" else ()
    except BadWeights:
        tensors = ()  # it is not here yet, or the backend will say what is wrong with it
    if not tensors:
        return size * width // WIDTHS.get(facts.dtype, width)
    return sum(tensor.numbers * width if tensor.type in FLOATS else tensor.size for tensor in tensors)


def _width(config: ModelConfig, facts: Facts) -> int:
    """Bytes of a number in the type that the model is computed in: what the YAML says; else float32 on the CPU."""
    asked = str(_asked(config) or ("auto" if _has_gpu() else "float32")).removeprefix("torch.").lower()
    return WIDTHS.get(facts.dtype if asked == "auto" else asked, 2 if asked == "auto" and facts.quantised else 4)


def _asked(config: ModelConfig) -> Any:
    options = config.options if isinstance(config.options, dict) else {}
    inner = options.get("model_params")
    named = [config.dtype, *(options.get(key) for key in ("dtype", "torch_dtype"))]
    named += [inner.get(key) for key in ("dtype", "torch_dtype")] if isinstance(inner, dict) else []
    return next((name for name in named if name), "float16" if config.f16 else None)


def _share(config: ModelConfig, width: int) -> float:
    """Of the plain weights, what is left when the loader packs them (bitsandbytes keeps a scale for each 64 numbers)."""
    options = config.options if isinstance(config.options, dict) else {}
    named = str(config.quantization or options.get("quantization") or "").lower()
    bits = 4.5 if any(word in named for word in ("4bit", "nf4", "fp4", "int4")) else 8.25 if "8" in named else 0.0
    return bits / 8 / width if bits else 1.0


def _has_gpu() -> bool:
    return any(Path("/dev").glob(DEVICES))
