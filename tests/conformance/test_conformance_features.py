"""What only some engines have: vectors, scores, images, adapters, text between texts; and that the others refuse."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
from conformance_checks import check, lack
from conformance_driving import GREEDY, PROMPTS, Driven, png

from llmgallery.backends.base import EmbedJob, RerankJob
from llmgallery.core.errors import ContextExceeded, InvalidField, UnsupportedField
from llmgallery.core.messages import ImagePart, Message, TextPart
from llmgallery.core.requests import ChatRequest, CompletionRequest

SENTENCES = ("the quick brown fox", "What is the capital of France?", "tea", "two, three and four; the rain")


@check("embed")
def test_vectors_are_the_librarys_own(drive: Callable[..., Driven]) -> None:
    driven = drive("embed")
    made = np.stack(driven.embed(*SENTENCES))
    expected = driven.case.embed(driven.model, SENTENCES)
    assert made.shape == expected.shape == (len(SENTENCES), driven.loaded.embedding_size)
    assert np.abs(made - expected).max() < driven.case.vector_tolerance
    assert np.abs(np.linalg.norm(made, axis=1) - 1).max() < 1e-5
    assert (made[0] @ made[1:].T).max() < 0.9999, "texts of their own have vectors of their own"
    alone = np.stack([driven.embed(text)[0] for text in SENTENCES])
    assert np.abs(made - alone).max() < driven.case.vector_tolerance


@check("embed")
def test_vectors_are_cut_before_they_are_normalised(drive: Callable[..., Driven]) -> None:
    driven = drive("embed")
    half = driven.loaded.embedding_size // 2
    (whole,), (cut,) = driven.embed(SENTENCES[0]), driven.embed(SENTENCES[0], dimensions=half)
    assert cut == pytest.approx(whole[:half] / np.linalg.norm(whole[:half]), abs=1e-5)


@check("embed")
def test_texts_that_are_too_long_are_refused_or_cut(drive: Callable[..., Driven]) -> None:
    driven = drive("embed")
    long = "tea and rain " * driven.loaded.context_size
    with pytest.raises(ContextExceeded) as caught:
        driven.backend.embed(EmbedJob(10_000, ("short", long)))
    assert caught.value.field == "input[1]"
    (vector,) = driven.embed(long, truncate=True)
    assert np.isfinite(vector).all()


@lack("embed")
def test_no_vectors_are_promised(driven: Driven) -> None:
    driven.assert_refused("embed")
    with pytest.raises(UnsupportedField):
        driven.backend.embed(EmbedJob(10_004, ("tea",)))


@check("embed")
@pytest.mark.parametrize("capability", ["embed", "rerank"])
def test_a_model_that_answers_refuses_what_it_was_not_loaded_for(driven: Driven, capability: str) -> None:
    assert capability not in driven.loaded.capabilities
    with pytest.raises(UnsupportedField):
        driven.backend.embed(EmbedJob(10_001, ("x",))) if capability == "embed" else driven.backend.rerank(
            RerankJob(1, "x", ["y"])
        )


@check("rerank")
def test_scores_are_the_librarys_own(drive: Callable[..., Driven]) -> None:
    driven = drive("rerank")
    query, *documents = "what is tea?", "tea is a drink", "rain falls on the roof", "what?", "tea " * 9
    made = driven.rerank(query, *documents)
    assert made == pytest.approx(driven.case.rerank(driven.model, query, documents), abs=driven.case.vector_tolerance)
    assert "probabilities" not in driven.loaded.capabilities or all(0 <= score <= 1 for score in made)
    assert max(made) - min(made) > 0.05, "it makes no difference what documents say"
    assert [driven.rerank(query, document)[0] for document in documents] == pytest.approx(made, abs=driven.case.vector_tolerance)


@check("rerank")
def test_documents_that_are_too_long_are_refused_or_cut(drive: Callable[..., Driven]) -> None:
    driven = drive("rerank")
    long = "tea and rain " * driven.loaded.context_size
    with pytest.raises(ContextExceeded) as caught:
        driven.backend.rerank(RerankJob(10_002, "tea", ("short", long)))
    assert caught.value.field == "documents[1]"
    assert np.isfinite(driven.rerank("tea", long, truncate=True)).all()


@lack("rerank")
def test_no_scores_are_promised(driven: Driven) -> None:
    driven.assert_refused("rerank")
    with pytest.raises(UnsupportedField):
        driven.backend.rerank(RerankJob(10_003, "tea", ("tea",)))


@check("images")
def test_answers_to_images_are_the_librarys_own(drive: Callable[..., Driven]) -> None:
    driven = drive("images")
    assert "images" in driven.loaded.capabilities
    told = set()
    for image in (png(255, 0, 0), png(0, 0, 255)):
        (answer,) = driven.run(driven.seeing("What is it?", image))
        expected = driven.case.see(driven.model, "What is it?", image, GREEDY.max_tokens or 0)
        assert (answer.tokens, answer.finish == "stop") == (expected.tokens, expected.ended)
        told.add(answer.tokens)
    assert len(told) == 2, "it does not look at the image"


@check("images")
def test_what_is_no_image_is_refused(drive: Callable[..., Driven]) -> None:
    driven = drive("images")
    with pytest.raises(InvalidField):
        driven.seeing("What is it?", b"no image at all")


@check("images")
def test_a_model_that_sees_nothing_refuses_images(driven: Driven) -> None:
    assert "images" not in driven.loaded.capabilities
    with pytest.raises(UnsupportedField):
        driven.seeing("What is it?", png(255, 0, 0))


@lack("images")
def test_no_sight_is_promised(driven: Driven) -> None:
    message = Message("user", (ImagePart(png(255, 0, 0)), TextPart("What is it?")))
    driven.assert_refused("images", ChatRequest((message,)))


@check("lora")
def test_answers_with_an_adapter_are_the_librarys_own(drive: Callable[..., Driven]) -> None:
    driven, plain = drive("lora"), drive()
    assert driven.model.files.adapters
    changed = 0
    for text in PROMPTS:
        job = driven.chat(text)
        (answer,) = driven.run(job)
        expected = driven.case.greedy(driven.model, job.prompt, GREEDY.max_tokens or 0)
        assert (answer.tokens, answer.finish == "stop") == (expected.tokens, expected.ended), text
        changed += answer.tokens != plain.ask(text)[0].tokens
    assert changed, "the adapter changes nothing"


@lack("lora")
def test_no_adapters_are_promised(driven: Driven) -> None:
    driven.assert_refused("lora")
    assert not {"lora_adapter", "lora_adapters"} & driven.case.spec.keys, "a model file that names one is warned about"


@check("suffix")
def test_prefix_and_suffix_reach_the_model(drive: Callable[..., Driven]) -> None:
    driven = drive("suffix")
    assert driven.loaded.fim is not None
    before, after, middle = driven.loaded.fim
    job = driven.prepared(CompletionRequest("def one():", GREEDY, suffix="return 1"))
    prefix, suffix = (driven.backend.tokenize(text, special=False, bos=False) for text in ("def one():", "return 1"))
    assert list(job.prompt)[-len(prefix) - len(suffix) - 3 :] == [before, *prefix, after, *suffix, middle]
    (answer,) = driven.run(job)
    expected = driven.case.greedy(driven.model, job.prompt, GREEDY.max_tokens or 0)
    assert (answer.tokens, answer.finish == "stop") == (expected.tokens, expected.ended)


@check("suffix")
def test_a_model_without_marks_refuses_a_suffix(driven: Driven) -> None:
    assert driven.loaded.fim is None
    with pytest.raises(UnsupportedField):
        driven.prepared(CompletionRequest("def one():", GREEDY, suffix="return 1"))


@lack("suffix")
def test_no_filling_in_is_promised(driven: Driven) -> None:
    driven.assert_refused("suffix", CompletionRequest("def one():", suffix="return 1"))


@lack("tools")
def test_no_calls_of_its_own_are_promised(driven: Driven) -> None:
    assert "tools" not in driven.loaded.capabilities
