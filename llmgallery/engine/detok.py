"""Bytes of tokens become text without ever splitting a character."""

from __future__ import annotations

import codecs


class Utf8Stream:
    """Whole characters of a byte stream. The beginning of a character is held back; what can be no character is U+FFFD."""

    def __init__(self) -> None:
        self._decoder = codecs.getincrementaldecoder("utf-8")(errors="replace")

    def feed(self, piece: bytes) -> str:
        """The characters that `piece` completes."""
        return self._decoder.decode(piece)

    def flush(self) -> str:
        """The end: a beginning that nothing completed is one U+FFFD. The stream can be used again."""
        text = self._decoder.decode(b"", final=True)
        self._decoder.reset()
        return text
