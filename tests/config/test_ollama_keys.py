"""template.engine: ollama."""

from __future__ import annotations

from pathlib import Path

import pytest

from llmgallery.backends.loader import specs
from llmgallery.config.load import LoadedModel, parse_model
from llmgallery.config.outside import Outside
from llmgallery.templates.gotmpl import check_go
from llmgallery.templates.ollama import check_ollama

OUTSIDE = Outside(go_template=check_go, ollama_template=check_ollama)


def load(template: str) -> LoadedModel:
    text = f"backend: echo\ntemplate:\n  engine: ollama\n{template}"
    return parse_model(text.encode(), Path("m.yaml"), specs(), OUTSIDE)


def test_good() -> None:
    loaded = load('  chat: "{{ json .Messages }}{{ currentDate }}"\n')
    assert (loaded.problems, loaded.warnings) == ((), ())


@pytest.mark.parametrize(
    ("template", "problem"),
    [
        ("", "m.yaml:3:11: template.engine: template.chat is missing; write Ollama's TEMPLATE there"),
        (
            "  chat: |\n    a\n    {{ end }}\n",
            "m.yaml:6:8: template.chat: the template does not parse: unexpected {{end}} in the template",
        ),
    ],
)
def test_bad(template: str, problem: str) -> None:
    assert [str(each) for each in load(template).problems] == [problem]


def test_what_is_not_used() -> None:
    loaded = load('  chat: "{{ .Prompt }}"\n  chat_message: x\n')
    assert loaded.problems == ()
    [warning] = loaded.warnings
    assert str(warning).startswith("m.yaml:5:3: template.chat_message: not used: template.engine is ollama")
