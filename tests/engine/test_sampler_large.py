"""Shortcuts for large vocabularies choose what the long way chooses."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from llmgallery.core.sampling import Sampling
from llmgallery.engine.sampler import Candidates, Sampler, _highest


@given(
    seed=st.integers(0, 2**32 - 1), size=st.integers(2, 60_000), k=st.integers(1, 60), rounded=st.booleans(), masked=st.booleans()
)
@settings(max_examples=150, deadline=None)
def test_the_highest_logits_are_found(seed: int, size: int, k: int, rounded: bool, masked: bool) -> None:
    random = np.random.default_rng(seed)
    logits = random.normal(size=size).astype(np.float32) * 3
    logits = np.round(logits) if rounded else logits
    if masked:
        logits[random.random(size) < 0.999] = -np.inf
    k = min(k, size - 1)
    places = _highest(logits, k)
    assert len(set(places.tolist())) == k
    assert np.array_equal(np.sort(logits[places]), np.sort(logits)[-k:])


@given(st.lists(st.integers(-5, 60), max_size=12))
def test_tokens_are_found_in_a_whole_vocabulary_as_in_a_part(tokens: list[int]) -> None:
    whole = Candidates(np.arange(50), np.zeros(50, np.float32), whole=True)
    part = Candidates(np.arange(50), np.zeros(50, np.float32))
    assert whole.find(tokens).tolist() == part.find(tokens).tolist()
    whole.keep(np.array([7, 3, 9]))
    assert whole.find([3, 9, 11]).tolist() == [1, 2]


@pytest.mark.parametrize("sampling", [Sampling(), Sampling(repeat_penalty=1.3, frequency_penalty=0.4, repeat_last_n=-1)])
def test_a_large_vocabulary_is_drawn_from_as_a_small_one_within_it(sampling: Sampling) -> None:
    """Tokens far below the rest change nothing."""
    small = np.random.default_rng(1).normal(size=300).astype(np.float32) * 2
    large = np.full(150_000, -80.0, np.float32)
    large[:300] = small
    prompt = [5, 7, 7, 290]
    makers = (Sampler(sampling, prompt, vocab_size=len(row), ends=(), context_size=99) for row in (small, large))
    told = [sampler.apply(row) for sampler, row in zip(makers, (small, large), strict=True)]
    assert np.allclose(told[0], told[1][:300], atol=1e-6) and told[1][300:].sum() == 0
