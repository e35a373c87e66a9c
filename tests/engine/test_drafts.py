"""Guessing from a sequence's own text, and learning what guesses are worth."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from llmgallery.core.sampling import Sampling
from llmgallery.engine.drafts import (
    CANDIDATES,
    LONGEST_MATCH,
    LONGEST_PAUSE,
    SHORTEST_MATCH,
    Ledger,
    PromptLookup,
    Reach,
    Repetitions,
    outcome,
)
from llmgallery.engine.plan import Chunk, Plan, Sampled
from llmgallery.engine.sequence import Sequence


def sequence(prompt: list[int], generated: tuple[int, ...] = (), limit: int = 1000, id: int = 1) -> Sequence:
    return Sequence(id, tuple(prompt), limit, Sampling(), generated=list(generated))


def searched(tokens: list[int], most: int) -> tuple[int, ...]:
    """The same as Repetitions.continuation, the slow way and over every earlier place."""
    best, length = -1, SHORTEST_MATCH - 1
    end = len(tokens) - 1
    for at in range(end - 1, -1, -1):
        alike = 0
        while alike < min(LONGEST_MATCH, at + 1) and tokens[at - alike] == tokens[end - alike]:
            alike += 1
        if alike > length:
            best, length = at, alike
    if best < 0:
        return ()
    return tuple(tokens[best + 1 + index % (end - best)] for index in range(min(most, length)))


# --- the text's own index -----------------------------------------------------------------------------------------------------


def test_what_followed_before_follows_again():
    assert Repetitions([5, 6, 7, 8, 9, 1, 5, 6, 7]).continuation(8) == (8, 9, 1)
    assert Repetitions([5, 6, 7, 8, 9, 1, 5, 6, 7]).continuation(2) == (8, 9)


def test_a_longer_likeness_wins_over_a_newer_one():
    text = [1, 2, 3, 4, 5, 90, 91, 92, 3, 4, 5, 80, 81, 82, 1, 2, 3, 4, 5]
    assert Repetitions(text).continuation(8)[0] == 90
    assert Repetitions([0, *text[2:14], 7, 3, 4, 5]).continuation(8)[0] == 80


def test_a_loop_goes_on():
    assert Repetitions([1, 2, 3] * 4).continuation(7) == (1, 2, 3, 1, 2, 3, 1)


@pytest.mark.parametrize("text", [[], [1], [1, 1], [1, 2, 1, 2], [1, 2, 3, 4, 5], [9, 2, 3, 8, 2, 3]])
def test_little_likeness_is_none(text):
    assert Repetitions(text).continuation(8) == ()


@given(st.lists(st.integers(0, 2), max_size=CANDIDATES + 2), st.integers(1, 12))
def test_the_chains_find_what_a_full_search_finds(tokens, most):
    assert Repetitions(tokens).continuation(most) == searched(tokens, most)


@given(st.lists(st.lists(st.integers(0, 3), max_size=9), max_size=12), st.integers(1, 9))
def test_growing_is_the_same_as_reading_at_once(parts, most):
    grown = Repetitions()
    for part in parts:
        grown.extend(part)
    whole = [token for part in parts for token in part]
    assert len(grown) == len(whole)
    assert grown.continuation(most) == Repetitions(whole).continuation(most)


@settings(max_examples=60)
@given(st.lists(st.integers(0, 5), min_size=40, max_size=300))
def test_guesses_stood_in_the_text(tokens):
    guesses = Repetitions(tokens).continuation(8)
    whole = tokens + list(guesses)
    pieces = {tuple(whole[at : at + SHORTEST_MATCH + 1]) for at in range(len(tokens) - SHORTEST_MATCH)}
    assert not guesses or (*tokens[-SHORTEST_MATCH:], guesses[0]) in pieces


# --- how many -----------------------------------------------------------------------------------------------------------------


def test_met_guesses_make_it_bolder_up_to_the_most():
    reach = Reach(16)
    lengths = []
    for _ in range(4):
        count = reach.next()
        lengths.append(count)
        reach.judge(count, count)
    assert lengths == [3, 7, 15, 16]


def test_missed_guesses_make_it_modest_then_silent():
    reach = Reach(16)
    reach.judge(1, 3)
    assert reach.next() == 2
    steps, asked = 400, 0
    for _ in range(steps):
        if count := reach.next():
            asked += 1
            assert count <= 2
            reach.judge(0, count)
    assert asked < 2 + 6 + steps / LONGEST_PAUSE


def test_one_hit_wakes_it():
    reach = Reach(8)
    for _ in range(6):
        while not (count := reach.next()):
            pass
        reach.judge(0, count)
    while not (count := reach.next()):
        pass
    reach.judge(count, count)
    assert reach.next() == 3


def test_who_has_nothing_to_say_is_asked_less_often():
    reach = Reach(8)
    asked = 0
    for _ in range(90):
        if reach.next():
            asked += 1
            reach.decline()
    assert 8 < asked < 20
    reach.judge(3, 3)
    while not reach.next():
        pass
    reach.decline()
    assert reach.next() == 7


def test_the_most_holds_from_the_beginning():
    assert Reach(2).next() == 2
    assert Reach(0).next() == 0


@given(st.integers(0, 12), st.lists(st.integers(0, 99), max_size=40))
def test_reach_stays_within_bounds(most, outcomes):
    reach = Reach(most)
    for number in outcomes:
        count = reach.next()
        assert 0 <= count <= most
        if count:
            reach.judge(number % (count + 1), count)


# --- the account --------------------------------------------------------------------------------------------------------------


def test_the_sequence_tells_what_was_met():
    ledger, one = Ledger(8), sequence([1], (5,))
    assert ledger.reach(one) == 3
    ledger.note(one, (6, 7, 8, 9))
    one.generated += [6, 7, 3]
    assert ledger.reach(one) == 3
    assert (ledger.guessed, ledger.met) == (4, 2)


def test_guesses_without_room_are_no_misses():
    ledger, one = Ledger(8), sequence([1], (5,))
    ledger.reach(one)
    ledger.note(one, (6, 7, 8, 9))
    one.generated += [6]
    assert ledger.reach(one) == 3
    assert (ledger.guessed, ledger.met) == (1, 1)


def test_a_step_that_did_not_happen_is_not_judged():
    ledger, one = Ledger(8), sequence([1], (5,))
    ledger.reach(one)
    ledger.note(one, (6, 7))
    assert ledger.reach(one) == 3
    assert ledger.guessed == 0


def test_the_last_guesses_of_an_answer_count():
    ledger, one = Ledger(8), sequence([1], (5,))
    ledger.reach(one)
    ledger.note(one, (6, 7))
    one.generated += [6, 8]
    ledger.end(one)
    ledger.end(one)
    assert (ledger.guessed, ledger.met) == (2, 1)


def test_nothing_is_guessed_beyond_the_limit():
    ledger = Ledger(8)
    assert ledger.reach(sequence([1], (5, 6, 7), limit=6)) == 2
    assert ledger.reach(sequence([1], (5, 6, 7), limit=4, id=2)) == 0


def test_a_steps_guesses_are_counted():
    chunks = (
        Chunk(1, 0, 5, (7, 8, 9), samples=True, drafts=2),
        Chunk(2, 1, 5, (7, 8, 9), samples=True, drafts=2),
        Chunk(3, 2, 0, (1, 2, 3, 4), samples=True),
        Chunk(4, 3, 0, (1, 2), samples=True, drafts=1),
    )
    sampled = {1: Sampled((8, 9, 3)), 2: Sampled((4,)), 3: Sampled((5,)), 4: Sampled((2,))}
    assert outcome(Plan(chunks), sampled) == (5, 3), "the last one's guess was the end"
    assert outcome(Plan(), {}) == (0, 0)


# --- prompt lookup ------------------------------------------------------------------------------------------------------------


def run(drafter: PromptLookup, one: Sequence, answer: list[int], most: int = 16) -> int:
    """Generate `answer` as an engine would that takes every guess that is met; the number of steps."""
    steps = 0
    one.generated.append(answer[0])
    while len(one.generated) < len(answer):
        guesses = drafter.draft([one], most).get(one.id, ())
        assert len(guesses) <= most
        ahead = answer[len(one.generated) :]
        met = 0
        while met < min(len(guesses), len(ahead) - 1) and guesses[met] == ahead[met]:
            met += 1
        one.generated += ahead[: met + 1]
        steps += 1
    return steps


def test_a_copied_prompt_takes_a_fraction_of_the_steps():
    text = [(7 * index * index + 3 * index) % 251 for index in range(250)]
    drafter = PromptLookup(8)
    steps = run(drafter, sequence([1, 2, *text, 3], limit=10_000), text)
    assert steps < len(text) / 5
    assert drafter.met / drafter.guessed > 0.9


def test_without_likeness_nothing_is_guessed():
    drafter = PromptLookup(8)
    assert run(drafter, sequence(list(range(100)), limit=1000), list(range(1000, 1100))) == 99
    assert drafter.guessed == 0


def test_most_is_the_engines_word():
    drafter = PromptLookup(16)
    assert len(drafter.draft([sequence([1, 2, 3, 4] * 5, (1,))], 2)[1]) == 2
    assert drafter.draft([sequence([1, 2, 3, 4] * 5, (1,), id=2)], 0) == {}


def test_each_sequence_has_its_own_text():
    drafter = PromptLookup(8)
    first, second = sequence([1, 2, 3, 9, 1, 2], (3,)), sequence([1, 2, 3, 8, 1, 2], (3,), id=2)
    found = drafter.draft([first, second], 8)
    assert (found[1][0], found[2][0]) == (9, 8)
    drafter.end(first)
    first.generated.append(9)
    assert drafter.draft([first], 8)[1][0] == 1
    drafter.end(sequence([], id=77))
    drafter.close()


def test_a_long_text_costs_a_step_no_more_than_a_short_one():
    """Counted in lookups, not in time: the chain of a pair that is everywhere is not walked to its end."""
    text = Repetitions([1, 1] * 5000)
    looked = 0
    alike = text._alike

    def counted(at: int) -> int:
        nonlocal looked
        looked += 1
        return alike(at)

    text._alike = counted  # type: ignore[method-assign]
    assert len(text.continuation(8)) == 8
    assert looked <= CANDIDATES
