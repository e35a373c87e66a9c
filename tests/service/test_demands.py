"""What is refused, warned of or passed over, by the model's YAML."""

from __future__ import annotations

import pytest

from llmgallery.backends.base import BackendSpec
from llmgallery.backends.loader import specs
from llmgallery.config.model import Function, ModelConfig, OnUnsupported, Template
from llmgallery.core.errors import InvalidField, UnsupportedField
from llmgallery.service.demands import ELSEWHERE, FEATURES, FORCED, Wish, features_of, settle

FORMAT = Wish("response_format", "response_format")
USER = Wish("user", "user", hint=True)


def test_by_default_demands_are_refused_and_hints_passed_over() -> None:
    assert settle([USER], OnUnsupported(), "m") == ()
    with pytest.raises(UnsupportedField, match="response_format is not supported by model m") as caught:
        settle([USER, FORMAT], OnUnsupported(), "m")
    assert caught.value.field == "response_format"
    assert "demands: warn" in caught.value.message


def test_warnings_name_what_was_ignored() -> None:
    warnings = settle([FORMAT, USER], OnUnsupported(demands="warn", hints="warn"), "m")
    assert [warning.split(" was ignored")[0] for warning in warnings] == ["response_format", "user"]
    assert settle([FORMAT, USER], OnUnsupported(demands="ignore"), "m") == ()


def test_hints_may_be_refused_too() -> None:
    with pytest.raises(UnsupportedField, match="hints: warn"):
        settle([USER], OnUnsupported(hints="error"), "m")


def test_several_answers_are_supported() -> None:
    assert settle([Wish("n", "n")], OnUnsupported(), "m") == ()
    assert settle([Wish("n", "n")], OnUnsupported(), "m", frozenset({"n"})) == ()


@pytest.mark.parametrize("feature", ["logprobs", "suffix", "best_of"])
def test_what_the_backend_lacks_is_settled_like_any_demand(feature: str) -> None:
    wish, lacking = Wish(feature, feature), FEATURES - {feature}
    assert settle([wish], OnUnsupported(), "m") == ()
    with pytest.raises(UnsupportedField, match=f"{feature} is not supported by model m"):
        settle([wish], OnUnsupported(), "m", lacking)
    (warning,) = settle([wish], OnUnsupported(demands="warn"), "m", lacking)
    assert warning == f"{feature} was ignored: model m does not support it"


def test_backends_say_what_they_can_do() -> None:
    all_of_them = FEATURES - {"tools"}
    for spec in (specs()["echo"], specs()["llama-cpp"]):
        assert features_of(spec, ModelConfig()) == all_of_them - {"images"}
    assert features_of(None, ModelConfig()) == all_of_them
    lesser = BackendSpec(name="lesser", implementation="nowhere:Nothing", capabilities=frozenset({"suffix"}))
    assert features_of(lesser, ModelConfig()) == {"n", "suffix"}  # the best can be told by log probabilities only


def test_parameters_of_a_backend_s_own_are_no_ignored_hints() -> None:
    own = BackendSpec(name="own", implementation="nowhere:Nothing", parameters=frozenset({"num_beams"}))
    hints = [Wish(name, name, hint=True) for name in ("num_beams", "generation_config")]
    warn = OnUnsupported(hints="warn")
    assert settle(hints, warn, "m", features_of(own, ModelConfig())) == ()
    assert len(settle(hints, warn, "m", features_of(specs()["echo"], ModelConfig()))) == 2


def test_a_model_that_is_elsewhere_may_be_asked_for_anything() -> None:
    remote = BackendSpec(name="remote", implementation="nowhere:Nothing", level="chat")
    anything = [FORMAT, USER, Wish("tools", "tools"), Wish(FORCED, FORCED), Wish("smell", "x", fault="x: nobody knows it")]
    strict = OnUnsupported(demands="error", hints="error")
    assert settle(anything, strict, "m", features_of(remote, ModelConfig())) == ()


def test_a_fault_is_passed_over_by_no_model_file() -> None:
    lenient = OnUnsupported(demands="ignore", hints="ignore")
    with pytest.raises(InvalidField, match="x: nobody knows it") as caught:
        settle([Wish(ELSEWHERE, "x", fault="x: nobody knows it")], lenient, "m")
    assert caught.value.field == "x"


def test_tools_are_for_models_whose_file_says_how_they_are_called() -> None:
    told = ModelConfig(template=Template(function="{{toJson .Functions}}"))
    read = ModelConfig(function=Function(automatic_tool_parsing_fallback=True))
    assert "tools" in features_of(None, told) and "tools" in features_of(specs()["echo"], read)
