"""Which tokens have gone out with a text, whatever their bytes and however the text comes."""

from __future__ import annotations

from itertools import pairwise

from hypothesis import given
from hypothesis import strategies as st

from llmgallery.chat.alignment import TokenAligner
from llmgallery.core.events import TokenLogprob
from llmgallery.engine.detok import Utf8Stream


def token(piece: bytes) -> TokenLogprob:
    return TokenLogprob(7, piece, -1.0)


def spans(pieces: list[bytes]) -> list[tuple[int, int]]:
    """For each piece of a valid text: its first character, and the one behind its last."""
    of_byte = [index for index, char in enumerate(b"".join(pieces).decode()) for _ in char.encode()]
    found, at = [], 0
    for piece in pieces:
        found.append((of_byte[at], of_byte[at + len(piece) - 1] + 1))
        at += len(piece)
    return found


@st.composite
def split_texts(draw: st.DrawFn) -> list[bytes]:
    data = draw(st.text("ab é€🌍", min_size=1, max_size=20)).encode()
    cuts = sorted(draw(st.sets(st.integers(1, max(1, len(data) - 1)), max_size=len(data))))
    return [data[start:end] for start, end in pairwise([0, *(cut for cut in cuts if cut < len(data)), len(data)])]


@given(split_texts(), st.data())
def test_a_token_goes_out_with_its_last_character_and_not_before(pieces: list[bytes], data: st.DataObject) -> None:
    aligner, stream = TokenAligner(), Utf8Stream()
    known, out, gone = 0, 0, 0
    expected = spans(pieces)
    at = 0
    while at < len(pieces):
        several = pieces[at : at + data.draw(st.integers(1, 3))]
        text = "".join(map(stream.feed, several))
        aligner.feed(text, [token(piece) for piece in several])
        known, at = known + len(text), at + len(several)
        step = data.draw(st.integers(0, known - out))
        out += step
        for aligned in aligner.take(step):
            assert (aligned.token.piece, aligned.begin, aligned.end) == (pieces[gone], *expected[gone])
            gone += 1
        assert gone == sum(end <= out for _, end in expected[:at])


@given(split_texts(), st.data())
def test_a_cut_keeps_the_tokens_that_began_before_it(pieces: list[bytes], data: st.DataObject) -> None:
    text = b"".join(pieces).decode()
    cut = data.draw(st.integers(0, len(text)))
    aligner = TokenAligner()
    aligner.feed(text, [token(piece) for piece in pieces])
    kept = [*aligner.take(cut), *aligner.cut()]
    assert len(kept) == sum(begin < cut for begin, _ in spans(pieces))
    assert aligner.finish() == []


@given(st.lists(st.binary(min_size=1, max_size=4), max_size=12), st.booleans())
def test_bytes_that_are_no_characters_lose_no_token(pieces: list[bytes], at_once: bool) -> None:
    aligner, stream = TokenAligner(), Utf8Stream()
    texts = [stream.feed(piece) for piece in pieces]
    rest = stream.flush()
    if at_once:
        aligner.feed("".join(texts) + rest, [token(piece) for piece in pieces])
    else:
        for text, piece in zip(texts, pieces, strict=True):
            aligner.feed(text, [token(piece)])
        aligner.feed(rest, [])
    whole = len("".join(texts) + rest)
    taken = aligner.take(whole)
    assert [aligned.token.piece for aligned in taken] == pieces
    assert taken == sorted(taken, key=lambda aligned: (aligned.begin, aligned.end))
    assert all(0 <= aligned.begin < aligned.end <= whole for aligned in taken)


def test_a_control_token_that_the_text_does_not_show_stands_between_its_neighbours() -> None:
    aligner = TokenAligner(10)
    aligner.feed("ab", [token(b"a"), token(b"<|x|>"), token(b"b")])
    assert [(each.begin, each.end) for each in aligner.take(2)] == [(10, 11), (11, 11), (11, 12)]
    aligner.feed("", [token("é".encode()[:1]), token(b"<|x|>")])
    aligner.feed("é", [token("é".encode()[1:])])
    assert aligner.take(0) == []
    assert [(each.begin, each.end) for each in aligner.take(1)] == [(12, 13), (13, 13), (12, 13)]


def test_a_token_without_bytes_stands_nowhere() -> None:
    aligner = TokenAligner()
    aligner.feed("a", [token(b""), token(b"a"), token(b"")])
    assert [(each.begin, each.end) for each in aligner.take(1)] == [(0, 0), (0, 1), (1, 1)]


def test_the_space_before_a_text_that_vocabularies_add_shifts_nothing() -> None:
    aligner = TokenAligner()
    aligner.feed("Hello you", [token(b"<s>"), token(b" Hello"), token(b" you")])
    assert [(each.begin, each.end) for each in aligner.finish()] == [(0, 0), (0, 5), (5, 9)]


def test_a_character_that_the_end_cuts_off_belongs_to_its_tokens() -> None:
    aligner = TokenAligner()
    aligner.feed("a", [token(b"a"), token(b"\xf0\x9f"), token(b"\x8c")])
    aligner.feed("\ufffd", [])
    assert [(each.begin, each.end) for each in aligner.take(2)] == [(0, 1), (1, 2), (1, 2)]
    aligner.feed("b", [token(b"b")])
    assert [(each.begin, each.end) for each in aligner.take(1)] == [(2, 3)]
