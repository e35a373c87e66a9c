"""template.adapter: what is wrong with it is told with its line."""

from __future__ import annotations

from pathlib import Path

import pytest

from llmgallery.backends.loader import specs
from llmgallery.config.load import LoadedModel, parse_model
from llmgallery.config.outside import Outside
from llmgallery.templates import kobold, presets

HERE = Path("m.yaml")
OUTSIDE = Outside(presets=presets.names(), adapter=kobold.check)


def load(template: str, outside: Outside = OUTSIDE) -> LoadedModel:
    return parse_model(f"backend: echo\ntemplate:\n{template}".encode(), HERE, specs(), outside)


@pytest.mark.parametrize(
    "adapter", ["ChatML", "autoguess", '{user_start: "U:", assistant_start: "A:"}', '{templates: {user: {start: "U:"}}}', "{}"]
)
def test_good_ones(adapter: str) -> None:
    loaded = load(f"  adapter: {adapter}\n")
    assert (loaded.problems, loaded.warnings) == ((), ())
    assert loaded.config is not None


@pytest.mark.parametrize(
    ("template", "problem"),
    [
        (
            "  adapter:\n    usr_start: x\n",
            "m.yaml:4:5: template.adapter.usr_start: no such key in an adapter; did you mean user_start?",
        ),
        ("  adapter:\n    user_start: 5\n", "m.yaml:4:5: template.adapter.user_start: expected text, found 5"),
        ("  adapter: chatlm\n", "m.yaml:3:12: template.adapter: no KoboldCpp adapter is called 'chatlm'; did you mean ChatML?"),
        (
            "  adapter:\n    templates:\n      user:\n        strt: x\n",
            "m.yaml:6:9: template.adapter.templates.user.strt: no such key in an adapter; did you mean user_start?",
        ),
        ("  adapter: [a]\n", "m.yaml:3:12: template.adapter: expected a mapping (a value each) or text, found a list"),
    ],
)
def test_bad_ones(template: str, problem: str) -> None:
    assert [str(each) for each in load(template).problems] == [problem]


def test_nobody_asked_nobody_told() -> None:
    assert load("  adapter: chatlm\n", Outside()).problems == ()


@pytest.mark.parametrize(
    ("template", "warning"),
    [
        (
            "  adapter:\n    max_length: 5\n",
            "m.yaml:4:5: template.adapter.max_length: not used: parameters.max_tokens says how long an answer may be",
        ),
        (
            "  adapter: ChatML\n  preset: chatml\n",
            "m.yaml:4:3: template.preset: not used: template.adapter writes the chats; remove one of them",
        ),
        (
            "  adapter: ChatML\n  chat_template: x\n",
            "m.yaml:3:3: template.adapter: not used: template.chat_template writes the chats; remove one of them",
        ),
    ],
)
def test_what_is_not_used(template: str, warning: str) -> None:
    loaded = load(template)
    assert loaded.problems == ()
    assert [str(each) for each in loaded.warnings] == [warning]
