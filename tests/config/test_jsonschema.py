"""The schema for editors agrees with the reader: on everything we ship, and on all cases that a schema can judge."""

import re
from pathlib import Path
from typing import Any

import pytest
import yaml
from jsonschema import Draft202012Validator

from llmgallery import paths
from llmgallery.backends.loader import specs
from llmgallery.config.jsonschema import model_schema, settings_schema
from llmgallery.config.load import parse_model
from llmgallery.config.model import ModelConfig

CASES = Path(__file__).parent / "cases"
MODELS = sorted(paths.builtin("models").glob("*.y*ml"))
GOOD = sorted((CASES / "good").glob("*.yaml"))
JUDGED = [
    "unknown_key",
    "wrong_level",
    "wrong_type",
    "out_of_range",
    "bad_enum",
    "later_backend",
    "bad_options",
    "missing_item_key",
]
JUDGED += ["no_mapping_list", "no_mapping_text"]


class CoreLoader(yaml.SafeLoader):
    """YAML 1.2 as editors read it: yes, no, on and off are text."""


CoreLoader.yaml_implicit_resolvers = {
    first: [(tag, pattern) for tag, pattern in found if not tag.endswith((":bool", ":int", ":timestamp"))]
    for first, found in yaml.SafeLoader.yaml_implicit_resolvers.items()
}
CoreLoader.add_implicit_resolver("tag:yaml.org,2002:bool", re.compile("^(true|false|True|False)$"), list("tTfF"))
CoreLoader.add_implicit_resolver("tag:yaml.org,2002:int", re.compile(r"^[-+]?[0-9]+$"), list("-+0123456789"))


def plain(path: Path) -> Any:
    text = path.read_text(encoding="utf-8-sig").replace("\\'", "'")
    return with_text_keys(yaml.load(text, CoreLoader))


def with_text_keys(value: Any) -> Any:
    if isinstance(value, dict):
        return {str(key): with_text_keys(item) for key, item in value.items()}
    return [with_text_keys(item) for item in value] if isinstance(value, list) else value


@pytest.fixture(scope="module")
def validator() -> Draft202012Validator:
    schema = model_schema(specs())
    Draft202012Validator.check_schema(schema)
    return Draft202012Validator(schema)


@pytest.mark.parametrize(
    "path", [*MODELS, *(path for path in GOOD if path.stem not in ("full", "numbers"))], ids=lambda path: path.stem
)
def test_good_files_pass(validator: Draft202012Validator, path: Path) -> None:
    assert [error.message for error in validator.iter_errors(plain(path))] == []


@pytest.mark.parametrize("stem", JUDGED)
def test_bad_files_fail(validator: Draft202012Validator, stem: str) -> None:
    assert list(validator.iter_errors(plain(CASES / "bad" / f"{stem}.yaml")))


def test_every_key_is_in_the_schema() -> None:
    schema = model_schema(specs())
    assert set(schema["$defs"]["ModelConfig"]["properties"]) == set(ModelConfig.__struct_fields__)
    assert schema["$defs"]["ModelConfig"]["additionalProperties"] is False
    assert "1 = off" in str(schema["$defs"]["Parameters"]["properties"]["repeat_penalty"])


def test_options_follow_the_backend(validator: Draft202012Validator) -> None:
    assert validator.is_valid({"backend": "echo", "options": {"reply": "x"}})
    assert not validator.is_valid({"backend": "echo", "options": {"ubatch": 1}})
    assert validator.is_valid({"backend": "llama-cpp", "options": {"ubatch": 1}})
    assert validator.is_valid({"options": {"anything": 1}})


def test_settings_schema() -> None:
    schema = settings_schema()
    Draft202012Validator.check_schema(schema)
    validator = Draft202012Validator(schema)
    assert validator.is_valid({"port": 1, "keep_alive": "15m", "memory_budget": "8GiB", "api_keys": ["x"], "models_dir": "m"})
    for wrong in ({"prot": 1}, {"port": -1}, {"keep_alive": [1]}, {"memory_budget": "much"}, {"watch": "never"}):
        assert not validator.is_valid(wrong), wrong


def test_capitals_count_as_little_as_for_the_reader(validator: Draft202012Validator) -> None:
    for name in ("ECHO", "Llama.Cpp", "LLAMA-cpp", "builtinllama"):
        body = f"backend: {name}\nmodel: x.gguf\ncache_type_k: Q8_0\n"
        assert not parse_model(body.encode(), Path("x.yaml"), specs()).problems
        assert validator.is_valid({"backend": name, "model": "x.gguf", "cache_type_k": "Q8_0"})
    assert not validator.is_valid({"backend": "ECHOO"})
    assert not validator.is_valid({"backend": "llamaxcpp2"})
    assert not validator.is_valid({"backend": "ECHO", "options": {"ubatch": 1}})


def test_no_answer_of_no_token(validator: Draft202012Validator) -> None:
    assert [validator.is_valid({"parameters": {"max_tokens": n}}) for n in (-2, -1, 0, 1, None)] == [
        False,
        True,
        False,
        True,
        True,
    ]
