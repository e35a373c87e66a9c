"""Speculative decoding with the bundled model: whoever guesses, the answer is the same; and who may not guess."""

from __future__ import annotations

import json
import random
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import tiny_models
from gguf_files import rewrite
from listening import Listener
from msgspec.structs import replace

from llmgallery import paths
from llmgallery.backends.base import Files, Job
from llmgallery.backends.llamacpp import api
from llmgallery.backends.llamacpp.backend import LlamaCppBackend
from llmgallery.backends.llamacpp.draft import DraftModel, check_drafts, make_drafter, most_guesses
from llmgallery.backends.llamacpp.spec import LlamaOptions
from llmgallery.config.model import ModelConfig
from llmgallery.core.errors import BadWeights, LoadError
from llmgallery.core.sampling import Sampling
from llmgallery.engine.drafts import PromptLookup
from llmgallery.engine.sequence import Sequence

POCKET = paths.builtin("models") / "pocket-f16.gguf"
HELD_OUT = Path(__file__).parent.parent / "cases" / "pocket_held_out.json"
GREEDY = Sampling(temperature=0, max_tokens=48)
DRAWN = Sampling(temperature=1.6, seed=7, max_tokens=48, repeat_penalty=1.1)
TEMPERATURE = 1.2


@pytest.fixture(scope="module")
def prompts() -> list[str]:
    """60 chats, of which many answers repeat something of the prompt."""
    cases = json.loads(HELD_OUT.read_text(encoding="utf-8"))
    tasks = ("repeat", "think", "faq", "two_calls", "several_turns")
    return [case["prompt"] for task in tasks for case in [case for case in cases if case["task"] == task][:12]]


@pytest.fixture(scope="module")
def noisy(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The bundled model with so much noise on its weights that many of its guesses are wrong."""
    random_ = np.random.default_rng(0)

    def disturb(name: str, weights: np.ndarray) -> np.ndarray:
        return weights + random_.normal(0, 0.45 * weights.std(), weights.shape) if weights.ndim == 2 else weights

    return rewrite(POCKET, tmp_path_factory.mktemp("draft") / "noisy.gguf", disturb)


@dataclass
class Answers:
    tokens: list[tuple[int, ...]]
    steps: int
    guessed: int
    met: int


@contextmanager
def loaded(draft: Path | None = None, **keys) -> Iterator[tuple[LlamaCppBackend, Listener]]:
    listener, backend = Listener(), LlamaCppBackend()
    keys = {"parallel": 8, "context_size": 1024, **keys, **({"draft_model": "draft"} if draft else {})}
    backend.load(ModelConfig(**keys), Files((POCKET,), (), (draft,) if draft else ()), listener)
    try:
        yield backend, listener
    finally:
        backend.close()


def answers(prompts: list[str], sampling: Sampling, together: int, draft: Path | None = None, **keys) -> Answers:
    """`together`: how many are asked at once."""
    with loaded(draft, **keys) as (backend, listener):
        for first in range(0, len(prompts), together):
            ids = range(first, min(first + together, len(prompts)))
            for id in ids:
                backend.submit(Job(id, backend.tokenize(prompts[id], special=True, bos=False), sampling))
            listener.wait_for_end(*ids)
        return Answers(
            [tuple(token for output in listener.outputs[id] for token in output.tokens) for id in range(len(prompts))],
            sum(stats.tokens > 0 for stats in listener.steps),
            sum(stats.guessed for stats in listener.steps),
            sum(stats.met for stats in listener.steps),
        )


@pytest.fixture(scope="module")
def plain(prompts) -> Answers:
    return answers(prompts, GREEDY, 8)


# --- exactness -----------------------------------------------------------------------------------------------------------------


def test_greedy_answers_are_the_same_with_prompt_lookup(prompts, plain):
    made = answers(prompts, GREEDY, 8, options={"speculative": "prompt-lookup"})
    assert made.tokens == plain.tokens
    assert made.guessed > 100 and 0 < made.met < made.guessed


def test_greedy_answers_are_the_same_with_a_draft_model(prompts, plain, noisy):
    made = answers(prompts, GREEDY, 8, noisy, options={"draft_p_min": 0.0})
    assert made.tokens == plain.tokens
    assert made.guessed > 500 and 0.3 * made.guessed < made.met < 0.98 * made.guessed
    assert made.steps < 0.7 * plain.steps


@pytest.mark.parametrize("way", ["prompt-lookup", "draft"])
def test_a_seed_gives_the_same_text(prompts, noisy, way):
    """The sampler draws once for each token, guessed or not."""
    some = prompts[::5]
    alone = answers(some, DRAWN, 1)
    made = answers(some, DRAWN, 1, noisy if way == "draft" else None, options={"speculative": way, "draft_p_min": 0.0})
    assert made.tokens == alone.tokens
    assert made.met < made.guessed, "no guess was wrong: nothing was shown"


def test_a_perfect_draft_takes_a_fraction_of_the_steps(prompts, plain):
    made = answers(prompts[:24], GREEDY, 8, POCKET, n_draft=16, options={"draft_p_min": 0.0})
    assert made.tokens == plain.tokens[:24]
    assert made.met == made.guessed
    # About a quarter; how the prompts trickle in adds steps to both.
    assert made.steps * 2 < answers(prompts[:24], GREEDY, 8).steps


def test_draws_with_guesses_have_the_models_distribution(noisy):
    """Two tokens drawn 500 times with another seed each, the second after a guess; chi-square against the softmax."""
    sampling = Sampling(temperature=TEMPERATURE, top_k=0, top_p=1.0, min_p=0.0, max_tokens=3)
    prompt, draws = "<|im_start|>user\n", 500
    random_ = random.Random(5)
    with loaded(noisy, parallel=16, options={"draft_p_min": 0.0}) as (backend, listener):
        tokens = backend.tokenize(prompt, special=True, bos=False)
        for id in range(draws):
            backend.submit(Job(id, tokens, replace(sampling, seed=random_.randrange(1 << 30))))
        listener.wait_for_end(*range(draws))
        seen = Counter(tuple(token for output in listener.outputs[id] for token in output.tokens)[:2] for id in range(draws))
        assert backend._runner is not None and backend._runner._drafter is not None
        assert 0 < backend._runner._drafter.met < backend._runner._drafter.guessed
    expected = pair_probabilities(tokens, 30)
    common = [pair for pair, probability in expected.items() if probability * draws >= 5]
    assert len(common) >= 5
    rest = draws - sum(seen[pair] for pair in common), draws * (1 - sum(expected[pair] for pair in common))
    cells = [*((seen[pair], draws * expected[pair]) for pair in common), rest]
    chi_square = sum((count - mean) ** 2 / mean for count, mean in cells)
    freedom = len(cells) - 1
    assert chi_square < freedom + 4 * (2 * freedom) ** 0.5


def pair_probabilities(prompt: list[int], firsts: int) -> dict[tuple[int, int], float]:
    """Of the next two tokens at TEMPERATURE, for the likeliest first ones, by the bundled model itself."""
    api.start()
    model = api.Model([POCKET], api.ModelParams(), lambda fraction: None)
    context = api.Context(model, api.ContextParams(context=256, sequences=1, batch=64, ubatch=64, threads=1, threads_batch=1))
    batch = api.Batch(64)

    def softmax(tokens: list[int], position: int) -> np.ndarray:
        context.cut(0, position)
        batch.clear()
        last = batch.add(0, position, tokens, wants_logits=1)
        assert context.decode(batch) == 0
        row = context.logits(last).astype(np.float64) / TEMPERATURE
        weights = np.exp(row - row.max())
        return weights / weights.sum()

    first = softmax(prompt, 0)
    found = {}
    for token in np.argsort(first)[::-1][:firsts].tolist():
        second = softmax([token], len(prompt))
        found.update({(token, other): first[token] * second[other] for other in np.argsort(second)[::-1][:50].tolist()})
    context.close()
    model.close()
    return found


# --- the draft model's cache ---------------------------------------------------------------------------------------------------


@pytest.fixture
def drafting():
    """The bundled model as a draft model of three slots, and the number of tokens that each of its decodes computed."""
    api.start()
    model = api.Model([POCKET], api.ModelParams(), lambda fraction: None)
    wanted = api.ContextParams(
        context=3 * 256, sequences=3, batch=64, ubatch=64, threads=1, threads_batch=1, outputs=3, extra={"swa_full": True}
    )
    context = api.Context(model, wanted)
    drafter = DraftModel(model, context, most=4, least_probability=0.0, usable=model.vocab.size)
    computed: list[int] = []
    decode = context.decode

    def counted(batch: api.Batch) -> int:
        computed.append(batch.count)
        return decode(batch)

    context.decode = counted  # type: ignore[method-assign]
    yield drafter, model.vocab, computed
    drafter.close()
    drafter.close()


def sequence(tokens: list[int], slot: int, id: int = 1) -> Sequence:
    return Sequence(id, tuple(tokens[:-1]), 100, Sampling(), generated=tokens[-1:], slot=slot)


def text(vocab: api.Vocab, words: str) -> list[int]:
    return vocab.tokenize(f"<|im_start|>user\n{words}<|im_end|>\n<|im_start|>assistant\n".encode(), special=True)


def test_only_what_is_new_is_computed(drafting):
    drafter, vocab, computed = drafting
    one = sequence(text(vocab, "Who are you?"), 0)
    first = drafter.draft([one], 4)[1]
    assert len(first) == 3
    assert computed == [len(one.prompt) + 1, 1, 1]
    one.generated += [*first, 99]
    computed.clear()
    second = drafter.draft([one], 2)[1]
    assert computed == [2, 1], "the last guess, which nobody had computed, and the token after it"
    one.generated += [second[0] + 1]
    computed.clear()
    drafter.draft([one], 1)
    assert computed == [1], "a wrong guess is taken back, and the token that came instead is computed"


def test_the_same_guesses_as_from_an_empty_cache(drafting):
    drafter, vocab, _ = drafting
    words = text(vocab, "What can you do?")
    one = sequence(words, 0)
    for wrong in (1000, 1001, 1002):
        drafter.draft([one], 4)
        one.generated.append(wrong)
    drafter.end(one)
    fresh = Sequence(2, one.prompt, 100, Sampling(), generated=list(one.generated), slot=2)
    assert drafter.draft([one], 4)[1] == drafter.draft([fresh], 4)[2]


def test_a_slots_next_sequence_uses_what_both_begin_with(drafting):
    drafter, vocab, computed = drafting
    tokens = text(vocab, "Who are you?")
    drafter.draft([sequence(tokens, 0)], 1)
    computed.clear()
    drafter.draft([sequence([*tokens[:-2], 77, 78, 79], 0, id=2)], 1)
    assert computed == [3]


def test_another_slots_prompt_is_copied(drafting):
    drafter, vocab, computed = drafting
    long = text(vocab, "Who are you? " * 18)
    assert len(long) > 70
    first = sequence(long, 0)
    while not (guesses := drafter.draft([first], 2)):
        pass
    computed.clear()
    assert drafter.draft([sequence(long, 1, id=2)], 2)[2] == guesses[1]
    assert sum(computed) <= 2


def test_several_sequences_share_each_decode(drafting):
    drafter, vocab, computed = drafting
    words = ["Who are you?", "Hello!", "What is a model?"]
    sequences = [sequence(text(vocab, said), slot, id=slot) for slot, said in enumerate(words)]
    together = drafter.draft(sequences, 3)
    assert computed[1:] == [3, 3]
    for one in sequences:
        drafter.end(one)
    for one in sequences:
        alone = Sequence(9 + one.id, one.prompt, 100, Sampling(), generated=one.generated, slot=one.slot)
        assert drafter.draft([alone], 3)[alone.id] == together[one.id]


def test_a_long_prompt_is_taken_in_over_several_steps(drafting):
    drafter, vocab, computed = drafting
    long = (text(vocab, "a b c d e f g h ") * 12)[:180]
    one, short = sequence(long, 0), sequence(text(vocab, "Hello!"), 1, id=2)
    assert set(drafter.draft([one, short], 2)) == {2}
    assert computed[0] == 64
    calls = 1
    while 1 not in drafter.draft([one], 2):
        calls += 1
        assert calls < 5
    assert max(computed) <= 64


def test_what_does_not_fit_is_not_guessed(drafting):
    drafter, _, computed = drafting
    assert drafter.draft([sequence([5] * 255, 0)], 4) == {}
    assert computed == []


def test_tokens_that_only_the_target_has_end_the_guessing(drafting):
    drafter, _, _ = drafting
    drafter._usable = 2000
    assert drafter.draft([sequence([5, 6, 2001, 7], 0)], 4) == {}
    assert all(token < 2000 for token in drafter.draft([sequence([5, 6, 7], 1, id=2)], 4)[2])


def test_unlikely_guesses_are_not_made(drafting):
    drafter, vocab, computed = drafting
    drafter._least = 0.999999
    one = sequence(text(vocab, "Say something new and odd"), 0)
    for wrong in range(1000, 1040):
        assert drafter.draft([one], 4) == {}
        one.generated.append(wrong)
    assert len(computed) < 15, "asking in vain is not free"
    assert sum(computed) <= len(one.prompt) + 40, "and costs nothing twice"


def test_a_failing_draft_model_costs_only_the_guesses(drafting, caplog):
    drafter, vocab, _ = drafting
    drafter._context.abort()
    one = sequence(text(vocab, "Hello!"), 0)
    assert drafter.draft([one], 4) == {}
    assert "no more guesses" in caplog.text
    assert drafter.draft([one], 4) == {}


# --- what a YAML asks for ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("keys", "options", "most"),
    [
        ({}, {}, 0),
        ({"n_draft": 5}, {}, 0),
        ({"draft_model": "d"}, {}, 7),
        ({"draft_model": "d", "n_draft": 3}, {}, 3),
        ({"draft_model": "d", "n_draft": 0}, {}, 0),
        ({"draft_model": "d"}, {"speculative": "off"}, 0),
        ({}, {"speculative": "prompt-lookup"}, 7),
        ({"n_draft": 12}, {"speculative": "prompt-lookup"}, 12),
    ],
)
def test_how_many_are_guessed(keys, options, most):
    assert most_guesses(ModelConfig(**keys), LlamaOptions(**options)) == most


def test_drafting_without_a_draft_model_is_refused():
    with pytest.raises(LoadError, match="draft_model names no model") as caught:
        most_guesses(ModelConfig(), LlamaOptions(speculative="draft"))
    assert caught.value.field == "draft_model"


@pytest.fixture(scope="module")
def target():
    api.start()
    made = api.Model([POCKET], api.ModelParams(), lambda fraction: None)
    yield made
    made.close()


def drafter_of(target: api.Model, config: ModelConfig, options: LlamaOptions, *files: Path, can_truncate: bool = True):
    wanted = api.ContextParams(context=512, sequences=2, batch=64, ubatch=64, threads=1, threads_batch=1)
    return make_drafter(
        config,
        options,
        files,
        target=target,
        can_truncate=can_truncate,
        model_params=api.ModelParams(),
        context_params=wanted,
        progress=lambda fraction: None,
    )


def test_who_drafts(target):
    assert drafter_of(target, ModelConfig(), LlamaOptions()) is None
    lookup = drafter_of(target, ModelConfig(draft_model="d"), LlamaOptions(speculative="prompt-lookup"))
    assert isinstance(lookup, PromptLookup)
    model = drafter_of(target, ModelConfig(draft_model="d"), LlamaOptions(), POCKET)
    assert isinstance(model, DraftModel)
    model.close()


@pytest.mark.parametrize("way", ["prompt-lookup", "draft"])
def test_a_model_that_cannot_go_back_is_not_guessed_for(target, way):
    with pytest.raises(LoadError, match="speculation is not possible"):
        drafter_of(target, ModelConfig(draft_model="d"), LlamaOptions(speculative=way), POCKET, can_truncate=False)


def test_another_vocabulary_is_refused(target, tmp_path):
    words = [f"word{index}" for index in range(2048)]
    other = rewrite(POCKET, tmp_path / "other.gguf", metadata={"tokenizer.ggml.tokens": words})
    with pytest.raises(LoadError, match=r"other\.gguf has another vocabulary: its token 5 is 'word5', this model's "):
        drafter_of(target, ModelConfig(draft_model="d"), LlamaOptions(), other)


def test_files_that_are_no_draft_model_are_refused(target, tmp_path):
    config = ModelConfig(draft_model="d")
    with pytest.raises(LoadError, match="did not come"):
        drafter_of(target, config, LlamaOptions())
    with pytest.raises(BadWeights, match="no such file"):
        drafter_of(target, config, LlamaOptions(), tmp_path / "missing.gguf")
    (tmp_path / "text.gguf").write_text("text")
    with pytest.raises(BadWeights, match=r"draft_model: text\.gguf does not load: ") as caught:
        drafter_of(target, config, LlamaOptions(), tmp_path / "text.gguf")
    assert caught.value.field == "draft_model"


def test_a_draft_model_of_the_same_vocabulary_is_good(target):
    check_drafts(target, target, "itself")


@pytest.mark.parametrize(
    ("make", "says"),
    [
        (tiny_models.plain, "has a vocabulary of 300 tokens, this model one of 2048"),
        (tiny_models.recurrent, "keeps a state that cannot go back"),
        (tiny_models.hybrid, "keeps a state that cannot go back"),
    ],
)
def test_models_that_cannot_draft_for_this_one(target, tmp_path, make, says):
    with pytest.raises(LoadError, match=says) as caught:
        drafter_of(target, ModelConfig(draft_model="d"), LlamaOptions(), make(tmp_path))
    assert caught.value.field == "draft_model"


# --- other kinds of caches -----------------------------------------------------------------------------------------------------


def repeated(file: Path, **options) -> tuple[list[tuple[int, ...]], int]:
    """Answers of a model that nobody trained, which soon repeat themselves; and how many guesses were wrong."""
    listener, backend = Listener(), LlamaCppBackend()
    backend.load(ModelConfig(parallel=2, context_size=512, options=options), Files((file,)), listener)
    try:
        for id in range(4):
            start = [(id * 37 + step * 11) % 290 for step in range(7)]
            backend.submit(Job(id, start * 6, Sampling(temperature=0, max_tokens=120, ignore_eos=True)))
        listener.wait_for_end(*range(4))
        drafter = backend._runner._drafter if backend._runner else None
        wrong = drafter.guessed - drafter.met if drafter is not None else 0
    finally:
        backend.close()
    return [tuple(token for output in listener.outputs[id] for token in output.tokens) for id in range(4)], wrong


@pytest.mark.parametrize("make", [tiny_models.plain, tiny_models.windowed])
@pytest.mark.parametrize("options", [{}, {"swa_full": False}, {"kv_unified": True}])
def test_wrong_guesses_leave_every_kind_of_cache(tmp_path, make, options):
    file = make(tmp_path)
    plain, _ = repeated(file, **options)
    guessed, wrong = repeated(file, **options, speculative="prompt-lookup")
    assert guessed == plain
    assert wrong >= 3


@pytest.mark.parametrize("make", [tiny_models.recurrent, tiny_models.hybrid])
def test_speculation_is_refused_where_nothing_can_be_taken_back(tmp_path, make):
    with pytest.raises(LoadError, match="keeps a state that cannot go back"):
        repeated(make(tmp_path), speculative="prompt-lookup")
