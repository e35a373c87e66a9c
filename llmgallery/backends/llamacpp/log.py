"""llama.cpp's messages: what of them is heard, and what is kept to explain a failure."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager

WARNING, ERROR, CONTINUED = 3, 4, 5  # enum ggml_log_level


class Log:
    """llama.cpp's messages: warnings go to stderr; within `kept` all are kept as well."""

    def __init__(self) -> None:
        self._kept: list[tuple[int, str]] | None = None
        self._level = 0

    def hear(self, level: int, text: bytes | None, _data: object) -> None:
        self._level = level = self._level if level == CONTINUED else level
        line = (text or b"").decode(errors="replace")
        if self._kept is not None:
            self._kept.append((level, line))
        if level in (WARNING, ERROR):
            sys.stderr.write(line)

    @contextmanager
    def kept(self) -> Iterator[list[tuple[int, str]]]:
        """The messages (level, text) that come while the block runs."""
        kept: list[tuple[int, str]] = []
        self._kept = kept
        try:
            yield kept
        finally:
            self._kept = None


LOG = Log()
"""The process's one log, as llama.cpp has one callback."""
