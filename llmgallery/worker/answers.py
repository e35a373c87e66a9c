"""The open answers of a worker: what a step made becomes events, one frame a step, one Done an answer."""

from __future__ import annotations

import queue
import sys
import threading
import time
import traceback
from collections.abc import Callable, Sequence

import msgspec

from llmgallery.backends.base import Output, Pooled, StepStats
from llmgallery.chat.alignment import Aligned, TokenAligner
from llmgallery.chat.parser import AnswerParser, Piece
from llmgallery.core.errors import ErrorInfo, GalleryError
from llmgallery.core.events import Done, Event, Reason, TextDelta, TokenLogprob, ToolCallDelta, joined
from llmgallery.wire.frames import Events, Loading, Report, Stats, Vectors
from llmgallery.worker.prepare import Prepared

COALESCE_SECONDS = 0.25
STATS_SECONDS = 0.25


class _Answer:
    """One open answer: its parser, the tokens behind its text, and what waits for company when nobody streams it."""

    def __init__(self, prepared: Prepared, coalesce: bool) -> None:
        self.parser = AnswerParser(prepared.stops, prepared.config, prepared.tools, parallel=prepared.parallel_tool_calls)
        self.coalesce = coalesce
        self.stopping = False
        self._preamble = prepared.preamble
        self._echoed = prepared.echoed
        self._aligner = None if prepared.job.logprobs is None else TokenAligner(len(prepared.preamble))
        self._scores: list[float] = []
        self._held: list[TextDelta] = []
        if not prepared.job.prompt_logprobs:
            self._begin(())
        self._released = time.monotonic()

    @property
    def mean_logprob(self) -> float | None:
        return sum(self._scores) / len(self._scores) if self._scores else None

    def feed(self, output: Output, now: float) -> list[TextDelta]:
        if output.prompt_logprobs:
            self._begin(output.prompt_logprobs)
        if self.stopping:
            return []
        if self._aligner is not None:
            self._aligner.feed(output.text, output.logprobs)
            self._scores += [entry.logprob for entry in output.logprobs if entry.logprob is not None]
        self._say(self.parser.feed(output.text))
        if self.parser.stopped is not None:
            self._stop()
        if self.coalesce and now - self._released < COALESCE_SECONDS:
            return []
        self._released = now
        return self._take()

    def finish(self) -> list[TextDelta | ToolCallDelta]:
        self._begin(())
        # Also where a stop string has ended the answer: what the model file's keys hold back goes out now.
        self._say(self.parser.finish())
        if not self.stopping and self.parser.stopped is not None:
            self._stop()
        elif not self.stopping and self._aligner is not None:
            self._add_tokens(self._aligner.finish())
        return [*self._take(), *self.parser.calls]

    def _begin(self, tokens: Sequence[TokenLogprob]) -> None:
        """The echo of the prompt, once. Its text goes the way of the answer's, unless log probabilities tell of it."""
        text, self._preamble = self._preamble, ""
        aligner, shown = TokenAligner(), tokens[self._echoed]
        if shown:
            aligner.feed(text, shown)
        elif text:
            text = self.parser.begin(text)
        if text or shown:
            self._held.append(_with_tokens(TextDelta(text), aligner.finish()))

    def _say(self, piece: Piece) -> None:
        """Text that the parser lets out, with the tokens that are whole with what the model wrote."""
        aligned = self._aligner.take(piece.written) if self._aligner is not None and piece.written else []
        if piece.text or aligned:
            self._held.append(_with_tokens(TextDelta(piece.text), aligned))

    def _stop(self) -> None:
        """A stop string has come: of the tokens that hold it, those remain that began before it."""
        self.stopping = True
        if self._aligner is not None:
            self._add_tokens(self._aligner.cut())

    def _add_tokens(self, aligned: Sequence[Aligned]) -> None:
        if aligned:
            self._held.append(_with_tokens(TextDelta(""), aligned))

    def _take(self) -> list[TextDelta]:
        """All that is held, as one delta when it is only text."""
        held, self._held = self._held, []
        if len(held) > 1 and not any(delta.extra for delta in held):
            return [joined(held)]
        return held


def _with_tokens(delta: TextDelta, aligned: Sequence[Aligned]) -> TextDelta:
    if not aligned:
        return delta
    tokens, offsets = tuple(each.token for each in aligned), tuple(each.begin for each in aligned)
    return msgspec.structs.replace(delta, logprobs=tokens, offsets=offsets)


class Answers:
    """Implements Emit. `step` runs in the engine's thread, `open` in the renderer's."""

    def __init__(self, send: Callable[[Report], None], cancel: Callable[[int], None], die: Callable[[ErrorInfo], None]) -> None:
        self._send = send
        self._cancel = cancel
        self._die = die
        self._open: dict[int, _Answer] = {}
        self._lock = threading.Lock()
        self._most_sequences = 0
        self._tokens = self._guessed = self._met = 0
        self._stats_sent = 0.0
        self._closing: queue.SimpleQueue[tuple[_Answer, Output]] | None = None

    def open(self, prepared: Prepared, coalesce: bool) -> None:
        """Before the job is submitted."""
        with self._lock:
            self._open[prepared.job.id] = _Answer(prepared, coalesce)

    def progress(self, fraction: float) -> None:
        self._send(Loading(fraction))

    def step(self, outputs: Sequence[Output], stats: StepStats) -> None:
        now = time.monotonic()
        items: list[tuple[int, Event]] = []
        ended: list[tuple[_Answer, Output]] = []
        with self._lock:
            for output in outputs:
                items += [(output.id, event) for event in self._events(output, now, ended)]
            idle = not self._open
        self._report_stats(stats, now, idle)
        if items:
            self._send(Events(tuple(items)))
        for answer, output in ended:
            self._close(answer, output)

    def _close(self, answer: _Answer, output: Output) -> None:
        """Makes out the end of an answer that nothing is added to any more, in a thread of its own: the others go on."""
        if self._closing is None:
            self._closing = queue.SimpleQueue()
            threading.Thread(target=self._close_all, args=(self._closing,), name="closer", daemon=True).start()
        self._closing.put((answer, output))

    def _close_all(self, closing: queue.SimpleQueue[tuple[_Answer, Output]]) -> None:
        while True:
            answer, output = closing.get()
            try:
                self._send(Events(tuple((output.id, event) for event in self._end(answer, output))))
            except Exception as exc:  # noqa: BLE001 - thread border: the answer must end, whatever a rule does to it
                traceback.print_exc()
                self._send(Events(((output.id, Done("error", output.usage, describe(exc))),)))

    def pooled(self, result: Pooled) -> None:
        error = None if result.error is None else describe(result.error)
        self._send(Vectors(result.id, result.vectors, result.prompt_tokens, error))

    def fatal(self, error: BaseException) -> None:
        self._die(ErrorInfo("WorkerDied", f"the engine failed: {error}"))

    def _events(self, output: Output, now: float, ended: list[tuple[_Answer, Output]]) -> list[Event]:
        """What is to be said at once; an answer whose end takes time to make out is added to `ended`."""
        answer = self._open.get(output.id)
        if answer is None:
            return []
        stopping = answer.stopping
        events: list[Event] = [*answer.feed(output, now)] if output.text or output.logprobs or output.prompt_logprobs else []
        if answer.stopping and not stopping and output.finish is None:
            self._cancel(output.id)
        if output.finish is not None:
            del self._open[output.id]
            if answer.parser.changes:
                ended.append((answer, output))
            else:
                events += self._end(answer, output)
        return events

    def _end(self, answer: _Answer, output: Output) -> list[Event]:
        last = answer.finish()
        if answer.parser.fault:
            print(f"answer {output.id}: {answer.parser.fault}", file=sys.stderr, flush=True)
        return [*last, self._done(answer, output)]

    def _done(self, answer: _Answer, output: Output) -> Done:
        mean, warnings = answer.mean_logprob, (answer.parser.fault,) if answer.parser.fault else ()
        if answer.stopping:
            reason: Reason = "tool_calls" if answer.parser.calls else "stop"
            return Done(reason, output.usage, stop=answer.parser.stopped, mean_logprob=mean, warnings=warnings)
        if output.finish == "error":
            return Done("error", output.usage, output.error or ErrorInfo("WorkerDied", output.message))
        reason = output.finish or "stop"
        reason = "tool_calls" if reason == "stop" and answer.parser.calls else reason
        return Done(reason, output.usage, mean_logprob=mean, warnings=warnings)

    def _report_stats(self, stats: StepStats, now: float, idle: bool) -> None:
        """Before the step's events, so that who has seen a Done has seen the steps that led to it."""
        self._tokens += stats.tokens
        self._guessed += stats.guessed
        self._met += stats.met
        grown = stats.sequences > self._most_sequences
        self._most_sequences = max(stats.sequences, self._most_sequences)
        if grown or idle or now - self._stats_sent >= STATS_SECONDS:
            self._stats_sent = now
            since_start = (self._tokens, self._guessed, self._met)
            self._send(Stats(stats.step, stats.sequences, self._most_sequences, stats.waiting, *since_start))


def describe(error: BaseException) -> ErrorInfo:
    """What the parent is told of an exception; one that is not ours is a bug and leaves its traceback in the log."""
    if isinstance(error, GalleryError):
        return error.info()
    traceback.print_exception(error, file=sys.stderr)
    return ErrorInfo("GalleryError", f"{type(error).__name__}: {error}")
