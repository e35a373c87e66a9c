"""Embeddings of the real MiniLM against transformers', and every edge of what may be asked."""

from __future__ import annotations

import base64
import json
from pathlib import Path

import generated_models
import numpy as np
import pytest
from pooled_listening import Started, numbers, started

from llmgallery import paths
from llmgallery.backends.base import EmbedJob, Job, RerankJob
from llmgallery.config.model import Parameters
from llmgallery.core.errors import Cancelled, ContextExceeded, InvalidField, LoadError, UnsupportedField, WorkerDied
from llmgallery.core.sampling import Sampling

CASES = json.loads((Path(__file__).parents[1] / "cases" / "minilm_vectors.json").read_text())
TEXTS = [case["text"] for case in CASES]
EXPECTED = [np.frombuffer(base64.b64decode(case["vector"]), "<f4") for case in CASES]
POCKET = paths.builtin("models") / "pocket-f16.gguf"
CLS, SEP, HELLO = 101, 102, 7592


@pytest.fixture(scope="module")
def file(tmp_path_factory):
    return generated_models.minilm(tmp_path_factory.mktemp("minilm"))


@pytest.fixture(scope="module")
def minilm(file):
    with started(file) as model:
        yield model


def test_what_minilm_can(minilm: Started):
    loaded = minilm.loaded
    assert loaded.capabilities == {"embed"} and loaded.embedding_size == 384
    assert loaded.context_size == 512 and loaded.vocab_size == 30522
    assert loaded.memory_bytes > loaded.details["weights_bytes"] == 90261504


def test_vectors_are_those_of_transformers(minilm: Started):
    made = minilm.embed(*TEXTS)
    assert len(made) == len(TEXTS) >= 24
    distances = {text: float(vector @ expected) for text, vector, expected in zip(TEXTS, made, EXPECTED, strict=True)}
    assert min(distances.values()) > 0.9999, distances
    assert all(abs(np.linalg.norm(vector) - 1) < 1e-5 for vector in made)


def test_a_text_alone_is_the_text_in_a_batch(minilm: Started):
    together = minilm.embed(*TEXTS)
    for text, beside in zip(TEXTS, together, strict=True):
        (alone,) = minilm.embed(text)
        assert float(alone @ beside) > 0.99999, text


def test_dimensions_and_length(minilm: Started):
    (whole,) = minilm.embed("tea", normalize=False)
    (unit,) = minilm.embed("tea")
    assert np.linalg.norm(whole) > 1.5
    assert np.allclose(whole / np.linalg.norm(whole), unit, atol=1e-6)
    (short,) = minilm.embed("tea", dimensions=64)
    assert short.shape == (64,) and abs(np.linalg.norm(short) - 1) < 1e-5
    assert np.allclose(short, unit[:64] / np.linalg.norm(unit[:64]), atol=1e-6)
    (raw,) = minilm.embed("tea", dimensions=1, normalize=False)
    assert raw.tolist() == whole[:1].tolist()
    with pytest.raises(InvalidField, match="dimensions: 1 to 384, not 385"):
        minilm.backend.embed(EmbedJob(900, ["tea"], dimensions=385))


def test_token_ids_are_taken_as_they_are(minilm: Started):
    from_text = minilm.embedded("hello")
    from_tokens = minilm.embedded([CLS, HELLO, SEP])
    assert from_text.prompt_tokens == from_tokens.prompt_tokens == 3
    assert numbers(from_text.vectors[0]) @ numbers(from_tokens.vectors[0]) > 0.999999
    (bare,) = minilm.embed([HELLO])
    assert numbers(from_text.vectors[0]) @ bare < 0.9


def test_inputs_up_to_the_limit_and_not_beyond(minilm: Started):
    exact, over = "word " * 510, "word " * 511
    assert minilm.embedded(exact).prompt_tokens == 512
    with pytest.raises(ContextExceeded, match=r"input\[1\] has 513 tokens, but this model takes 512") as caught:
        minilm.backend.embed(EmbedJob(901, ["fine", over]))
    assert caught.value.field == "input[1]"
    with pytest.raises(ContextExceeded, match=r"input\[0\] has 100000 tokens"):
        minilm.backend.embed(EmbedJob(902, [[HELLO] * 100000]))
    assert minilm.embedded([HELLO] * 512).prompt_tokens == 512
    with pytest.raises(ContextExceeded, match="513 tokens"):
        minilm.backend.embed(EmbedJob(903, [[HELLO] * 513]))


def test_long_inputs_are_cut_before_their_end_token(minilm: Started):
    cut = minilm.embedded("word " * 900, truncate=True)
    assert cut.prompt_tokens == 512
    (exact,) = minilm.embed("word " * 510)
    assert numbers(cut.vectors[0]) @ exact > 0.999999
    assert minilm.embedded([HELLO] * 900, truncate=True).prompt_tokens == 512


def test_texts_of_next_to_nothing(minilm: Started):
    assert minilm.embedded("").prompt_tokens == minilm.embedded(" \n\t ").prompt_tokens == 2
    assert minilm.embedded("[CLS]").prompt_tokens == 3
    for odd in ("", "\0", "\ud800", "[SEP][SEP]", "\u200b", "\ufffd"):
        (vector,) = minilm.embed(odd)
        assert np.isfinite(vector).all() and abs(np.linalg.norm(vector) - 1) < 1e-5
    assert all(np.isfinite(vector).all() for vector in minilm.embed([CLS], [SEP], [0]))


def test_what_is_no_input(minilm: Started):
    for tokens in ([HELLO, 30522], [-1], [2**40]):
        with pytest.raises(InvalidField, match=r"input\[0\]: token .* is not in the vocabulary of 30522"):
            minilm.backend.embed(EmbedJob(904, [tokens]))
    with pytest.raises(InvalidField, match=r"input\[1\] is empty"):
        minilm.backend.embed(EmbedJob(905, ["a", []]))
    with pytest.raises(UnsupportedField, match="reranking: true"):
        minilm.backend.rerank(RerankJob(906, "a", ["b"]))
    with pytest.raises(UnsupportedField, match="answers nothing"):
        minilm.backend.submit(Job(907, [CLS], Sampling()))
    assert not {result.id for result in minilm.listener.results} & {904, 905, 906, 907}


def test_many_sizes_at_once(minilm: Started):
    """Packs of every shape: more inputs than sequences, exactly full ones, one that fills a decode alone."""
    sizes = [1] * 130 + [512] + [8] * 64 + [511, 1, 256, 256, 257, 255, 300, 300] + list(range(1, 40))
    result = minilm.embedded(*[[HELLO] * size for size in sizes])
    assert result.prompt_tokens == sum(sizes)
    vectors = [numbers(vector) for vector in result.vectors]
    first: dict[int, np.ndarray] = {}
    for size, vector in zip(sizes, vectors, strict=True):
        assert float(first.setdefault(size, vector) @ vector) > 0.99999


def test_small_jobs_pass_big_ones_which_can_be_withdrawn(minilm: Started):
    backend, listener = minilm.backend, minilm.listener
    backend.embed(EmbedJob(5000, ["a word or two to embed, more or less"] * 2000))
    backend.embed(EmbedJob(5001, ["tea"]))
    assert listener.result(5001).error is None
    assert not any(result.id == 5000 for result in listener.results)
    backend.cancel(5000)
    assert isinstance(listener.result(5000).error, Cancelled)
    backend.cancel(5000)
    assert len(minilm.embed("and on it goes")) == 1
    assert [result.id for result in listener.results].count(5000) == 1


def test_closing_ends_running_jobs(file):
    with started(file) as model:
        for id in range(3):
            model.backend.embed(EmbedJob(id, ["a word or two to embed"] * 500))
    assert sorted(result.id for result in model.listener.results) == [0, 1, 2]
    assert all(isinstance(model.listener.result(id).error, WorkerDied) for id in range(3))
    with pytest.raises(LoadError):
        model.backend.embed(EmbedJob(9, ["x"]))


@pytest.mark.parametrize("context_size", [1, 2, 40, 300, 4096])
def test_the_context_that_was_asked_for(file, context_size):
    with started(file, context_size=context_size) as model:
        limit = min(context_size, 512)
        assert model.loaded.context_size == limit
        assert model.embedded([HELLO] * limit).prompt_tokens == limit
        with pytest.raises(ContextExceeded, match=f"takes {limit}"):
            model.backend.embed(EmbedJob(90, [[HELLO] * (limit + 1)]))
        assert model.embedded("some words here " * 300, truncate=True).prompt_tokens == limit


@pytest.mark.parametrize(
    "keys", [{"options": {"pooling": "cls"}}, {"options": {"pooling": "last"}}, {"parameters": Parameters(pooling="cls")}]
)
def test_other_poolings(file, minilm, keys):
    same = [CLS, HELLO, SEP]
    (mean,) = minilm.embed(same)
    with started(file, **keys) as model:
        (vector,) = model.embed(same)
        (text,) = model.embed("hello")
        assert vector @ text > 0.99999 and vector @ mean < 0.99


def test_impossible_poolings(file):
    for keys, reason in (
        ({"options": {"pooling": "none"}}, "pooling: none"),
        ({"options": {"pooling": "rank"}}, "no classifier"),
        ({"reranking": True}, "no classifier"),
        ({"reranking": True, "embeddings": True}, "one of the two"),
        ({"options": {"pooling": "sum"}}, "pooling"),
    ):
        with pytest.raises(LoadError, match=reason):
            Started(file, **keys)


def test_a_model_that_was_not_asked_to_embed(tmp_path):
    with started(POCKET, parallel=1) as model:
        assert "embed" not in model.loaded.capabilities and model.loaded.embedding_size == 0
        with pytest.raises(UnsupportedField, match="set embeddings: true"):
            model.backend.embed(EmbedJob(1, ["x"]))
        with pytest.raises(UnsupportedField, match="reranking: true"):
            model.backend.rerank(RerankJob(2, "x", ["y"]))
    with pytest.raises(LoadError, match="embeddings: true"):
        Started(POCKET, parallel=1, options={"pooling": "mean"})
    with pytest.raises(LoadError, match="no classifier"):
        Started(POCKET, parallel=1, reranking=True)
