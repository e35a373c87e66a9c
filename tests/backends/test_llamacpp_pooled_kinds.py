"""Vectors of models that answer too, of every kind of cache; and scores, of an encoder and of a causal model."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import generated_models
import gguf
import numpy as np
import pytest
import tiny_models
from pooled_listening import Started, numbers, started

from llmgallery import paths
from llmgallery.backends.base import EmbedJob, Job, RerankJob
from llmgallery.backends.llamacpp import api
from llmgallery.backends.llamacpp.api.pooled import POOLINGS, PooledContext
from llmgallery.core.errors import ContextExceeded, LoadError, UnsupportedField
from llmgallery.core.sampling import Sampling

POCKET = paths.builtin("models") / "pocket-f16.gguf"
SCORES = json.loads((Path(__file__).parents[1] / "cases" / "rerank_scores.json").read_text())
SIZES = (1, 7, 256, 30, 700, 2, 1024, 257, 64)  # a decode holds 256
KINDS = ("plain", "windowed", "recurrent", "hybrid")


def tokens_of(size: int) -> list[int]:
    return [(17 * size + 31 * place) % 299 for place in range(size)]


def unit(vector: np.ndarray) -> np.ndarray:
    return vector / np.linalg.norm(vector)


def by_token(model: api.Model, tokens: Sequence[int], pooling: str = "none") -> np.ndarray:
    """What llama.cpp makes of the tokens alone in one decode: a vector of each, or one."""
    params = api.ContextParams(context=1024, sequences=1, batch=1024, ubatch=1024, threads=1, threads_batch=1)
    context = PooledContext(model, params, pooling)
    assert context.pooling == POOLINGS[pooling] and context.is_causal and context.has_memory
    batch = api.Batch(1024)
    batch.add(0, 0, tokens, wants_logits=len(tokens))
    assert context.compute(batch) == 0
    made = context.vectors(len(tokens)) if pooling == "none" else context.vector(0)
    context.close()
    return numbers(made).reshape(-1, tiny_models.WIDTH)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("kinds")


@pytest.mark.parametrize("kind", KINDS)
def test_pooling_is_that_of_the_tokens(tiny, folder, kind):
    reference = {size: by_token(tiny(kind), tokens_of(size)) for size in SIZES}
    pooled = {"last": lambda rows: rows[-1], "mean": lambda rows: rows.mean(axis=0), "cls": lambda rows: rows[0]}
    for pooling, pool in pooled.items():
        with started(tiny_models.KINDS[kind](folder), embeddings=True, parallel=1, options={"pooling": pooling}) as model:
            assert model.loaded.capabilities >= {"embed", "generate"} and model.loaded.embedding_size == tiny_models.WIDTH
            made = model.embed(*[tokens_of(size) for size in SIZES])
        for size, vector in zip(SIZES, made, strict=True):
            assert vector @ unit(pool(reference[size])) > 0.9999, (pooling, size)


@pytest.mark.parametrize("pooling", ["mean", "last"])
def test_llama_cpp_pools_the_same(tiny, pooling):
    tokens = tokens_of(200)
    rows = by_token(tiny("plain"), tokens)
    mine = rows.mean(axis=0) if pooling == "mean" else rows[-1]
    assert unit(by_token(tiny("plain"), tokens, pooling)[0]) @ unit(mine) > 0.99999


def test_the_default_for_models_that_answer_is_the_last_token():
    with started(POCKET, embeddings=True, parallel=1) as model:
        whole = model.backend.tokenize("What is the capital of France?", special=True, bos=False)
        (text,) = model.embed("What is the capital of France?")
        (tokens,) = model.embed(whole)
        (tail,) = model.embed(whole[-1:])
    assert text @ tokens > 0.9999 and text @ tail < 0.999


def test_it_answers_while_it_embeds():
    prompt = "<|im_start|>user\nWhat is the capital of France?<|im_end|>\n<|im_start|>assistant\n"
    with started(POCKET, embeddings=True, parallel=2) as model:
        (alone,) = model.embed("Paris")
        tokens = model.backend.tokenize(prompt, special=True, bos=False)
        model.backend.embed(EmbedJob(700, ["Paris", *["The cat sat on the mat. " * 40] * 20]))
        for id in (701, 702):
            model.backend.submit(Job(id, tokens, Sampling(temperature=0, max_tokens=20)))
        model.listener.wait_for_end(701, 702)
        assert "Paris" in model.listener.text(701) and model.listener.text(701) == model.listener.text(702)
        beside = numbers(model.listener.result(700).vectors[0])
    assert beside @ alone > 0.9999


def test_inputs_of_a_causal_model_fill_its_context(folder):
    with started(tiny_models.plain(folder), embeddings=True, parallel=1, context_size=600) as model:
        assert model.embedded([5] * 600).prompt_tokens == 600
        with pytest.raises(ContextExceeded, match=r"input\[0\] has 601 tokens, but this model takes 600"):
            model.backend.embed(EmbedJob(90, [[5] * 601]))
        assert model.embedded([5] * 900, truncate=True).prompt_tokens == 600
        together = model.embed(*[tokens_of(size) for size in (600, 599, 10, 600)])
        alone = [model.embed(tokens_of(size))[0] for size in (600, 599, 10)]
    for first, second in zip(together, [*alone, alone[0]], strict=True):
        assert first @ second > 0.9999


@pytest.fixture(scope="module")
def scorer(folder):
    with started(generated_models.scorer(folder), flash_attention="off") as model:
        yield model


@pytest.mark.parametrize("case", SCORES, ids=lambda case: case["query"])
def test_scores_are_those_of_transformers(scorer: Started, case):
    """Random weights spread the scores over units; ggml looks GELU up in a table of half precision."""
    made = scorer.rerank(case["query"], *case["documents"])
    assert np.abs(np.array(made) - case["scores"]).max() < 3e-3, (made, case["scores"])
    assert np.ptp(made) > 0.05


def test_what_a_scorer_can(scorer: Started):
    assert scorer.loaded.capabilities == {"rerank"} and scorer.loaded.embedding_size == 0
    assert scorer.loaded.context_size == 96
    with pytest.raises(UnsupportedField, match="scores documents"):
        scorer.backend.embed(EmbedJob(90, ["x"]))
    assert scorer.rerank("rain") == []
    assert all(np.isfinite(score) for score in scorer.rerank("rain", "", " ", "\ud800"))


def test_pairs_up_to_the_limit(scorer: Started):
    """[CLS] rain [SEP] ... [SEP] leaves 92 places."""
    exact = "tea " * 92
    (score,) = scorer.rerank("rain", exact)
    with pytest.raises(ContextExceeded, match=r"documents\[1\] has 97 tokens, but this model takes 96"):
        scorer.backend.rerank(RerankJob(91, "rain", ["tea", exact + "tea"]))
    assert scorer.rerank("rain", "tea " * 500, truncate=True) == pytest.approx([score], abs=1e-4)
    with pytest.raises(ContextExceeded, match="query has 104 tokens"):
        scorer.backend.rerank(RerankJob(92, "rain " * 101, ["tea"], truncate=True))


def test_many_documents_at_once(scorer: Started):
    documents = [f"rain {index} tea {'a' * (index % 50)}" for index in range(200)]
    together = scorer.rerank("rain", *documents)
    assert together[::40] == pytest.approx([scorer.rerank("rain", document)[0] for document in documents[::40]], abs=2e-3)
    assert len(set(together)) > 150


def test_an_encoder_with_a_classifier_can_still_embed(folder):
    with started(generated_models.scorer(folder), embeddings=True) as model:
        assert model.loaded.capabilities == {"embed"} and model.loaded.embedding_size == 64
        assert len(model.embed("rain")[0]) == 64
        with pytest.raises(UnsupportedField):
            model.backend.rerank(RerankJob(1, "x", ["y"]))


TEMPLATE = "Query:{query}\nDocument:{document}\nRelevant:"


def causal_scorer(folder: Path) -> Path:
    """As Qwen3-Reranker: a causal model whose last token is classified, with a text of its own around the two."""
    maker = tiny_models.Maker(folder / "causal-scorer.gguf", "qwen3")
    maker.heads()
    maker.writer.add_rope_dimension_count(tiny_models.HEAD)
    maker.writer.add_pooling_type(gguf.PoolingType.RANK)
    maker.writer.add_classifier_output_labels(["yes", "no"])
    maker.writer.add_string("tokenizer.chat_template.rerank", TEMPLATE)
    maker.matrix("cls.output.weight", 2, tiny_models.WIDTH)
    for index in range(tiny_models.LAYERS):
        block = f"blk.{index}"
        maker.ones(f"{block}.attn_norm.weight", tiny_models.WIDTH)
        maker.attention(block)
        maker.ones(f"{block}.attn_q_norm.weight", tiny_models.HEAD)
        maker.ones(f"{block}.attn_k_norm.weight", tiny_models.HEAD)
        maker.feed_forward(block)
    return maker.close()


def test_a_causal_scorer_with_its_own_text(folder):
    with started(causal_scorer(folder), context_size=600) as model:
        assert model.loaded.capabilities == {"rerank", "probabilities"}
        head = {tensor.name: tensor.data for tensor in gguf.GGUFReader(folder / "causal-scorer.gguf").tensors}[
            "cls.output.weight"
        ]
        documents = ["tea", "rain " * 100, "{query} and {document}", "x"]
        made = model.rerank("what is {document}?", *documents)
        weights = api.Model([folder / "causal-scorer.gguf"], api.ModelParams(), lambda fraction: None)
        for document, score in zip(documents, made, strict=True):
            text = f"Query:what is {{document}}?\nDocument:{document}\nRelevant:"
            last = by_token(weights, model.backend.tokenize(text, special=True, bos=False))[-1]
            logits = head @ last
            assert score == pytest.approx(float(np.exp(logits[0]) / np.exp(logits).sum()), abs=2e-3)
        weights.close()
        with pytest.raises(ContextExceeded, match=r"documents\[0\] has \d+ tokens, but this model takes 600"):
            model.backend.rerank(RerankJob(90, "q", ["long " * 300]))
        assert 0 < model.rerank("q", "long " * 300, truncate=True)[0] < 1
        with pytest.raises(ContextExceeded, match="query"):
            model.backend.rerank(RerankJob(91, "long " * 300, ["x"], truncate=True))


def test_a_causal_scorer_s_long_pairs_take_several_decodes(folder):
    with started(causal_scorer(folder), context_size=1024) as model:
        long, short = "long " * 190, "short"
        together = model.rerank("q", long, short, long)
        alone = [model.rerank("q", document)[0] for document in (long, short)]
    assert together == pytest.approx([*alone, alone[0]], abs=1e-3)


def test_settings_that_only_scorers_have(folder):
    with pytest.raises(LoadError, match="no classifier"):
        Started(tiny_models.plain(folder), parallel=1, options={"pooling": "rank"})
