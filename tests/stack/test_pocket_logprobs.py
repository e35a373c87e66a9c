"""Log probabilities of the bundled model through the whole stack: what they are is checked against what the model then does."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

import pytest
from openai.types import Completion, CompletionChoice
from server_process import ServerProcess

from llmgallery import paths
from llmgallery.backends.llamacpp import api

QUESTION = "What is the capital of France?"
CLOSE = 0.02  # a prompt's share of the cache changes the rounding


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServerProcess]:
    with ServerProcess(tmp_path_factory.mktemp("models")) as running:
        yield running


def complete(server: ServerProcess, prompt: Any, **fields: Any) -> Completion:
    ours = {name: fields.pop(name) for name in ("top_k",) if name in fields}
    return server.client.completions.create(model="pocket", prompt=prompt, extra_body=ours, **fields)


def context_of(question: str) -> str:
    return f"<|im_start|>user\n{question}<|im_end|>\n<|im_start|>assistant\n"


def logprobs_of(choice: CompletionChoice) -> list[float]:
    assert choice.logprobs is not None and choice.logprobs.token_logprobs is not None
    return choice.logprobs.token_logprobs


def mean(choice: CompletionChoice) -> float:
    return sum(logprobs_of(choice)) / len(logprobs_of(choice))


def test_the_greedy_token_is_the_likeliest_and_all_are_log_probabilities(server: ServerProcess) -> None:
    reply = server.client.chat.completions.create(
        model="pocket", messages=[{"role": "user", "content": QUESTION}], temperature=0, logprobs=True, top_logprobs=20
    )
    told = reply.choices[0].logprobs
    assert told is not None and told.content
    assert bytes(byte for entry in told.content for byte in entry.bytes or []).decode() == reply.choices[0].message.content
    for entry in told.content:
        ranked = [other.logprob for other in entry.top_logprobs]
        assert len(ranked) == 20 and ranked == sorted(ranked, reverse=True)
        assert (entry.token, entry.logprob) == (entry.top_logprobs[0].token, ranked[0])
        assert ranked[0] <= 0 and 0 < sum(map(math.exp, ranked)) <= 1 + 1e-5


def test_a_sampled_token_has_its_probability_whatever_the_temperature(server: ServerProcess) -> None:
    """What is told comes before any sampler: at temperature 5 the same tokens are as likely as at 0."""
    cold = complete(server, "The capital of", max_tokens=1, temperature=0, logprobs=20).choices[0].logprobs
    hot = complete(server, "The capital of", max_tokens=1, temperature=2, top_k=20, seed=3, logprobs=20).choices[0].logprobs
    assert cold is not None and hot is not None and cold.top_logprobs and hot.top_logprobs and hot.tokens and hot.token_logprobs
    chosen, hot_top, cold_top = hot.tokens[0], hot.top_logprobs[0], cold.top_logprobs[0]
    assert hot.token_logprobs[0] == pytest.approx(cold_top[chosen], abs=CLOSE)
    both = hot_top.keys() & cold_top.keys()
    assert len(both) >= 18  # the last ones may change places
    assert {name: hot_top[name] for name in both} == pytest.approx({name: cold_top[name] for name in both}, abs=CLOSE)


def test_an_echoed_answer_is_as_likely_as_when_it_was_generated(server: ServerProcess) -> None:
    prompt = context_of("What is 7 + 5?")
    generated = complete(server, prompt, max_tokens=12, temperature=0, logprobs=0).choices[0]
    scored = complete(server, prompt + generated.text, max_tokens=0, echo=True, logprobs=0).choices[0]
    assert scored.text == prompt + generated.text and scored.finish_reason == "length"
    assert scored.logprobs is not None and scored.logprobs.tokens and scored.logprobs.text_offset and generated.logprobs
    first = scored.logprobs.text_offset.index(len(prompt))
    assert scored.logprobs.tokens[first:] == generated.logprobs.tokens
    assert logprobs_of(scored)[first:] == pytest.approx(logprobs_of(generated), abs=CLOSE)
    assert logprobs_of(scored)[0] is None


def test_prompts_as_text_and_as_tokens_are_scored_alike(server: ServerProcess) -> None:
    model = api.Model([paths.builtin("models") / "pocket-f16.gguf"], api.ModelParams(), lambda fraction: None)
    texts = [f"Hello, wörld! {QUESTION}", context_of(QUESTION)]
    tokens = [model.vocab.tokenize(text.encode(), special=True) for text in texts]
    model.close()
    by_text, by_tokens = (complete(server, prompts, max_tokens=0, echo=True, logprobs=2) for prompts in (texts, tokens))
    for text, ids, one, other in zip(texts, tokens, by_text.choices, by_tokens.choices, strict=True):
        assert one.text == other.text == text
        assert one.logprobs is not None and other.logprobs is not None
        assert one.logprobs.tokens == other.logprobs.tokens and one.logprobs.text_offset == other.logprobs.text_offset
        assert len(logprobs_of(one)) == len(ids)
        assert logprobs_of(one)[0] is logprobs_of(other)[0] is None
        assert logprobs_of(one)[1:] == pytest.approx(logprobs_of(other)[1:], abs=CLOSE)
        assert all(logprob < 0 for logprob in logprobs_of(one)[1:])


def test_a_continuation_that_makes_sense_scores_higher(server: ServerProcess) -> None:
    context = context_of(QUESTION)
    totals = []
    for ending in ("The capital of France is Paris.", "The capital of France is Tokyo."):
        choice = complete(server, context + ending, max_tokens=1, echo=True, logprobs=1).choices[0]
        assert choice.logprobs is not None and choice.logprobs.text_offset is not None
        pairs = zip(choice.logprobs.text_offset, logprobs_of(choice), strict=True)
        totals.append(sum(logprob for offset, logprob in pairs if len(context) <= offset < len(context + ending)))
    assert totals[0] > totals[1] + 1


def test_the_best_of_several_is_at_least_as_likely_as_each(server: ServerProcess) -> None:
    fields = {"max_tokens": 12, "temperature": 1, "top_k": 0, "top_p": 1, "seed": 11, "logprobs": 0}
    complete(server, "Tell me", **fields)  # from now on the prompt's share of the cache is the same
    every = complete(server, "Tell me", n=4, **fields)
    best = complete(server, "Tell me", best_of=4, **fields)
    assert len(best.choices) == 1
    assert mean(best.choices[0]) >= max(map(mean, every.choices)) - 0.05
    assert best.usage is not None and every.usage is not None
    assert best.usage.prompt_tokens == every.usage.prompt_tokens
    assert best.usage.completion_tokens > 12


def test_a_model_without_the_tokens_says_that_it_cannot_fill_in(server: ServerProcess) -> None:
    with pytest.raises(Exception, match="this model cannot fill in text") as caught:
        complete(server, "def f():", suffix="return 1")
    assert getattr(caught.value, "status_code", None) == 400
