"""The open answers of a worker: what a step made becomes events, one frame a step, one Done an answer."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Sequence

from llmgallery.backends.base import Output, StepStats
from llmgallery.chat.parser import AnswerParser
from llmgallery.core.errors import ErrorInfo
from llmgallery.core.events import Done, Event, TextDelta
from llmgallery.wire.frames import Events, Loading, Report, Stats

COALESCE_SECONDS = 0.25
STATS_SECONDS = 0.25


class _Answer:
    """One open answer: its parser, and text that waits for company when nobody streams it."""

    def __init__(self, stops: Sequence[str], preamble: str, coalesce: bool) -> None:
        self.parser = AnswerParser(stops)
        self.coalesce = coalesce
        self.stopping = False
        self._held: list[TextDelta] = [TextDelta(preamble)] if preamble else []
        self._released = time.monotonic()

    def feed(self, text: str, now: float) -> list[TextDelta]:
        if self.stopping:
            return []
        self._held += self.parser.feed(text)
        if self.coalesce and now - self._released < COALESCE_SECONDS:
            return []
        self._released = now
        return self._take()

    def finish(self) -> list[TextDelta]:
        if not self.stopping:
            self._held += self.parser.finish()
        return self._take()

    def _take(self) -> list[TextDelta]:
        """All that is held, as one delta when it is only text."""
        held, self._held = self._held, []
        if len(held) > 1 and not any(delta.extra for delta in held):
            return [TextDelta("".join(delta.text for delta in held))]
        return held


class Answers:
    """Implements Emit. `step` runs in the engine's thread, `open` in the renderer's."""

    def __init__(self, send: Callable[[Report], None], cancel: Callable[[int], None], die: Callable[[ErrorInfo], None]) -> None:
        self._send = send
        self._cancel = cancel
        self._die = die
        self._open: dict[int, _Answer] = {}
        self._lock = threading.Lock()
        self._most_sequences = 0
        self._tokens = 0
        self._stats_sent = 0.0

    def open(self, id: int, stops: Sequence[str], preamble: str, coalesce: bool) -> None:
        """Before the job is submitted."""
        with self._lock:
            self._open[id] = _Answer(stops, preamble, coalesce)

    def progress(self, fraction: float) -> None:
        self._send(Loading(fraction))

    def step(self, outputs: Sequence[Output], stats: StepStats) -> None:
        now = time.monotonic()
        items: list[tuple[int, Event]] = []
        with self._lock:
            for output in outputs:
                items += [(output.id, event) for event in self._events(output, now)]
            idle = not self._open
        self._report_stats(stats, now, idle)
        if items:
            self._send(Events(tuple(items)))

    def fatal(self, error: BaseException) -> None:
        self._die(ErrorInfo("WorkerDied", f"the engine failed: {error}"))

    def _events(self, output: Output, now: float) -> list[Event]:
        answer = self._open.get(output.id)
        if answer is None:
            return []
        events: list[Event] = [*answer.feed(output.text, now)] if output.text else []
        if answer.parser.stopped is not None and not answer.stopping:
            answer.stopping = True
            if output.finish is None:
                self._cancel(output.id)
        if output.finish is not None:
            del self._open[output.id]
            events += [*answer.finish(), self._done(answer, output)]
        return events

    def _done(self, answer: _Answer, output: Output) -> Done:
        if answer.stopping:
            return Done("stop", output.usage, stop=answer.parser.stopped)
        if output.finish == "error":
            return Done("error", output.usage, ErrorInfo("WorkerDied", output.message))
        return Done(output.finish or "stop", output.usage)

    def _report_stats(self, stats: StepStats, now: float, idle: bool) -> None:
        """Before the step's events, so that who has seen a Done has seen the steps that led to it."""
        self._tokens += stats.tokens
        grown = stats.sequences > self._most_sequences
        self._most_sequences = max(stats.sequences, self._most_sequences)
        if grown or idle or now - self._stats_sent >= STATS_SECONDS:
            self._stats_sent = now
            self._send(Stats(stats.step, stats.sequences, self._most_sequences, stats.waiting, self._tokens))
