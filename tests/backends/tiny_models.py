"""GGUF files of a few kilobytes with random weights, one of each kind of cache that llama.cpp has."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import gguf
import numpy as np

VOCAB, WIDTH, HIDDEN, LAYERS, HEADS, KV_HEADS, HEAD = 300, 64, 96, 4, 4, 2, 16
STATE, CONVOLUTION, RANK = 8, 4, 4
WINDOW = 16
CONTEXT = 1024


class Maker:
    """Writes one file. Tensors get normal random values, deterministic for each file."""

    def __init__(self, path: Path, architecture: str) -> None:
        self.path = path
        self.writer = gguf.GGUFWriter(str(path), architecture)
        self._random = np.random.default_rng(len(architecture))
        writer = self.writer
        writer.add_context_length(CONTEXT)
        writer.add_embedding_length(WIDTH)
        writer.add_block_count(LAYERS)
        writer.add_feed_forward_length(HIDDEN)
        writer.add_layer_norm_rms_eps(1e-5)
        writer.add_vocab_size(VOCAB)
        self._add_vocabulary()

    def _add_vocabulary(self) -> None:
        """A token for each byte, then plain words, then the end."""
        texts = [*_byte_letters(), *(f"w{index}" for index in range(VOCAB - 257)), "<|end|>"]
        kinds = [gguf.TokenType.NORMAL] * (VOCAB - 1) + [gguf.TokenType.CONTROL]
        self.writer.add_tokenizer_model("gpt2")
        self.writer.add_tokenizer_pre("gpt-2")
        self.writer.add_token_list(texts)
        self.writer.add_token_types(kinds)
        self.writer.add_token_merges(["w 0"])
        self.writer.add_eos_token_id(VOCAB - 1)
        self.writer.add_add_bos_token(False)

    def matrix(self, name: str, *shape: int, scale: float | None = None) -> None:
        """`shape` as numpy counts it: outputs first."""
        scale = shape[-1] ** -0.5 if scale is None else scale
        self.writer.add_tensor(name, self._random.standard_normal(shape, dtype=np.float32) * np.float32(scale))

    def ones(self, name: str, *shape: int) -> None:
        self.writer.add_tensor(name, np.ones(shape, np.float32))

    def attention(self, block: str) -> None:
        self.matrix(f"{block}.attn_q.weight", HEADS * HEAD, WIDTH, scale=0.3)
        self.matrix(f"{block}.attn_k.weight", KV_HEADS * HEAD, WIDTH, scale=0.3)
        self.matrix(f"{block}.attn_v.weight", KV_HEADS * HEAD, WIDTH)
        self.matrix(f"{block}.attn_output.weight", WIDTH, HEADS * HEAD)

    def feed_forward(self, block: str) -> None:
        self.ones(f"{block}.ffn_norm.weight", WIDTH)
        self.matrix(f"{block}.ffn_gate.weight", HIDDEN, WIDTH)
        self.matrix(f"{block}.ffn_up.weight", HIDDEN, WIDTH)
        self.matrix(f"{block}.ffn_down.weight", WIDTH, HIDDEN)

    def mamba(self, block: str, *, normed: bool) -> None:
        inner = 2 * WIDTH
        self.matrix(f"{block}.ssm_in.weight", 2 * inner, WIDTH)
        self.matrix(f"{block}.ssm_conv1d.weight", inner, CONVOLUTION)
        self.matrix(f"{block}.ssm_conv1d.bias", inner, scale=0.1)
        self.matrix(f"{block}.ssm_x.weight", RANK + 2 * STATE, inner)
        self.matrix(f"{block}.ssm_dt.weight", inner, RANK)
        self.matrix(f"{block}.ssm_dt.bias", inner, scale=0.1)
        self.writer.add_tensor(f"{block}.ssm_a", -np.tile(np.arange(1, STATE + 1, dtype=np.float32) / STATE, (inner, 1)))
        self.ones(f"{block}.ssm_d", inner)
        self.matrix(f"{block}.ssm_out.weight", WIDTH, inner)
        if normed:
            self.ones(f"{block}.ssm_dt_norm.weight", RANK)
            self.ones(f"{block}.ssm_b_norm.weight", STATE)
            self.ones(f"{block}.ssm_c_norm.weight", STATE)

    def heads(self, kv_heads: int | list[int] = KV_HEADS) -> None:
        self.writer.add_head_count(HEADS)
        self.writer.add_head_count_kv(kv_heads)
        self.writer.add_key_length(HEAD)
        self.writer.add_value_length(HEAD)

    def state_space(self) -> None:
        self.writer.add_ssm_conv_kernel(CONVOLUTION)
        self.writer.add_ssm_inner_size(2 * WIDTH)
        self.writer.add_ssm_state_size(STATE)
        self.writer.add_ssm_time_step_rank(RANK)

    def close(self, norm: str = "output_norm.weight") -> Path:
        self.matrix("token_embd.weight", VOCAB, WIDTH, scale=1.0)
        self.ones(norm, WIDTH)
        self.matrix("output.weight", VOCAB, WIDTH)
        self.writer.write_header_to_file()
        self.writer.write_kv_data_to_file()
        self.writer.write_tensors_to_file()
        self.writer.close()
        return self.path


def plain(folder: Path) -> Path:
    return _plain(folder / "plain.gguf").close()


def _plain(path: Path) -> Maker:
    maker = Maker(path, "llama")
    maker.heads()
    maker.writer.add_rope_dimension_count(HEAD)
    for block in _blocks():
        maker.ones(f"{block}.attn_norm.weight", WIDTH)
        maker.attention(block)
        maker.feed_forward(block)
    return maker


def filling(folder: Path) -> Path:
    """With tokens for what is to be filled in."""
    maker = _plain(folder / "filling.gguf")
    maker.writer.add_uint32("tokenizer.ggml.fim_pre_token_id", 297)
    maker.writer.add_uint32("tokenizer.ggml.fim_suf_token_id", 296)
    maker.writer.add_uint32("tokenizer.ggml.fim_mid_token_id", 298)
    return maker.close()


def recurrent(folder: Path) -> Path:
    maker = Maker(folder / "recurrent.gguf", "mamba")
    maker.state_space()
    for block in _blocks():
        maker.ones(f"{block}.attn_norm.weight", WIDTH)
        maker.mamba(block, normed=False)
    return maker.close()


def hybrid(folder: Path) -> Path:
    maker = Maker(folder / "hybrid.gguf", "jamba")
    maker.heads([0, KV_HEADS] * (LAYERS // 2))
    maker.state_space()
    for index, block in enumerate(_blocks()):
        maker.ones(f"{block}.attn_norm.weight", WIDTH)
        if index % 2:
            maker.attention(block)
        else:
            maker.mamba(block, normed=True)
        maker.feed_forward(block)
    return maker.close()


def windowed(folder: Path) -> Path:
    """Each layer but the last sees WINDOW tokens back."""
    maker = Maker(folder / "windowed.gguf", "gemma3")
    maker.heads()
    maker.writer.add_sliding_window(WINDOW)
    for block in _blocks():
        maker.ones(f"{block}.attn_norm.weight", WIDTH)
        maker.attention(block)
        maker.ones(f"{block}.attn_q_norm.weight", HEAD)
        maker.ones(f"{block}.attn_k_norm.weight", HEAD)
        maker.ones(f"{block}.post_attention_norm.weight", WIDTH)
        maker.feed_forward(block)
        maker.ones(f"{block}.post_ffw_norm.weight", WIDTH)
    return maker.close()


def translating(folder: Path) -> Path:
    """An encoder and a decoder."""
    maker = Maker(folder / "translating.gguf", "t5")
    maker.heads(HEADS)
    maker.writer.add_relative_attn_buckets_count(8)
    maker.writer.add_decoder_start_token_id(0)
    maker.ones("enc.output_norm.weight", WIDTH)
    for half in ("enc", "dec"):
        for index in range(LAYERS):
            block = f"{half}.blk.{index}"
            for kind in ("attn", "cross_attn")[: 1 if half == "enc" else 2]:
                maker.ones(f"{block}.{kind}_norm.weight", WIDTH)
                for name in "qkvo":
                    maker.matrix(f"{block}.{kind}_{name}.weight", WIDTH, WIDTH)
                if index == 0 and kind == "attn":
                    maker.matrix(f"{block}.attn_rel_b.weight", 8, HEADS)
            maker.feed_forward(block)
    return maker.close("dec.output_norm.weight")


KINDS: dict[str, Callable[[Path], Path]] = {
    "plain": plain,
    "filling": filling,
    "recurrent": recurrent,
    "hybrid": hybrid,
    "windowed": windowed,
    "translating": translating,
}


def _blocks() -> list[str]:
    return [f"blk.{index}" for index in range(LAYERS)]


def _byte_letters() -> list[str]:
    """How GPT-2's vocabularies write each byte: itself if it is printable, else a letter from U+0100 on."""
    printable = {*range(33, 127), *range(161, 173), *range(174, 256)}
    others = iter(range(256, 512))
    return [chr(byte if byte in printable else next(others)) for byte in range(256)]
