"""Tokens as bytes: of byte-level BPE, SentencePiece with bytes to fall back on, and WordPiece."""

from collections.abc import Sequence

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny_transformers import BOS, EOS, IMAGE, START, byte_tokenizer, word_tokenizer
from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers
from transformers import PreTrainedTokenizerFast

from llmgallery.backends.transformers.weights.vocabulary import HubVocabulary
from llmgallery.core.errors import InvalidField
from llmgallery.engine.detok import Utf8Stream


def spaces(extra: Sequence[str] = ()) -> PreTrainedTokenizerFast:
    """As Llama 2's: ▁ for spaces, <0x0A> for bytes that no token has."""
    words = ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256)), "▁", "▁Hello", "▁world", "a", "b", "▁▁", *extra]
    letters = [chr(code) for code in range(ord("c"), ord("z") + 1)]
    vocab = {word: place for place, word in enumerate([*words, *letters])}
    tokenizer = Tokenizer(models.BPE(vocab, [], unk_token="<unk>", byte_fallback=True, fuse_unk=True))
    tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    tokenizer.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, bos_token="<s>", eos_token="</s>", unk_token="<unk>")


@pytest.fixture(scope="module")
def bytes_vocabulary() -> HubVocabulary:
    return HubVocabulary(byte_tokenizer())


@given(text=st.text(max_size=40))
@settings(max_examples=200, deadline=None)
def test_a_text_comes_back_token_by_token(bytes_vocabulary: HubVocabulary, text: str) -> None:
    tokens = bytes_vocabulary.tokenize(text, special=False, bos=False)
    stream = Utf8Stream()
    parts = [stream.feed(bytes_vocabulary.piece(token)) for token in tokens]
    clean = text.encode(errors="replace").decode()
    assert "".join(parts) + stream.flush() == clean == bytes_vocabulary.detokenize(tokens)
    assert "\ufffd" in clean or all("\ufffd" not in part for part in parts)


def test_control_tokens_in_a_text_are_such_only_where_asked(bytes_vocabulary: HubVocabulary) -> None:
    text = f"{START}user{EOS}"
    controls = bytes_vocabulary.tokenize(text, special=True, bos=True)
    plain = bytes_vocabulary.tokenize(text, special=False, bos=True)
    assert controls[:2] == [0, 2] and controls[-1] == 1
    assert plain[0] == 0 and not {1, 2, 3, 4} & set(plain)
    assert bytes_vocabulary.detokenize(plain) == text and bytes_vocabulary.detokenize(controls) == "user"
    assert bytes_vocabulary.written(2) == START.encode() and bytes_vocabulary.piece(2) == b""
    assert bytes_vocabulary.tokenize("", special=True, bos=False) == []
    assert bytes_vocabulary.tokenize("", special=True, bos=True) == [0]


def test_added_words_that_are_no_control_tokens_are_text() -> None:
    tokenizer = byte_tokenizer()
    tokenizer.add_tokens([AddedToken("<think>", special=False)])
    vocabulary = HubVocabulary(tokenizer)
    (token,) = vocabulary.tokenize("<think>", special=False, bos=False)
    assert vocabulary.piece(token) == b"<think>" and token == vocabulary.size - 1


def test_sentencepiece_with_bytes_to_fall_back_on() -> None:
    vocabulary = HubVocabulary(spaces())
    tokens = vocabulary.tokenize("ab 🎉", special=False, bos=True)
    assert tokens[0] == 1
    pieces = [vocabulary.piece(token) for token in tokens]
    assert b"".join(pieces) == " ab 🎉".encode() and pieces[-4:] == [bytes([byte]) for byte in "🎉".encode()]
    known = vocabulary.tokenizer.get_vocab()
    assert vocabulary.piece(known["▁Hello"]) == b" Hello" and vocabulary.piece(known["▁▁"]) == b"  "
    assert vocabulary.piece(2) == b"" and vocabulary.written(2) == b"</s>" and vocabulary.is_end(2)


def test_wordpiece() -> None:
    vocabulary = HubVocabulary(word_tokenizer(64))
    tokens = vocabulary.tokenize("the quickest fox", special=False, bos=False)
    assert vocabulary.detokenize(tokens).strip().replace(" ", "") == "thequickestfox"
    assert vocabulary.ends == frozenset() and vocabulary.bos == "" and not vocabulary.adds_bos


def test_ends_and_suppressed_tokens_are_those_that_there_are() -> None:
    vocabulary = HubVocabulary(byte_tokenizer(), ends=[1, 3, 99999, -1], suppressed=[7, 99999])
    assert vocabulary.ends == {1, 3} and vocabulary.suppressed == {7}
    assert vocabulary.size == 512 and HubVocabulary(byte_tokenizer(), size=500).size == 500
    assert HubVocabulary(byte_tokenizer(), size=640).size == 512


def test_what_templates_ask_for() -> None:
    tokenizer = byte_tokenizer()
    assert HubVocabulary(tokenizer).chat_template is None
    tokenizer.chat_template = {"default": "plain", "tool_use": "tools"}
    named = HubVocabulary(tokenizer)
    assert named.chat_template == "plain" and named.templates == {"tool_use": "tools"}
    assert named.bos == BOS and named.adds_bos and not HubVocabulary(byte_tokenizer(add_bos=False)).adds_bos
    assert {START, IMAGE} <= set(named.controls())


def test_marks_of_what_is_filled_in() -> None:
    assert HubVocabulary(byte_tokenizer()).fill_in is None
    marked = HubVocabulary(spaces(["▁<PRE>", "▁<SUF>", "▁<MID>"]))
    known = marked.tokenizer.get_vocab()
    assert marked.fill_in == (known["▁<PRE>"], known["▁<SUF>"], known["▁<MID>"])


def test_strange_tokens_are_refused(bytes_vocabulary: HubVocabulary) -> None:
    for strange in (512, -1):
        with pytest.raises(InvalidField, match=f"token {strange} is not in the vocabulary of 512"):
            bytes_vocabulary.detokenize([5, strange])


def test_words_for_dry(bytes_vocabulary: HubVocabulary) -> None:
    heads = bytes_vocabulary.words.heads((b"\n",))
    newline = bytes_vocabulary.tokenize("\n", special=False, bos=False)[0]
    assert () in heads[newline]


def test_lengths_that_a_file_wants_texts_to_have_are_not_for_prompts() -> None:
    """As MiniLM's tokenizer.json has them: 128 tokens, whatever the text."""
    tokenizer = word_tokenizer(64)
    tokenizer.backend_tokenizer.enable_padding(length=128)
    tokenizer.backend_tokenizer.enable_truncation(4)
    vocabulary = HubVocabulary(tokenizer)
    for special in (True, False):
        tokens = vocabulary.tokenize("the quick brown fox jumps over the dog", special=special, bos=False)
        assert 5 <= len(tokens) < 30
