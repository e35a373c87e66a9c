"""Who asked wins; who did not ask changes nothing."""

from hypothesis import given
from hypothesis import strategies as st

from llmgallery.core.sampling import DEFAULTS, Sampling

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
