"""What weights tell of their prompt format: llama.cpp and the reader of headers say the same."""

from __future__ import annotations

from pathlib import Path

import pytest
from gguf import GGUFReader, GGUFWriter, TokenType

from llmgallery import paths
from llmgallery.backends.base import Files
from llmgallery.backends.llamacpp.backend import LlamaCppBackend
from llmgallery.catalog.gguf import clues_of
from llmgallery.chat.prompt import pick_format
from llmgallery.config.model import ModelConfig
from llmgallery.core.clues import Clues
from llmgallery.core.errors import BadWeights

POCKET = paths.builtin("models") / "pocket-f16.gguf"
TEMPLATE = "tokenizer.chat_template"
CONTROLS = ("<|endoftext|>", "<|im_start|>", "<|im_end|>", "<tool>")


def rewritten(path: Path, *, template: bool = False) -> Path:
    """The bundled model's header and vocabulary, with other control tokens in front, and none of its tensors."""
    reader, writer = GGUFReader(POCKET), GGUFWriter(str(path), "llama")
    for field in reader.fields.values():
        value, kind, sub = field.contents(), field.types[0], field.types[-1] if len(field.types) > 1 else None
        if field.name == "tokenizer.ggml.tokens":
            value = [*CONTROLS, "<|reserved_1|>", *value[len(CONTROLS) + 1 :]]
        elif field.name == "tokenizer.ggml.token_type":
            control, added = int(TokenType.CONTROL), int(TokenType.USER_DEFINED)
            value = [control, control, control, added, control, *[int(TokenType.NORMAL)] * (len(value) - 5)]
        if not field.name.startswith(("GGUF.", "general.architecture")) and (template or field.name != TEMPLATE):
            writer.add_key_value(field.name, value, kind, sub)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def test_weights_without_a_template_tell_their_vocabulary(tmp_path: Path) -> None:
    file = rewritten(tmp_path / "x.gguf")
    clues = clues_of(file)
    assert clues == Clues(str(file), "llama", "pocket", "gpt-2", CONTROLS)
    backend = LlamaCppBackend()
    loaded = backend.load_vocabulary(ModelConfig(), Files((file,)))
    backend.close()
    assert loaded.chat_template is None
    assert loaded.clues == clues
    assert pick_format(ModelConfig(), loaded).origin == "preset chatml, as the vocabulary has <|im_start|> and <|im_end|>"


def test_weights_with_a_template_need_not_tell_it(tmp_path: Path) -> None:
    file = rewritten(tmp_path / "x.gguf", template=True)
    assert clues_of(file) == Clues(str(file), "llama", "pocket", "gpt-2")
    backend = LlamaCppBackend()
    assert backend.load_vocabulary(ModelConfig(), Files((file,))).clues == clues_of(file)
    backend.close()


def test_a_header_may_lack_all_of_it(tmp_path: Path) -> None:
    writer = GGUFWriter(str(tmp_path / "x.gguf"), "bert")
    writer.add_token_list(["<s>", "a"])
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.close()
    assert clues_of(tmp_path / "x.gguf") == Clues(str(tmp_path / "x.gguf"), "bert")


def test_metadata_of_the_wrong_type_is_told(tmp_path: Path) -> None:
    writer = GGUFWriter(str(tmp_path / "x.gguf"), "llama")
    writer.add_uint32("tokenizer.ggml.pre", 3)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.close()
    with pytest.raises(BadWeights, match=r"metadata key tokenizer\.ggml\.pre is '3', not a text"):
        clues_of(tmp_path / "x.gguf")
