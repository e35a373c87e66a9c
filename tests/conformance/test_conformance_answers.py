"""What every engine must do with an answer: as its library does it, whole, bounded, and beside others."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Sequence

import pytest
from conformance_cases import Scored
from conformance_checks import check, lack
from conformance_driving import GREEDY, OBJECT, PROMPTS, TEXTS, Answer, Choice, Driven, Schema, choice, request
from conformance_worker import Worker, done_of, text_of
from msgspec.structs import replace

from llmgallery.core.errors import ContextExceeded
from llmgallery.core.events import TokenLogprob
from llmgallery.core.messages import say
from llmgallery.core.requests import ChatRequest, CompletionRequest
from llmgallery.core.sampling import Sampling

SAMPLED = Sampling(temperature=5.0, top_k=0, top_p=1.0, min_p=0.0, max_tokens=12, seed=7)


@check("load")
def test_it_loads_and_tells_what_it_has_loaded(driven: Driven) -> None:
    loaded, spec = driven.loaded, driven.case.spec
    assert "generate" in loaded.capabilities
    assert loaded.capabilities <= spec.capabilities | {"probabilities"}
    assert loaded.context_size > 0 and loaded.slots > 0 and loaded.vocab_size > 0
    if driven.config.context_size is not None:
        assert loaded.context_size == driven.config.context_size
    assert driven.listener.fractions == sorted(driven.listener.fractions)
    assert all(0 <= fraction <= 1 for fraction in driven.listener.fractions)
    assert loaded.chat_template and 0 <= driven.end < loaded.vocab_size


@check("greedy")
def test_greedy_answers_are_the_librarys_own(driven: Driven) -> None:
    told = set()
    for text in PROMPTS:
        job = driven.chat(text)
        (answer,) = driven.run(job)
        expected = driven.case.greedy(driven.model, job.prompt, GREEDY.max_tokens or 0)
        assert (answer.tokens, answer.finish == "stop") == (expected.tokens, expected.ended), text
        assert answer.usage.prompt_tokens == len(job.prompt)
        assert answer.usage.completion_tokens == len(expected.tokens) + expected.ended
        told.add(answer.tokens)
    assert len(told) == len(PROMPTS) and any(len(set(tokens)) > 4 for tokens in told), "the model says next to nothing"


@check("streaming")
def test_the_pieces_are_the_answer(driven: Driven, worker: Worker) -> None:
    for text in PROMPTS:
        (answer,) = driven.ask(text)
        assert len(answer.outputs) > 2, "it came in one piece"
        assert answer.text == driven.backend.detokenize(answer.tokens)
        streamed, whole = (worker.ask(request(text), streamed=streamed) for streamed in (True, False))
        assert text_of(streamed) == text_of(whole) == answer.text
        for events in (streamed, whole):
            assert done_of(events).reason == answer.finish
            assert done_of(events).usage.completion_tokens == answer.usage.completion_tokens


@check("stop")
def test_stop_strings_end_answers(driven: Driven, worker: Worker) -> None:
    answers = {text: driven.ask(text)[0] for text in PROMPTS}
    text, stop = next((text, stop) for text, answer in answers.items() if (stop := _middle(answer.text)))
    answer = answers[text]
    events = worker.ask(request(text, stop=("never said", stop)))
    assert text_of(events) == answer.text[: answer.text.index(stop)]
    assert (done_of(events).reason, done_of(events).stop) == ("stop", stop)
    assert done_of(events).usage.completion_tokens <= answer.usage.completion_tokens
    assert text_of(worker.ask(request(text, stop=("never said",)))) == answer.text


def _middle(text: str) -> str:
    """Some characters of it, as no token has them: a stop string begins and ends anywhere."""
    slices = (text[start : start + 5] for start in range(3, len(text) - 5))
    return next((found for found in slices if "\ufffd" not in found and text.index(found) > 2), "")


@check("max_tokens")
def test_answers_end_at_max_tokens(driven: Driven) -> None:
    for count in (0, 1, 7):
        sampling = Sampling(temperature=0, max_tokens=count, ignore_eos=True)
        (answer,) = driven.ask(PROMPTS[0], sampling=sampling)
        assert (answer.finish, answer.usage.completion_tokens, len(answer.tokens)) == ("length", count, count)


@check("seed")
def test_the_same_seed_gives_the_same_answer(driven: Driven) -> None:
    first, again = (driven.ask(*PROMPTS, sampling=SAMPLED) for _ in range(2))
    assert [answer.tokens for answer in first] == [answer.tokens for answer in again]
    if driven.case.wanders:
        others = [driven.ask(PROMPTS[0], sampling=replace(SAMPLED, seed=seed))[0].tokens for seed in range(100, 104)]
        assert len({first[0].tokens, *others}) > 2, "seeds change nothing"


@check("logprobs")
def test_log_probabilities_are_the_librarys_own(driven: Driven) -> None:
    for text in PROMPTS[:2]:
        job = driven.chat(text, logprobs=3)
        (answer,) = driven.run(job)
        expected = driven.case.scores(driven.model, [*job.prompt, *answer.tokens], 3)[len(job.prompt) - 1 :]
        assert [entry.token for entry in answer.logprobs] == list(answer.tokens)
        _same(answer.logprobs, expected, driven.case.tolerance)
        assert b"".join(entry.piece for entry in answer.logprobs).decode(errors="replace") == answer.text
    assert driven.ask(PROMPTS[0])[0].logprobs == (), "nobody asked"


@check("prompt_logprobs")
def test_log_probabilities_of_the_prompt(driven: Driven) -> None:
    job = driven.chat(PROMPTS[0], logprobs=2, prompt_logprobs=True)
    (answer,) = driven.run(job)
    expected = driven.case.scores(driven.model, job.prompt, 2)
    assert [entry.token for entry in answer.prompt_logprobs] == list(job.prompt)
    assert answer.prompt_logprobs[0].logprob is None and answer.outputs[0].prompt_logprobs, "they come first"
    _same(answer.prompt_logprobs[1:], expected, driven.case.tolerance)
    assert answer.tokens == driven.ask(PROMPTS[0])[0].tokens


@lack("logprobs")
def test_no_log_probabilities_are_promised(driven: Driven) -> None:
    driven.assert_refused("logprobs", ChatRequest((say("user", "Hi"),), logprobs=1))


@lack("prompt_logprobs")
def test_no_log_probabilities_of_prompts_are_promised(driven: Driven) -> None:
    driven.assert_refused("prompt_logprobs", CompletionRequest("Hi", echo=True, logprobs=1))


def _same(entries: Sequence[TokenLogprob], expected: Sequence[Scored], tolerance: float) -> None:
    assert len(entries) == len(expected) > 0
    for entry, scored in zip(entries, expected, strict=True):
        assert entry.logprob is not None and math.isclose(entry.logprob, scored.logprob, abs_tol=tolerance)
        assert [other.logprob for other in entry.top] == pytest.approx([logprob for _, logprob in scored.top], abs=tolerance)
        if all(abs(one[1] - two[1]) > 2 * tolerance for one, two in zip(scored.top, scored.top[1:], strict=False)):
            assert [other.token for other in entry.top] == [token for token, _ in scored.top]


@check("concurrent")
def test_answers_made_together_are_those_made_alone(driven: Driven) -> None:
    alone = driven.ask(*PROMPTS)
    seen = len(driven.listener.steps)
    together = driven.run(*[driven.chat(text) for text in PROMPTS])
    assert [_told(answer) for answer in together] == [_told(answer) for answer in alone]
    assert max(stats.sequences for stats in driven.steps_since(seen)) >= 2, "no batch was shared"


@check("concurrent")
def test_every_request_of_a_batch_has_its_own_sampling(driven: Driven) -> None:
    samplings = [GREEDY, SAMPLED, replace(GREEDY, max_tokens=3), replace(SAMPLED, temperature=0.5, seed=8)]
    alone = [driven.ask(PROMPTS[0], sampling=sampling)[0] for sampling in samplings]
    together = driven.run(*[driven.chat(PROMPTS[0], sampling) for sampling in samplings])
    assert [_told(answer) for answer in together] == [_told(answer) for answer in alone]


def _told(answer: Answer) -> tuple[object, ...]:
    return answer.tokens, answer.text, answer.finish, answer.usage.completion_tokens


@check("context_overflow")
def test_a_full_context_ends_an_answer_and_long_prompts_are_refused(drive: Callable[..., Driven]) -> None:
    driven = drive(context_size=96)
    size = driven.loaded.context_size
    assert size == 96
    job = driven.chat("Hi", Sampling(temperature=0, ignore_eos=True))
    (answer,) = driven.run(job)
    assert (answer.finish, answer.usage.completion_tokens) == ("length", size - len(job.prompt))
    with pytest.raises(ContextExceeded, match=f"context holds {size}"):
        driven.chat("far too long " * 40)
    full = driven.backend.tokenize("x" * 1000, special=False, bos=False)
    full = (full * size)[: size - 1]
    (last,) = driven.run(driven.prepared(CompletionRequest(tuple(full), Sampling(temperature=0, ignore_eos=True))))
    assert (last.finish, last.usage.completion_tokens) == ("length", 1)


@check("unicode")
def test_every_text_comes_back_and_characters_are_never_split(driven: Driven) -> None:
    for text in TEXTS:
        tokens = driven.backend.tokenize(text, special=False, bos=False)
        assert driven.backend.detokenize(tokens) == text
    answers = driven.run(*_saying(driven, TEXTS[:4]))
    for text, answer in zip(TEXTS, answers, strict=False):
        assert answer.text == text and answer.finish == "stop"
        assert all("\ufffd" not in output.text for output in answer.outputs)
        assert len(answer.outputs) > 2


def _saying(driven: Driven, texts: Sequence[str]) -> list:
    """Jobs whose answers are these texts."""
    sampling = Sampling(temperature=0, max_tokens=150)
    if driven.case.echoes:
        return [driven.chat(text, sampling) for text in texts]
    assert "constraints" in driven.loaded.capabilities, "it can be made to say a text by a constraint only"
    return [driven.chat("Say it.", sampling, constraint=choice(driven, text)) for text in texts]


@check("constraints")
def test_a_choice_holds_beside_free_answers(driven: Driven) -> None:
    free = driven.ask(PROMPTS[0])[0]
    bound = [driven.chat(text, constraint=choice(driven, "certainly not", "maybe 🎉")) for text in PROMPTS[:2]]
    sampled = driven.chat(PROMPTS[2], SAMPLED, constraint=choice(driven, "one", "two"))
    *chosen, beside = driven.run(*bound, sampled, driven.chat(PROMPTS[0]))
    assert all(answer.finish == "stop" for answer in chosen)
    assert {answer.text for answer in chosen[:2]} <= {"certainly not", "maybe 🎉"} and chosen[2].text in {"one", "two"}
    assert _told(beside) == _told(free)


@check("constraints")
def test_a_json_schema_holds(driven: Driven) -> None:
    tokenizer = driven.case.tokenizer(driven.model)
    samplings = [replace(sampling, max_tokens=64) for sampling in (GREEDY, SAMPLED, replace(SAMPLED, seed=8))]
    jobs = [driven.chat("Who?", sampling, constraint=Schema(OBJECT, tokenizer)) for sampling in samplings]
    for answer in driven.run(*jobs):
        said = json.loads(answer.text)
        assert answer.finish == "stop" and set(said) == {"name", "age"}
        assert said["name"] in ("Ada", "Bob") and isinstance(said["age"], int) and 0 <= said["age"] <= 99


@check("constraints")
def test_a_constraint_that_allows_nothing_ends_only_its_answer(driven: Driven) -> None:
    nothing = driven.chat(PROMPTS[1], constraint=Choice([], driven.end, driven.loaded.vocab_size))
    failed, other = driven.run(nothing, driven.chat(PROMPTS[0]))
    assert failed.finish == "error" and "constraint" in failed.message
    assert _told(other) == _told(driven.ask(PROMPTS[0])[0])


@lack("constraints")
def test_no_constraints_are_promised(driven: Driven) -> None:
    driven.assert_refused("constraints")


@lack("seed")
def test_no_seeds_are_promised(driven: Driven) -> None:
    driven.assert_refused("seed")
