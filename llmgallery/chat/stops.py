"""Stop strings in a text that comes in pieces."""

from __future__ import annotations

from collections.abc import Sequence


class StopFilter:
    """Passes text on until a stop string comes. `matched` is the one that came.

    The earliest match wins, the longest of those that begin together. A match, and what follows it, is never passed on;
    text that may yet become part of a match is held back. Empty stop strings are ignored.
    """

    def __init__(self, stops: Sequence[str]) -> None:
        self._stops = [_Stop(text) for text in dict.fromkeys(stops) if text]
        self._held = ""
        self.matched: str | None = None

    def feed(self, text: str) -> tuple[str, str | None]:
        """The text that may go out now, and the stop string that ended the answer, if one has."""
        if self.matched is not None:
            return "", self.matched
        held = max((stop.feed(text) for stop in self._stops), default=0)
        text = self._held + text
        # A match behind the beginning of a possible earlier or longer one is not decided yet.
        return self._upto_match(text, len(text) - held), self.matched

    def flush(self) -> str:
        """The end of the text: what was held back, up to a match in it (then `matched` is set)."""
        return self._upto_match(self._held, len(self._held)) if self.matched is None else ""

    def _upto_match(self, text: str, decided: int) -> str:
        found = [(at, -len(stop.text), stop.text) for stop in self._stops if (at := text.find(stop.text)) >= 0]
        at, _, match = min(found, default=(decided, 0, ""))
        if at < decided:
            self._held, self.matched = "", match
            return text[:at]
        self._held = text[decided:]
        return text[:decided]


class _Stop:
    """One stop string, and how much of it the text has just begun (Knuth, Morris and Pratt's automaton)."""

    def __init__(self, text: str) -> None:
        self.text = text
        self._fallback = [0]
        self._begun = 0
        for char in text[1:]:
            self._fallback.append(self._longer(self._fallback[-1], char))

    def feed(self, text: str) -> int:
        """Length of the longest end of all text so far that is a beginning of the stop string, but not all of it."""
        length = self._begun
        if len(text) >= len(self.text):
            length, text = 0, text[len(text) - len(self.text) + 1 :]
        start = 0 if length else text.find(self.text[0])
        for char in text[start:] if start >= 0 else "":
            length = self._longer(length, char)
            if length == len(self.text):
                length = self._fallback[-1]
        self._begun = length
        return length

    def _longer(self, length: int, char: str) -> int:
        while length and self.text[length] != char:
            length = self._fallback[length - 1]
        return length + 1 if self.text[length] == char else 0
