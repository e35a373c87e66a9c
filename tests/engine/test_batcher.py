"""What a step makes of what was computed: forced and guessed tokens, log probabilities, room that runs out, failures."""

from __future__ import annotations

import pytest
from batching import Watched
from caching_runner import END, CachingRunner, Steering, alone, text_of

from llmgallery.core.errors import GalleryError
from llmgallery.core.events import TokenLogprob
from llmgallery.engine.plan import Plan, Sampled
from llmgallery.engine.scheduler import LEAST


class Talkative(CachingRunner):
    """Its model never ends."""

    def is_end(self, token: int) -> bool:
        return False


def prompt_that_goes_on(length: int, limit: int, start: int = 2) -> list[int]:
    """One to which the model says `limit` tokens and no end."""
    for token in range(start, 22):
        prompt = [token] * length
        if alone(prompt, limit)[1] == "length":
            return prompt
    raise AssertionError("no such prompt")


def test_forced_tokens_come_without_sampling_and_are_computed_together():
    runner = CachingRunner(1)
    watched = Watched(runner)
    watched.add(1, [5, 6, 7], 8, constraint=Steering(8, (0, 1, 3, 4, 5)))
    watched.run()
    said, _ = alone([5, 6, 7], 8, Steering(8, (0, 1, 3, 4, 5)))
    assert watched.tokens(1) == said and watched.text(1) == text_of(said)
    assert [output.tokens for output in watched.outputs[1]] == [
        tuple(said[:2]),
        tuple(said[2:6]),
        tuple(said[6:7]),
        tuple(said[7:]),
    ]
    assert [(chunk.position, len(chunk.tokens)) for plan in runner.plans for chunk in plan.chunks] == [(0, 5), (5, 4), (9, 1)]


@pytest.mark.parametrize("limit", [1, 2, 3])
def test_the_limit_cuts_what_is_forced(limit):
    runner = CachingRunner(1)
    watched = Watched(runner)
    watched.add(1, [5, 6, 7], limit, constraint=Steering(1, (0,)))
    watched.run()
    assert watched.tokens(1) == [2, 3, 4][:limit] and watched.finish(1) == "length"
    assert runner.num_computed == 0 and runner.ended == [1] and watched.last(1).usage.completion_tokens == limit


def test_a_forced_end_ends_the_answer():
    watched = Watched(CachingRunner(1))
    watched.add(1, [5, 6, 7], 20, constraint=Steering(20, (1, 2), end_at=3))
    watched.run()
    assert watched.finish(1) == "stop" and len(watched.tokens(1)) == 3 and watched.last(1).usage.completion_tokens == 4


class Broken(Steering):
    """A constraint that fails at a place."""

    def forced(self) -> list[int]:
        if len(self.accepted) == 2:
            raise GalleryError("the grammar is lost")
        return super().forced()


def test_a_constraint_that_breaks_ends_its_answer_only():
    watched = Watched(CachingRunner(2))
    prompt = prompt_that_goes_on(3, 4)
    watched.add(1, prompt, 20, constraint=Broken(99, ()))
    watched.add(2, prompt, 4)
    watched.run()
    assert (watched.finish(1), watched.last(1).message) == ("error", "the grammar is lost")
    assert watched.tokens(1) == alone(prompt, 2)[0]
    assert watched.finish(2) == "length"


class Failing(CachingRunner):
    """What it samples for sequence 1 is its last."""

    def decode(self, plan, sequences):
        sampled = dict(super().decode(plan, sequences) or {})
        if 1 in sampled:
            sampled[1] = Sampled(sampled[1].tokens, error=GalleryError("no token is allowed"))
        return sampled


def test_a_sequence_that_the_runner_gives_up_ends_with_what_it_had():
    runner = Failing(2)
    watched = Watched(runner)
    prompt = prompt_that_goes_on(3, 4)
    watched.add(1, prompt, 20)
    watched.add(2, [*prompt, 3], 2)
    watched.run()
    assert (watched.finish(1), watched.last(1).message) == ("error", "no token is allowed")
    assert watched.tokens(1) == alone(prompt, 1)[0]
    assert runner.caches[0] == [], "nobody knows what is in there"
    assert watched.finish(2) in ("stop", "length")


def test_guesses_that_are_met_save_steps():
    prompt = prompt_that_goes_on(4, 12)
    runner = CachingRunner(1, guesses=5)
    watched = Watched(runner)
    watched.add(1, prompt, 12, logprobs=0)
    watched.run()
    assert watched.tokens(1) == alone(prompt, 12)[0]
    assert len(runner.plans) < 8
    guessed = sum(chunk.drafts for plan in runner.plans for chunk in plan.chunks)
    assert guessed > 12 - len(runner.plans), "some guesses were wrong"
    assert [logprob.logprob for output in watched.outputs[1] for logprob in output.logprobs] == [
        -float(place) for place in range(4, 16)
    ]


def test_guesses_leave_room_for_prompts_and_for_the_limit():
    runner = CachingRunner(2, guesses=50)
    watched = Watched(runner, budget=16)
    prompt = prompt_that_goes_on(4, 30)
    watched.add(1, prompt, 30)
    watched.step(2)
    watched.add(2, [9] * 60, 1)
    watched.run()
    assert watched.tokens(1) == alone(prompt, 30)[0]
    assert all(plan.num_tokens <= 16 for plan in runner.plans)
    both = [plan for plan in runner.plans if len(plan.chunks) == 2]
    assert both and all(len(plan.chunks[1].tokens) >= LEAST for plan in both[:-1])


def test_the_log_probabilities_of_a_prompt_come_once_with_its_first_output():
    watched = Watched(CachingRunner(2), budget=4)
    prompt = prompt_that_goes_on(9, 2)
    watched.add(0, prompt, 1)
    watched.run()
    watched.add(1, prompt, 2, prompt_logprobs=True, logprobs=0)
    watched.run()
    first, *others = watched.outputs[1]
    assert first.prompt_logprobs[0] == TokenLogprob(prompt[0], b"%c" % (95 + prompt[0]), None)
    assert [score.logprob for score in first.prompt_logprobs[1:]] == [-float(place) for place in range(1, 9)]
    assert not any(other.prompt_logprobs for other in others) and watched.cached(1) == 0


def test_a_prompt_can_be_scored_without_an_answer():
    runner = CachingRunner(1)
    watched = Watched(runner, budget=4)
    watched.add(1, [END, 5, 6, 7, 8, 9], 0, prompt_logprobs=True)
    watched.run()
    (output,) = watched.outputs[1]
    assert [score.token for score in output.prompt_logprobs] == [END, 5, 6, 7, 8, 9]
    assert output.prompt_logprobs[0].piece == b"<end>"
    assert output.finish == "length" and output.usage.prompt_tokens == 6 and output.usage.completion_tokens == 0
    assert runner.num_computed == 6 and not any(chunk.samples for plan in runner.plans for chunk in plan.chunks)


def test_nothing_to_generate_computes_nothing_and_keeps_the_prefixes():
    runner = CachingRunner(1)
    watched = Watched(runner)
    watched.add(0, [5] * 10, 1)
    watched.run()
    watched.add(1, [6] * 10, 0)
    watched.run()
    assert watched.finish(1) == "length" and 1 not in runner.begun and runner.caches[0] == [5] * 10


def test_without_room_idle_prefixes_go_first():
    runner = Talkative(4, room=150)
    watched = Watched(runner, budget=64)
    for id in range(3):
        watched.add(id, [2 + id] * 40, 1)
        watched.run()
    watched.add(3, [9] * 60, 8)
    watched.run()
    assert [len(cache) for cache in runner.caches] == [0, 40, 40, 67]
    assert watched.finish(3) == "length"


def test_without_room_the_youngest_goes_back_and_loses_nothing():
    runner = CachingRunner(3, room=60)
    watched = Watched(runner, budget=64)
    prompts = [prompt_that_goes_on(12, 20, start) for start in (2, 8, 14)]
    for id, prompt in enumerate(prompts):
        watched.add(id, prompt, 20)
    watched.run()
    for id, prompt in enumerate(prompts):
        assert watched.tokens(id) == alone(prompt, 20)[0] and watched.finish(id) == "length"
        assert watched.cached(id) == 0, "what is computed twice is not cached"
    assert runner.begun == [0, 1, 2] and runner.num_computed > 3 * 31


def test_who_does_not_fit_alone_is_told_what_to_do():
    runner = Talkative(2, room=20)
    watched = Watched(runner, budget=8)
    watched.add(1, [5] * 16, 50)
    watched.add(2, [6] * 4, 4)
    watched.run()
    assert watched.finish(1) == "error" and "raise context_size" in watched.last(1).message
    assert watched.tokens(1) and watched.finish(2) == "length"


def test_room_for_nobody_ends():
    runner = CachingRunner(4, room=0)
    watched = Watched(runner)
    for id in range(6):
        watched.add(id, [5, 6, 7], 3)
    watched.run()
    assert {watched.finish(id) for id in range(6)} == {"error"} and runner.num_computed == 0


def test_a_failed_decode_empties_the_slots_it_touched_and_no_others():
    runner = CachingRunner(3)
    watched = Watched(runner)
    watched.add(0, [5] * 40, 1)
    watched.run()
    watched.add(1, [6] * 8, 5)
    watched.step()

    def fail(plan: Plan) -> bool:
        raise GalleryError("no luck")

    runner.on_decode = fail
    watched.step()
    assert (watched.finish(1), watched.last(1).message) == ("error", "no luck")
    assert runner.caches == [[5] * 40, [], []]


def test_who_waits_for_a_leader_survives_the_leaders_failure():
    runner = CachingRunner(2, copy_cost=4)
    watched = Watched(runner)
    for id in (1, 2):
        watched.add(id, [*range(2, 22), *range(2, 22), 2 + id], 2)
    watched.step()

    def fail(plan: Plan) -> bool:
        runner.on_decode = lambda plan: True
        raise GalleryError("no luck")

    runner.on_decode = fail
    watched.run()
    assert watched.finish(1) == "error" and watched.finish(2) in ("stop", "length") and watched.cached(2) == 0
