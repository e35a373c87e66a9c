"""Calls of functions and cut texts on their way from an engine's outputs to events."""

from __future__ import annotations

import queue
from collections.abc import Sequence

import pytest

from llmgallery.backends.base import Job, Output, StepStats
from llmgallery.chat import rules
from llmgallery.config.model import Function, ModelConfig
from llmgallery.core.events import Done, Event, TextDelta, TokenLogprob, ToolCallDelta, Usage
from llmgallery.core.sampling import Sampling
from llmgallery.wire.channel import decode_report, encode
from llmgallery.wire.frames import Events, Report
from llmgallery.worker.answers import Answers
from llmgallery.worker.prepare import Prepared

DEADLINE = 10.0
STATS = StepStats(1, 1, 1, 0)
CALL = '{"name": "f", "arguments": {"a": 1}}'


def outputs(text: str, finish: str = "stop", *, logprobs: bool = False) -> list[Output]:
    """A character a step, and the end."""
    tokens = [TokenLogprob(ord(char), char.encode(), -1.0) for char in text]
    steps = [Output(1, token.piece.decode(), (token.token,), logprobs=(token,) if logprobs else ()) for token in tokens]
    return [*steps, Output(1, "", (), finish, Usage(3, len(text)))]  # type: ignore[arg-type]


def said(prepared: Prepared, given: Sequence[Output], *, coalesce: bool = False) -> list[Event]:
    """All events of an answer, as the server decodes them."""
    reports: queue.SimpleQueue[Report] = queue.SimpleQueue()
    answers = Answers(reports.put, lambda id: None, lambda error: None)
    answers.open(prepared, coalesce)
    for output in given:
        answers.step([output], STATS)
    events: list[Event] = []
    while not (events and isinstance(events[-1], Done)):
        report = decode_report(encode(reports.get(timeout=DEADLINE))[4:])
        events += [event for _, event in report.items] if isinstance(report, Events) else []
    return events


def text_of(events: Sequence[Event]) -> str:
    return "".join(event.text for event in events if isinstance(event, TextDelta))


def prepared(config: ModelConfig, tools: tuple[str, ...] = (), **more: object) -> Prepared:
    logprobs = 0 if more.pop("logprobs", False) else None
    return Prepared(Job(1, (1, 2, 3), Sampling(), logprobs), config=config, tools=tools, **more)  # type: ignore[arg-type]


@pytest.mark.parametrize("coalesce", [False, True])
def test_a_call_is_told_at_the_end(coalesce: bool) -> None:
    events = said(prepared(ModelConfig(), ("f",)), outputs(f"Well, {CALL}"), coalesce=coalesce)
    assert text_of(events) == "Well,"
    call, done = events[-2:]
    assert isinstance(call, ToolCallDelta) and (call.index, call.name, call.arguments) == (0, "f", '{"a":1}')
    assert isinstance(done, Done) and (done.reason, done.usage) == ("tool_calls", Usage(3, 6 + len(CALL)))


def test_an_answer_that_broke_off_says_so_whatever_it_called() -> None:
    (*_, call, done) = said(prepared(ModelConfig(), ("f",)), outputs(CALL, "length"))
    assert isinstance(call, ToolCallDelta) and isinstance(done, Done) and done.reason == "length"


def test_a_stop_string_ends_a_call() -> None:
    (call, done) = said(prepared(ModelConfig(), ("f",), stops=("</s>",)), outputs(f"{CALL}</s> never"))
    assert isinstance(call, ToolCallDelta)
    assert isinstance(done, Done) and (done.reason, done.stop) == ("tool_calls", "</s>")


def test_without_functions_on_offer_nothing_is_a_call() -> None:
    config = ModelConfig(function=Function(automatic_tool_parsing_fallback=True))
    events = said(prepared(config), outputs(CALL))
    assert text_of(events) == CALL and isinstance(events[-1], Done) and events[-1].reason == "stop"


def test_a_reply_prefix_is_part_of_the_call() -> None:
    (call, _) = said(prepared(ModelConfig(), ("f",), preamble=CALL[:9]), outputs(CALL[9:]))
    assert isinstance(call, ToolCallDelta) and call.name == "f"


def test_texts_are_cut_and_their_log_probabilities_are_all_told() -> None:
    config = ModelConfig(cutstrings=["(?s)<t>.*?</t>"], trimspace=["A:"])
    written = "A: one<t>two</t> three "
    events = said(prepared(config, logprobs=True), outputs(written, logprobs=True))
    assert text_of(events) == "one three"
    tokens = [entry for event in events if isinstance(event, TextDelta) for entry in event.logprobs]
    assert b"".join(token.piece for token in tokens).decode() == written
    done = events[-1]
    assert isinstance(done, Done) and done.mean_logprob == -1.0


def test_what_is_held_back_goes_out_behind_a_stop_string() -> None:
    events = said(prepared(ModelConfig(extract_regex=["[0-9]+"]), stops=("END",)), outputs("it is 42, or END 43"))
    assert text_of(events) == "42" and isinstance(events[-1], Done) and events[-1].stop == "END"


def test_a_failing_engine_is_told() -> None:
    events = said(prepared(ModelConfig(), ("f",)), [*outputs("a")[:-1], Output(1, "", (), "error", message="broke")])
    done = events[-1]
    assert isinstance(done, Done) and done.error is not None and done.error.message == "broke"


def test_too_much_work_is_told(capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rules, "STEPS", 20_000)
    config = ModelConfig(extract_regex=["(a?){500}a{500}b"])
    given = [Output(1, "a" * 1000, (1,)), Output(1, "", (), "stop")]
    told = said(prepared(config), given)
    assert text_of(told) == "a" * 1000
    (warning,) = [warning for event in told if isinstance(event, Done) for warning in event.warnings]
    assert warning.startswith("what the model's YAML has done to answers was too much work")
    assert "answer 1: what the model's YAML has done to answers was too much work" in capfd.readouterr().err
