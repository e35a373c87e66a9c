"""The mailbox of one answer."""

import pytest

from llmgallery.core.errors import Overloaded
from llmgallery.core.events import Alternative, Done, TextDelta, TokenLogprob, Usage
from llmgallery.runtime.answer import LOGPROB_BYTES, MAILBOX_BYTES, Answer


def scored(text: str, offset: int, top: int = 0) -> TextDelta:
    alternatives = (Alternative(1, b"x", -1.0),) * top
    return TextDelta(text, (TokenLogprob(2, text.encode(), -1.0, alternatives),), (offset,))


async def test_one_event_of_any_size_arrives_when_everything_before_it_was_read() -> None:
    cancelled: list[int] = []
    answer = Answer(1, cancelled.append)
    for _ in range(2):
        answer.put(TextDelta("x" * (MAILBOX_BYTES + 1)))
        assert await anext(answer) == TextDelta("x" * (MAILBOX_BYTES + 1))
    answer.put(Done("stop", Usage(1, 1)))
    assert [event.reason async for event in answer] == ["stop"]
    assert cancelled == []


async def test_what_comes_on_top_of_a_full_mailbox_cancels() -> None:
    cancelled: list[int] = []
    answer = Answer(7, cancelled.append)
    answer.put(TextDelta("x" * MAILBOX_BYTES))
    answer.put(TextDelta("y"))
    assert cancelled == [7]
    assert await anext(answer) == TextDelta("x" * MAILBOX_BYTES)
    with pytest.raises(Overloaded, match="did not read"):
        await anext(answer)


async def test_unread_text_is_merged_with_its_tokens_in_order() -> None:
    answer = Answer(1, lambda id: None)
    for offset, text in enumerate("abc"):
        answer.put(scored(text, offset))
    answer.put(TextDelta("d"))
    answer.put(Done("stop"))
    merged, done = [event async for event in answer]
    assert isinstance(merged, TextDelta) and isinstance(done, Done)
    assert (merged.text, merged.offsets) == ("abcd", (0, 1, 2))
    assert [token.piece for token in merged.logprobs] == [b"a", b"b", b"c"]


async def test_unread_logprobs_fill_the_mailbox() -> None:
    cancelled: list[int] = []
    answer = Answer(1, cancelled.append)
    fit = MAILBOX_BYTES // (21 * LOGPROB_BYTES + 1)
    for offset in range(fit):
        answer.put(scored("x", offset, top=20))
    assert cancelled == []
    answer.put(scored("x", fit, top=20))
    assert cancelled == [1]


async def test_an_echo_of_any_size_does_not_count_against_what_follows() -> None:
    cancelled: list[int] = []
    answer = Answer(1, cancelled.append)
    tokens = scored("x", 0, top=20).logprobs * 4000
    echo = TextDelta("x" * 4000, tokens, tuple(range(4000)))
    for event in (echo, TextDelta("y"), TextDelta("z"), Done("stop")):
        answer.put(event)
    assert cancelled == []
    assert [event async for event in answer] == [echo, TextDelta("yz"), Done("stop")]
