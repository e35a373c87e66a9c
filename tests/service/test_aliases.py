"""A name is added to a model file's text, whose comments stay."""

import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from llmgallery.backends.loader import specs
from llmgallery.config.load import parse_model
from llmgallery.service.install.aliases import add_alias

FILE = Path("model.yaml")


@pytest.mark.parametrize(
    ("text", "becomes"),
    [
        ("# head\nname: a\nbackend: echo\n", '# head\nname: a\naliases: ["new"]\nbackend: echo\n'),
        ("backend: echo", 'backend: echo\naliases: ["new"]\n'),
        ("aliases: [b, 'c d'] # why\nbackend: echo\n", 'aliases: ["b", "c d", "new"] # why\nbackend: echo\n'),
        ("aliases:\n  - b # why\n  - c\n# end\nbackend: echo\n", 'aliases: ["b", "c", "new"]\n# end\nbackend: echo\n'),
        ("aliases:\n- b\nbackend: echo\n", 'aliases: ["b", "new"]\nbackend: echo\n'),
        ("backend: echo\naliases:\n  - b", 'backend: echo\naliases: ["b", "new"]\n'),
        ("aliases: []\nbackend: echo\n", 'aliases: ["new"]\nbackend: echo\n'),
        ("aliases: [new]\nbackend: echo\n", "aliases: [new]\nbackend: echo\n"),
    ],
)
def test_forms(text: str, becomes: str) -> None:
    assert add_alias(text, "new", FILE) == becomes


NAMES = st.text(st.characters(codec="utf-8", categories=["L", "N", "P", "S"]), min_size=1, max_size=20)


@given(st.lists(NAMES, unique=True, max_size=4), NAMES, st.booleans(), st.booleans())
def test_what_is_written_is_read(before: list[str], alias: str, flow: bool, first: bool) -> None:
    quoted = [json.dumps(name, ensure_ascii=False) for name in before]
    listed = f"aliases: [{', '.join(quoted)}]\n" if flow else "aliases:\n" + "".join(f"  - {name}\n" for name in quoted)
    text = (listed if before else "") + "backend: echo\n" if first else "backend: echo\n" + (listed if before else "")
    loaded = parse_model(add_alias(text, alias, FILE).encode(), FILE, specs())
    assert loaded.config is not None, loaded.problems
    assert loaded.config.aliases == (before if alias in before else [*before, alias])
    assert loaded.config.backend == "echo"
