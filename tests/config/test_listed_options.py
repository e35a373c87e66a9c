"""LocalAI's names for llama.cpp: what those in its lists of options mean here, and what is only warned of."""

from __future__ import annotations

from pathlib import Path

import pytest

from llmgallery.backends.llamacpp import api
from llmgallery.backends.loader import specs
from llmgallery.config import checks
from llmgallery.config.load import LoadedModel, load_model

HEAD = "backend: llama-cpp\nparameters: {model: owner/repo/file.gguf}\n"


def load(folder: Path, text: str) -> LoadedModel:
    file = folder / "m.yaml"
    file.write_text(HEAD + text)
    return load_model(file, specs())


def test_options_and_load_keys_are_told_apart(tmp_path: Path) -> None:
    text = "options: [use_jinja:true, 'spec_type:ngram_simple', spec_n_max:6, spec_p_min:0.5, parallel:4, --unified_kv]\n"
    model = load(tmp_path, text)
    assert (model.problems, model.warnings) == ((), ()) and model.config is not None
    assert model.config.options == {"use_jinja": True, "speculative": "prompt-lookup", "draft_p_min": 0.5, "kv_unified": True}
    assert (model.config.n_draft, model.config.parallel) == (6, 4)


def test_keys_outside_of_the_list_hold_before_it(tmp_path: Path) -> None:
    config = load(tmp_path, "parallel: 2\noptions: [parallel:4, draft_max:3]\n").config
    assert config is not None and (config.parallel, config.n_draft) == (2, 3)


@pytest.mark.parametrize(
    ("said", "meant"),
    [
        ("none", "off"),
        ("draft", "draft"),
        ("draft-simple", "draft"),
        ("ngram-map-k4v", "prompt-lookup"),
        ("ngram_mod", "prompt-lookup"),
    ],
)
def test_kinds_of_speculation(tmp_path: Path, said: str, meant: str) -> None:
    model = load(tmp_path, f"options: ['spec_type:{said}']\n")
    assert model.config is not None and model.config.options == {"speculative": meant}


def test_what_is_not_here_is_a_warning_with_its_line(tmp_path: Path) -> None:
    model = load(tmp_path, "options:\n- spec_type:draft-mtp\n- cache_ram:4096\n- spec_n_max:6\n")
    assert not model.problems and model.config is not None and model.config.options == {}
    assert [(warning.line, warning.key) for warning in model.warnings] == [(4, "options[0]"), (5, "options[1]")]
    assert "'draft-mtp', only none, draft, draft-simple, ngram-simple" in model.warnings[0].message
    assert model.config.n_draft == 6


def test_a_value_out_of_range_is_an_error(tmp_path: Path) -> None:
    (problem,) = load(tmp_path, "options: [spec_p_min:2]\n").problems
    assert (problem.key, problem.line) == ("options[0]", 3)


def test_a_mapping_takes_our_own_names_only(tmp_path: Path) -> None:
    (problem,) = load(tmp_path, "options: {spec_type: none}\n").problems
    assert problem.key == "options.spec_type"


@pytest.mark.parametrize("key", ["n_keep", "keep"])
def test_what_is_kept_of_a_full_context(tmp_path: Path, key: str) -> None:
    file = tmp_path / "m.yaml"
    file.write_text(f"backend: echo\nparameters: {{{key}: 4}}\n")
    (warning,) = load_model(file, specs()).warnings
    assert warning.key == f"parameters.{key}" and "an answer ends when the context is full" in warning.message


def test_localai_s_place_of_the_pooling(tmp_path: Path) -> None:
    file = tmp_path / "m.yaml"
    file.write_text("backend: llama-cpp\nembeddings: true\nparameters: {model: owner/repo/file.gguf, pooling: cls}\n")
    model = load_model(file, specs())
    assert not model.warnings and model.config is not None and model.config.parameters.pooling == "cls"
    file.write_text("backend: llama-cpp\nparameters: {model: owner/repo/file.gguf, pooling: clss}\n")
    (problem,) = load_model(file, specs()).problems
    assert problem.key == "parameters.pooling" and "mean" in problem.message


def test_rope_scalings_are_those_of_the_library(tmp_path: Path) -> None:
    assert set(checks.ROPE_SCALINGS) == set(api.ROPE_SCALINGS)
    assert load(tmp_path, "rope_scaling: longrope\n").problems == ()
    (problem,) = load(tmp_path, "rope_scaling: yarm\n").problems
    assert (problem.key, problem.line, problem.suggestion) == ("rope_scaling", 3, "did you mean yarn?")
