"""A chain that is offered a shortlist does what it does with the whole vocabulary."""

from collections.abc import Iterator

import numpy as np
import pytest
from hypothesis import event, given, settings
from hypothesis import strategies as st

from llmgallery.backends.llamacpp import api
from llmgallery.backends.llamacpp.sampling import LEAST_DEAR_VOCAB, LEAST_VOCAB, DrySamplers, make_sampler
from llmgallery.core.sampling import SAMPLERS, Sampling
from llmgallery.engine.chain import Chain, plan_chain

CONTEXT = 512
DRYS = DrySamplers()
BASE = Sampling(seed=1, dry_sequence_breakers=())
KINDS = ("plain", "equal", "flat", "masked", "few", "block", "rising", "falling")


def made(sampling: Sampling, prompt: list[int], vocab_size: int) -> api.Sampler:
    sampling = sampling.over(BASE)
    return make_sampler(sampling, prompt, vocab_size=vocab_size, ends=(), context_size=CONTEXT, drys=DRYS)


def planned(sampling: Sampling, vocab_size: int) -> Chain:
    return plan_chain(sampling.over(BASE), vocab_size=vocab_size, ends=(), context_size=CONTEXT)


def listed(sampling: Sampling, prompt: list[int], vocab_size: int) -> api.Shortlist | None:
    """Whatever the size of the vocabulary."""
    chain = planned(sampling, vocab_size)
    if chain.cut is None:
        return None
    shortlist = api.Shortlist(vocab_size, chain.cut.kept, chain.biases, chain.cut.last_n)
    shortlist.accept_all(prompt[-chain.last_n :] if chain.last_n else ())
    return shortlist


def logits(kind: str, size: int, rng: np.random.Generator) -> np.ndarray:
    """As models give them; many equal; none but equal; masked; masked but for a few; with a peak in one block; in order."""
    row = rng.normal(0, 2.5, size).astype(np.float32)
    match kind:
        case "equal":
            return np.round(row)
        case "flat":
            return np.full_like(row, 1.5)
        case "masked" | "few":
            row[rng.random(size) > (0.3 if kind == "masked" else 20 / size)] = -np.inf
            row[rng.integers(size)] = 1
        case "block":
            row[rng.integers(size) :][:99] += 10
        case "rising" | "falling":
            row = np.sort(row) if kind == "rising" else -np.sort(row)
    return row


# --- the same distribution and the same choice --------------------------------------------------------------------------------


def numbers(least: float, most: float) -> st.SearchStrategy[float]:
    return st.floats(least, most).map(lambda number: round(number, 4))


SAMPLINGS = st.builds(
    Sampling,
    seed=st.integers(0, 2**32 - 2),
    temperature=st.sampled_from([0.0, 0.7, None]) | numbers(0.05, 5),
    top_k=st.sampled_from([None, 0, 1]) | st.integers(1, 300),
    top_p=st.none() | numbers(0, 1),
    min_p=st.none() | numbers(0, 1),
    typical_p=st.none() | numbers(0, 1),
    top_n_sigma=st.none() | numbers(-1, 4),
    xtc_probability=st.sampled_from([None, 0.5, 1.0]),
    xtc_threshold=st.none() | numbers(0, 0.6),
    repeat_penalty=st.none() | numbers(0.5, 2),
    repeat_last_n=st.none() | st.integers(-1, 50),
    presence_penalty=st.none() | numbers(-2, 2),
    frequency_penalty=st.none() | numbers(-2, 2),
    logit_bias=st.none() | st.dictionaries(st.integers(0, 80), numbers(-20, 20), max_size=8),
    dry_multiplier=st.none() | numbers(-2, 3),
    dry_allowed_length=st.none() | st.integers(0, 3),
    dry_penalty_last_n=st.none() | st.integers(-1, 50),
    mirostat=st.sampled_from([None] * 9 + [2]),
    dynatemp_range=st.sampled_from([None, None, 0.04]),
    samplers=st.none() | st.permutations([*SAMPLERS]).map(tuple),
)


@settings(max_examples=500, deadline=None)
@given(
    sampling=SAMPLINGS,
    prompt=st.lists(st.integers(0, 63), max_size=80),
    size=st.sampled_from([300, 2000, 3001, LEAST_DEAR_VOCAB, 9001]),
    kind=st.sampled_from(KINDS),
    lift=st.sampled_from([0, 0, 4, 8]),
    seed=st.integers(0, 2**32),
)
def test_the_shortlist_leaves_what_the_vocabulary_leaves(
    sampling: Sampling, prompt: list[int], size: int, kind: str, lift: int, seed: int
) -> None:
    """The same logits in the same order. Tokens can differ only where these are equal, for then they are what both have."""
    rng, shortlist = np.random.default_rng(seed), listed(sampling, prompt, size)
    whole, part, few = (made(sampling, prompt, size) for _ in range(3))
    if shortlist:
        few.narrow(shortlist)
    for _ in range(4):
        row = logits(kind, size, rng)
        row[:80] += lift
        before, tokens = row.copy(), shortlist and shortlist.find(row)
        event(f"{kind}: {'none' if tokens is None else 'shortlist'}")
        left, offered = whole.apply(row), part.apply(row, tokens)
        if planned(sampling, size).likeliest:
            assert left.chosen == offered.chosen, "the likeliest, and of equal ones the first"
        else:
            assert left.logits.tolist() == offered.logits.tolist()
        chosen = few.apply(row).chosen if tokens is None else few.choose(row)
        assert chosen == offered.chosen
        if left.tokens.tolist() == offered.tokens.tolist():
            assert chosen == left.chosen
        assert np.array_equal(row, before)
        for sampler in (whole, part, few):
            sampler.accept(chosen)
    for sampler in (whole, part, few):
        sampler.close()


SETTINGS = {
    "default": Sampling(),
    "top_k 200": Sampling(top_k=200, top_p=0.99),
    "repeat": Sampling(repeat_penalty=1.3, repeat_last_n=30),
    "wanted again": Sampling(repeat_penalty=0.95, presence_penalty=-0.5, frequency_penalty=-0.1),
    "dry": Sampling(dry_multiplier=0.8, dry_allowed_length=1),
    "biases": Sampling(logit_bias={45: -3.0, 77: 2.0, 8000: 4.0}),
    "xtc": Sampling(xtc_probability=0.5, xtc_threshold=0.02),
    "temperature first": Sampling(samplers=("temperature", "top_k", "top_p"), temperature=1.3),
    "greedy, repeat": Sampling(temperature=0.0, repeat_penalty=1.3),
    "dynamic temperature": Sampling(dynatemp_range=0.5, typical_p=0.9),
}


@pytest.mark.parametrize("size", [LEAST_DEAR_VOCAB, 49_152, 50_257])
@pytest.mark.parametrize("name", SETTINGS)
def test_the_same_seed_chooses_the_same_tokens(name: str, size: int) -> None:
    """Of different logits, which these are."""
    rng, prompt = np.random.default_rng(7), list(range(40, 120))
    whole, few = (made(SETTINGS[name], prompt, size) for _ in range(2))
    shortlist = listed(SETTINGS[name], prompt, size)
    assert shortlist
    few.narrow(shortlist)
    chosen = []
    for _ in range(60):
        row = logits("plain", size, rng)
        row[40:80] += 8
        chosen.append(few.choose(row))
        assert chosen[-1] == whole.apply(row).chosen
        for sampler in (whole, few):
            sampler.accept(chosen[-1])
    assert len(set(chosen)) > 10
    for sampler in (whole, few):
        sampler.close()


def test_a_seed_draws_the_same_whether_or_not_there_is_a_shortlist_of_each_step() -> None:
    whole, few = (made(Sampling(top_k=200), [], LEAST_DEAR_VOCAB) for _ in range(2))
    rng, found = np.random.default_rng(3), []
    for step in range(100):
        row = logits("plain", LEAST_DEAR_VOCAB, rng)
        if step % 3 == 0:
            row[:] = 0
            row[step] = 40  # so that it comes, whichever of the others are there
        token = few.choose(row)
        found.append(token is not None)
        assert whole.apply(row).chosen == (few.apply(row).chosen if token is None else token)
    assert found == [step % 3 != 0 for step in range(100)]


# --- through a context --------------------------------------------------------------------------------------------------------


@pytest.fixture
def context(pocket: api.Model) -> Iterator[api.Context]:
    made = api.Context(pocket, api.ContextParams(context=64, sequences=1, batch=16, ubatch=16, threads=1, threads_batch=1))
    yield made
    made.close()


def test_what_is_sampled_is_accepted_once(pocket: api.Model, context: api.Context) -> None:
    """With a penalty by the count, over rows some of which have no shortlist."""
    sampling, prompt = Sampling(frequency_penalty=0.4, repeat_last_n=25, top_k=10), [9, 9, 300]
    whole, few = (made(sampling, prompt, pocket.vocab.size) for _ in range(2))
    shortlist = listed(sampling, prompt, pocket.vocab.size)
    assert shortlist is not None
    few.narrow(shortlist)
    batch = api.Batch(16)
    last = batch.add(0, 0, [300, 301], wants_logits=True)
    assert context.decode(batch) == 0
    row = context.logits(last)
    plain, rng, found = row.copy(), np.random.default_rng(5), 0
    for step in range(120):
        row[:] = plain + rng.normal(0, 1, len(row))
        if step % 4 == 0:
            row[rng.random(len(row)) < 0.5] = row.max()  # equal: greater than a quarter
            row[step] = row.max() + 9
        found += shortlist.find(row) is not None
        token = few.sample(context, last)
        assert token == whole.sample(context, last)
    assert found == 90


# --- what a shortlist is ------------------------------------------------------------------------------------------------------


@settings(max_examples=300, deadline=None)
@given(
    size=st.integers(32, 3000),
    kept=st.integers(1, 60),
    biased=st.sets(st.integers(0, 31), max_size=5),
    last_n=st.integers(0, 40),
    accepted=st.lists(st.integers(0, 31), max_size=90),
    kind=st.sampled_from(KINDS),
    seed=st.integers(0, 2**32),
)
def test_it_holds_all_that_can_be_kept(
    size: int, kept: int, biased: set[int], last_n: int, accepted: list[int], kind: str, seed: int
) -> None:
    shortlist = api.Shortlist(size, kept, biased, last_n)
    shortlist.accept_all(accepted)
    row = logits(kind, size, np.random.default_rng(seed))
    tokens = shortlist.find(row)
    window = accepted[-last_n:] if last_n else []
    if tokens is None:
        return
    assert tokens.tolist() == sorted(set(tokens.tolist()))
    assert kept <= len(tokens) <= shortlist.largest <= size // 4
    assert biased.union(window) <= set(tokens.tolist())
    enough = kept + len(biased) + len(window)
    bound = np.sort(row)[-enough]
    if bound > -np.inf:
        assert set(np.flatnonzero(row >= bound)) <= set(tokens.tolist())
    else:
        assert set(np.flatnonzero(row > -np.inf)) <= set(tokens.tolist())


def test_where_it_pays_there_is_one() -> None:
    rng, size = np.random.default_rng(1), 49_152
    for kind, most in {"plain": 42, "few": 80, "rising": 42, "falling": 42, "block": 139}.items():
        tokens = api.Shortlist(size, 40).find(logits(kind, size, rng))
        assert tokens is not None
        assert len(tokens) <= most


def test_without_one_the_whole_vocabulary_is_offered() -> None:
    size = 9000
    row = logits("plain", size, np.random.default_rng(1))
    shortlist = api.Shortlist(size, 40, (), 1000)
    assert shortlist.find(row) is not None
    assert shortlist.find(np.round(row / 99)) is None, "too many equal ones"
    spoiled = row.copy()
    for place in (0, size // 2, size - 1):
        spoiled[place] = np.nan
        assert shortlist.find(spoiled) is None, "not a number"
        spoiled[place] = 0
    masked = np.full_like(row, -np.inf)
    assert shortlist.find(masked) is not None
    masked[5] = np.nan
    assert shortlist.find(masked) is None
    shortlist.accept_all(range(300))
    assert shortlist.find(row) is None, "too many are touched"
    shortlist.accept_all(range(3000))
    assert shortlist.find(row) is None
    assert api.Shortlist(size, 3000).find(row) is None, "too many are kept"
    assert api.Shortlist(16, 1).find(row[:16]) is None, "too small"


@pytest.mark.parametrize(
    "sampling",
    [
        Sampling(top_k=0),
        Sampling(top_n_sigma=1.0),
        Sampling(mirostat=1),
        Sampling(mirostat=2),
        Sampling(samplers=("top_p", "top_k")),
        Sampling(samplers=("min_p", "top_k")),
        Sampling(samplers=("typ_p", "top_k"), typical_p=0.5),
        Sampling(samplers=("xtc", "top_k"), xtc_probability=0.5),
        Sampling(samplers=("temperature", "top_k"), dynatemp_range=0.5),
        Sampling(samplers=("temperature", "top_k"), temperature=1e-5),
        Sampling(samplers=("temperature", "top_k"), temperature=1e5),
        Sampling(samplers=("temperature",)),
    ],
)
def test_chains_that_look_at_all_tokens_have_none(sampling: Sampling) -> None:
    row = logits("plain", 70_000, np.random.default_rng(1))
    assert made(sampling, [1, 2], len(row)).choose(row) is None


@pytest.mark.parametrize(
    ("sampling", "least"),
    [
        (Sampling(), LEAST_VOCAB),
        (Sampling(top_k=129), LEAST_DEAR_VOCAB),
        (Sampling(presence_penalty=1.0), LEAST_DEAR_VOCAB),
        (Sampling(logit_bias={3: 1.0}, temperature=0.0), LEAST_VOCAB),
    ],
)
def test_small_vocabularies_are_offered_as_a_whole(sampling: Sampling, least: int) -> None:
    row = logits("plain", least, np.random.default_rng(1))
    assert made(sampling, [1, 2], least).choose(row) is not None
    assert made(sampling, [1, 2], least - 1).choose(row[:-1]) is None


def test_a_chain_that_does_not_choose_is_a_bug_of_ours() -> None:
    sampler = api.Sampler()
    sampler.add_top_k(4)
    sampler.narrow(api.Shortlist(9000, 4))
    with pytest.raises(AssertionError, match="choose"):
        sampler.choose(logits("plain", 9000, np.random.default_rng(1)))
    sampler.close()
