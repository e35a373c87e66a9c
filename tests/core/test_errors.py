"""The exception tree is the one that is drawn, and it survives a process border."""

import re

import pytest

from llmgallery.core import errors
from llmgallery.core.errors import KINDS, ErrorInfo, GalleryError, from_info


def drawn_tree() -> dict[str, str]:
    """Child -> parent, read from the module's drawing by its indentation."""
    parents: dict[str, str] = {}
    path: list[str] = []
    for line in errors.__doc__.splitlines():
        if match := re.match(r"([│├└─ ]*)([A-Z]\w+)", line):
            depth = len(match[1]) // 4
            path[depth:] = [match[2]]
            if depth:
                parents[match[2]] = path[depth - 1]
    return parents


def test_the_drawing_is_true() -> None:
    real = {name: kind.__bases__[0].__name__ for name, kind in KINDS.items() if kind is not GalleryError}
    assert drawn_tree() == real


@pytest.mark.parametrize("kind", KINDS.values(), ids=KINDS.keys())
def test_an_error_crosses_a_border(kind) -> None:
    error = kind("what to do", field="messages[0]", hints=("a", "b"), retry_after=2.5)
    back = from_info(error.info())
    assert type(back) is kind
    assert vars(back) == vars(error)
    assert str(back) == "what to do"


def test_an_unknown_kind_is_still_ours() -> None:
    assert type(from_info(ErrorInfo("FromTheFuture", "x"))) is GalleryError
