"""llama.cpp's chains as we build them: distributions by the published formulas, and equality with the engine's twin."""

import itertools
from collections import Counter
from collections.abc import Callable, Iterator

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from listening import Listener
from sampling_formulas import (
    CASES,
    CONTEXT,
    DRAWS,
    END,
    EXTREMES,
    LOGITS,
    OFF,
    PLAIN,
    Case,
    dry,
    mirostat_k,
    mirostat_size,
    softmax,
    surprise,
)

from llmgallery import paths
from llmgallery.backends.base import Files, Job
from llmgallery.backends.llamacpp import api
from llmgallery.backends.llamacpp.sampling import MOST_DRYS, DrySamplers, make_sampler, seed_of
from llmgallery.backends.loader import specs
from llmgallery.config.model import ModelConfig
from llmgallery.core.sampling import SAMPLERS, Sampling
from llmgallery.engine.repetition import Words
from llmgallery.engine.sampler import Sampler as Twin

ARRAY = np.array(LOGITS, np.float32)
BARE = DrySamplers()


def chain(sampling: Sampling, prompt=(), vocab_size: int = len(LOGITS), drys: DrySamplers = BARE, **more) -> api.Sampler:
    ends = {END} if vocab_size > END else ()
    return make_sampler(sampling, list(prompt), vocab_size=vocab_size, ends=ends, context_size=CONTEXT, drys=drys, **more)


def probabilities(sampling: Sampling, prompt, logits, **more) -> np.ndarray:
    sampler = chain(sampling, prompt, len(logits), **more)
    left = sampler.apply(np.array(logits, np.float32))
    sampler.close()
    spread = np.zeros(len(logits))
    if sampling.temperature == 0 and (sampling.mirostat or "temperature" in (sampling.samplers or SAMPLERS)):
        spread[left.chosen] = 1
        return spread
    weights = np.exp(left.logits.astype(float) - left.logits.max())
    spread[left.tokens] = weights / weights.sum()
    return spread


@pytest.mark.parametrize("name", CASES)
def test_a_chain_draws_by_the_formula(name: str) -> None:
    case: Case = CASES[name]
    counts = Counter()
    for seed in range(DRAWS):
        sampler = chain(Sampling(seed=seed).over(case.sampling), case.prompt)
        counts[sampler.apply(ARRAY).chosen] += 1
        sampler.close()
    assert surprise(counts, case.expected) < 1
    assert name in ("plain", "xtc, one candidate above") or surprise(counts, softmax(PLAIN)) > 2


def test_one_chain_draws_independently() -> None:
    sampler = chain(Sampling(seed=3).over(OFF))
    tokens = [sampler.apply(ARRAY).chosen for _ in range(DRAWS)]
    assert surprise(Counter(tokens), softmax(PLAIN)) < 1
    after = Counter(second for first, second in itertools.pairwise(tokens) if first == 0)
    assert surprise(after, softmax(PLAIN)) < 1
    again = chain(Sampling(seed=3).over(OFF))
    assert [again.apply(ARRAY).chosen for _ in range(50)] == tokens[:50]


def test_without_a_seed_answers_differ() -> None:
    flat = np.zeros(1000, np.float32)
    chosen = {chain(Sampling(seed=seed).over(OFF), (), 1000).apply(flat).chosen for seed in (None, -1) * 10}
    assert len(chosen) > 10


def test_seeds_fit_into_32_bits_and_never_mean_random_by_chance() -> None:
    assert seed_of(None) == seed_of(-1) == 2**32 - 1
    assert seed_of(42) == 42
    assert all(0 <= seed_of(seed) < 2**32 - 1 for seed in (2**32 - 1, -2, 2**70, -(2**63)))


def test_xtc_of_a_half_acts_half_of_the_time() -> None:
    sampler = chain(Sampling(seed=5, xtc_probability=0.5, xtc_threshold=0.1).over(OFF))
    acted = sum(len(sampler.apply(ARRAY).tokens) < len(LOGITS) for _ in range(DRAWS))
    assert abs(acted - DRAWS / 2) < 4 * np.sqrt(DRAWS / 4)
    for probability, left in ((0.0, len(LOGITS)), (1.0, len(LOGITS) - 3)):
        sampler = chain(Sampling(seed=5, xtc_probability=probability, xtc_threshold=0.1).over(OFF))
        assert {len(sampler.apply(ARRAY).tokens) for _ in range(100)} == {left}


@pytest.mark.parametrize("version", [1, 2])
def test_mirostat_moves_its_bound_as_the_paper_says(version: int) -> None:
    tau, eta, shares = 2.2, 0.3, softmax(PLAIN)
    sampler = chain(Sampling(seed=1, mirostat=version, mirostat_tau=tau, mirostat_eta=eta).over(OFF))
    mu, sizes, surprises = 2 * tau, set(), []
    for _ in range(300):
        left = sampler.apply(ARRAY)
        if version == 1:
            size = min(mirostat_k(shares, mu, len(LOGITS)), len(LOGITS))
        else:
            size = sum(-np.log2(share) <= mu for share in shares.values())
        assert sorted(left.tokens) == list(range(size))
        sizes.add(size)
        kept = softmax({token: LOGITS[token] for token in range(size)})
        surprises.append(-np.log2(kept[left.chosen]))
        mu -= eta * (surprises[-1] - tau)
    assert len(sizes) > 2
    assert np.mean(surprises) == pytest.approx(tau, abs=0.1)


def test_what_does_nothing_is_not_in_the_chain() -> None:
    assert len(chain(OFF)) == 1
    assert len(chain(Sampling(temperature=0, top_k=40, top_p=0.5, xtc_probability=1))) == 1
    assert len(chain(Sampling())) == 5
    idle = Sampling(dry_multiplier=0, dry_base=2, xtc_threshold=0.6, xtc_probability=1, top_n_sigma=-1, typical_p=1, mirostat=0)
    assert len(chain(idle.over(OFF))) == 1


def test_ends_are_ignored_and_suppressed_tokens_never_come() -> None:
    sampler = chain(Sampling(ignore_eos=True, logit_bias={END: 100.0, 0: 1.0}).over(OFF), suppressed=(1,))
    left = sampler.apply(ARRAY)
    logits = dict(zip(left.tokens.tolist(), left.logits.tolist(), strict=True))
    assert logits[END] == logits[1] == -np.inf
    assert logits[0] == 3.0


def test_a_look_back_beyond_the_context_takes_no_memory_for_it() -> None:
    wanted = Sampling(presence_penalty=1, repeat_last_n=2**31 - 1, dry_multiplier=1, dry_penalty_last_n=2**31 - 1)
    sampler = chain(Sampling(dry_sequence_breakers=()).over(wanted).over(OFF), range(10))
    assert len(sampler.apply(ARRAY).tokens) == len(LOGITS)


def test_what_was_accepted_counts() -> None:
    sampling = Sampling(presence_penalty=1.5).over(OFF)
    sampler = chain(sampling)
    sampler.accept_all([0, 3])
    sampler.accept(5)
    given_before = chain(sampling, [0, 3, 5])
    assert sampler.apply(ARRAY).logits.tolist() == given_before.apply(ARRAY).logits.tolist()
    assert sampler.apply(ARRAY).logits[0] == 0.5


def test_extreme_numbers_leave_a_distribution() -> None:
    for asked in EXTREMES:
        sampler = chain(asked.over(OFF), [1] * 60)
        for _ in range(20):
            left = sampler.apply(ARRAY * 100)
            assert left.chosen in left.tokens
            assert np.isfinite(left.logits.max())
            assert left.logits[left.tokens.tolist().index(left.chosen)] >= left.logits.max() - 100


# --- the vocabulary: breakers -------------------------------------------------------------------------------------------------


@pytest.fixture(scope="session")
def vocab(pocket: api.Model) -> api.Vocab:
    return pocket.vocab


@pytest.fixture(scope="session")
def words(vocab: api.Vocab) -> Words:
    pieces = [vocab.piece(token, special=True) for token in range(vocab.size)]
    return Words(pieces, lambda text: vocab.tokenize(text, special=False))


def test_breakers_limit_repetitions_as_described(vocab: api.Vocab) -> None:
    newline = vocab.tokenize(b"\n", special=False)[-1]
    a, b, d = (vocab.tokenize(text, special=False)[-1] for text in (b"cat", b"dog", b"x"))
    seen = [a, newline, b, a, d, a, newline, b, a]
    logits = np.zeros(vocab.size, np.float32)
    sampling = Sampling(dry_multiplier=1.0, dry_base=2.0, dry_allowed_length=2, dry_sequence_breakers=("\n",)).over(OFF)
    drys = DrySamplers(vocab)
    left = chain(sampling, seen, vocab.size, drys).apply(logits)
    lost = {token: -logit for token, logit in zip(left.tokens.tolist(), left.logits.tolist(), strict=True) if logit}
    expected = dry(dict.fromkeys([a, b, d, newline], 0.0), seen, 1.0, 2.0, 2, [newline])
    assert lost == {token: -weight for token, weight in expected.items() if weight} == {d: 1.0}
    without = Sampling(dry_sequence_breakers=("~~~",)).over(sampling)
    left = chain(without, seen, vocab.size, drys).apply(logits)
    assert left.logits[left.tokens.tolist().index(d)] == -4.0
    drys.close()


@settings(max_examples=60, deadline=None)
@given(data=st.data())
def test_the_twin_finds_the_same_breakers(data: st.DataObject, vocab: api.Vocab, words: Words) -> None:
    text = data.draw(st.text(alphabet='ab :"*\n', min_size=4, max_size=40))
    tokens = vocab.tokenize(text.encode(), special=False)[:CONTEXT]
    prompt = (tokens * 4)[:CONTEXT]
    breakers = data.draw(st.sampled_from([("\n", ":", '"', "*"), ("a b",), (": ", "ba"), ('"*"\n',), ("\0x", "ab\0")]))
    sampling = Sampling(dry_multiplier=0.5, dry_allowed_length=data.draw(st.integers(0, 3)), dry_penalty_last_n=-1).over(OFF)
    sampling = Sampling(dry_sequence_breakers=breakers).over(sampling)
    logits = np.linspace(1, -1, vocab.size, dtype=np.float32)
    drys = DrySamplers(vocab)
    theirs = probabilities(sampling, prompt, logits, drys=drys)
    drys.close()
    ours = Twin(sampling, prompt, vocab_size=vocab.size, ends=(), context_size=CONTEXT, words=words).apply(logits)
    np.testing.assert_allclose(ours, theirs, atol=1e-5)


def test_dry_samplers_are_made_once_and_the_oldest_go(vocab: api.Vocab, monkeypatch: pytest.MonkeyPatch) -> None:
    made = []
    real = api.DrySampler.__init__

    def count(self, vocab, multiplier, *rest):
        made.append(multiplier)
        real(self, vocab, multiplier, *rest)

    monkeypatch.setattr(api.DrySampler, "__init__", count)
    drys = DrySamplers(vocab)

    def use(multiplier: float) -> None:
        chain(Sampling(dry_multiplier=multiplier).over(OFF), [1, 2], vocab.size, drys).close()

    drys.prepare(Sampling(dry_multiplier=1.0), CONTEXT)
    for multiplier in (1.0, 1.0, *range(2, MOST_DRYS + 1), 1.0, MOST_DRYS + 1, 1.0, 2):
        use(float(multiplier))
    assert made == [*map(float, range(1, MOST_DRYS + 2)), 2.0]
    drys.close()


def test_breakers_need_a_vocabulary() -> None:
    with pytest.raises(ValueError, match="vocabulary"):
        chain(Sampling(dry_multiplier=1.0))


# --- the twin -----------------------------------------------------------------------------------------------------------------


def numbers(least: float, most: float) -> st.SearchStrategy[float]:
    """None that float32 cannot tell from 0."""
    return st.floats(least, most).map(lambda number: round(number, 4))


MAYBE_P = st.sampled_from([None, 0.0, 1.0]) | numbers(0.01, 0.99)
SAMPLINGS = st.builds(
    Sampling,
    temperature=st.sampled_from([None, 0.0, 1.0]) | numbers(0.3, 3),
    top_k=st.none() | st.integers(0, 70),
    top_p=MAYBE_P,
    min_p=MAYBE_P,
    typical_p=MAYBE_P,
    top_n_sigma=st.none() | numbers(-1, 4),
    xtc_probability=st.sampled_from([None, 0.0, 1.0]),
    xtc_threshold=st.none() | numbers(0, 0.7),
    repeat_penalty=st.none() | numbers(0.5, 2),
    repeat_last_n=st.none() | st.integers(-1, 20),
    presence_penalty=st.none() | numbers(-2, 2),
    frequency_penalty=st.none() | numbers(-2, 2),
    logit_bias=st.none() | st.dictionaries(st.integers(0, 70), numbers(-20, 20), max_size=4),
    ignore_eos=st.none() | st.booleans(),
    dry_multiplier=st.none() | numbers(0, 3),
    dry_base=st.none() | numbers(1, 3),
    dry_allowed_length=st.none() | st.integers(0, 4),
    dry_penalty_last_n=st.none() | st.integers(-1, 30),
    dry_sequence_breakers=st.just(()),
    mirostat=st.sampled_from([None, None, 0, 1, 2]),
    mirostat_tau=st.none() | numbers(0.1, 8),
    dynatemp_range=st.none() | numbers(0, 0.25),
    dynatemp_exponent=st.none() | numbers(0.3, 3),
    samplers=st.none() | st.lists(st.sampled_from([*SAMPLERS]), min_size=1, max_size=10).map(tuple),
)
ROWS = st.lists(st.integers(-1200, 1200), min_size=4, max_size=60, unique=True).map(lambda row: [value / 100 for value in row])
BOUNDS = ("top_p", "min_p", "typical_p", "top_n_sigma", "xtc_threshold", "mirostat_tau")


def twin(sampling: Sampling, prompt, logits) -> np.ndarray:
    made = Twin(sampling, prompt, vocab_size=len(logits), ends={END}, context_size=CONTEXT)
    return made.apply(np.array(logits, np.float32))


def is_borderline(sampling: Sampling, prompt, logits) -> bool:
    """The last bits of float32 decide who is in: a change of 1e-5 moves somebody."""
    plain = twin(sampling, prompt, logits) > 0
    noise = np.random.default_rng(0).normal(0, 1e-5, len(logits))
    for sign in (-1, 1):
        moved = {name: getattr(sampling, name) * (1 + sign * 1e-5) for name in BOUNDS if getattr(sampling, name) is not None}
        for other in (twin(Sampling(**moved).over(sampling), prompt, logits), twin(sampling, prompt, logits + sign * noise)):
            if ((other > 0) != plain).any():
                return True
    return False


def is_too_flat(sampling: Sampling, logits) -> bool:
    """llama.cpp's first Mirostat casts a k beyond 32 bits to whatever the machine makes of it; the twin keeps all tokens then."""
    if sampling.mirostat != 1:
        return False
    heat = sampling.temperature or 0.8
    biases = sampling.logit_bias or {}
    ended = [END] if sampling.ignore_eos else []
    weights = {token: (logit + biases.get(token, 0)) / heat for token, logit in enumerate(logits.tolist()) if token not in ended}
    shares = [share for share in sorted(softmax(weights).values(), reverse=True) if share > 1e-38]
    try:
        return len(shares) < 2 or mirostat_size(shares, 2 * (sampling.mirostat_tau or 5.0), len(logits)) > 2**31
    except (OverflowError, ZeroDivisionError):
        return True


@settings(max_examples=300, deadline=None)
@given(sampling=SAMPLINGS, logits=ROWS, prompt=st.lists(st.integers(0, 3), max_size=40))
def test_the_twin_equals_the_chain(sampling: Sampling, logits: list[float], prompt: list[int]) -> None:
    logits = np.array(logits, np.float32)
    assume(not is_too_flat(sampling, logits))
    theirs, ours = probabilities(sampling, prompt, logits), twin(sampling, prompt, logits)
    assert ours.sum() == pytest.approx(1, abs=1e-5)
    if np.abs(ours - theirs).max() > 1e-5:
        assume(not is_borderline(sampling, prompt, logits))
    np.testing.assert_allclose(ours, theirs, atol=1e-5)


@pytest.mark.parametrize("name", [name for name in CASES if name != "xtc half"])
def test_the_twin_equals_the_chain_in_every_case(name: str) -> None:
    case = CASES[name]
    np.testing.assert_allclose(
        twin(case.sampling, case.prompt, LOGITS), probabilities(case.sampling, case.prompt, LOGITS), atol=1e-5
    )


# --- through the engine -------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def answer() -> Iterator[Callable[[Sampling], tuple[int, ...]]]:
    """The tokens of one answer, alone in the batch."""
    listener, backend, ids = Listener(), specs()["llama-cpp"].load()(), itertools.count()
    backend.load(
        ModelConfig(parallel=1, context_size=256), Files(weights=(paths.builtin("models") / "pocket-f16.gguf",)), listener
    )
    prompt = backend.tokenize("<|im_start|>user\nTell me a story.<|im_end|>\n<|im_start|>assistant\n", special=True, bos=False)

    def run(sampling: Sampling) -> tuple[int, ...]:
        id = next(ids)
        backend.submit(Job(id, prompt, Sampling(max_tokens=80, ignore_eos=True).over(sampling)))
        listener.wait_for_end(id)
        return tuple(token for output in listener.outputs[id] for token in output.tokens)

    yield run
    backend.close()


ASKED = {
    "dry": Sampling(dry_multiplier=0.8, dry_allowed_length=1, dry_penalty_last_n=-1, dry_sequence_breakers=(".",)),
    "xtc": Sampling(xtc_probability=0.5),
    "typical_p": Sampling(typical_p=0.7),
    "top_n_sigma": Sampling(top_n_sigma=1.0),
    "mirostat 1": Sampling(mirostat=1, mirostat_tau=4.0),
    "mirostat 2": Sampling(mirostat=2, mirostat_tau=4.0),
    "dynatemp": Sampling(dynatemp_range=0.5),
    "order": Sampling(samplers=("temperature", "min_p"), temperature=2.0),
}


@pytest.mark.parametrize("name", ASKED)
def test_an_answer_repeats_with_its_seed(answer: Callable[[Sampling], tuple[int, ...]], name: str) -> None:
    one, again, other = (answer(Sampling(seed=seed).over(ASKED[name])) for seed in (7, 7, 8))
    assert len(one) == 80
    assert one == again
    assert one != other
    assert one != answer(Sampling(seed=7))


def test_penalties_forbid_repetition_in_an_answer(answer: Callable[[Sampling], tuple[int, ...]]) -> None:
    assert max(Counter(answer(Sampling(temperature=0))).values()) > 1
    assert max(Counter(answer(Sampling(temperature=0, presence_penalty=1000, repeat_last_n=-1))).values()) == 1


def test_dry_forbids_repetitions_in_an_answer(answer: Callable[[Sampling], tuple[int, ...]]) -> None:
    def most(tokens: tuple[int, ...]) -> int:
        return max(Counter(itertools.pairwise(tokens)).values())

    strict = Sampling(dry_multiplier=1000, dry_allowed_length=1, dry_penalty_last_n=-1, dry_sequence_breakers=("~~",))
    assert most(answer(Sampling(temperature=0))) > 1
    assert most(answer(strict.over(Sampling(temperature=0)))) == 1
