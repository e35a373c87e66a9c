"""Models that several test files load once, and an account of which of llama.cpp's functions the tests called."""

from __future__ import annotations

import ctypes
import importlib
import pkgutil
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import tiny_models
from llama_cpp import llama_cpp

from llmgallery import paths
from llmgallery.backends.llamacpp import api

POCKET = paths.builtin("models") / "pocket-f16.gguf"
LAST = "test_llamacpp_symbols.py"


class Witness:
    """Stands for the library in a module of api/ and notes which of its names are used."""

    def __init__(self, library: ModuleType) -> None:
        self._library = library
        self.used: set[str] = set()

    def __getattr__(self, name: str) -> Any:
        self.used.add(name)
        return getattr(self._library, name)


@pytest.fixture(scope="session", autouse=True)
def witness() -> Iterator[Witness]:
    seen = Witness(llama_cpp)
    modules = [importlib.import_module(f"{api.__name__}.{found.name}") for found in pkgutil.iter_modules(api.__path__)]
    for module in modules:
        module.c = seen
    yield seen
    for module in modules:
        module.c = llama_cpp


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """What looks at all the others comes last."""
    items.sort(key=lambda item: item.path.name == LAST)


def load_model(file: Path) -> api.Model:
    api.start()
    return api.Model([file], api.ModelParams(repack=not api.has_amx()), lambda fraction: None)


@pytest.fixture(scope="session")
def pocket() -> Iterator[api.Model]:
    made = load_model(POCKET)
    yield made
    made.close()


@pytest.fixture(scope="session")
def q4_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The bundled model, quantised to Q4_0."""
    file = tmp_path_factory.mktemp("quantised") / "pocket-q4_0.gguf"
    api.start()
    wanted = llama_cpp.llama_model_quantize_default_params()
    wanted.ftype, wanted.nthread = llama_cpp.LLAMA_FTYPE_MOSTLY_Q4_0, 1
    assert llama_cpp.llama_model_quantize(bytes(POCKET), bytes(file), ctypes.byref(wanted)) == 0
    return file


@pytest.fixture(scope="session")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Callable[[str], api.Model]]:
    """Models of tiny_models.KINDS by kind, each made and loaded once."""
    folder = tmp_path_factory.mktemp("tiny")
    made: dict[str, api.Model] = {}

    def get(kind: str) -> api.Model:
        if kind not in made:
            made[kind] = load_model(tiny_models.KINDS[kind](folder))
        return made[kind]

    yield get
    for model in made.values():
        model.close()
