"""Our interpreter against Go's own: same text out, or an error at the same line."""

from __future__ import annotations

import json
import re
import tomllib
from pathlib import Path
from typing import Any

import pytest

from llmgallery.core.errors import TemplateError
from llmgallery.templates.gotmpl import check_go, compile_go
from llmgallery.templates.gotmpl.values import Field, Struct, TypedDict, TypedList, TypedNil

HERE = Path(__file__).parent
CASES: dict[str, Any] = tomllib.loads((HERE / "language.toml").read_text("utf-8"))
GOLDEN: dict[str, Any] = json.loads((HERE / "language.json").read_text("utf-8"))

ANY_MAP = TypedNil("map[string]interface {}")
# The structs of referee.go: name, JSON name, omitempty, zero value.
SHAPES: dict[str, list[tuple[str, str | None, bool, Any]]] = {
    "main.Call": [("Name", "name", True, ""), ("Arguments", "arguments", False, "")],
    "main.Tool": [
        ("Index", "index", False, 0),
        ("ID", "id", False, ""),
        ("Type", "type", False, ""),
        ("Function", "function", False, None),
    ],
    "main.Function": [
        ("Name", "name", False, ""),
        ("Description", "description", False, ""),
        ("Strict", "strict", False, False),
        ("Parameters", "parameters", False, ANY_MAP),
    ],
    "main.Message": [
        *((name, name, False, "") for name in ("SystemPrompt", "Role", "RoleName", "Content")),
        ("FunctionCall", "FunctionCall", False, None),
        ("Function", "Function", False, False),
        ("MessageIndex", "MessageIndex", False, 0),
        ("LastMessage", "LastMessage", False, False),
    ],
    "main.Prompt": [
        ("SystemPrompt", "SystemPrompt", False, ""),
        ("SuppressSystemPrompt", "SuppressSystemPrompt", False, False),
        ("Input", "Input", False, ""),
        ("Functions", "Functions", False, TypedNil("[]main.Function")),
        ("MessageIndex", "MessageIndex", False, 0),
        ("Metadata", "Metadata", False, TypedNil("map[string]string")),
        ("Last", "Last", False, TypedNil("*main.Message")),
        ("Scores", "Scores", False, TypedNil("[]float64")),
        ("Hidden", None, False, ""),
    ],
}


def build(value: Any) -> Any:
    """Data as referee.go builds it from the same JSON."""
    if isinstance(value, list):
        return [build(item) for item in value]
    if isinstance(value, dict) and "$go" in value:
        name = value["$go"]
        shape = SHAPES[name.removeprefix("*")]
        return Struct(name, tuple(field(value, *declared) for declared in shape))
    if isinstance(value, dict):
        return {key: build(item) for key, item in value.items()}
    return value


def field(given: dict[str, Any], name: str, json_name: str | None, omitempty: bool, zero: Any) -> Field:
    value = build(given[name]) if name in given else zero
    typed = zero.type_name if isinstance(zero, TypedNil) else ""
    if isinstance(value, list) and typed:
        value = TypedList(value, typed)
    elif isinstance(value, dict) and typed == "map[string]string":
        value = TypedDict(value, typed)
    return Field(name, value, json_name, omitempty)


def data_of(case: dict[str, Any]) -> Any:
    given = case.get("data", "world")
    return build(json.loads(CASES["data"].get(given, given)))


def where(error: str) -> tuple[int, int]:
    found = re.match(r"t, line (\d+), column (\d+): .", error)
    assert found, error
    return int(found[1]), int(found[2])


@pytest.mark.parametrize("case", CASES["case"], ids=lambda case: case["name"])
def test_as_go_renders(case: dict[str, Any]) -> None:
    golden = GOLDEN["results"][case["name"]]
    if "output" in golden:
        assert compile_go(case["template"], "t").render(data_of(case)) == golden["output"]
        return
    with pytest.raises(TemplateError) as caught:
        compile_go(case["template"], "t").render(data_of(case))
    assert where(caught.value.message)[0] == golden["line"], (caught.value.message, golden["error"])
    assert (check_go(case["template"]) is not None) == (golden["stage"] == "parse")


def test_the_goldens_name_what_made_them() -> None:
    assert re.match(r"Go's text/template, go1\.\d+", GOLDEN["made_by"])
    names = [case["name"] for case in CASES["case"]]
    assert len(names) == len(set(names)) == len(GOLDEN["results"]) >= 150
