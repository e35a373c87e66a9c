"""Which models are batched continuously, and that all answer as they do by themselves."""

from pathlib import Path
from typing import Any

import pytest
import torch
from driving_transformers import Driven, driven
from tiny_transformers import byte_tokenizer
from transformers import (
    AutoModelForCausalLM,
    BloomConfig,
    Gemma2Config,
    Gemma3TextConfig,
    GPT2Config,
    LlamaConfig,
    MambaConfig,
    MistralConfig,
    Qwen3Config,
    T5Config,
    T5ForConditionalGeneration,
)

from llmgallery.core.errors import BadWeights, LoadError
from llmgallery.core.sampling import Sampling

IDS = {"vocab_size": 512, "bos_token_id": 0, "eos_token_id": 3, "pad_token_id": 1}
SIZES = {
    "hidden_size": 128, "intermediate_size": 128, "num_hidden_layers": 2, "num_attention_heads": 2, "num_key_value_heads": 1,
    "head_dim": 64, "max_position_embeddings": 256,
}  # fmt: skip
CONFIGS: dict[str, tuple[Any, bool]] = {
    "a table of positions": (GPT2Config(**IDS, n_embd=128, n_layer=2, n_head=2, n_positions=256), True),
    "a sliding window": (MistralConfig(**IDS, **SIZES, sliding_window=16), True),
    "windows in some layers": (Gemma3TextConfig(**IDS, **SIZES, sliding_window=16), True),
    "norms of heads": (Qwen3Config(**IDS, **SIZES), True),
    "attention that only torch code has": (Gemma2Config(**IDS, **SIZES, sliding_window=16, query_pre_attn_scalar=64), True),
    "slopes that the cache would lose": (BloomConfig(**IDS, hidden_size=128, n_layer=2, n_head=2), False),
    "no attention": (MambaConfig(**IDS, hidden_size=64, num_hidden_layers=2, state_size=8), False),
}
PROMPTS = ("The quick brown fox jumps over the lazy dog. What is the capital of France?", "Hello", "one, two")


def made(config: Any, folder: Path, model: Any = None) -> Path:
    torch.manual_seed(0)
    model = model or AutoModelForCausalLM.from_config(config)
    for weights in model.parameters():
        if weights.dim() >= 2:
            torch.nn.init.normal_(weights, std=0.25)
    model.save_pretrained(folder)
    byte_tokenizer().save_pretrained(folder)
    return folder


@pytest.mark.parametrize("name", CONFIGS)
def test_answers_are_those_of_generate(tmp_path: Path, name: str) -> None:
    config, is_continuous = CONFIGS[name]
    with driven(made(config, tmp_path)) as one:
        assert (one.loaded.details["batching"] == "continuous") is is_continuous
        ids = [one.submit(prompt, Sampling(temperature=0, max_tokens=30)) for prompt in PROMPTS]
        one.told.wait_for_end(*ids)
        for id, prompt in zip(ids, PROMPTS, strict=True):
            tokens = torch.tensor([one.tokens_of(prompt)])
            with one.backend._setting.turns:
                alone = one.model.generate(
                    tokens,
                    attention_mask=torch.ones_like(tokens),
                    max_new_tokens=30,
                    do_sample=False,
                    eos_token_id=3,
                    pad_token_id=1,
                )
            expected = alone[0, tokens.shape[1] :].tolist()
            assert one.told.tokens(id) == (expected[:-1] if expected[-1] == 3 else expected)


def test_a_context_beyond_a_table_of_positions_is_refused(tmp_path: Path) -> None:
    folder = made(CONFIGS["a table of positions"][0], tmp_path)
    with pytest.raises(LoadError, match="a table of 256 positions"):
        Driven(folder, context_size=300)


def test_an_encoder_with_a_decoder_is_refused(tmp_path: Path) -> None:
    config = T5Config(**{**IDS, "decoder_start_token_id": 0}, d_model=64, d_kv=32, d_ff=64, num_layers=1, num_heads=2)
    with pytest.raises(LoadError, match="encoder with a decoder"):
        Driven(made(config, tmp_path, T5ForConditionalGeneration(config)), type="AutoModelForCausalLM")


def test_a_model_that_cannot_compute_is_refused_when_it_loads(tmp_path: Path) -> None:
    config = LlamaConfig(**IDS, **{**SIZES, "hidden_size": 192, "num_attention_heads": 3, "num_key_value_heads": 2})
    with pytest.raises(BadWeights, match="does not run"):
        Driven(made(config, tmp_path))
