from __future__ import annotations

import codecs
from itertools import pairwise

from hypothesis import given
from hypothesis import strategies as st

from llmgallery.engine.detok import Utf8Stream


def run(pieces: list[bytes]) -> str:
    stream = Utf8Stream()
    return "".join(map(stream.feed, pieces)) + stream.flush()


@given(st.text(), st.lists(st.integers(0, 200)))
def test_text_comes_back_however_it_is_split(text: str, cuts: list[int]) -> None:
    data = text.encode()
    edges = [0, *sorted(min(cut, len(data)) for cut in cuts), len(data)]
    assert run([data[start:end] for start, end in pairwise(edges)]) == text


@given(st.binary())
def test_any_bytes_equal_decoding_with_replacement(data: bytes) -> None:
    assert run([bytes([byte]) for byte in data]) == data.decode("utf-8", errors="replace") == run([data])


@given(st.text(min_size=1))
def test_characters_come_as_soon_as_they_are_whole(text: str) -> None:
    stream = Utf8Stream()
    for char in text:
        *first, last = char.encode()
        assert [stream.feed(bytes([byte])) for byte in first] == [""] * len(first)
        assert stream.feed(bytes([last])) == char


def test_a_lone_invalid_byte_does_not_stall() -> None:
    stream = Utf8Stream()
    assert stream.feed(b"\xff") == "�"
    assert stream.feed(b"\x80a") == "�a"
    assert stream.feed(b"\xe2\x82") == ""
    assert stream.feed(b"b") == "�b"


def test_an_unfinished_character_is_one_replacement_at_the_end() -> None:
    stream = Utf8Stream()
    assert stream.feed("é".encode()[:1]) == ""
    assert stream.flush() == "�"
    assert stream.feed(codecs.BOM_UTF8 + b"x") == "\ufeffx"
