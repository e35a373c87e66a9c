"""Writes Llama models with random Q4_0 weights in realistic shapes: what they cost to run is what trained ones cost.

python -m benchmarks.make_model 135M FILE.gguf
"""

from __future__ import annotations

import argparse
import itertools
import string
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import gguf
import numpy as np
from gguf import GGMLQuantizationType as Quantisation

ENDS = ("<|endoftext|>", "<|im_end|>")
SPACE = "\u0120"  # how byte-level BPE writes a space
SCALE = 0.02
CONTEXT = 8192


@dataclass(frozen=True)
class Shape:
    """`heads`, `kv_heads`: of attention; the width of a head is `embedding` / `heads`. `vocab` counts the end tokens too."""

    layers: int
    embedding: int
    heads: int
    kv_heads: int
    feed_forward: int
    vocab: int


SHAPES = {
    "135M": Shape(layers=30, embedding=576, heads=9, kv_heads=3, feed_forward=1536, vocab=49152),
    "500M": Shape(layers=24, embedding=896, heads=14, kv_heads=2, feed_forward=4864, vocab=151936),
}


def vocabulary(size: int) -> tuple[list[str], list[str]]:
    """Tokens and merges of a byte-level BPE: all bytes, then words of two letters with and without a space before them, one token
    each, then longer ones; the end tokens last. `size`: at least 256 + 2."""
    tokens, merges = list(byte_characters()), []
    seen = set(tokens)
    for left, right in candidates():
        if len(tokens) == size - len(ENDS):
            break
        if left in seen and right in seen and left + right not in seen:
            tokens.append(left + right)
            merges.append(f"{left} {right}")
            seen.add(left + right)
    return [*tokens, *ENDS], merges


def byte_characters() -> Iterator[str]:
    """The 256 characters by which GPT-2's byte-level BPE writes the bytes, in no particular order."""
    printable = [*range(33, 127), *range(161, 173), *range(174, 256)]
    yield from map(chr, printable)
    yield from (chr(256 + number) for number in range(256 - len(printable)))


def candidates() -> Iterator[tuple[str, str]]:
    """Pairs to merge, without end. A pair of letters comes before a letter with its space, so that a word of two is one token."""
    letters = string.ascii_lowercase
    pairs = [a + b for a, b in itertools.product(letters, letters)]
    yield from itertools.product(letters, letters)
    yield from ((SPACE, pair) for pair in pairs)
    yield from ((SPACE, letter) for letter in letters)
    words = pairs
    while True:
        longer = itertools.product([*words, *(SPACE + word for word in words)], pairs)
        yield from longer
        words = [word + pair for word, pair in itertools.product(words, pairs)]


def write(path: Path, shape: Shape, seed: int = 0) -> None:
    """Replaces `path`."""
    path.parent.mkdir(parents=True, exist_ok=True)
    unfinished = path.with_suffix(".unfinished")
    writer = gguf.GGUFWriter(str(unfinished), "llama")
    _write_header(writer, shape)
    _write_vocabulary(writer, shape.vocab)
    _write_tensors(writer, shape, np.random.default_rng(seed))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    unfinished.replace(path)


def _write_header(writer: gguf.GGUFWriter, shape: Shape) -> None:
    writer.add_context_length(CONTEXT)
    writer.add_embedding_length(shape.embedding)
    writer.add_block_count(shape.layers)
    writer.add_feed_forward_length(shape.feed_forward)
    writer.add_head_count(shape.heads)
    writer.add_head_count_kv(shape.kv_heads)
    writer.add_rope_dimension_count(shape.embedding // shape.heads)
    writer.add_rope_freq_base(10000.0)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_vocab_size(shape.vocab)


def _write_vocabulary(writer: gguf.GGUFWriter, size: int) -> None:
    tokens, merges = vocabulary(size)
    normal = size - len(ENDS)
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("gpt-2")
    writer.add_token_list(tokens)
    writer.add_token_types([gguf.TokenType.NORMAL] * normal + [gguf.TokenType.CONTROL] * len(ENDS))
    writer.add_token_merges(merges)
    writer.add_bos_token_id(normal)
    writer.add_eos_token_id(normal)
    writer.add_add_bos_token(False)


def _write_tensors(writer: gguf.GGUFWriter, shape: Shape, rng: np.random.Generator) -> None:
    def add(name: str, rows: int, columns: int, kind: Quantisation = Quantisation.Q4_0, zeros: int = 0) -> None:
        weights = rng.standard_normal((rows, columns), dtype=np.float32) * SCALE
        weights[rows - zeros :] = 0
        writer.add_tensor(name, gguf.quants.quantize(weights, kind), raw_dtype=kind)

    def add_ones(name: str) -> None:
        writer.add_tensor(name, np.ones(shape.embedding, np.float32))

    # An end token's logit is 0, far from the likeliest: answers go on to max_tokens on servers that know no ignore_eos too.
    add("token_embd.weight", shape.vocab, shape.embedding, Quantisation.Q8_0, zeros=len(ENDS))
    add_ones("output_norm.weight")
    keys = shape.embedding // shape.heads * shape.kv_heads
    for layer in range(shape.layers):
        block = f"blk.{layer}"
        add_ones(f"{block}.attn_norm.weight")
        add_ones(f"{block}.ffn_norm.weight")
        add(f"{block}.attn_q.weight", shape.embedding, shape.embedding)
        add(f"{block}.attn_k.weight", keys, shape.embedding)
        add(f"{block}.attn_v.weight", keys, shape.embedding)
        add(f"{block}.attn_output.weight", shape.embedding, shape.embedding)
        add(f"{block}.ffn_gate.weight", shape.feed_forward, shape.embedding)
        add(f"{block}.ffn_up.weight", shape.feed_forward, shape.embedding)
        add(f"{block}.ffn_down.weight", shape.embedding, shape.feed_forward)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("shape", choices=SHAPES)
    parser.add_argument("file", type=Path)
    given = parser.parse_args()
    write(given.file, SHAPES[given.shape])
    print(f"{given.file}: {given.file.stat().st_size / 1e6:.0f} MB")


if __name__ == "__main__":
    main()
