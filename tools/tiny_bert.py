"""A BERT with a classifier head, small and drawn from a fixed seed: as a GGUF, and as a checkpoint for transformers.

    python tools/tiny_bert.py FOLDER        # writes FOLDER/tiny-bert.gguf, config.json, vocab.txt and model.safetensors

Needs gguf and numpy. Its scores mean nothing; that both sides agree on them does.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import minilm_gguf
import numpy as np

SEED = 20
LETTERS = "abcdefghijklmnopqrstuvwxyz0123456789"
TOKENS = [*minilm_gguf.SPECIAL, *LETTERS, *(f"##{letter}" for letter in LETTERS), *".,!?'-", "the", "##ing", "rain", "tea"]
CONFIG: dict[str, Any] = {
    "architectures": ["BertForSequenceClassification"],
    "model_type": "bert",
    "hidden_act": "gelu_pytorch_tanh",  # as ggml has it; transformers' plain "gelu" is erf
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_attention_heads": 4,
    "num_hidden_layers": 3,
    "max_position_embeddings": 96,
    "type_vocab_size": 2,
    "vocab_size": len(TOKENS),
    "layer_norm_eps": 1e-12,
    "pad_token_id": 0,
    "id2label": {"0": "relevance"},
    "label2id": {"relevance": 0},
}


def weights(config: Mapping[str, Any] = CONFIG, seed: int = SEED) -> dict[str, np.ndarray]:
    """By the names of transformers' BertForSequenceClassification. Large enough that scores differ by whole units."""
    random = np.random.default_rng(seed)
    size, inner, labels = config["hidden_size"], config["intermediate_size"], len(config["id2label"])

    def drawn(*shape: int) -> np.ndarray:
        return (random.standard_normal(shape) * 0.3).astype(np.float32)

    made = {
        "bert.embeddings.word_embeddings.weight": drawn(config["vocab_size"], size),
        "bert.embeddings.position_embeddings.weight": drawn(config["max_position_embeddings"], size),
        "bert.embeddings.token_type_embeddings.weight": drawn(config["type_vocab_size"], size),
    }
    norms = ["bert.embeddings.LayerNorm"]
    matrices = {"bert.pooler.dense": (size, size), "classifier": (labels, size)}
    for layer in range(config["num_hidden_layers"]):
        at = f"bert.encoder.layer.{layer}"
        norms += [f"{at}.attention.output.LayerNorm", f"{at}.output.LayerNorm"]
        matrices |= {f"{at}.attention.self.{name}": (size, size) for name in ("query", "key", "value")}
        matrices |= {
            f"{at}.attention.output.dense": (size, size),
            f"{at}.intermediate.dense": (inner, size),
            f"{at}.output.dense": (size, inner),
        }
    for name in norms:
        made |= {f"{name}.weight": 1 + drawn(size), f"{name}.bias": drawn(size)}
    for name, shape in matrices.items():
        made |= {f"{name}.weight": drawn(*shape), f"{name}.bias": drawn(shape[0])}
    return made


def write_gguf(target: Path) -> None:
    minilm_gguf.write(target, CONFIG, TOKENS, weights(), pooling="rank", name="tiny-bert")


def write_checkpoint(folder: Path) -> None:
    tensors = weights()
    header: dict[str, Any] = {}
    offset = 0
    for name, tensor in tensors.items():
        header[name] = {"dtype": "F32", "shape": tensor.shape, "data_offsets": [offset, offset + tensor.nbytes]}
        offset += tensor.nbytes
    text = json.dumps({"__metadata__": {"format": "pt"}, **header}).encode()
    data = b"".join(tensor.astype("<f4").tobytes() for tensor in tensors.values())
    (folder / "model.safetensors").write_bytes(len(text).to_bytes(8, "little") + text + data)
    (folder / "config.json").write_text(json.dumps(CONFIG, indent=2))
    (folder / "vocab.txt").write_text("\n".join(TOKENS) + "\n", encoding="utf-8")
    (folder / "tokenizer_config.json").write_text(json.dumps({"tokenizer_class": "BertTokenizer", "do_lower_case": True}))


if __name__ == "__main__":
    folder = Path(sys.argv[1])
    folder.mkdir(parents=True, exist_ok=True)
    write_gguf(folder / "tiny-bert.gguf")
    write_checkpoint(folder)
