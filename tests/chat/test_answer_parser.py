from __future__ import annotations

from llmgallery.chat.parser import AnswerParser, Piece

NOTHING = Piece("", 0)


def test_text_goes_through_and_empty_text_is_none() -> None:
    parser = AnswerParser()
    assert parser.feed("Hi") == Piece("Hi", 2)
    assert parser.feed("") == NOTHING == parser.finish()
    assert parser.stopped is None


def test_a_stop_string_ends_the_answer() -> None:
    parser = AnswerParser(["\nUser:"])
    assert parser.feed("Hi\nUs").text == "Hi"
    assert parser.stopped is None
    assert parser.feed("er: more") == NOTHING
    assert parser.stopped == "\nUser:"
    assert parser.feed("never") == NOTHING == parser.finish()


def test_finish_tells_what_was_held_back() -> None:
    parser = AnswerParser(["\nUser:"])
    assert parser.feed("Hi\nUse").text == "Hi"
    assert parser.finish().text == "\nUse"
    assert parser.stopped is None


def test_a_match_that_waited_for_a_longer_one_counts_at_the_end() -> None:
    parser = AnswerParser(["END", "ENDING"])
    assert parser.feed("a END").text == "a "
    assert parser.finish() == NOTHING
    assert parser.stopped == "END"
