"""LlamaRunner on real caches: prefixes kept and copied, guesses, constraints, log probabilities, and what goes wrong."""

from __future__ import annotations

import numpy as np
import pytest
import tiny_models
from machines import answer, fresh, running, tokens

from llmgallery.backends.llamacpp import api
from llmgallery.core.errors import GalleryError, InvalidField
from llmgallery.core.sampling import DEFAULTS, Sampling
from llmgallery.engine.logprobs import LOWEST, Place, forbid, likeliest
from llmgallery.engine.plan import Chunk, Plan, Sampled
from llmgallery.engine.runner import NoRoom


@pytest.mark.parametrize("unified", [False, True])
@pytest.mark.parametrize("kind", ["plain", "recurrent", "hybrid", "windowed", "windowed, short"])
def test_a_prefix_that_is_kept_or_copied_changes_nothing(tiny, kind, unified):
    kind, _, short = kind.partition(",")
    model = tiny(kind)
    options = {"kv_unified": unified, "swa_full": not short}
    prefix = tokens(90, 1)
    with running(model, **options) as machine:
        assert machine.runner.can_truncate is (kind in ("plain", "windowed"))
        for length in (90, 50, 1):
            machine.runner.keep(0, 0)
            machine.prefill(machine.sequence(prefix), 0)
            held = length if machine.runner.can_truncate or length == 90 else 0
            prompt = (*prefix[:length], *tokens(7, length))
            alone = fresh(model, prompt, **options)
            for slot, source in ((1, 0), (2, 1)):
                kept = machine.runner.keep(slot, length, source)
                assert kept == (held if slot == 1 or held else 0)
                assert machine.context.last_position(0) == 89, "the source stays as it is"
                if slot == 1:
                    assert machine.generate(prompt, slot, kept) == alone
                    machine.runner.keep(1, 0)
                    assert machine.runner.keep(1, length, 0) == held
            assert machine.runner.keep(0, length) == held
            assert machine.generate(prompt, 0, held) == alone


@pytest.mark.parametrize("unified", [False, True])
def test_a_window_that_has_moved_on_keeps_no_beginnings(tiny, unified):
    model = tiny("windowed")
    options = {"kv_unified": unified, "swa_full": False}
    prefix = tokens(700, 2)
    with running(model, cells=2048, **options) as machine:
        machine.prefill(machine.sequence(prefix), 0)
        first = machine.context.first_position(0)
        assert 200 < first < 700 - tiny_models.WINDOW
        for length, held in (
            (first + tiny_models.WINDOW - 1, True),
            (first + tiny_models.WINDOW - 2, False),
            (3, False),
            (700, True),
        ):
            assert machine.runner.keep(1, length, 0) == (length if held else 0)
            assert machine.context.last_position(1) == (length - 1 if held else -1)
            prompt = (*prefix[:length], *tokens(5, length))
            assert machine.generate(prompt, 1, length if held else 0) == fresh(model, prompt, **options)
        assert machine.runner.keep(0, 10) == 0
        assert machine.context.last_position(0) == -1


def test_a_state_only_goes_on_where_it_is(tiny):
    with running(tiny("recurrent")) as machine:
        prompt = tokens(30, 3)
        machine.prefill(machine.sequence(prompt), 0)
        assert machine.runner.keep(1, 30, 0) == 30 and machine.runner.keep(2, 29, 0) == 0
        generated = machine.generate((*prompt, 5), 1, 30)
        assert machine.runner.keep(0, 31) == 0, "more than there is"
        assert machine.generate((*prompt, 5), 2) == generated
        assert machine.runner.draft([], 4) == {}


def test_copies_cost_what_they_move(pocket):
    with running(pocket, kv_unified=True) as machine:
        assert machine.runner.copy_cost == 0
    with running(pocket, slots=1) as machine:
        assert machine.runner.copy_cost == 0
    with running(pocket) as machine:
        assert machine.runner.copy_cost > 8


def wrong(generated: list[int]) -> list[int]:
    return [11, 12, 13]


@pytest.mark.parametrize("outputs", [8, 4])
@pytest.mark.parametrize("unified", [False, True])
def test_guesses_change_nothing(pocket, unified, outputs):
    prompt = answer(pocket)
    with running(pocket, kv_unified=unified, outputs=outputs) as machine:
        alone = machine.generate(prompt)

        def right(generated: list[int]) -> list[int]:
            return alone[len(generated) : len(generated) + 5]

        def half(generated: list[int]) -> list[int]:
            return [*right(generated)[:1], 17, 18]

        for guess in (right, wrong, half):
            machine.runner.keep(0, 0)
            assert machine.generate(prompt, guess=guess) == alone
        machine.runner.keep(0, 0)
        seen = machine.generate(prompt, guess=half, logprobs=0)
        assert seen == alone


def test_met_guesses_come_at_once_and_an_end_ends(pocket):
    prompt = answer(pocket)
    with running(pocket) as machine:
        alone = machine.generate(prompt, count=30)
        end = next(index for index, token in enumerate(alone) if pocket.vocab.is_end(token))
        machine.runner.keep(0, 0)
        sequence = machine.sequence(prompt)
        machine.prefill(sequence, 0)
        guesses = tuple(alone[1 : end + 3])[:7]
        chunk = Chunk(sequence.id, 0, len(prompt), (alone[0], *guesses), True, len(guesses))
        came = machine.decode((sequence, chunk))[sequence.id].tokens
        assert came == tuple(alone[1 : min(end, 8) + 1])


def test_guesses_are_not_taken_back_by_what_cannot(tiny):
    with running(tiny("recurrent")) as machine:
        sequence = machine.sequence(tokens(5, 1))
        machine.prefill(sequence, 0)
        sampled = machine.decode((sequence, Chunk(sequence.id, 0, 5, (1, 299, 299), True, 2)))
        assert "speculative" in sampled[sequence.id].error.message


def softmaxed(pocket: api.Model, prompt) -> np.ndarray:
    """Row by row, in double precision, from a context of one sequence."""
    params = api.ContextParams(context=512, sequences=1, batch=512, ubatch=512, threads=1, threads_batch=1)
    context = api.Context(pocket, params)
    batch = api.Batch(512)
    batch.add(0, 0, prompt, wants_logits=len(prompt))
    assert context.decode(batch) == 0
    rows = np.stack([context.logits(index) for index in range(len(prompt))]).astype(np.float64)
    context.close()
    return rows - np.logaddexp.reduce(rows, axis=1, keepdims=True)


@pytest.mark.parametrize("count", [0, 3, 20])
def test_log_probabilities_are_the_softmax_over_the_whole_vocabulary(pocket, count):
    prompt = (answer(pocket) * 5)[:100]
    expected = softmaxed(pocket, prompt)
    with running(pocket) as machine:
        sequence = machine.sequence(prompt, logprobs=count, prompt_logprobs=True)
        sampled = machine.prefill(sequence, 0, scores=True)
    assert [score.token for score in sampled.scores] == list(prompt[1:]), "one for each token after the first"
    for row, said in zip(expected, (*sampled.scores, *sampled.logprobs), strict=True):
        assert said.logprob == pytest.approx(row[said.token], abs=0.05)
        assert [other.logprob for other in said.top] == pytest.approx(sorted(row)[::-1][:count], abs=0.05)
        assert all(other.logprob == pytest.approx(row[other.token], abs=0.05) for other in said.top)
        assert all(other.piece == pocket.vocab.piece(other.token, special=True) for other in said.top)
    assert sampled.logprobs[0].token == sampled.tokens[0] == int(expected[-1].argmax())
    assert sampled.scores[0].piece == pocket.vocab.piece(prompt[1], special=True) != b""


def test_one_row_to_the_last_digit():
    row = np.random.default_rng(1).normal(0, 5, 5000).astype(np.float32)
    row[7] = -np.inf
    exact = row.astype(np.float64) - np.logaddexp.reduce(row.astype(np.float64))
    place = Place(row, 20, lambda token: str(token).encode())
    best = np.argsort(-exact, kind="stable")[:20]
    assert [other.token for other in place.of(3).top] == best.tolist()
    assert [other.logprob for other in place.of(3).top] == pytest.approx(exact[best], abs=1e-5)
    assert place.of(3).logprob == pytest.approx(exact[3], abs=1e-5)
    assert place.of(7).logprob == LOWEST


def test_of_equals_the_first_are_the_likeliest():
    row = np.array([1, 5, 5, 2, 5], np.float32)
    assert likeliest(row, 2) == [1, 2]
    assert likeliest(row, 4) == [1, 2, 4, 3]
    assert likeliest(row, 9) == [1, 2, 4, 3, 0]
    assert likeliest(row, 0) == []


@pytest.mark.parametrize("size", [1, 31, 32, 33, 2048])
def test_masks_are_words_with_the_lowest_bit_first(size):
    allowed = np.random.default_rng(size).random(size) < 0.3
    allowed[0] = True
    words = np.zeros(-(-size // 32), "<u4")
    for token in np.flatnonzero(allowed):
        words[token // 32] |= np.uint32(1 << (token % 32))
    row = np.zeros(size, np.float32)
    assert forbid(row, words.tobytes())
    assert (np.isfinite(row) == allowed).all()
    untouched = np.zeros(size, np.float32)
    assert not forbid(untouched, bytes(4 * len(words)))
    assert not untouched.any()


class Only:
    """A Constraint: these tokens, or in the next place those of the next set."""

    def __init__(self, *places: set[int] | None) -> None:
        self._places = list(places)
        self.accepted: list[int] = []

    def mask(self) -> bytes | None:
        allowed = self._places[min(len(self.accepted), len(self._places) - 1)]
        if allowed is None:
            return None
        words = np.zeros(2048 // 32, "<u4")
        for token in allowed:
            words[token // 32] |= np.uint32(1 << (token % 32))
        return words.tobytes()

    def accept(self, token: int) -> None:
        self.accepted.append(token)

    def forced(self) -> tuple[int, ...]:
        return ()


def test_a_constraint_rules_and_log_probabilities_are_from_before_it(pocket):
    prompt = answer(pocket)
    expected = softmaxed(pocket, prompt)[-1]
    ranked = np.argsort(-expected)
    unlikely = {int(ranked[900]), int(ranked[1500])}
    constraint = Only(unlikely, {42}, None)
    with running(pocket) as machine:
        sequence = machine.sequence(prompt, constraint=constraint, logprobs=2)
        sampled = machine.prefill(sequence, 0)
        (token,) = sampled.tokens
        assert token == int(ranked[900])
        assert sampled.logprobs[0].logprob == pytest.approx(expected[token], abs=0.05)
        assert sampled.logprobs[0].top[0].token == int(ranked[0])
        chunk = Chunk(sequence.id, 0, len(prompt), (token, 42, 43), True, 2)
        came = machine.decode((sequence, chunk))[sequence.id]
        assert came.tokens[0] == 42 and len(came.tokens) >= 2, "the first guess was met"
        assert constraint.accepted == [token, *came.tokens]
        assert len(came.logprobs) == len(came.tokens)


def test_a_constraint_without_a_way_out_ends_only_its_own_sequence(pocket):
    prompt = answer(pocket)
    with running(pocket) as machine:
        alone = machine.generate(prompt)
        stuck, free = machine.sequence(prompt, constraint=Only(set())), machine.sequence(prompt)
        machine.runner.keep(0, 0)
        both = machine.decode(
            (stuck, Chunk(stuck.id, 0, 0, prompt, True)),
            (free, Chunk(free.id, 1, 0, prompt, True)),
        )
        assert "allows no further token" in both[stuck.id].error.message
        assert both[free.id] == Sampled((alone[0],))


@pytest.mark.parametrize("scores", [False, True])
def test_what_finds_no_room_leaves_no_trace(tiny, scores):
    model = tiny("plain")
    with running(model, kv_unified=True, cells=256) as machine:
        long, short = machine.sequence(tokens(200, 1)), machine.sequence(tokens(60, 2), logprobs=0)
        machine.prefill(long, 0)
        chunk = Chunk(short.id, 1, 0, short.prompt, True, scores=scores)
        for _ in range(2):
            with pytest.raises(NoRoom):
                machine.decode((short, chunk))
            assert (machine.context.last_position(0), machine.context.last_position(1)) == (199, -1)
        machine.runner.keep(0, 0)
        assert machine.decode((short, chunk))[short.id].tokens == (fresh(model, short.prompt)[0],)


def test_an_interrupted_step_counts_for_nothing(tiny):
    with running(tiny("plain")) as machine:
        sequence = machine.sequence(tokens(60, 1), logprobs=0)
        machine.prefill(sequence, 0)
        machine.runner.interrupt()
        for scores in (False, True):
            assert machine.decode((sequence, Chunk(sequence.id, 0, 60, (1, 2, 3), True, scores=scores))) is None
        assert machine.context.last_position(0) == 59


def test_a_batch_that_llama_cpp_refuses(tiny):
    with running(tiny("plain")) as machine:
        sequence = machine.sequence(tokens(6, 1))
        with pytest.raises(GalleryError, match="refused a batch"):
            machine.decode((sequence, Chunk(sequence.id, 0, 0, (1, 2, 9999), True)))
        assert machine.context.last_position(0) == -1


@pytest.mark.parametrize("strange", [-1, 2048, 1 << 40])
def test_tokens_beyond_the_vocabulary_are_refused_before_they_reach_a_batch(pocket, strange):
    with running(pocket) as machine, pytest.raises(InvalidField, match="not in the vocabulary of 2048 tokens"):
        machine.sequence((1, strange))


def test_forced_tokens_count_for_the_penalties(pocket):
    prompt = answer(pocket)
    heavy = Sampling(temperature=0, presence_penalty=1000.0, repeat_last_n=4).over(DEFAULTS)
    with running(pocket) as machine:
        free = machine.sequence(prompt, sampling=heavy)
        (best,) = machine.prefill(free, 0).tokens
        told = machine.sequence(prompt, sampling=heavy)
        machine.runner.accept(told, [best])
        assert machine.prefill(told, 1).tokens != (best,)


@pytest.mark.parametrize("unified", [False, True])
def test_parts_of_prompts_beside_an_answer_change_nothing_of_it(pocket, unified):
    """With caches of their own they are computed in a decode of their own, and then everything is wanted of the second."""
    with running(pocket, kv_unified=unified) as machine:
        runner, long, short = machine.runner, machine.sequence(tokens(60, 1)), machine.sequence(answer(pocket))
        generated = list(machine.prefill(short, 1).tokens)
        for start in range(0, 60, 20):
            ends = start == 40
            part = Chunk(long.id, 0, start, long.prompt[start : start + 20], ends)
            step = Chunk(short.id, 1, len(short.prompt) + len(generated) - 1, (generated[-1],), True)
            plan = Plan((step, part), streams=1, prefill=20)
            first, rest = runner._parts(plan)
            assert (first.chunks, rest.chunks) == (((), (step, part)) if unified or ends else ((part,), (step,)))
            sampled = runner.decode(plan, {long.id: long, short.id: short})
            generated += sampled[short.id].tokens
            assert (long.id in sampled) is ends
            assert machine.context.last_position(0) == start + 19
        assert sampled[long.id].tokens == tuple(fresh(pocket, long.prompt, kv_unified=unified)[:1])
    assert generated == fresh(pocket, answer(pocket), kv_unified=unified)[: len(generated)]


def test_a_step_goes_through_the_slots_in_order(pocket):
    """llama.cpp computes together what follows on one another; who came first may lie in any slot."""
    with running(pocket) as machine:
        sequences = [machine.sequence(answer(pocket)) for _ in range(3)]
        chunks = [(one, Chunk(one.id, slot, 0, one.prompt, True)) for one, slot in zip(sequences, (2, 0, 1), strict=True)]
        sampled = machine.decode(*chunks)
        batch = machine.runner._batch.raw
        slots = [batch.seq_id[index][0] for index in range(batch.n_tokens)]
        assert slots == sorted(slots) and set(slots) == {0, 1, 2}
        assert len({sampled[one.id].tokens for one in sequences}) == 1


def test_no_room_for_the_answer_takes_the_part_of_the_prompt_back(pocket):
    with running(pocket, cells=256) as machine:
        long, full = machine.sequence(tokens(60, 1)), machine.sequence(tokens(256, 2))
        machine.prefill(full, 1)
        part = Chunk(long.id, 0, 0, long.prompt[:20], False)
        plan = Plan((Chunk(full.id, 1, 256, (7,), True), part), streams=1, prefill=20)
        for _ in range(2):
            with pytest.raises(NoRoom):
                machine.runner.decode(plan, {long.id: long, full.id: full})
            assert (machine.context.last_position(0), machine.context.last_position(1)) == (-1, 255)
