"""Which of llama.cpp's scores are probabilities already: those of Qwen3's two labels, and no others."""

from __future__ import annotations

from pathlib import Path

import generated_models
import gguf
import tiny_models
from pooled_listening import started

QUERIES = ("is it w1?", "a", "another question altogether")
DOCUMENTS = ("yes", "no, it is not", "w2 w3 w4", "something else")


def qwen3(folder: Path, *, gain: float) -> Path:
    """Random weights; the classifier's two logits lie far apart, by `gain`."""
    maker = tiny_models.Maker(folder / "qwen3.gguf", "qwen3")
    maker.heads()
    maker.writer.add_pooling_type(gguf.PoolingType.RANK)
    maker.writer.add_classifier_output_labels(["yes", "no"])
    for block in range(tiny_models.LAYERS):
        maker.ones(f"blk.{block}.attn_norm.weight", tiny_models.WIDTH)
        maker.ones(f"blk.{block}.attn_q_norm.weight", tiny_models.HEAD)
        maker.ones(f"blk.{block}.attn_k_norm.weight", tiny_models.HEAD)
        maker.attention(f"blk.{block}")
        maker.feed_forward(f"blk.{block}")
    maker.matrix("cls.output.weight", 2, tiny_models.WIDTH, scale=gain)
    return maker.close()


def test_qwen3_tells_the_share_of_yes(tmp_path: Path) -> None:
    with started(qwen3(tmp_path, gain=5.0)) as model:
        assert model.loaded.capabilities == {"rerank", "probabilities"}
        scores = [score for query in QUERIES for score in model.rerank(query, *DOCUMENTS)]
    assert all(0 <= score <= 1 for score in scores)
    assert max(scores) - min(scores) > 0.5


def test_a_bert_tells_its_logit(tmp_path: Path) -> None:
    with started(generated_models.scorer(tmp_path)) as model:
        assert model.loaded.capabilities == {"rerank"}
        scores = [score for query in QUERIES for score in model.rerank(query, *DOCUMENTS)]
    assert not all(0 <= score <= 1 for score in scores)
