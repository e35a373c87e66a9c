"""Which samplers a chain is made of, and that what does nothing is left out."""

import math

import pytest

from llmgallery.core.sampling import Sampling
from llmgallery.engine.chain import (
    Chain,
    Cut,
    Dry,
    MinP,
    Mirostat,
    Penalties,
    Temperature,
    TopK,
    TopNSigma,
    TopP,
    Typical,
    Xtc,
    plan_chain,
)

OFF = Sampling(temperature=1.0, top_k=0, top_p=1.0, min_p=0.0)


def plan(sampling: Sampling, **more) -> Chain:
    return plan_chain(sampling, **{"vocab_size": 100, "ends": {2}, "context_size": 512} | more)


def kinds(sampling: Sampling) -> list[type]:
    return [type(step) for step in plan(sampling).steps]


def test_the_defaults_are_llama_cpp_s() -> None:
    assert plan(Sampling()) == Chain({}, (TopK(40), TopP(0.95), MinP(0.05), Temperature(0.8)))


def test_everything_in_llama_cpp_s_order() -> None:
    sampling = Sampling(
        repeat_penalty=1.1, dry_multiplier=0.5, top_n_sigma=1, typical_p=0.5, xtc_probability=0.1, dynatemp_range=0.1
    )
    assert kinds(sampling) == [Penalties, Dry, TopNSigma, TopK, MinP, Typical, TopP, MinP, Xtc, Temperature]
    assert kinds(Sampling(samplers=("temperature", "xtc", "dry", "top_k")).over(sampling)) == [Temperature, Xtc, Dry, TopK]


@pytest.mark.parametrize(
    "idle",
    [
        {"repeat_penalty": 1.0, "repeat_last_n": 64},
        {"repeat_penalty": 1.5, "repeat_last_n": 0},
        {"dry_multiplier": 0.0, "dry_base": 2.0},
        {"dry_multiplier": 1.0, "dry_penalty_last_n": 0},
        {"top_n_sigma": 0.0},
        {"xtc_probability": 0.0, "xtc_threshold": 0.1},
        {"xtc_probability": 1.0, "xtc_threshold": 0.51},
        {"typical_p": 1.0},
        {"mirostat_tau": 2.0},
        {"dynatemp_exponent": 3.0},
        {"top_k": -1},
    ],
)
def test_what_does_nothing_is_left_out(idle: dict[str, float]) -> None:
    assert plan(Sampling(**idle).over(OFF)) == Chain({}, ())  # type: ignore[arg-type]


def test_at_temperature_zero_only_penalties_and_dry_act() -> None:
    hot = Sampling(presence_penalty=1, dry_multiplier=1, typical_p=0.1, xtc_probability=1, dynatemp_range=1, top_k=3)
    cold = plan(Sampling(temperature=0.0).over(hot))
    assert [type(step) for step in cold.steps] == [Penalties, Dry]
    assert cold.likeliest
    assert not plan(Sampling(temperature=0.0, samplers=("top_k",)).over(hot)).likeliest
    assert plan(Sampling(temperature=0.0, mirostat=2).over(hot)) == Chain({}, (), likeliest=True)


def test_mirostat_stands_for_all_but_temperature_and_biases() -> None:
    sampling = Sampling(mirostat=2, mirostat_tau=3.0, temperature=0.7, repeat_penalty=1.5, dry_multiplier=1, dynatemp_range=0.5)
    assert plan(sampling) == Chain({}, (Temperature(0.7),), Mirostat(2, 3.0, 0.1))
    assert plan(Sampling(mirostat=0).over(sampling)).mirostat is None


def test_minus_one_is_the_context_and_nothing_looks_beyond_it() -> None:
    sampling = Sampling(presence_penalty=1, dry_multiplier=1)
    for last_n, steps in ((-1, 512), (10**9, 512), (7, 7)):
        chain = plan(Sampling(repeat_last_n=last_n, dry_penalty_last_n=last_n).over(sampling))
        assert [step.last_n for step in chain.steps if isinstance(step, (Penalties, Dry))] == [steps, steps]
        assert chain.last_n == steps
    assert plan(Sampling(repeat_last_n=3, dry_penalty_last_n=9).over(sampling)).last_n == 9
    assert plan(Sampling()).last_n == 0


def test_biases_stay_in_the_vocabulary_and_ends_go_last() -> None:
    sampling = Sampling(logit_bias={2: 5.0, 7: 1.0, 100: 1.0, -1: 1.0}, ignore_eos=True)
    assert plan(sampling, suppressed=(9,)).biases == {2: -math.inf, 7: 1.0, 9: -math.inf}
    assert plan(Sampling(ignore_eos=False).over(sampling)).biases == {2: 5.0, 7: 1.0}


def test_breakers_are_what_c_strings_hold() -> None:
    sampling = Sampling(dry_multiplier=1.0, dry_sequence_breakers=("\n", "é" * 30, "a\0b", "\0", ""))
    (step,) = (step for step in plan(sampling).steps if isinstance(step, Dry))
    assert step.breakers == (b"\n", "é".encode() * 20, b"a")


def test_a_dynamic_temperature_stays_above_zero() -> None:
    (step,) = plan(Sampling(temperature=0.5, dynatemp_range=0.9, dynatemp_exponent=2.0).over(OFF)).steps
    assert isinstance(step, Temperature)
    assert step.value - step.spread == pytest.approx(1e-6)
    assert step.value + step.spread == pytest.approx(1.4)
    assert step.exponent == 2.0


@pytest.mark.parametrize(
    ("sampling", "cut"),
    [
        (Sampling(), Cut(40, 0)),
        (Sampling(top_k=7, presence_penalty=1), Cut(7, 64)),
        (Sampling(presence_penalty=1, repeat_last_n=9, dry_multiplier=1, dry_penalty_last_n=20), Cut(40, 20)),
        (Sampling(presence_penalty=1, samplers=("top_k", "penalties")), Cut(40, 0)),
        (Sampling(samplers=("temperature", "top_k", "top_k"), temperature=3.0), Cut(40, 0)),
        (Sampling(temperature=0.0), Cut(1, 0)),
        (Sampling(temperature=0.0, presence_penalty=1, repeat_last_n=5), Cut(1, 5)),
        (Sampling(top_k=0), None),
        (Sampling(top_n_sigma=1.0), None),
        (Sampling(mirostat=2), None),
        *(
            (Sampling(samplers=(name, "top_k"), typical_p=0.5, xtc_probability=1), None)
            for name in ("typ_p", "top_p", "min_p", "xtc")
        ),
        (Sampling(samplers=("temperature", "top_k"), dynatemp_range=0.5), None),
        (Sampling(samplers=("temperature", "top_k"), temperature=1e-3), None),
        (Sampling(samplers=("temperature", "top_k"), temperature=1e3), None),
    ],
)
def test_a_chain_knows_how_many_of_the_highest_can_be_left(sampling: Sampling, cut: Cut | None) -> None:
    assert plan(sampling).cut == cut
