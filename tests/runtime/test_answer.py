"""The mailbox of one answer."""

import pytest

from llmgallery.core.errors import Overloaded
from llmgallery.core.events import Done, TextDelta, Usage
from llmgallery.runtime.answer import MAILBOX_BYTES, Answer


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
