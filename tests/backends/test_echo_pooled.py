"""echo's vectors and scores: what tests of the whole stack rely on."""

from __future__ import annotations

import math
import threading
from array import array
from collections.abc import Iterator

import pytest
from hypothesis import given
from hypothesis import strategies as st

from llmgallery.backends.base import EmbedJob, Pooled, RerankJob
from llmgallery.backends.echo.pooled import SIZE, EchoPool, score, vector
from llmgallery.backends.echo.spec import EchoOptions
from llmgallery.core.errors import Cancelled, ContextExceeded, WorkerDied

SECONDS = 20


class Results:
    """Keeps what is emitted, and waits for it."""

    def __init__(self) -> None:
        self.by_id: dict[int, Pooled] = {}
        self._changed = threading.Condition()

    def __call__(self, result: Pooled) -> None:
        with self._changed:
            assert result.id not in self.by_id
            self.by_id[result.id] = result
            self._changed.notify_all()

    def wait(self, *ids: int) -> list[Pooled]:
        with self._changed:
            assert self._changed.wait_for(lambda: self.by_id.keys() >= set(ids), SECONDS)
        return [self.by_id[id] for id in ids]


@pytest.fixture
def results() -> Results:
    return Results()


@pytest.fixture
def pool(results: Results) -> Iterator[EchoPool]:
    pool = EchoPool(EchoOptions(), 20, results)
    yield pool
    pool.close()


def numbers(vector: bytes) -> list[float]:
    return array("f", vector).tolist()


@given(st.text(), st.integers(1, SIZE))
def test_vectors_are_unit_vectors_of_the_words_in_them(text: str, dimensions: int) -> None:
    whole, first = numbers(vector(text)), numbers(vector(text, dimensions))
    assert len(whole) == SIZE and len(first) == dimensions
    assert math.hypot(*whole) == pytest.approx(1, abs=1e-6)
    cut = math.hypot(*whole[:dimensions])
    assert first == pytest.approx([number / cut if cut else 0 for number in whole[:dimensions]], abs=1e-6)
    assert all(number == int(number) for number in numbers(vector(text, normalize=False)))


def test_texts_of_the_same_words_are_the_same_and_scores_are_shares() -> None:
    assert vector("Red, fox!") == vector("fox red") != vector("blue fox")
    assert [score("a b c d", text) for text in ("", "d", "c, a.", "a b c d e")] == [0, 0.25, 0.5, 1]


def test_token_ids_are_the_text_that_they_say(pool: EchoPool, results: Results) -> None:
    pool.add(EmbedJob(1, ["hi", list(b"hi")]))
    (result,) = results.wait(1)
    assert result.vectors == (vector("hi"), vector("hi")) and result.prompt_tokens == 4


def test_long_inputs_are_refused_or_cut(pool: EchoPool, results: Results) -> None:
    with pytest.raises(ContextExceeded) as caught:
        pool.add(EmbedJob(1, ["ok", "x" * 21]))
    assert caught.value.field == "input[1]"
    with pytest.raises(ContextExceeded) as caught:
        pool.add(RerankJob(2, "q", ["ok", "x" * 21]))
    assert caught.value.field == "documents[1]"
    pool.add(EmbedJob(3, ["x" * 21], truncate=True))
    assert results.wait(3)[0].vectors == (vector("x" * 20),)


def test_every_job_ends_once_also_when_it_is_cancelled_or_the_model_goes(results: Results, tmp_path) -> None:
    pool = EchoPool(EchoOptions(gate=str(tmp_path / "gate")), 20, results)
    for id in range(4):
        pool.add(EmbedJob(id, ["a"]))
    pool.cancel(2)
    pool.cancel(2)
    pool.cancel(99)
    assert isinstance(results.wait(2)[0].error, Cancelled)
    pool.close()
    ended = results.wait(0, 1, 3)
    assert all(isinstance(result.error, Cancelled | WorkerDied) for result in ended)
    assert len(results.by_id) == 4


def test_logits_are_scores_on_another_scale(results: Results) -> None:
    pool = EchoPool(EchoOptions(logits=True), 20, results)
    pool.add(RerankJob(1, "a b", ["a", "b a", ""]))
    (result,) = results.wait(1)
    assert [numbers(score) for score in result.vectors] == [[0.0], [4.0], [-4.0]]
    assert result.prompt_tokens == (3 + 1) + (3 + 3) + 3
    pool.close()
