"""What a folder of weights says of itself in config.json: what it is made for, and the numbers that decide its memory.

Keys: transformers' PretrainedConfig and the names that older models have for the same.
"""

from __future__ import annotations

import json
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from llmgallery.catalog.repo_folder import FOLDER_WEIGHTS, names_weights
from llmgallery.config.regular import open_regular

Purpose = Literal["generate", "embed", "rerank"]

MOST = 4 << 20
"""Bytes of a configuration file."""

_LAYERS = ("num_hidden_layers", "n_layer", "n_layers", "num_layers", "decoder_layers")
_HEADS = ("num_attention_heads", "n_head", "n_heads", "num_heads", "decoder_attention_heads")
_KV_HEADS = ("num_key_value_heads", "n_head_kv", "num_kv_heads", "multi_query_group_num")
_HIDDEN = ("hidden_size", "n_embd", "d_model", "dim")
_CONTEXT = ("max_position_embeddings", "n_positions", "max_sequence_length", "max_seq_len", "seq_length", "n_ctx")
_TEXT = ("text_config", "llm_config", "language_config")
_ENCODERS = ("Model", "ForMaskedLM", "Encoder", "ForPreTraining")
_NO_CACHE = ("linear", "mamba", "recurrent", "conv", "rwkv")
_OFFSET = frozenset({"roberta", "xlm-roberta", "camembert", "xlm-roberta-xl", "mpnet", "longformer", "data2vec-text", "esm"})
"""Kinds of models whose positions begin after that of the padding: two of them are no input's."""
_SANE = 1 << 22
"""Tokens; tokenizers without a limit say 10 to the power of 30."""


@dataclass(frozen=True)
class Facts:
    """`architecture`: as config.json names it, "" = it does not. `context`: tokens that it was made for, 0 = not known.
    `cache_numbers`: numbers that one token takes in the KV cache, of all layers; 0 = it keeps none, or not known. `dtype`: of the
    weights, such as bfloat16, "" = not said. `quantised`: by which method, "" = they are plain numbers."""

    purpose: Purpose
    architecture: str = ""
    context: int = 0
    cache_numbers: int = 0
    hidden: int = 0
    heads: int = 0
    vocabulary: int = 0
    dtype: str = ""
    quantised: str = ""


def read_facts(folder: Path) -> Facts | None:
    """Of a folder with a config.json that can be read; else None. Blocks. Raises OSError."""
    names = [entry.name for entry in folder.iterdir()]
    config = read_json(folder / "config.json") if "config.json" in names else None
    if config is None:
        return None
    limits = [read_json(folder / "sentence_bert_config.json"), read_json(folder / "tokenizer_config.json")]
    return facts(config, names, *(found or {} for found in limits))


def facts(
    config: Mapping[str, Any],
    names: Collection[str],
    pooling: Mapping[str, Any] | None = None,
    tokenizer: Mapping[str, Any] | None = None,
) -> Facts:
    """Of what stands in config.json, beside files of these names. `pooling`: sentence_bert_config.json; `tokenizer`:
    tokenizer_config.json; both bound the inputs of models that only read."""
    text = next((config[key] for key in _TEXT if isinstance(config.get(key), dict)), config)
    architecture = _architecture(config)
    made_for = purpose(architecture, names)
    context = _number(text, _CONTEXT)
    if made_for != "generate":
        context = max(0, context - 2) if config.get("model_type") in _OFFSET else context
        said = [_number(pooling or {}, ("max_seq_length",)), _number(tokenizer or {}, ("model_max_length", "max_length"))]
        limits = [limit for limit in (context, *said) if 0 < limit < _SANE]
        context = min(limits, default=0)
    described = config.get("quantization_config")
    dtype = next((text.get(key) or config.get(key) for key in ("dtype", "torch_dtype") if text.get(key) or config.get(key)), "")
    return Facts(
        made_for,
        architecture,
        context,
        0 if made_for != "generate" and architecture.endswith(_ENCODERS) and not _is_causal(architecture) else _cache(text),
        _number(text, _HIDDEN),
        _number(text, _HEADS),
        _number(text, ("vocab_size", "n_vocab")),
        str(dtype).removeprefix("torch."),
        str(described.get("quant_method") or "gptq") if isinstance(described, dict) else "",
    )


def purpose(architecture: str, names: Collection[str]) -> Purpose:
    """A head for classes makes it a reranker; the files of sentence-transformers, or no head at all, a model of vectors."""
    if "ForSequenceClassification" in architecture:
        return "rerank"
    is_encoder = architecture.endswith(_ENCODERS) and not _is_causal(architecture)
    return "embed" if "modules.json" in names or is_encoder else "generate"


def _is_causal(architecture: str) -> bool:
    """`LMHeadModel` ends like an encoder, and writes."""
    return "LMHead" in architecture or "CausalLM" in architecture or "ConditionalGeneration" in architecture


def _architecture(config: Mapping[str, Any]) -> str:
    named = config.get("architectures")
    return str(named[0]) if isinstance(named, list) and named else ""


def _cache(text: Mapping[str, Any]) -> int:
    """Keys and values of one token: the heads of each layer, as wide as they are (DeepSeek's are expanded in the cache)."""
    heads, layers = _number(text, _HEADS), _attention_layers(text)
    if _number(text, ("kv_lora_rank",)) and _number(text, ("v_head_dim",)):
        wide = _number(text, ("qk_nope_head_dim",)) + _number(text, ("qk_rope_head_dim",)) + _number(text, ("v_head_dim",))
        return layers * heads * wide
    kv_heads = 1 if text.get("multi_query") is True and "num_kv_heads" not in text else _number(text, _KV_HEADS) or heads
    width = _number(text, ("head_dim", "d_kv", "kv_channels")) or (_number(text, _HIDDEN) // heads if heads else 0)
    return 2 * layers * kv_heads * width


def _attention_layers(text: Mapping[str, Any]) -> int:
    """Those that keep a cache which grows with the input."""
    kinds = text.get("layer_types") or text.get("layers_block_type")
    if isinstance(kinds, list) and kinds:
        return sum(not any(word in str(kind) for word in _NO_CACHE) for kind in kinds)
    return _number(text, _LAYERS)


def _number(values: Mapping[str, Any], keys: tuple[str, ...]) -> int:
    for key in keys:
        found = values.get(key)
        if isinstance(found, int | float) and not isinstance(found, bool) and 0 < found < 1 << 40:
            return int(found)
    return 0


def read_json(path: Path) -> dict[str, Any] | None:
    """An object in a small file; None for what is none, or cannot be read."""
    try:
        with open_regular(path) as file:
            return read_object(file.read(MOST))
    except OSError:
        return None


def read_object(data: bytes) -> dict[str, Any] | None:
    """The object that stands in a configuration file; None for what is none."""
    try:
        value = json.loads(data)
    except (ValueError, RecursionError):
        return None
    return value if isinstance(value, dict) else None


def weights_in(folder: Path, named: str | None = None) -> list[Path]:
    """The weights files of a folder and of its modules: safetensors, where there are any, else all others. `named`: the file, or
    its stem, that is meant among those of the folder itself. Raises OSError."""
    found = [path for path in sorted(folder.iterdir()) if names_weights(path.name) and not path.name.startswith("training_")]
    deep = [path for path in sorted(folder.glob("[0-9]*_*/*")) if names_weights(path.name)]
    plain = [path for path in found if path.suffix == ".safetensors" and not path.name.startswith("consolidated")]
    chosen = plain or [path for path in found if path.suffix == ".safetensors"] or found
    meant = [path for path in found if named and named in (path.name, path.stem)]
    return [*(meant or chosen), *[path for path in deep if path.suffix in {one.suffix for one in chosen}]]


def meant_file(base_name: str | None, reference: str | None) -> str | None:
    """The weights file that a model file names among those of a folder; None = it names the folder."""
    last = (reference or "").partition("@")[0].rpartition("/")[2]
    return base_name or (last if last.lower().endswith(FOLDER_WEIGHTS) else None)
