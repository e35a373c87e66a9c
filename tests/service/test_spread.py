"""Which requests one call becomes: defaults of the YAML, copies, seeds, the best of several."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from llmgallery.backends.base import BackendSpec
from llmgallery.catalog.index import Entry
from llmgallery.config.model import ModelConfig
from llmgallery.core.errors import InvalidField
from llmgallery.core.events import Done
from llmgallery.core.messages import ImagePart, Message, RawPart, TextPart, say
from llmgallery.core.requests import ChatRequest, CompletionRequest
from llmgallery.core.sampling import Sampling
from llmgallery.service.demands import EVERYTHING, FEATURES, features_of
from llmgallery.service.generation import likeliest
from llmgallery.service.spread import MOST_ANSWERS, MOST_COPIED, Ask, spread


def entry(**parameters: Any) -> Entry:
    config = msgspec.convert({"parameters": parameters}, ModelConfig)
    return Entry("m", Path("m.yaml"), Path(), config, "echo")


def chat(**fields: Any) -> ChatRequest:
    return ChatRequest((say("user", "x"),), **fields)


def unsaid(*names: str) -> frozenset[str]:
    return frozenset(names)


def test_copies_stand_together_and_count_the_seed_up() -> None:
    prompts = (CompletionRequest("a", Sampling(seed=7)), CompletionRequest("b"))
    asked = spread(Ask("m", prompts, copies=2), entry())
    assert [(request.prompt, request.sampling.seed) for request in asked.requests if isinstance(request, CompletionRequest)] == [
        ("a", 7), ("a", 8), ("b", None), ("b", None),
    ]  # fmt: skip
    assert (asked.copies, asked.choices, asked.logprobs) == (2, 2, False)


@pytest.mark.parametrize(
    ("parameters", "said", "own", "expected"),
    [
        ({}, False, None, None),
        ({"logprobs": True}, False, None, 0),
        ({"logprobs": True, "top_logprobs": 4}, False, None, 4),
        ({"logprobs": 3}, False, None, 3),
        ({"logprobs": 3, "top_logprobs": 4}, False, None, 4),
        ({"logprobs": False, "top_logprobs": 4}, False, None, None),
        ({"logprobs": 0}, False, None, None),
        ({"logprobs": 3}, True, None, None),
        ({"logprobs": 3}, True, 1, 1),
        ({"top_logprobs": 4}, True, 0, 0),
    ],
)
def test_logprobs_of_the_yaml_hold_unless_the_request_says(
    parameters: dict[str, Any], said: bool, own: int | None, expected: int | None
) -> None:
    asked = spread(Ask("m", (chat(logprobs=own),), unsaid=unsaid() if said else unsaid("logprobs")), entry(**parameters))
    assert [request.logprobs for request in asked.requests] == [expected]
    assert asked.logprobs == (expected is not None)


def test_how_many_likeliest_may_be_left_to_the_yaml() -> None:
    ask = Ask("m", (chat(logprobs=0),), unsaid=unsaid("top_logprobs"))
    assert spread(ask, entry(top_logprobs=4)).requests[0].logprobs == 4
    assert spread(ask, entry()).requests[0].logprobs == 0
    silent = Ask("m", (chat(logprobs=None),), unsaid=unsaid("top_logprobs"))
    assert spread(silent, entry(top_logprobs=4)).requests[0].logprobs is None


def test_n_and_echo_of_the_yaml_hold_unless_the_request_says() -> None:
    model = entry(n=3, echo=True)
    asked = spread(Ask("m", (CompletionRequest("a"),), unsaid=unsaid("n", "echo")), model)
    assert (len(asked.requests), asked.copies, asked.choices) == (3, 3, 3)
    assert all(request.echo for request in asked.requests if isinstance(request, CompletionRequest))
    (request,) = spread(Ask("m", (CompletionRequest("a"),)), model).requests
    assert isinstance(request, CompletionRequest) and not request.echo
    assert len(spread(Ask("m", (chat(),), unsaid=unsaid("n", "echo")), model).requests) == 3


def test_the_best_of_more_are_scored_though_nobody_asked_to_see_it() -> None:
    asked = spread(Ask("m", (CompletionRequest("a"), CompletionRequest("b")), copies=2, best_of=3), entry())
    assert (len(asked.requests), asked.copies, asked.choices, asked.logprobs) == (6, 3, 2, False)
    assert {request.logprobs for request in asked.requests} == {0}
    seen = spread(Ask("m", (CompletionRequest("a", logprobs=2),), best_of=3), entry())
    assert ({request.logprobs for request in seen.requests}, seen.logprobs) == ({2}, True)
    same = spread(Ask("m", (CompletionRequest("a"),), copies=2, best_of=2, stream=True), entry())
    assert [request.logprobs for request in same.requests] == [None, None]


def test_long_prompts_are_not_copied_without_limit() -> None:
    """A call may have 32 MiB, and ask for 512 answers."""
    long = CompletionRequest("x" * (MOST_COPIED // 100))
    assert len(spread(Ask("m", (long,), copies=99), entry()).requests) == 99
    for field, more in (("n", {"copies": 101}), ("best_of", {"best_of": 101})):
        with pytest.raises(InvalidField, match="too much at once") as caught:
            spread(Ask("m", (long,), **more), entry())
        assert caught.value.field == field


def test_what_best_of_cannot_be() -> None:
    one = (CompletionRequest("a"),)
    with pytest.raises(InvalidField, match="best_of: must be at least n, which is 3"):
        spread(Ask("m", one, copies=3, best_of=2), entry())
    with pytest.raises(InvalidField, match="best_of: must be at least n, which is 4"):
        spread(Ask("m", one, best_of=2, unsaid=unsaid("n")), entry(n=4))
    with pytest.raises(InvalidField, match="cannot be streamed"):
        spread(Ask("m", one, best_of=2, stream=True), entry())
    with pytest.raises(InvalidField) as caught:
        spread(Ask("m", one * (MOST_ANSWERS // 2), best_of=3), entry())
    assert caught.value.field == "best_of"
    with pytest.raises(InvalidField) as caught:
        spread(Ask("m", one * (MOST_ANSWERS // 2), copies=3), entry())
    assert caught.value.field == "n"


def test_nothing_is_asked_of_a_model_that_cannot_do_it() -> None:
    request = CompletionRequest("a", suffix="z", logprobs=2, echo=True)
    asked = spread(Ask("m", (request,), best_of=4, stream=True), entry(logprobs=3), FEATURES - {"suffix", "logprobs", "best_of"})
    assert [(left.suffix, left.logprobs, left.echo) for left in asked.requests if isinstance(left, CompletionRequest)] == [
        (None, None, True)
    ]


def test_the_likeliest_per_token_are_chosen_of_each_prompt() -> None:
    means = [-2.0, -1.0, -3.0, -0.5, None, -0.7]
    ends = [Done("stop", mean_logprob=mean) for mean in means]
    assert likeliest(ends, 3, 1) == [1, 3]
    assert likeliest(ends, 3, 2) == [1, 0, 3, 5]
    assert likeliest(ends, 3, 3) == [0, 1, 2, 3, 4, 5]
    assert likeliest([Done("stop"), Done("stop")], 2, 1) == [0]


@given(st.lists(st.floats(-20, 0), min_size=1, max_size=8), st.data())
def test_no_answer_left_out_is_likelier_than_a_chosen_one(means: list[float], data: st.DataObject) -> None:
    choices = data.draw(st.integers(1, len(means)))
    chosen = likeliest([Done("stop", mean_logprob=mean) for mean in means], len(means), choices)
    assert len(set(chosen)) == choices
    left = [mean for index, mean in enumerate(means) if index not in chosen]
    assert not left or max(left) <= min(means[index] for index in chosen)


REMOTE = BackendSpec(name="remote", implementation="nowhere:Nothing", level="chat")
OWN = BackendSpec(name="own", implementation="nowhere:Nothing", parameters=frozenset({"num_beams", "do_sample"}))
PARTS = (TextPart("a"), ImagePart(url="https://x.example"), RawPart({"type": "file"}))
SAID = Message("user", PARTS, extra={"cache_control": 1})


def one(ask: Ask, of: Entry, spec: BackendSpec) -> ChatRequest:
    (request,) = spread(ask, of, features_of(spec, of.config), spec).requests
    assert isinstance(request, ChatRequest)
    return request


def test_what_is_sent_elsewhere_says_only_what_was_said() -> None:
    request = ChatRequest((SAID,), Sampling(top_p=0.5), stop=("a",), extra={"store": True})
    configured = entry(temperature=0.1, max_tokens=-1)
    told = one(Ask("m", (request,)), configured, REMOTE)
    assert told.sampling == Sampling(top_p=0.5, temperature=0.1)
    assert (told.messages, told.extra, told.stop) == ((SAID,), {"store": True}, ("a",))
    assert spread(Ask("m", (request,)), configured, EVERYTHING, REMOTE).requests == [told]


def test_a_model_that_is_here_gets_what_it_can_read() -> None:
    blind, sees = OWN, BackendSpec(name="sees", implementation="nowhere:Nothing", capabilities=frozenset({"images"}))
    ask = Ask("m", (ChatRequest((SAID, say("user", "b")), extra={"store": True}),))
    assert one(ask, entry(), blind).messages == (say("user", "a"), say("user", "b"))
    assert one(ask, entry(), sees).messages[0].parts == PARTS[:2]
    assert one(ask, entry(), sees).extra == {}


@pytest.mark.parametrize("config", [{"num_beams": 2, "min_length": 5, "top_k": None}, '{"num_beams": 2, "min_length": 5}'])
def test_parameters_of_the_backend_s_own(config: Any) -> None:
    request = chat(extra={"generation_config": config, "do_sample": False, "num_beams": 3, "unknown": 1, "stop_strings": None})
    told = one(Ask("m", (request,)), entry(), OWN)
    assert told.sampling.extra == {"num_beams": 3, "min_length": 5, "do_sample": False}
    assert one(Ask("m", (request,)), entry(), BackendSpec(name="other", implementation="x:X")).sampling.extra == {}


@pytest.mark.parametrize("config", [5, [1], "{", "[1]", True])
def test_a_bad_generation_config_is_named(config: Any) -> None:
    with pytest.raises(InvalidField) as caught:
        one(Ask("m", (chat(extra={"generation_config": config}),)), entry(), OWN)
    assert caught.value.field == "generation_config"


def test_an_echo_without_its_log_probabilities_is_none() -> None:
    ask = Ask("m", (CompletionRequest("a", echo=True, logprobs=1),))
    for features, echo in ((FEATURES, True), (FEATURES - {"prompt_logprobs"}, False)):
        (request,) = spread(ask, entry(), features).requests
        assert isinstance(request, CompletionRequest) and request.echo is echo
