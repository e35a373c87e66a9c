"""Calls of functions in a mailbox: texts around them stay apart, and they count."""

from __future__ import annotations

from llmgallery.core.events import Done, TextDelta, ToolCallDelta
from llmgallery.runtime.answer import MAILBOX_BYTES, Answer


async def test_calls_keep_their_place() -> None:
    answer = Answer(1, lambda id: None)
    call = ToolCallDelta(0, "call_1", "f", "{}")
    events = (TextDelta("a"), TextDelta("b"), call, TextDelta("c"), Done("tool_calls"))
    for event in events:
        answer.put(event)
    assert [event async for event in answer] == [TextDelta("ab"), call, TextDelta("c"), Done("tool_calls")]


async def test_calls_that_nobody_reads_count() -> None:
    cancelled: list[int] = []
    answer = Answer(1, cancelled.append)
    for index in range(2):
        answer.put(ToolCallDelta(index, "call_1", "f", "x" * MAILBOX_BYTES))
    assert cancelled == []  # the first found the mailbox empty
    for index in range(2, 4):
        answer.put(ToolCallDelta(index, "call_1", "f", "x" * (MAILBOX_BYTES // 2)))
    assert cancelled == [1]
