"""Whether the tests of these files called every function of llama.cpp's that api/ names. Runs after them."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from llama_cpp import llama_cpp

from llmgallery import paths
from llmgallery.backends.llamacpp import api

FOLDER = Path(api.__file__).parent


def named() -> set[str]:
    return {name for file in FOLDER.glob("*.py") for name in re.findall(r"\bc\.(\w+)", file.read_text())}


def is_function(name: str) -> bool:
    """Functions of the library, not its types, constants and kinds of callbacks."""
    thing = getattr(llama_cpp, name)
    return callable(thing) and not isinstance(thing, type) and name.startswith("llama_")


def test_every_name_exists():
    assert len(named()) > 60
    assert not [name for name in named() if not hasattr(llama_cpp, name)]


def test_no_other_file_names_the_library():
    files = {file for file in paths.PACKAGE.rglob("*.py") if re.search(r"import llama_cpp|from llama_cpp", file.read_text())}
    assert {file.parent for file in files} == {FOLDER}


def test_every_function_was_called(request, witness):
    here = {item.path.name for item in request.session.items}
    ours = {file.name for file in Path(__file__).parent.glob("test_llamacpp*.py")}
    if not ours <= here or request.config.option.keyword:
        pytest.skip("only a part of the tests was asked for")
    functions = {name for name in named() if is_function(name)}
    assert len(functions) > 50
    # Choosing NUMA would bind the test process's memory for good.
    assert functions - witness.used <= {"llama_numa_init"}
