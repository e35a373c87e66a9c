"""Model files from cases/: the good ones load, the bad ones give exactly the problems that stand beside them."""

from pathlib import Path

import pytest

from llmgallery import paths
from llmgallery.backends.loader import specs
from llmgallery.catalog import weights
from llmgallery.config.checks import NOT_YET
from llmgallery.config.load import LoadedModel, load_model
from llmgallery.config.model import LOAD_KEYS, LOAD_PARAMETERS
from llmgallery.config.outside import Outside
from llmgallery.config.suggest import dotted, model_levels
from llmgallery.templates import jinja, presets
from llmgallery.templates.gotmpl import check_go

CASES = Path(__file__).parent / "cases"
BAD = sorted((CASES / "bad").glob("*.yaml"))
GOOD = sorted((CASES / "good").glob("*.yaml"))


def recognise(reference: str, folder: Path) -> str | None:
    return "gguf" if ".gguf" in reference else None


def read(path: Path) -> LoadedModel:
    return load_model(path, specs(), Outside(jinja.check, ("alpaca", "chatml"), recognise, go_template=check_go))


@pytest.mark.parametrize("path", BAD, ids=lambda path: path.stem)
def test_every_problem_of_a_bad_file(path: Path) -> None:
    loaded = read(path)
    found = [str(problem).rpartition("cases/bad/")[2] for problem in loaded.problems]
    assert found == path.with_suffix(".txt").read_text(encoding="utf-8").splitlines()
    assert loaded.config is None
    assert loaded.name


def test_every_bad_case_says_what_to_do() -> None:
    for path in BAD:
        for problem in read(path).problems:
            assert problem.suggestion or "expected" in problem.message or problem.key, str(problem)
            assert problem.line >= 1 or problem.column == 0


@pytest.mark.parametrize("path", GOOD, ids=lambda path: path.stem)
def test_good_files_load(path: Path) -> None:
    loaded = read(path)
    assert not loaded.problems
    assert loaded.config is not None


@pytest.mark.parametrize("path", sorted(paths.builtin("models").glob("*.y*ml")), ids=lambda path: path.stem)
def test_every_model_that_ships_loads_without_a_word(path: Path) -> None:
    loaded = load_model(path, specs(), Outside(jinja.check, presets.names(), weights.recognise, go_template=check_go))
    assert not loaded.problems
    assert not loaded.warnings


def test_the_lists_of_keys_name_keys() -> None:
    known = {dotted(level, key) for level, keys in model_levels().items() for key in keys}
    assert known >= NOT_YET | LOAD_KEYS | {f"parameters.{key}" for key in LOAD_PARAMETERS}
    assert known >= {key for spec in specs().values() for key in spec.keys}


def good(name: str) -> LoadedModel:
    loaded = read(CASES / "good" / f"{name}.yaml")
    assert loaded.config is not None, loaded.problems
    return loaded


def test_scalars_follow_yaml_1_2() -> None:
    config = good("full").config
    assert config is not None
    assert config.stopwords == ["<|im_end|>", "No", "on", "12:30:45", "0o17x"]
    assert config.pinned is False
    assert config.mmap is True
    assert config.flash_attention == "on"
    assert config.parameters.logit_bias == {"123": -1.5, "7": 2.0}
    numbers = good("numbers").config
    assert numbers is not None
    assert (numbers.context_size, numbers.parameters.top_k, numbers.parameters.top_p) == (8192, 15, 0.1)


def test_merges_come_below_a_mappings_own_keys() -> None:
    config = good("merges").config
    assert config is not None
    assert config.chat_template_kwargs == {"temperature": 0.5, "top_k": 3, "more": {"a": 1, "b": 1, "c": 2}}


def test_localai_option_list_is_read_with_the_backends_types() -> None:
    loaded = good("localai_list")
    assert loaded.config is not None
    assert loaded.config.options == {"use_jinja": True, "ubatch": 128}
    assert loaded.backend == "llama-cpp"
    assert loaded.config.weights == "huggingface://owner/repo/file.gguf"
    (warning,) = loaded.warnings
    assert (warning.line, warning.key) == (3, "options[2]")
    assert "'gpu'" in warning.message


def test_go_templates_beside_the_weights_own_are_a_warning() -> None:
    """As in LocalAI, where the template that came with the weights is rendered then."""
    loaded = good("go_beside_the_weights_own")
    assert [(warning.line, warning.key) for warning in loaded.warnings] == [(4, "template.chat")]


def test_escaped_apostrophes_in_double_quotes_are_read_as_go_does() -> None:
    config = good("escaped_quote").config
    assert config is not None
    assert config.system_prompt == "it's \"fine\", isn't it"
    assert config.stopwords == ["'"]


def test_bom_and_crlf() -> None:
    config = good("bom").config
    assert config is not None
    assert config.description == "with a BOM and CRLF"


def test_template_file_is_read_in_and_is_a_dependency() -> None:
    loaded = good("template_file")
    assert loaded.config is not None
    assert loaded.config.template.chat_template == (CASES / "good" / "template_file.jinja").read_text()
    assert loaded.depends == (CASES / "good" / "template_file.jinja",)


def test_unheeded_keys_are_warnings_with_their_line() -> None:
    (warning,) = good("numbers").warnings
    assert (warning.line, warning.key) == (5, "main_gpu")
    assert "echo" in warning.message


def test_the_name_is_the_stem_unless_given() -> None:
    assert good("bom").name == "bom"
    assert good("full").name == "mistral"
    assert read(CASES / "bad" / "unknown_key.yaml").name == "a"


def test_places_of_everything_written() -> None:
    places = good("full").places
    assert places["name"] == (1, 1)
    assert places["parameters.temperature"] == (6, 3)
