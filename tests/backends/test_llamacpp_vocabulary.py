"""llama-cpp's vocabularies, loaded without their weights."""

from __future__ import annotations

from pathlib import Path

import pytest
from listening import Listener

from llmgallery import paths
from llmgallery.backends.base import Files, Loaded
from llmgallery.backends.llamacpp.backend import LlamaCppBackend
from llmgallery.config.model import ModelConfig
from llmgallery.core.errors import BadWeights, LoadError

POCKET = paths.builtin("models") / "pocket-f16.gguf"
TEXT = "<|im_start|>user\nWho are you? é😀<|im_end|>\n"
SHARED = [name for name in Loaded.__struct_fields__ if name not in ("slots", "capabilities", "memory_bytes", "details")]


def test_a_vocabulary_is_that_of_the_model() -> None:
    light, whole, config = LlamaCppBackend(), LlamaCppBackend(), ModelConfig(parallel=1, threads=1)
    files = Files((POCKET,))
    try:
        loaded, full = light.load_vocabulary(config, files), whole.load(config, files, Listener())
        assert [getattr(loaded, name) for name in SHARED] == [getattr(full, name) for name in SHARED]
        assert loaded.context_size == 1024 and not loaded.capabilities
        for special in (True, False):
            tokens = light.tokenize(TEXT, special=special, bos=True)
            assert tokens == whole.tokenize(TEXT, special=special, bos=True)
            assert light.detokenize(tokens) == whole.detokenize(tokens)
    finally:
        light.close()
        whole.close()


def test_the_yaml_says_the_context() -> None:
    backend = LlamaCppBackend()
    assert backend.load_vocabulary(ModelConfig(context_size=77), Files((POCKET,))).context_size == 77
    backend.close()


def test_what_is_no_vocabulary_is_refused(tmp_path: Path) -> None:
    (tmp_path / "junk.gguf").write_bytes(POCKET.read_bytes()[:5000])
    for files, message in (((tmp_path / "junk.gguf",), "does not load"), ((tmp_path / "gone.gguf",), "no such file")):
        with pytest.raises(BadWeights, match=message):
            LlamaCppBackend().load_vocabulary(ModelConfig(), Files(files))
    with pytest.raises(LoadError, match="no weights"):
        LlamaCppBackend().load_vocabulary(ModelConfig(), Files())
