"""Arguments of transformers' generate(): which there are, what type they have, and what our sampler does of them."""

import json
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from llmgallery.backends.transformers.generation.generate_arguments import ARGUMENTS, REFUSED, THEIRS, check, divide
from llmgallery.backends.transformers.spec import PARAMETERS
from llmgallery.core.errors import InvalidField, RequestError, UnsupportedField
from llmgallery.core.sampling import DEFAULTS, Sampling

GOOD = {
    "max_length": 25,
    "max_new_tokens": 25,
    "do_sample": True,
    "top_k": 40,
    "top_p": 0.95,
    "length_penalty": -1.5,
    "early_stopping": "never",
    "bad_words_ids": [[1, 2], [3]],
    "forced_eos_token_id": [1, 2],
    "eos_token_id": 3,
    "sequence_bias": [[[1, 2], -5.0]],
    "exponential_decay_length_penalty": [3, 1.5],
    "stop_strings": "x",
    "num_assistant_tokens_schedule": "constant",
}


@pytest.mark.parametrize("name", GOOD)
def test_a_good_value_is_taken(name: str) -> None:
    told = check({name: GOOD[name]}, vocab_size=100)[name]
    assert json.loads(json.dumps(told)) == GOOD[name]


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("num_beams", "2"),
        ("num_beams", True),
        ("num_beams", 0),
        ("num_beams", 33),
        ("num_beams", 2.5),
        ("do_sample", 1),
        ("no_repeat_ngram_size", -1),
        ("top_p", 1.5),
        ("max_new_tokens", 0),
        ("repetition_penalty", 0),
        ("early_stopping", "always"),
        ("bad_words_ids", [1, 2]),
        ("bad_words_ids", [[]]),
        ("suppress_tokens", ["a"]),
        ("sequence_bias", {"[1]": 2.0}),
        ("stop_strings", [1]),
        ("encoder_no_repeat_ngram_size", 2**31 - 1),  # would make as many copies of the prompt
        ("assistant_early_exit", 2**31 - 1),  # would make a cache of as many layers
    ],
)
def test_a_bad_value_is_refused_by_name(name: str, value: Any) -> None:
    with pytest.raises(InvalidField, match=name) as refusal:
        check({name: value})
    assert refusal.value.field == name


def test_an_unknown_name_is_told_with_a_near_one() -> None:
    with pytest.raises(InvalidField, match=r"num_beam is no argument.*num_beams") as refusal:
        check({"num_beam": 2})
    assert refusal.value.field == "num_beam"
    assert "num_beams" in refusal.value.hints


@pytest.mark.parametrize("name", ["suppress_tokens", "bad_words_ids", "sequence_bias", "eos_token_id", "forced_bos_token_id"])
def test_tokens_must_be_in_the_vocabulary(name: str) -> None:
    value = {"bad_words_ids": [[1], [2, 100]], "sequence_bias": [[[1, 100], 2.0]], "suppress_tokens": [100]}.get(name, 100)
    assert check({name: value}, vocab_size=101)
    with pytest.raises(InvalidField, match=f"{name}: token 100 "):
        check({name: value}, vocab_size=100)


def test_numbers_of_tokens_are_no_tokens() -> None:
    assert check({"max_new_tokens": 500, "min_new_tokens": 400, "prompt_lookup_num_tokens": 300}, vocab_size=10)


@pytest.mark.parametrize("name", sorted(REFUSED))
def test_what_cannot_be_is_refused_with_its_reason(name: str) -> None:
    harmless, reason = REFUSED[name]
    assert check({name: harmless}) == {}
    values = {"dola_layers": "high", "constraints": [1], "force_words_ids": [[1]], "speculation_type": "dflash"}
    objects = {"compile_config": {"a": 1}, "continuous_batching_config": {"a": 1}}
    other = True if harmless is False else {**values, **objects}.get(name, 3)
    with pytest.raises(UnsupportedField, match=reason[:20]):
        check({name: other})


def test_static_caches_are_refused() -> None:
    with pytest.raises(UnsupportedField, match="one for all requests"):
        check({"cache_implementation": "static"})
    with pytest.raises(UnsupportedField, match="dynamic"):
        check({"cache_implementation": "paged"})


def test_null_is_as_good_as_none() -> None:
    assert check(dict.fromkeys(ARGUMENTS)) == {}


def test_what_requests_may_send_are_arguments() -> None:
    assert set(ARGUMENTS) >= PARAMETERS
    assert set(ARGUMENTS) >= set(REFUSED) | THEIRS


# --- what our sampler does of them -------------------------------------------------------------------------------------------


def plain(extra: dict[str, Any], sampling: Sampling | None = None, *, prompt: int = 10, generate: Any = None) -> Sampling:
    base = sampling or Sampling()
    divided = divide(msgspec.structs.replace(base, extra=extra), generate or {}, prompt)
    assert divided.is_plain, divided
    return divided.sampling


def test_llm_apis_example_needs_no_generate() -> None:
    told = plain({"max_length": 25, "max_new_tokens": 25, "do_sample": True, "top_k": 40, "top_p": 0.95})
    assert told == Sampling(max_tokens=25, top_k=40, top_p=0.95)
    assert plain({"temp": 0.8, "top_p": 0.95, "max_length": 50}) == Sampling(temperature=0.8, top_p=0.95, max_tokens=40)


def test_do_sample_switches_sampling() -> None:
    assert plain({"do_sample": False}, Sampling(temperature=0.7)).temperature == 0
    assert plain({"do_sample": True}, Sampling(temperature=0.0)).temperature == 1
    assert plain({"do_sample": True}, Sampling(temperature=0.7)).temperature == 0.7
    assert plain({"do_sample": True, "temperature": 0.3}, Sampling(temperature=0.7)).temperature == 0.3


def test_the_requests_arguments_count_more_than_its_fields_and_the_yamls_less() -> None:
    asked = Sampling(temperature=0.5, max_tokens=7, repeat_penalty=1.3)
    assert plain({}, asked, generate={"temperature": 0.9, "max_new_tokens": 90, "repetition_penalty": 2.0}) == asked
    told = plain({"max_new_tokens": 90, "repetition_penalty": 2.0}, asked, generate={"max_new_tokens": 5})
    assert (told.max_tokens, told.repeat_penalty, told.repeat_last_n) == (90, 2.0, -1)
    assert plain({}, generate={"max_new_tokens": 5}).max_tokens == 5
    assert plain({"max_length": 30}, generate={"max_new_tokens": 5}).max_tokens == 20


def test_max_length_counts_the_prompt() -> None:
    assert plain({"max_length": 12}).max_tokens == 2
    with pytest.raises(InvalidField, match="max_new_tokens counts the answer"):
        plain({"max_length": 10})
    assert plain({}, generate={"max_length": 10}).max_tokens == 1


def test_min_length_counts_it_too() -> None:
    assert plain({"min_length": 10}) == Sampling()
    assert divide(Sampling(extra={"min_length": 15}), {}, 10).arguments == {"min_new_tokens": 5}
    assert divide(Sampling(extra={"min_length": 15, "min_new_tokens": 2}), {}, 10).arguments == {"min_new_tokens": 2}


def test_what_means_nothing_needs_no_generate() -> None:
    neutral = {
        "num_beams": 1, "no_repeat_ngram_size": 0, "use_cache": True, "length_penalty": 2.0, "early_stopping": True,
        "num_assistant_tokens": 5, "low_memory": True, "bos_token_id": 1, "cache_implementation": "dynamic",
    }  # fmt: skip
    assert plain(neutral) == Sampling()


def test_beams_search_unless_they_are_to_sample() -> None:
    searched = divide(Sampling(temperature=0.9, extra={"num_beams": 2, "length_penalty": 2.0}), {}, 10)
    assert (searched.theirs, searched.sampling.temperature) == ("num_beams", 0)
    assert searched.arguments == {"num_beams": 2, "length_penalty": 2.0}
    sampled = divide(Sampling(temperature=0.9, extra={"num_beams": 2, "do_sample": True}), {}, 10)
    assert sampled.sampling.temperature == 0.9


def test_a_request_takes_the_yamls_beams_back() -> None:
    assert plain({"num_beams": 1}, generate={"num_beams": 4}) == Sampling()


@pytest.mark.parametrize("name", ["num_beams", "prompt_lookup_num_tokens"])
def test_what_only_our_sampler_can_do_does_not_go_with_theirs(name: str) -> None:
    with pytest.raises(UnsupportedField, match=f"{name}: not together with logprobs"):
        divide(Sampling(extra={name: 2}), {}, 10, asks_more="logprobs")
    with pytest.raises(UnsupportedField, match=f"{name}: not together with presence_penalty"):
        divide(Sampling(presence_penalty=0.5, extra={name: 2}), {}, 10)
    assert divide(Sampling(presence_penalty=0.0, mirostat=0, extra={name: 2}), {}, 10).theirs == name


def test_log_probabilities_go_with_the_arguments_of_our_path() -> None:
    divided = divide(Sampling(extra={"no_repeat_ngram_size": 2}), {}, 10, asks_more="logprobs")
    assert (divided.theirs, divided.arguments) == ("", {"no_repeat_ngram_size": 2})


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner, max_size=2),
    max_leaves=6,
)


@given(st.dictionaries(st.sampled_from(sorted(ARGUMENTS)), JSON, max_size=4))
def test_whatever_is_sent_is_taken_or_refused(extra: dict[str, Any]) -> None:
    try:
        divided = divide(Sampling(extra=extra), {}, 10, vocab_size=50)
    except RequestError as refusal:
        assert refusal.field in {*ARGUMENTS}
    else:
        assert not divided.sampling.extra
        assert set(divided.arguments) <= set(ARGUMENTS)
        assert divided.sampling.over(DEFAULTS).temperature is not None
