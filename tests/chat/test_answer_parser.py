from __future__ import annotations

from llmgallery.chat.parser import AnswerParser
from llmgallery.core.events import TextDelta


def test_text_becomes_deltas_and_empty_text_none() -> None:
    parser = AnswerParser()
    assert parser.feed("Hi") == [TextDelta("Hi")]
    assert parser.feed("") == []
    assert parser.finish() == []
    assert parser.stopped is None


def test_a_stop_string_ends_the_answer() -> None:
    parser = AnswerParser(["\nUser:"])
    assert parser.feed("Hi\nUs") == [TextDelta("Hi")]
    assert parser.stopped is None
    assert parser.feed("er: more") == []
    assert parser.stopped == "\nUser:"
    assert parser.feed("never") == [] == parser.finish()


def test_finish_tells_what_was_held_back() -> None:
    parser = AnswerParser(["\nUser:"])
    assert parser.feed("Hi\nUse") == [TextDelta("Hi")]
    assert parser.finish() == [TextDelta("\nUse")]
    assert parser.stopped is None


def test_a_match_that_waited_for_a_longer_one_counts_at_the_end() -> None:
    parser = AnswerParser(["END", "ENDING"])
    assert parser.feed("a END") == [TextDelta("a ")]
    assert parser.finish() == []
    assert parser.stopped == "END"
