"""LoRA adapters compute what merged weights compute; what is no adapter of the model is refused with the reason."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from gguf_files import lora, rewrite

from llmgallery import paths
from llmgallery.backends.llamacpp import api
from llmgallery.backends.llamacpp.adapters import Adapters, load_adapters
from llmgallery.backends.llamacpp.log import LOG
from llmgallery.config.model import ModelConfig
from llmgallery.core.errors import BadWeights, LoadError

POCKET = paths.builtin("models") / "pocket-f16.gguf"
TEXT = b"<|im_start|>user\nHello!<|im_end|>\n<|im_start|>assistant\n"
CHANGED = {"blk.0.attn_q.weight": (192, 192), "blk.2.ffn_down.weight": (192, 448), "blk.4.attn_output.weight": (192, 192)}
RANK = 4
ALPHA = 8.0
NAMES = ("one", "two")


def matrices(seed: int) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """A and B of each changed tensor."""
    random = np.random.default_rng(seed)
    return {
        name: (random.normal(0, 0.2, (RANK, columns)), random.normal(0, 0.2, (rows, RANK)))
        for name, (rows, columns) in CHANGED.items()
    }


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """base.gguf: the bundled model in F32; one.gguf and two.gguf: adapters of it."""
    made = tmp_path_factory.mktemp("adapters")
    rewrite(POCKET, made / "base.gguf")
    for seed, name in enumerate(NAMES):
        lora(made / f"{name}.gguf", matrices(seed), alpha=ALPHA)
    return made


@pytest.fixture(scope="module")
def base(folder: Path):
    api.start()
    made = load(folder / "base.gguf")
    yield made
    made.close()


@pytest.fixture(scope="module")
def plain(base: api.Model) -> np.ndarray:
    return logits(base)


def load(file: Path) -> api.Model:
    return api.Model([file], api.ModelParams(), lambda fraction: None)


def logits(model: api.Model, adapters: Adapters | None = None) -> np.ndarray:
    """After TEXT."""
    context = api.Context(model, api.ContextParams(context=256, sequences=1, batch=64, ubatch=64, threads=1, threads_batch=1))
    if adapters is not None:
        adapters.apply(context)
    batch = api.Batch(64)
    last = batch.add(0, 0, model.vocab.tokenize(TEXT, special=True), wants_logits=True)
    assert context.decode(batch) == 0
    row = context.logits(last).copy()
    context.close()
    return row


def merged_logits(folder: Path, scales: tuple[float, ...]) -> np.ndarray:
    """Of the base model with the adapters' changes added to its weights by hand."""
    changes = [matrices(seed) for seed in range(len(scales))]

    def change(name: str, weights: np.ndarray) -> np.ndarray:
        for scale, pairs in zip(scales, changes, strict=True):
            if name in pairs:
                a, b = pairs[name]
                weights = weights + scale * ALPHA / RANK * (b @ a)
        return weights

    model = load(rewrite(POCKET, folder / "merged.gguf", change))
    row = logits(model)
    model.close()
    return row


def adapted_logits(base: api.Model, folder: Path, **keys) -> np.ndarray:
    adapters = load_adapters(base, ModelConfig(**keys), [folder / f"{name}.gguf" for name in NAMES[: named(keys)]])
    row = logits(base, adapters)
    adapters.close()
    adapters.close()
    return row


def named(keys: dict) -> int:
    return len(ModelConfig(**keys).adapters)


@pytest.mark.parametrize(
    ("keys", "scales"),
    [
        ({"lora_adapters": ["a"]}, (1.0,)),
        ({"lora_adapter": "a"}, (1.0,)),
        ({"lora_adapter": "a", "lora_scale": 0.5}, (0.5,)),
        ({"lora_adapters": ["a", "b"], "lora_scales": [0.75, -0.5]}, (0.75, -0.5)),
        ({"lora_adapter": "a", "lora_scale": 2.0, "lora_adapters": ["b"]}, (2.0, 1.0)),
    ],
)
def test_adapters_equal_merged_weights(base, folder, plain, keys, scales):
    adapted, by_hand = adapted_logits(base, folder, **keys), merged_logits(folder, scales)
    assert np.abs(by_hand - plain).max() > 0.5, "the change is too small to be seen"
    assert np.abs(adapted - by_hand).max() < 2e-3


def test_a_scale_of_zero_is_the_model_itself(base, folder, plain):
    assert np.array_equal(adapted_logits(base, folder, lora_adapters=["a"], lora_scales=[0.0]), plain)


def test_adapters_leave_other_contexts_alone(base, folder, plain):
    adapters = load_adapters(base, ModelConfig(lora_adapters=["a"]), [folder / "one.gguf"])
    assert len(adapters) == 1
    assert not np.array_equal(logits(base, adapters), plain)
    assert np.array_equal(logits(base), plain)
    adapters.close()


def test_none_is_nothing(base, plain):
    adapters = load_adapters(base, ModelConfig(), [])
    assert np.array_equal(logits(base, adapters), plain)
    adapters.close()


def refused(base: api.Model, file: Path) -> str:
    with pytest.raises(BadWeights) as caught, LOG.kept() as log:
        load_adapters(base, ModelConfig(lora_adapters=["x"]), [file])
    assert caught.value.field == "lora_adapters"
    assert log or not file.is_file(), "a block around hears llama.cpp's messages too"
    return caught.value.message


def test_an_adapter_for_another_architecture_is_refused(base, tmp_path):
    message = refused(base, lora(tmp_path / "other.gguf", matrices(0), architecture="qwen2"))
    assert "other.gguf is no adapter of this model: model arch and LoRA arch mismatch" in message


def test_an_adapter_for_a_larger_model_is_refused(base, tmp_path):
    wide = {"blk.0.attn_q.weight": (np.ones((2, 256)), np.ones((256, 2)))}
    message = refused(base, lora(tmp_path / "wide.gguf", wide))
    assert "blk.0.attn_q.weight" in message and "incorrect shape" in message
    deep = {"blk.30.attn_q.weight": (np.ones((2, 192)), np.ones((192, 2)))}
    assert "blk.30.attn_q.weight" in refused(base, lora(tmp_path / "deep.gguf", deep))


def test_what_is_no_adapter_is_refused(base, folder, tmp_path):
    assert "general.type" in refused(base, folder / "base.gguf")
    (tmp_path / "text.gguf").write_text("not a model")
    assert "text.gguf is no adapter of this model" in refused(base, tmp_path / "text.gguf")
    whole = (folder / "one.gguf").read_bytes()
    (tmp_path / "cut.gguf").write_bytes(whole[: len(whole) // 2])
    assert "cut.gguf is no adapter of this model" in refused(base, tmp_path / "cut.gguf")
    assert "no such file" in refused(base, tmp_path / "missing.gguf")


def test_one_bad_adapter_gives_back_the_good_one(base, folder, tmp_path, plain):
    with pytest.raises(BadWeights, match="no such file"):
        load_adapters(base, ModelConfig(lora_adapters=["a", "b"]), [folder / "one.gguf", tmp_path / "b.gguf"])
    assert np.array_equal(logits(base), plain)


def test_files_and_names_must_agree(base, folder):
    with pytest.raises(LoadError, match="2 LoRA adapters are named, and 1 files"):
        load_adapters(base, ModelConfig(lora_adapters=["a", "b"]), [folder / "one.gguf"])
