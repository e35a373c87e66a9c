"""Which token stands where in a text. Knows no stop strings: it is told how much of the text has gone out."""

from __future__ import annotations

import codecs
from collections import deque
from collections.abc import Sequence
from typing import NamedTuple

from llmgallery.core.events import TokenLogprob


class Aligned(NamedTuple):
    """A token, and the characters that hold its bytes: from `begin` up to, not including, `end`."""

    token: TokenLogprob
    begin: int
    end: int


class TokenAligner:
    """Gives out the tokens of a text in their order, each once the last character that holds bytes of it has gone out.

    A character may hold bytes of several tokens, a token bytes of several characters. A token that the text does not show
    (a control token) is in no character; it never goes out before its neighbours. `start`: where the text begins.
    """

    def __init__(self, start: int = 0) -> None:
        self._decoder = codecs.getincrementaldecoder("utf-8")(errors="replace")
        self._start = self._length = self._out = start
        self._waiting: deque[Aligned] = deque()

    def feed(self, text: str, tokens: Sequence[TokenLogprob]) -> None:
        """More text, in whole characters, and the tokens that made it or began what is not whole yet. What they do not
        explain (at a text's end a character is cut off) belongs to the tokens before it."""
        at = 0
        for token in tokens:
            at += self._place(token, text, at)
        if at < len(text):
            self._decoder.reset()
            self._length += len(text) - at

    def take(self, count: int) -> list[Aligned]:
        """`count` more characters have gone out: the tokens that are whole with them."""
        self._out += count
        taken = []
        while self._waiting and self._waiting[0].end <= self._out:
            taken.append(self._waiting.popleft())
        return taken

    def cut(self) -> list[Aligned]:
        """Nothing more of the text goes out: the tokens that began in what has. The rest is dropped."""
        rest = [aligned for aligned in self._waiting if aligned.begin < self._out]
        self._waiting.clear()
        return rest

    def finish(self) -> list[Aligned]:
        """All of the text has gone out: all tokens that are left."""
        rest = list(self._waiting)
        self._waiting.clear()
        return rest

    def _place(self, token: TokenLogprob, text: str, at: int) -> int:
        """How many characters of `text`, from `at`, the token completes."""
        state = self._decoder.getstate()
        begun = state[0]
        said = self._decoder.decode(token.piece)
        if not token.piece or not text.startswith(said, at):
            if self._length != self._start or said[:1] != " " or not text.startswith(said[1:], at):
                return self._place_nowhere(token, state)
            said = said[1:]  # a vocabulary that begins every text with a space
        begin = self._length + len((begun + token.piece[:1]).decode(errors="replace")) - 1
        self._length += len(said)
        end = self._length + len(self._decoder.getstate()[0].decode(errors="replace"))
        self._waiting.append(Aligned(token, min(begin, end), end))
        return len(said)

    def _place_nowhere(self, token: TokenLogprob, state: tuple[bytes, int]) -> int:
        self._decoder.setstate(state)
        place = self._length + len(state[0].decode(errors="replace"))
        self._waiting.append(Aligned(token, place, place))
        return 0
