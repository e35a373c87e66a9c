"""Who asked wins; who did not ask changes nothing."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from llmgallery.core.errors import InvalidField
from llmgallery.core.sampling import DEFAULTS, SAMPLERS, Sampling, sampler_order

SAMPLINGS = st.builds(
    Sampling,
    temperature=st.none() | st.floats(0, 2),
    top_k=st.none() | st.integers(0, 100),
    seed=st.none() | st.integers(),
    ignore_eos=st.none() | st.booleans(),
    logit_bias=st.none() | st.dictionaries(st.integers(0, 9), st.floats(-1, 1), max_size=2),
    extra=st.dictionaries(st.sampled_from("abc"), st.integers(), max_size=3),
)


@given(SAMPLINGS, SAMPLINGS)
def test_over_takes_each_value_from_the_upper_layer_that_has_it(upper: Sampling, lower: Sampling) -> None:
    merged = upper.over(lower)
    for name in Sampling.__struct_fields__:
        if name != "extra":
            asked = getattr(upper, name)
            assert getattr(merged, name) == (getattr(lower, name) if asked is None else asked)
    assert merged.extra == {**lower.extra, **upper.extra}


@given(SAMPLINGS, SAMPLINGS, SAMPLINGS)
def test_layers_may_be_merged_in_any_grouping(a: Sampling, b: Sampling, c: Sampling) -> None:
    assert a.over(b).over(c) == a.over(b.over(c))


def test_zero_and_false_are_values() -> None:
    asked = Sampling(temperature=0.0, ignore_eos=False, top_k=0).over(Sampling(temperature=1.0, ignore_eos=True, top_k=5))
    assert (asked.temperature, asked.ignore_eos, asked.top_k) == (0.0, False, 0)


def test_the_defaults_leave_what_only_a_request_can_know() -> None:
    assert DEFAULTS.seed is None
    assert DEFAULTS.max_tokens is None


def test_samplers_go_by_llama_cpp_s_names_aliases_and_letters() -> None:
    everything = tuple(SAMPLERS)
    assert sampler_order(everything) == everything == DEFAULTS.samplers
    assert sampler_order("edskypmxt") == everything
    assert sampler_order(["top-k", "topp", "MinP", "typ", "typical", "temp", "nucleus", " top_n_sigma ", "xtc", "dry"]) == (
        *("top_k", "top_p", "min_p", "typ_p", "typ_p", "temperature", "top_p", "top_n_sigma", "xtc", "dry"),
    )
    assert sampler_order("top_k;temperature;top_k") == ("top_k", "temperature", "top_k")


@pytest.mark.parametrize(
    ("wanted", "said"),
    [
        (["magic"], "'magic'; the names are penalties, dry"),
        (["tfs_z"], "removed tail-free sampling"),
        (["infill"], "this version does not"),
        ("top_k", "no letter 'o'; a text is one letter for each sampler"),
        ("top_k;x" * 2, "'xtop_k'"),
        ([], "expected at least one of penalties"),
        ("", "expected at least one of penalties"),
        ("kpkkk", "top_k more than 3 times"),
    ],
)
def test_unknown_samplers_are_named(wanted: str | list[str], said: str) -> None:
    with pytest.raises(InvalidField, match=said) as caught:
        sampler_order(wanted)
    assert caught.value.field == "samplers"
