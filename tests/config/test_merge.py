from pathlib import Path

import pytest

from llmgallery.backends.loader import specs
from llmgallery.config.load import parse_model
from llmgallery.config.merge import EffectiveValue, explain, merge_sampling, merge_stops
from llmgallery.config.model import ModelConfig, OnUnsupported, Parameters
from llmgallery.core.sampling import DEFAULTS, Sampling


def test_each_layer_replaces_the_ones_below() -> None:
    config = ModelConfig(parameters=Parameters(temperature=0.3, top_k=5, logit_bias={"7": -1.0}))
    below = Sampling(temperature=0.9, top_p=0.5, repeat_penalty=1.1)
    merged = merge_sampling(Sampling(top_k=9, seed=1), config, below)
    assert (merged.temperature, merged.top_k, merged.top_p, merged.repeat_penalty) == (0.3, 9, 0.5, 1.1)
    assert (merged.seed, merged.min_p, merged.logit_bias) == (1, DEFAULTS.min_p, {7: -1.0})


def test_zero_and_false_are_asked_for() -> None:
    config = ModelConfig(parameters=Parameters(temperature=0.7, ignore_eos=True))
    merged = merge_sampling(Sampling(temperature=0.0, ignore_eos=False), config)
    assert merged.temperature == 0
    assert merged.ignore_eos is False


def test_max_tokens_minus_one_means_until_the_context_is_full() -> None:
    config = ModelConfig(parameters=Parameters(max_tokens=64))
    assert merge_sampling(Sampling(), config).max_tokens == 64
    assert merge_sampling(Sampling(max_tokens=-1), config).max_tokens is None
    assert (
        merge_sampling(Sampling(), ModelConfig(parameters=Parameters(max_tokens=-1)), Sampling(max_tokens=9)).max_tokens is None
    )
    assert merge_sampling(Sampling(), ModelConfig()).max_tokens is None


def test_stops_are_united_each_once() -> None:
    config = ModelConfig(stopwords=["b", "a"])
    assert merge_stops(("a", "c"), config, ("</s>", "b")) == ("a", "c", "b", "</s>")
    assert merge_stops((), ModelConfig()) == ()


def test_explain_names_the_source_of_every_value() -> None:
    path = Path("models/x.yaml")
    text = b"backend: echo\ncontext_size: 512\nparameters:\n  temperature: 0.1\nstopwords: [x]\non_unsupported: {hints: warn}\n"
    loaded = parse_model(text, path, specs())
    assert loaded.config is not None
    layers = [("preset chatml", Sampling(top_p=0.5, temperature=0.9)), ("backend echo", Sampling(top_p=0.6, top_k=3))]
    more = [EffectiveValue("keep_alive", "15m", "setting keep_alive"), EffectiveValue("context_size", 9, "the weights")]
    rows = explain(loaded.config, path=path, places=loaded.places, below=layers, more=more)
    found = {row.key: (row.value, row.source) for row in rows}
    assert found["parameters.temperature"] == (0.1, "models/x.yaml:4")
    assert found["context_size"] == (512, "models/x.yaml:2")
    assert found["on_unsupported.hints"] == ("warn", "models/x.yaml:6")
    assert found["parameters.top_p"] == (0.5, "preset chatml")
    assert found["parameters.top_k"] == (3, "backend echo")
    assert found["parameters.min_p"] == (0.05, "default")
    assert found["keep_alive"] == ("15m", "setting keep_alive")
    assert [row.key for row in rows[:2]] == ["aliases", "backend"]


def test_explain_without_a_yaml() -> None:
    rows = explain(ModelConfig(name="tiny", backend="llama-cpp", parameters=Parameters(model="tiny.gguf")))
    assert ("parameters.model", "tiny.gguf", "recognised") in rows


def test_explain_tells_what_nobody_set_and_what_is_set_to_its_default() -> None:
    text = b"backend: echo\npinned: false\non_unsupported: {demands: error}\n"
    loaded = parse_model(text, Path("models/x.yaml"), specs())
    assert loaded.config is not None
    found = {row.key: (row.value, row.source) for row in explain(loaded.config, path=loaded.path, places=loaded.places)}
    assert found["on_unsupported.demands"] == ("error", "models/x.yaml:3")
    assert found["on_unsupported.hints"] == ("ignore", "default")
    assert found["pinned"] == (False, "models/x.yaml:2")
    assert found["parameters.max_tokens"] == ("until the context is full", "default")
    assert found["aliases"] == found["stopwords"] == ([], "default")


@pytest.mark.parametrize("word", ["error", "warn", "ignore"])
def test_one_word_is_what_to_do_with_demands_and_hints(word: str) -> None:
    model = parse_model(f"backend: echo\non_unsupported: {word}\n".encode(), Path("models/x.yaml"), specs())
    assert model.config is not None and not model.problems and not model.warnings
    assert model.config.on_unsupported == OnUnsupported(demands=word, hints=word)
    assert model.places["on_unsupported.hints"] == (2, 17)


def test_another_word_is_told_with_its_place() -> None:
    model = parse_model(b"backend: echo\non_unsupported: eror\n", Path("models/x.yaml"), specs())
    (problem,) = model.problems
    assert (problem.line, problem.column, problem.key) == (2, 17, "on_unsupported") and "did you mean error" in problem.suggestion
