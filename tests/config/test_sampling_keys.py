"""The sampling keys of a model file: where they may stand, what they may say, and what comes of them."""

from pathlib import Path

import pytest

from llmgallery.backends.loader import specs
from llmgallery.config.load import LoadedModel, parse_model
from llmgallery.config.merge import config_sampling, explain, merge_sampling
from llmgallery.core.sampling import DEFAULTS, SAMPLERS, Sampling

PATH = Path("models/x.yaml")
ALL = """
  top_n_sigma: 1.5
  xtc_probability: 0.25
  xtc_threshold: 0.2
  dry_multiplier: 0.75
  dry_base: 1.5
  dry_allowed_length: 3
  dry_penalty_last_n: -1
  dry_sequence_breakers: ["\\n", "."]
  mirostat: 2
  mirostat_tau: 4.5
  mirostat_eta: 0.5
  dynatemp_range: 0.25
  dynatemp_exponent: 2
  samplers: [penalties, temp, nucleus]
"""
ASKED = Sampling(
    top_n_sigma=1.5,
    xtc_probability=0.25,
    xtc_threshold=0.2,
    dry_multiplier=0.75,
    dry_base=1.5,
    dry_allowed_length=3,
    dry_penalty_last_n=-1,
    dry_sequence_breakers=("\n", "."),
    mirostat=2,
    mirostat_tau=4.5,
    mirostat_eta=0.5,
    dynatemp_range=0.25,
    dynatemp_exponent=2.0,
    samplers=("penalties", "temperature", "top_p"),
)


def load(text: str) -> LoadedModel:
    return parse_model(f"backend: echo\n{text}".encode(), PATH, specs())


def problems(text: str) -> list[tuple[int, str, str]]:
    return [(problem.line, problem.key, problem.message) for problem in load(text).problems]


def test_every_key_reaches_the_sampling_and_none_is_reported() -> None:
    loaded = load(f"parameters:{ALL}")
    assert not loaded.problems
    assert not loaded.warnings
    assert loaded.config is not None
    assert config_sampling(loaded.config) == ASKED
    assert merge_sampling(Sampling(mirostat=0, samplers=("top_k",)), loaded.config) == (
        Sampling(mirostat=0, samplers=("top_k",)).over(ASKED).over(DEFAULTS)
    )


def test_localai_s_top_level_mirostat_means_the_same() -> None:
    top = load("mirostat: 2\nmirostat_tau: 4.5\nmirostat_eta: 0.5")
    assert not top.problems
    assert not top.warnings
    assert top.config is not None
    assert config_sampling(top.config) == Sampling(mirostat=2, mirostat_tau=4.5, mirostat_eta=0.5)
    both = load("mirostat: 2\nparameters: {mirostat: 2, mirostat_tau: 3}")
    assert not both.problems
    assert both.config is not None
    assert config_sampling(both.config) == Sampling(mirostat=2, mirostat_tau=3.0)


def test_two_places_that_differ_are_an_error_at_the_upper_one() -> None:
    found = problems("mirostat: 2\nmirostat_eta: 0.1\nparameters:\n  mirostat: 0\n  mirostat_eta: 0.2")
    assert [(line, key) for line, key, _ in found] == [(2, "mirostat"), (3, "mirostat_eta")]
    assert found[0][2] == "parameters.mirostat (line 5) says otherwise: 0"


@pytest.mark.parametrize(
    ("value", "said"),
    [
        ("[top_k, magic]", "there is no 'magic'; the names are penalties, dry, top_n_sigma"),
        ("[tfz]", "there is no 'tfz'; llama.cpp has removed tail-free sampling"),
        ("kz", "there is no letter 'z'; a text is one letter for each sampler: e = penalties"),
        ("[]", "expected at least one of penalties"),
        ("tttt", "temperature more than 3 times"),
        ("{a: 1}", "found a mapping"),
    ],
)
def test_samplers_that_do_not_exist_are_errors_with_their_line(value: str, said: str) -> None:
    ((line, key, message),) = problems(f"parameters:\n  top_k: 1\n  samplers: {value}")
    assert (line, key) == (4, "parameters.samplers")
    assert said in message


@pytest.mark.parametrize(
    "line",
    [
        "top_n_sigma: .inf",
        "top_n_sigma: -2",
        "xtc_probability: 1.5",
        "xtc_threshold: -1",
        "dry_multiplier: -0.5",
        "dry_base: 0.9",
        "dry_allowed_length: -1",
        "dry_penalty_last_n: -2",
        "mirostat: 3",
        "mirostat_tau: .nan",
        "mirostat_eta: 101",
        "dynatemp_range: -1",
        "dynatemp_exponent: 1000",
    ],
)
def test_what_is_out_of_range_is_an_error_with_its_line(line: str) -> None:
    ((number, key, message),) = problems(f"parameters:\n  {line}")
    assert (number, key) == (3, f"parameters.{line.partition(':')[0]}")
    assert "out of range" in message


def test_breakers_are_texts_that_can_be_found() -> None:
    found = problems('parameters:\n  dry_sequence_breakers:\n    - a\n    - ""\n    - "b\\0"')
    assert [(line, key) for line, key, _ in found] == [
        (5, "parameters.dry_sequence_breakers[1]"),
        (6, "parameters.dry_sequence_breakers[2]"),
    ]
    many = ", ".join(["x"] * 33)
    assert [key for _, key, _ in problems(f"parameters:\n  dry_sequence_breakers: [{many}]")][-1:] == [
        "parameters.dry_sequence_breakers"
    ]


def test_tail_free_sampling_is_not_used_and_the_warning_says_why() -> None:
    (warning,) = load("parameters: {tfz: 0.9}").warnings
    assert warning.key == "parameters.tfz"
    assert "removed" in warning.message


def test_explain_shows_each_sampler_once_with_its_source() -> None:
    loaded = load("mirostat: 1\nparameters:\n  mirostat_eta: 0.2\n  samplers: kt")
    assert loaded.config is not None
    found = {row.key: (row.value, row.source) for row in explain(loaded.config, path=PATH, places=loaded.places)}
    assert found["mirostat"] == (1, "models/x.yaml:2")
    assert "parameters.mirostat" not in found
    assert found["parameters.mirostat_eta"] == (0.2, "models/x.yaml:4")
    assert found["parameters.mirostat_tau"] == (5.0, "default")
    assert found["parameters.samplers"] == ("kt", "models/x.yaml:5")
    plain = load("")
    assert plain.config is not None
    rows = {row.key: row.value for row in explain(plain.config)}
    assert rows["parameters.samplers"] == tuple(SAMPLERS)
    assert rows["parameters.dry_penalty_last_n"] == 64
