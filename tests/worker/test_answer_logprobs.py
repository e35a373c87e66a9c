"""Log probabilities on their way from an engine's outputs to events: with their text, in order, none behind a stop string."""

from __future__ import annotations

import math
from collections.abc import Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st

from llmgallery.backends.base import Job, Output, StepStats
from llmgallery.chat.stops import StopFilter
from llmgallery.core.errors import InvalidField
from llmgallery.core.events import Alternative, Done, TextDelta, TokenLogprob, Usage
from llmgallery.core.sampling import Sampling
from llmgallery.engine.detok import Utf8Stream
from llmgallery.wire.channel import decode_report, encode
from llmgallery.wire.frames import Events, Report
from llmgallery.worker import answers
from llmgallery.worker.answers import Answers
from llmgallery.worker.prepare import Prepared

STATS = StepStats(1, 1, 1, 0)


class Sent:
    """An open answer and what was sent of it."""

    def __init__(self, prepared: Prepared, coalesce: bool = False) -> None:
        self.reports: list[Report] = []
        self.cancelled: list[int] = []
        self.answers = Answers(self.reports.append, self.cancelled.append, lambda error: None)
        self.answers.open(prepared, coalesce)

    def step(self, *outputs: Output) -> list[TextDelta | Done]:
        """The events of this step, as the server decodes them."""
        before = len(self.reports)
        self.answers.step(outputs, STATS)
        frames = [decode_report(encode(report)[4:]) for report in self.reports[before:]]
        return [event for frame in frames if isinstance(frame, Events) for _, event in frame.items]


def job(logprobs: int | None = 0, prompt_logprobs: bool = False) -> Job:
    return Job(1, (1, 2, 3), Sampling(), logprobs, prompt_logprobs)


def token(piece: bytes, logprob: float | None = -1.0) -> TokenLogprob:
    return TokenLogprob(7, piece, logprob, (Alternative(8, b"x", -2.0),))


def output(text: str, *pieces: bytes, finish: str | None = None) -> Output:
    tokens = tuple(token(piece) for piece in pieces)
    return Output(1, text, tuple(each.token for each in tokens), finish, Usage(3, len(tokens)), logprobs=tokens)  # type: ignore[arg-type]


def pieces_of(event: TextDelta | Done) -> list[bytes]:
    assert isinstance(event, TextDelta)
    return [each.piece for each in event.logprobs]


@st.composite
def vocabularies(draw: st.DrawFn) -> list[bytes]:
    """Tokens of an answer: characters, parts of characters, several characters."""
    whole = st.text("abé€🌍", min_size=1, max_size=4).map(str.encode)
    parts = st.sampled_from([bytes([byte]) for byte in "é€🌍".encode()])
    return draw(st.lists(st.one_of(whole, parts), max_size=15))


@given(vocabularies(), st.lists(st.text("abé€", min_size=1, max_size=3), max_size=2), st.booleans(), st.data())
def test_tokens_come_with_their_text(pieces: list[bytes], stops: list[str], coalesce: bool, data: st.DataObject) -> None:
    sent, stream, events = Sent(Prepared(job(), tuple(stops)), coalesce), Utf8Stream(), []
    fed: list[bytes] = []
    while pieces and not sent.cancelled:
        several, pieces = pieces[: (count := data.draw(st.integers(1, 3)))], pieces[count:]
        fed += several
        events += sent.step(output("".join(map(stream.feed, several)), *several))
    events += sent.step(output(stream.flush(), finish="length" if not sent.cancelled else "cancelled"))
    *deltas, done = events
    assert isinstance(done, Done) and all(isinstance(delta, TextDelta) for delta in deltas)
    text = "".join(delta.text for delta in deltas if isinstance(delta, TextDelta))
    given_out = [piece for delta in deltas for piece in pieces_of(delta)]
    offsets = [offset for delta in deltas if isinstance(delta, TextDelta) for offset in delta.offsets]
    assert text == cut(b"".join(fed).decode(errors="replace"), stops)
    assert given_out == fed[: len(given_out)]
    assert offsets == sorted(offsets) and len(offsets) == len(given_out)
    if done.stop is None:
        assert given_out == fed
        assert b"".join(given_out).decode(errors="replace") == text
    else:
        assert b"".join(given_out).decode(errors="replace").startswith(text)
        shorter = b"".join(given_out[:-1]).decode(errors="ignore")
        assert len(shorter) < len(text) or not given_out
    assert done.mean_logprob == (-1.0 if fed else None)


def cut(text: str, stops: Sequence[str]) -> str:
    stop_filter = StopFilter(stops)
    return stop_filter.feed(text)[0] + stop_filter.flush()


def test_a_held_back_token_comes_with_the_text_that_frees_it() -> None:
    sent = Sent(Prepared(job(), ("<end>",)))
    assert [pieces_of(event) for event in sent.step(output("a<", b"a<"))] == [[]]  # its second half may be a stop's beginning
    (freed,) = sent.step(output("b", b"b"))
    assert isinstance(freed, TextDelta)
    assert (freed.text, pieces_of(freed), freed.offsets) == ("<b", [b"a<", b"b"], (0, 2))


def test_tokens_within_a_stop_string_are_dropped_and_one_that_begins_before_it_stays() -> None:
    sent = Sent(Prepared(job(), ("<end>",)))
    first = sent.step(output("say", b"say"))
    assert sent.step(output("!<e", b"!<e")) != []
    last = sent.step(output("nd", b"nd"), output(">more", b">more"))
    assert [pieces_of(event) for event in first] == [[b"say"]]
    assert [piece for event in last for piece in pieces_of(event)] == [b"!<e"]
    assert sent.cancelled == [1]
    (done,) = sent.step(Output(1, finish="cancelled", usage=Usage(3, 4)))
    assert done == Done("stop", Usage(3, 4), stop="<end>", mean_logprob=-1.0)


def test_a_stop_that_only_the_end_decides_ends_as_one() -> None:
    sent = Sent(Prepared(job(), ("END", "ENDING")))
    assert [pieces_of(event) for event in sent.step(output("a END", b"a", b" ", b"END"))] == [[b"a", b" "]]
    (done,) = sent.step(Output(1, finish="length"))
    assert isinstance(done, Done) and (done.reason, done.stop) == ("stop", "END")


def test_no_logprobs_are_sent_that_nobody_asked_for() -> None:
    sent = Sent(Prepared(job(logprobs=None)))
    assert sent.step(Output(1, "a", (7,)), Output(1, "b", (7,), "stop")) == [TextDelta("a"), TextDelta("b"), Done("stop")]


@pytest.mark.parametrize("coalesce", [False, True])
def test_an_echoed_prompt_comes_first_with_its_tokens(coalesce: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(answers, "COALESCE_SECONDS", math.inf)
    prompt = (token(b"<s>", None), token(b" one"), token(b" two", -3.0))
    sent = Sent(Prepared(job(prompt_logprobs=True), ("two",), "one two"), coalesce)
    first = Output(1, " two", (7,), logprobs=(token(b" two"),), prompt_logprobs=prompt)
    events = [*sent.step(first), *sent.step(output(" three", b" three", finish="length"))]
    *deltas, done = events
    assert "".join(delta.text for delta in deltas if isinstance(delta, TextDelta)) == "one two "
    assert [piece for delta in deltas for piece in pieces_of(delta)] == [b"<s>", b" one", b" two", b" two"]
    assert [offset for delta in deltas if isinstance(delta, TextDelta) for offset in delta.offsets] == [0, 0, 3, 7]
    assert isinstance(done, Done) and (done.stop, done.mean_logprob) == ("two", -1.0)


def test_of_a_filled_in_text_only_the_echoed_tokens_come() -> None:
    prompt = (token(b"<pre>", None), token(b"a"), token(b"<suf>"), token(b"z"), token(b"<mid>"))
    sent = Sent(Prepared(job(prompt_logprobs=True), preamble="a", echoed=slice(1, 2)))
    delta, done = sent.step(Output(1, finish="length", prompt_logprobs=prompt))
    assert (pieces_of(delta), done) == ([b"a"], Done("length"))


def test_an_echo_of_nothing_is_no_event() -> None:
    prompt = (token(b"<pre>", None), token(b"<suf>"), token(b"z"), token(b"<mid>"))
    sent = Sent(Prepared(job(prompt_logprobs=True), echoed=slice(1, 1)))
    assert sent.step(Output(1, finish="length", prompt_logprobs=prompt)) == [Done("length")]


def test_an_echo_whose_logprobs_never_come_is_still_text() -> None:
    sent = Sent(Prepared(job(prompt_logprobs=True), preamble="a"))
    delta, done = sent.step(Output(1, finish="error", message="broken"))
    assert delta == TextDelta("a")
    assert isinstance(done, Done) and done.reason == "error"


def test_whose_fault_it_was_is_told() -> None:
    refused = InvalidField("top_h: no", field="top_h").info()
    for output, kind in ((Output(1, finish="error", error=refused), "InvalidField"), (Output(1, finish="error"), "WorkerDied")):
        done = Sent(Prepared(job())).step(output)[-1]
        assert isinstance(done, Done) and done.error is not None and done.error.kind == kind


def test_an_echo_without_logprobs_needs_none() -> None:
    sent = Sent(Prepared(job(logprobs=None), preamble="a"))
    assert sent.step(Output(1, "b", (7,))) == [TextDelta("ab")]


def test_a_big_echo_crosses_the_wire() -> None:
    top = tuple(Alternative(50_000 + place, b" alternative", -float(place) - 0.1) for place in range(5))
    prompt = tuple(TokenLogprob(50_000 + place, b" token", -0.1, top) for place in range(60_000))
    sent = Sent(Prepared(job(prompt_logprobs=True), preamble=" token" * len(prompt)))
    delta, _ = sent.step(Output(1, finish="length", prompt_logprobs=prompt))
    assert isinstance(delta, TextDelta)
    assert len(delta.logprobs) == len(prompt) and delta.offsets[-1] == 6 * (len(prompt) - 1)
