"""Tokens as vocabularies write them become bytes: by the referee, Hugging Face's own tokenizers."""

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

from llmgallery.engine.pieces import alphabet_of, token_bytes

BYTE_LEVEL = {"type": "ByteLevel", "add_prefix_space": True, "trim_offsets": True, "use_regex": True}
LLAMA = {
    "type": "Sequence",
    "decoders": [
        {"type": "Replace", "pattern": {"String": "▁"}, "content": " "},
        {"type": "ByteFallback"},
        {"type": "Fuse"},
        {"type": "Strip", "content": " ", "start": 1, "stop": 0},
    ],
}
TEXT = ["the cat sat on the mat, häßlich 😀 und schön", "naïve café 東京 \t\n  x = [1, 2]"]


@pytest.mark.parametrize(
    ("decoder", "alphabet"),
    [
        (BYTE_LEVEL, "byte-level"),
        (LLAMA, "sentencepiece"),
        ({"type": "Metaspace", "replacement": "▁"}, "sentencepiece"),
        ({"type": "Sequence", "decoders": [{"type": "Replace", "pattern": {"String": "▁"}, "content": " "}]}, "sentencepiece"),
        ({"type": "WordPiece", "prefix": "##", "cleanup": True}, "wordpiece"),
        ({"type": "Sequence", "decoders": [{"type": "ByteLevel"}]}, "byte-level"),
        ({"type": "BPEDecoder", "suffix": "</w>"}, "plain"),
        (None, "plain"),
    ],
)
def test_the_decoder_tells_the_alphabet(decoder, alphabet: str) -> None:
    assert alphabet_of(decoder) == alphabet


@pytest.fixture(scope="module")
def byte_level() -> Tokenizer:
    made = Tokenizer(models.BPE())
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    made.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    made.train_from_iterator(TEXT, trainers.BpeTrainer(vocab_size=400, initial_alphabet=alphabet, show_progress=False))
    return made


@given(text=st.text(max_size=30))
def test_the_pieces_of_any_text_are_its_bytes(byte_level: Tokenizer, text: str) -> None:
    pieces = [token_bytes(token, "byte-level") for token in byte_level.encode(text).tokens]
    assert b"".join(pieces) == text.encode()


def test_every_byte_has_a_token(byte_level: Tokenizer) -> None:
    single = {token_bytes(token, "byte-level") for token in byte_level.get_vocab() if len(token) == 1}
    assert single == {bytes([byte]) for byte in range(256)}


def test_sentencepiece_falls_back_to_bytes() -> None:
    pieces = [token_bytes(token, "sentencepiece") for token in ("▁Hello", "<0xF0>", "<0x9F>", "<0x98>", "<0x80>", "▁▁", "<0xZZ>")]
    assert b"".join(pieces).decode() == " Hello😀  <0xZZ>"


def test_words_are_apart_and_their_parts_are_not() -> None:
    assert b"".join(token_bytes(token, "wordpiece") for token in ("play", "##ing", "cards")) == b" playing cards"


def test_characters_beyond_the_alphabet_stand_for_themselves() -> None:
    assert token_bytes("東", "byte-level") == "東".encode()
    assert token_bytes("x</w>", "plain") == b"x</w>"
