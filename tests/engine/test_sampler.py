"""The twin: distributions by the published formulas over seeds, histories, and what its random numbers depend on."""

import itertools
from collections import Counter

import numpy as np
import pytest
from sampling_formulas import (
    CASES,
    CONTEXT,
    DRAWS,
    END,
    EXTREMES,
    LOGITS,
    OFF,
    PLAIN,
    dry,
    mirostat_1,
    mirostat_2,
    penalties,
    softmax,
    surprise,
)

from llmgallery.core.sampling import Sampling
from llmgallery.engine.repetition import Words
from llmgallery.engine.sampler import Sampler

ARRAY = np.array(LOGITS, np.float32)


def sampler(sampling: Sampling, prompt=(), **more) -> Sampler:
    return Sampler(sampling.over(OFF), list(prompt), **{"vocab_size": len(LOGITS), "ends": {END}, "context_size": CONTEXT} | more)


def expected(weights: dict[int, float]) -> np.ndarray:
    spread = np.zeros(len(LOGITS))
    for token, share in softmax(weights).items():
        spread[token] = share
    return spread


@pytest.mark.parametrize("name", CASES)
def test_the_twin_draws_by_the_formula(name: str) -> None:
    case = CASES[name]
    counts = Counter(sampler(Sampling(seed=seed).over(case.sampling), case.prompt).sample(ARRAY) for seed in range(DRAWS))
    assert surprise(counts, case.expected) < 1
    assert name in ("plain", "xtc, one candidate above") or surprise(counts, softmax(PLAIN)) > 2


@pytest.mark.parametrize("name", [name for name in CASES if name != "xtc half"])
def test_the_probabilities_are_the_formula_s(name: str) -> None:
    case = CASES[name]
    spread = np.zeros(len(LOGITS))
    for token, share in case.expected.items():
        spread[token] = share
    np.testing.assert_allclose(sampler(case.sampling, case.prompt).apply(ARRAY), spread, atol=1e-6)


def test_one_sampler_draws_independently_and_repeats_with_its_seed() -> None:
    one = sampler(Sampling(seed=9))
    tokens = [one.sample(ARRAY) for _ in range(DRAWS)]
    assert surprise(Counter(tokens), softmax(PLAIN)) < 1
    after = Counter(second for first, second in itertools.pairwise(tokens) if first == 0)
    assert surprise(after, softmax(PLAIN)) < 1
    again = sampler(Sampling(seed=9))
    assert [again.sample(ARRAY) for _ in range(50)] == tokens[:50]
    assert [sampler(Sampling(seed=-(2**63))).sample(ARRAY) for _ in range(3)] == [sampler(Sampling(seed=2**63)).sample(ARRAY)] * 3


def test_without_a_seed_answers_differ() -> None:
    flat = np.zeros(1000, np.float32)
    assert len({sampler(Sampling(seed=seed), vocab_size=1000).sample(flat) for seed in (None, -1) * 10}) > 10


def test_the_logits_stay_as_they_were() -> None:
    logits = ARRAY.copy()
    sampler(Sampling(temperature=0.5, presence_penalty=1, logit_bias={3: 2.0}), [1, 2]).sample(logits)
    assert logits.tolist() == ARRAY.tolist()


def test_xtc_acts_always_never_or_half_of_the_time() -> None:
    for probability, least, most in ((0.0, 0, 0), (1.0, 300, 300), (0.5, 110, 190)):
        one = sampler(Sampling(seed=4, xtc_probability=probability, xtc_threshold=0.1))
        acted = sum(one.apply(ARRAY)[0] == 0 for _ in range(300))
        assert least <= acted <= most


def test_what_is_sampled_and_what_is_accepted_counts() -> None:
    one = sampler(Sampling(seed=1, frequency_penalty=0.8, repeat_last_n=3), [5])
    history = [5, one.sample(ARRAY)]
    one.accept(7)
    history.append(7)
    np.testing.assert_allclose(one.apply(ARRAY), expected(penalties(PLAIN, history, 1, 0.8, 0)), atol=1e-6)
    history.append(one.sample(ARRAY))
    np.testing.assert_allclose(one.apply(ARRAY), expected(penalties(PLAIN, history[-3:], 1, 0.8, 0)), atol=1e-6)


@pytest.mark.parametrize(("version", "cut"), [(1, mirostat_1), (2, mirostat_2)])
def test_mirostat_moves_its_bound_as_the_paper_says(version: int, cut) -> None:
    tau, eta = 2.2, 0.3
    one = sampler(Sampling(seed=2, mirostat=version, mirostat_tau=tau, mirostat_eta=eta))
    mu, sizes, surprises = 2 * tau, set(), []
    for _ in range(300):
        assert one.mu == pytest.approx(mu, abs=1e-4)
        shares = softmax(cut(PLAIN, mu))
        np.testing.assert_allclose(one.apply(ARRAY), expected(cut(PLAIN, mu)), atol=1e-6)
        sizes.add(len(shares))
        surprises.append(-np.log2(shares[one.sample(ARRAY)]))
        mu -= eta * (surprises[-1] - tau)
    assert len(sizes) > 2
    assert np.mean(surprises) == pytest.approx(tau, abs=0.1)


def test_breakers_are_found_inside_and_across_tokens() -> None:
    pieces = [b"a", b"b", b"x\n", b"y:", b"=", b"z:=>", b"=>", b"q"]
    words = Words(pieces, lambda text: [pieces.index(text)])
    assert words.heads((b"\n",)) == {2: {()}}
    assert words.heads((b":=",)) == {3: {(4,)}, 5: {()}}
    assert words.heads((b":=>",)) == {3: {(6,)}, 5: {()}}
    assert words.heads((b"\n", b":=")) == {2: {()}, 3: {(4,)}, 5: {()}}


def test_a_repetition_ends_at_a_breaker() -> None:
    pieces = [b"%d" % token for token in range(len(LOGITS))]
    words = Words(pieces, lambda text: [pieces.index(text)])
    seen = [0, 3, 1, 2, 4, 0, 3, 1, 2]
    asked = Sampling(dry_multiplier=0.7, dry_base=1.4, dry_sequence_breakers=("3",))
    np.testing.assert_allclose(
        sampler(asked, seen, words=words).apply(ARRAY), expected(dry(PLAIN, seen, 0.7, 1.4, 2, [3])), atol=1e-6
    )
    longer = expected(dry(PLAIN, seen, 0.7, 1.4, 2))
    np.testing.assert_allclose(sampler(asked, seen).apply(ARRAY), longer, atol=1e-6)
    assert abs(longer - expected(dry(PLAIN, seen, 0.7, 1.4, 2, [3]))).max() > 0.01


def test_extreme_numbers_leave_a_distribution() -> None:
    for asked in EXTREMES:
        one = sampler(asked, [1] * 60)
        for _ in range(20):
            assert one.apply(ARRAY * 100).sum() == pytest.approx(1, abs=1e-5)
            one.sample(ARRAY * 100)
