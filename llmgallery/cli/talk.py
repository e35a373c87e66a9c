"""Asking and chatting in the terminal: the answer to stdout as it comes, everything else to stderr."""

from __future__ import annotations

import contextlib
import re
import sys
import time
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass, field
from typing import Protocol

import msgspec

from llmgallery.cli.display import Display, counted
from llmgallery.cli.group import told
from llmgallery.cli.portal import Portal
from llmgallery.core.errors import GalleryError
from llmgallery.core.events import Done, Progress, TextDelta, Usage
from llmgallery.core.messages import Message, say
from llmgallery.core.requests import ChatRequest
from llmgallery.core.sampling import Sampling

HELP = "/clear forgets the conversation, /help tells this, /bye or Ctrl-D ends it, Ctrl-C stops an answer"
ENDS = ("/bye", "/exit", "/quit")
COMMAND = re.compile(r"/[\w?-]+(?=\s|$)")
MEASURABLE = 0.1  # seconds of decoding

CONTROLS = {code: "\N{REPLACEMENT CHARACTER}" for code in (*range(32), *range(127, 160)) if chr(code) not in "\t\n"}


class Source(Protocol):
    """Who answers: a server, or the stack in this process."""

    async def check(self, model: str) -> None: ...

    def ask(self, model: str, request: ChatRequest) -> AsyncIterator[Progress | TextDelta | Done | None]: ...


@dataclass
class Talk:
    """One conversation with one model; `history` grows with `ask`."""

    portal: Portal
    source: Source
    model: str
    sampling: Sampling = field(default_factory=Sampling)
    verbose: bool = False
    history: list[Message] = field(default_factory=list)

    def ask(self, prompt: str) -> str:
        """The answer, which also went to stdout. Raises GalleryError."""
        request = ChatRequest((*self.history, say("user", prompt)), self.sampling)
        started, first, text, done = time.monotonic(), None, [], Done("stop")
        with Display(self.model) as display, contextlib.closing(self.portal.each(self.source.ask(self.model, request))) as events:
            for event in events:
                match event:
                    case Progress() | None:
                        display.show(event)
                    case TextDelta(piece):
                        display.show(None)
                        first = first or time.monotonic()
                        text.append(piece)
                        print(printable(piece) if sys.stdout.isatty() else piece, end="", flush=True)
                    case Done():
                        done = event
        answer = "".join(text)
        if not answer.endswith("\n"):
            print(flush=True)
        if self.verbose:
            print(statistics(done.usage, started, first, time.monotonic()), file=sys.stderr, flush=True)
        if done.reason == "length":
            print("(the answer was cut: max_tokens or the context's end)", file=sys.stderr, flush=True)
        self.history += [say("user", prompt), say("assistant", answer)]
        return answer

    def chat(self, read: Callable[[str], str] = input) -> None:
        """Prompts from the keyboard until it ends. An error or Ctrl-C costs one answer, not the conversation. Raises
        GalleryError when the model cannot be asked at all."""
        self.portal.run(self.source.check(self.model))
        print(f"{self.model}: {HELP}", file=sys.stderr)
        start = list(self.history)
        with contextlib.suppress(EOFError):
            while (prompt := _typed(read)).rstrip() not in ENDS:
                if found := COMMAND.match(prompt):
                    self._command(prompt.strip(), found.group(), start)
                elif prompt.strip():
                    self._answer(prompt.strip())

    def _command(self, prompt: str, word: str, start: list[Message]) -> None:
        if prompt == "/clear":
            self.history = list(start)
        elif prompt in ("/help", "/?"):
            print(HELP, file=sys.stderr)
        else:
            print(f"{word} was not sent: {HELP}; a blank in front makes it text", file=sys.stderr)

    def _answer(self, prompt: str) -> None:
        try:
            self.ask(prompt)
        except KeyboardInterrupt:
            print(file=sys.stderr)
        except GalleryError as exc:
            print(f"Error: {told(exc)}", file=sys.stderr)


def _typed(read: Callable[[str], str]) -> str:
    """The next line; Ctrl-C gives up the line, as in a shell. Raises EOFError at the end."""
    try:
        return read(">>> ")
    except KeyboardInterrupt:
        print(f"\n{HELP}", file=sys.stderr)
        return ""


def printable(text: str) -> str:
    """For a terminal: without control characters, by which a model's answer could steer it."""
    return text.translate(CONTROLS)


def statistics(usage: Usage, started: float, first: float | None, ended: float) -> str:
    """One line: time to first token, tokens, and the speed of those that came after the first. An answer that came at once, in
    one piece or nearly so, says nothing of that speed."""
    prompt, answer = counted(usage.prompt_tokens, "prompt token"), counted(usage.completion_tokens, "token")
    counts = f"{prompt}, {answer} in {ended - started:.2f} s"
    if first is None:
        return f"no text, {counts}"
    after, seconds = usage.completion_tokens - 1, ended - first
    speed = f"{after / seconds:.1f} tokens/s" if after > 0 and seconds >= MEASURABLE else "n/a, too short to measure"
    return f"first token after {first - started:.2f} s, {counts}, decoding: {speed}"


def sampling(**asked: float | int | None) -> Sampling:
    """A Sampling of those values that were given."""
    return msgspec.convert({name: value for name, value in asked.items() if value is not None}, Sampling)
