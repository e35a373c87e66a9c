"""Tokens are chosen by the engine's samplers, in the manager: distributions as llama.cpp draws them, seeds, masks."""

from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import pytest
import torch
from driving_transformers import Driven, driven
from sampling_formulas import surprise
from tiny_transformers import make_llama
from transformers import GenerationConfig
from transformers.generation.continuous_batching.cb_logits_processors import ContinuousBatchingLogitsProcessorList

from llmgallery.backends.llamacpp.sampling import DrySamplers, make_sampler
from llmgallery.backends.transformers.generation.sampling import install
from llmgallery.core.sampling import DEFAULTS, Sampling

DRAWS = 600
PROMPT = "What is the capital of France? The capital of"
OFF = Sampling(temperature=1.0, top_k=0, top_p=1.0, min_p=0.0)

CASES = {
    "defaults": Sampling(),
    "plain, hot": Sampling(temperature=2.0, top_k=40).over(OFF),
    "top_k": Sampling(temperature=1.5, top_k=4).over(OFF),
    "top_p": Sampling(temperature=1.5, top_p=0.6).over(OFF),
    "min_p": Sampling(temperature=1.5, min_p=0.2).over(OFF),
    "typical_p": Sampling(temperature=1.5, typical_p=0.5, top_k=50).over(OFF),
    "top_n_sigma": Sampling(temperature=2.0, top_n_sigma=2.0).over(OFF),
    "penalties": Sampling(
        temperature=1.5, top_k=10, repeat_penalty=1.5, presence_penalty=0.7, frequency_penalty=0.4, repeat_last_n=-1
    ).over(OFF),
    "bias": Sampling(temperature=1.0, top_k=6, logit_bias={30: 12.0, 31: 11.0}).over(OFF),
    "dynamic temperature": Sampling(temperature=1.5, dynatemp_range=0.7, top_k=12).over(OFF),
    "mirostat": Sampling(temperature=1.5, mirostat=2, mirostat_tau=3.0, mirostat_eta=0.1).over(OFF),
    "order": Sampling(temperature=3.0, top_p=0.7, samplers=("temperature", "top_p")).over(OFF),
}


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_llama(tmp_path_factory.mktemp("models") / "llama")


@pytest.fixture(scope="module")
def llama(weights: Path) -> Iterator[Driven]:
    with driven(weights, parallel=32) as made:
        yield made


def row_after(llama: Driven, tokens: Sequence[int]) -> np.ndarray:
    with torch.no_grad(), llama.backend._setting.turns:
        return llama.model(torch.tensor([list(tokens)])).logits[0, -1].float().numpy()


def of_llama_cpp(sampling: Sampling, prompt: Sequence[int], row: np.ndarray) -> dict[int, float]:
    """Token -> probability, as llama.cpp's chain leaves them."""
    drys = DrySamplers()
    sampler = make_sampler(sampling.over(DEFAULTS), list(prompt), vocab_size=len(row), ends=(), context_size=128, drys=drys)
    left = sampler.apply(row.astype(np.float32))
    weights = np.exp(left.logits.astype(float) - left.logits.max())
    sampler.close()
    return dict(zip(left.tokens.tolist(), (weights / weights.sum()).tolist(), strict=True))


@pytest.mark.parametrize("name", CASES)
def test_tokens_are_drawn_as_llama_cpp_draws_them(llama: Driven, name: str) -> None:
    """Many requests of one token each, in batches, by the distribution of llama.cpp's chain on the model's own logits."""
    sampling, prompt = CASES[name], llama.tokens_of(PROMPT)
    expected = of_llama_cpp(sampling, prompt, row_after(llama, prompt))
    assert len(expected) > 1, "a case must leave something to draw"
    ids = [llama.submit(prompt, Sampling(seed=seed, max_tokens=1, ignore_eos=True).over(sampling)) for seed in range(DRAWS)]
    llama.told.wait_for_end(*ids)
    counts = Counter(token for id in ids for token in llama.told.tokens(id))
    assert set(counts) <= set(expected)
    assert surprise(counts, expected) < 1


def test_other_cases_have_other_distributions(llama: Driven) -> None:
    """What makes the comparison above one that can fail."""
    prompt = llama.tokens_of(PROMPT)
    row = row_after(llama, prompt)
    spreads = {name: of_llama_cpp(sampling, prompt, row) for name, sampling in CASES.items()}
    for name, spread in spreads.items():
        others = [other for other in spreads if other != name]
        assert all(
            max(abs(spread.get(t, 0) - spreads[other].get(t, 0)) for t in {*spread, *spreads[other]}) > 0.01 for other in others
        )


def test_a_seed_gives_the_same_answer_alone_and_another_one_another(llama: Driven) -> None:
    hot = Sampling(temperature=1.5, max_tokens=20, ignore_eos=True)
    first, again, other = (llama.told.tokens(llama.run(PROMPT, Sampling(seed=seed).over(hot))) for seed in (11, 11, 12))
    assert first == again != other


def test_without_a_seed_answers_differ(llama: Driven) -> None:
    hot = Sampling(temperature=2.0, max_tokens=10, ignore_eos=True)
    ids = [llama.submit(PROMPT, hot) for _ in range(6)]
    llama.told.wait_for_end(*ids)
    assert len({tuple(llama.told.tokens(id)) for id in ids}) == 6


def test_requests_of_one_batch_keep_their_own_parameters(llama: Driven) -> None:
    greedy = llama.told.tokens(llama.run(PROMPT, Sampling(temperature=0, max_tokens=15, ignore_eos=True)))
    hot = [llama.submit(PROMPT, Sampling(temperature=3.0, seed=n, max_tokens=15, ignore_eos=True)) for n in range(4)]
    cold = llama.submit(PROMPT, Sampling(temperature=0, max_tokens=15, ignore_eos=True))
    only = llama.submit(PROMPT, Sampling(temperature=3.0, logit_bias={77: 1000.0}, max_tokens=15, ignore_eos=True))
    llama.told.wait_for_end(*hot, cold, only)
    assert llama.told.tokens(cold) == greedy
    assert llama.told.tokens(only) == [77] * 15
    assert all(llama.told.tokens(id) != greedy for id in hot)


def test_penalties_see_the_answer_too(llama: Driven) -> None:
    once = Sampling(temperature=0, max_tokens=12, ignore_eos=True, frequency_penalty=2.0, presence_penalty=2.0, repeat_last_n=-1)
    plain = llama.told.tokens(llama.run(PROMPT, Sampling(temperature=0, max_tokens=12, ignore_eos=True, logit_bias={50: 40.0})))
    varied = llama.told.tokens(llama.run(PROMPT, Sampling(logit_bias={50: 40.0}).over(once)))
    assert plain == [50] * 12
    strong = Sampling(logit_bias={50: 40.0}, repeat_penalty=1e4).over(once)
    assert len(set(llama.told.tokens(llama.run(PROMPT, strong)))) > 6
    assert varied.count(50) <= 12


def test_dry_breaks_a_loop(llama: Driven) -> None:
    loop = Sampling(temperature=0, max_tokens=10, ignore_eos=True, logit_bias={50: 30.0})
    assert llama.told.tokens(llama.run(PROMPT, loop)) == [50] * 10
    dry = Sampling(dry_multiplier=9.0, dry_penalty_last_n=-1, dry_allowed_length=1, dry_sequence_breakers=()).over(loop)
    assert 0 < llama.told.tokens(llama.run(PROMPT, dry)).count(50) < 10


class Odd:
    """Allows tokens with odd numbers from 101 on, five of them, then the end; tells what it was told."""

    def __init__(self, size: int, end: int) -> None:
        self.size, self.end, self.came = size, end, []

    def mask(self) -> bytes:
        allowed = np.zeros(-(-self.size // 32) * 32, bool)
        allowed[101 : self.size : 2] = True
        if len(self.came) == 5:
            allowed[:] = False
            allowed[self.end] = True
        return np.packbits(allowed, bitorder="little").tobytes()

    def accept(self, token: int) -> None:
        self.came.append(token)

    def forced(self) -> tuple[int, ...]:
        return ()


class Nothing(Odd):
    def mask(self) -> bytes:
        return bytes(-(-self.size // 32) * 4)


def test_a_constraint_holds_in_a_mixed_batch(llama: Driven) -> None:
    vocab = llama.backend._vocab()
    rules = [Odd(vocab.size, min(vocab.ends)) for _ in range(5)]
    hot = Sampling(temperature=2.0, max_tokens=30)
    free = [llama.submit(PROMPT, Sampling(ignore_eos=True).over(hot)) for _ in range(3)]
    bound = [llama.submit(PROMPT, hot, constraint=rule, logprobs=1) for rule in rules]
    llama.told.wait_for_end(*free, *bound)
    for id, rule in zip(bound, rules, strict=True):
        tokens = llama.told.tokens(id)
        assert len(tokens) == 5 and all(token > 100 and token % 2 for token in tokens)
        assert rule.came == [*tokens, min(vocab.ends)] and llama.told.finishes(id) == ["stop"]
    assert all(len(llama.told.tokens(id)) == 30 for id in free)
    assert any(token % 2 == 0 for id in free for token in llama.told.tokens(id))


def test_a_constraint_that_allows_nothing_ends_its_own_answer(llama: Driven) -> None:
    vocab = llama.backend._vocab()
    other = llama.submit(PROMPT, Sampling(temperature=0, max_tokens=20, ignore_eos=True))
    stuck = llama.submit(PROMPT, Sampling(max_tokens=20), constraint=Nothing(vocab.size, 0))
    llama.told.wait_for_end(other, stuck)
    assert llama.told.last(stuck).finish == "error" and "allows no further token" in llama.told.last(stuck).message
    assert len(llama.told.tokens(other)) == 20


class Recites:
    """Lets only one text be said. `forces`: as many tokens of it at once as nobody can choose otherwise: all, or none."""

    def __init__(self, tokens: Sequence[int], size: int, *, forces: Sequence[int]) -> None:
        self.left, self.size, self.came, self.forces = list(tokens), size, [], list(forces)

    def mask(self) -> bytes:
        allowed = np.zeros(-(-self.size // 32) * 32, bool)
        allowed[self.left[0] : self.left[0] + 1] = True
        return np.packbits(allowed, bitorder="little").tobytes()

    def accept(self, token: int) -> None:
        assert token == self.left.pop(0)
        self.came.append(token)

    def forced(self) -> Sequence[int]:
        return self.left[: self.forces.pop(0)] if self.forces else ()


@pytest.mark.parametrize("forces", [(0, 3, 0, 7), (5, 0, 2, 1), (9, 1), (0, 40), (60,), (12, 0, 60)])
@pytest.mark.parametrize("batch", [4, 256])
def test_forced_tokens_are_told_and_computed_without_being_chosen(weights: Path, forces: Sequence[int], batch: int) -> None:
    """What follows on them is what the model says after the whole text; also when they take several steps to compute."""
    with driven(weights, parallel=3, parameters={"batch": batch}) as llama:
        vocab = llama.backend._vocab()
        text = '{"name": "Ada", "age": 36, "likes": ["cats"]}'
        tokens = [*vocab.tokenize(text, special=False, bos=False), min(vocab.ends)]
        other = llama.submit(PROMPT, Sampling(temperature=0, max_tokens=40, ignore_eos=True))
        prompt = llama.tokens_of(PROMPT)
        step = Sampling(temperature=0, repeat_penalty=1.3)
        slow = llama.run(prompt, step, constraint=Recites(tokens, vocab.size, forces=()), logprobs=2)
        before = len(llama.told.steps)
        rule = Recites(tokens, vocab.size, forces=forces)
        fast = llama.run(prompt, step, constraint=rule, logprobs=2)
        assert llama.told.text(fast) == llama.told.text(slow) == text and rule.came == tokens
        assert llama.told.last(fast).usage.completion_tokens == len(tokens) and llama.told.finishes(fast) == ["stop"]
        chosen = {}
        for id in (slow, fast):
            entries = [entry for output in llama.told.outputs[id] for entry in output.logprobs]
            assert [entry.token for entry in entries] == tokens[:-1]
            chosen[id] = {place: entry.logprob for place, entry in enumerate(entries) if entry.logprob is not None}
        assert len(chosen[fast]) < len(chosen[slow]) == len(tokens) - 1
        assert all(value == pytest.approx(chosen[slow][place], abs=1e-3) for place, value in chosen[fast].items())
        if batch > 100:
            assert len(llama.told.steps) - before < len(tokens)
        llama.told.wait_for_end(other)
        again = llama.run(PROMPT + text, Sampling(temperature=0, max_tokens=10, ignore_eos=True))
        with torch.no_grad(), llama.backend._setting.turns:
            ids = torch.tensor([llama.tokens_of(PROMPT + text)])
            own = llama.model.generate(ids, attention_mask=torch.ones_like(ids), max_new_tokens=10, do_sample=False,
                                       suppress_tokens=sorted(vocab.ends), pad_token_id=1)  # fmt: skip
        assert llama.told.tokens(again) == own[0, ids.shape[1] :].tolist()


def test_forced_tokens_end_at_the_limit(llama: Driven) -> None:
    vocab = llama.backend._vocab()
    for forces in ((0, 30), (30,)):
        rule = Recites(list(range(100, 140)), vocab.size, forces=forces)
        id = llama.run(PROMPT, Sampling(max_tokens=6), constraint=rule)
        assert llama.told.tokens(id) == list(range(100, 106)) and llama.told.finishes(id) == ["length"]
    assert llama.told.last(llama.run(PROMPT, Sampling(temperature=0, max_tokens=3, ignore_eos=True))).finish == "length"


def test_the_manager_gets_one_hot_rows() -> None:
    seen = []
    processors = ContinuousBatchingLogitsProcessorList(_no_processors())

    def choose(ids: Sequence[str], rows: Sequence[np.ndarray]) -> list[int]:
        seen.append((list(ids), [row.copy() for row in rows]))
        return [3, 0]

    processor = install(processors, choose)
    assert processors.do_processing and processors.tensors_required == 1
    states = [_Requested("7"), _Requested("9")]
    assert processor.prepare_tensor_args(states).tolist() == [0, 0]
    scores = torch.arange(12, dtype=torch.float32).reshape(3, 4)
    made = processors(torch.zeros(3, dtype=torch.int32), scores, torch.zeros((1, 3), dtype=torch.int32))
    assert made.argmax(-1).tolist()[:2] == [3, 0]
    assert torch.isfinite(made).sum(-1).tolist() == [1, 1, 1]
    ((ids, rows),) = seen
    assert ids == ["7", "9"] and np.array_equal(rows, scores[:2].numpy())


class _Requested:
    def __init__(self, id: str) -> None:
        self.state = type("State", (), {"request_id": id})()


def _no_processors() -> list:
    from transformers import LogitsProcessorList

    assert GenerationConfig().temperature in (None, 1.0)
    return LogitsProcessorList()
