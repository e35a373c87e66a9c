"""llama.cpp's messages: what of them is heard, and what is kept to explain a failure."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager

WARNING, ERROR, CONTINUED = 3, 4, 5  # enum ggml_log_level


EXPECTED = (
    "failed to find a memory slot",
    "failed to prepare attention ubatches",
    "removing memory module entries",
    "graph_compute_async failed with error 1",
    "compute status: 1",
    "failed to decode, ret = 1",
    "failed to decode, ret = 2",
)
"""What llama.cpp warns of and is as it should be: no room for a step (the engine makes some), and an abort."""


class Log:
    """llama.cpp's messages: warnings go to stderr; within `kept` all are kept as well."""

    def __init__(self) -> None:
        self._kept: list[tuple[int, str]] | None = None
        self._level = 0
        self._said: set[str] = set()

    def hear(self, level: int, text: bytes | None, _data: object) -> None:
        self._level = level = self._level if level == CONTINUED else level
        line = (text or b"").decode(errors="replace")
        if self._kept is not None:
            self._kept.append((level, line))
        if level in (WARNING, ERROR) and not any(text in line for text in EXPECTED):
            sys.stderr.write(line)

    def say(self, text: str) -> None:
        """Of our own, to the same place; the same text once."""
        if text not in self._said:
            self._said.add(text)
            sys.stderr.write(text)

    @contextmanager
    def kept(self) -> Iterator[list[tuple[int, str]]]:
        """The messages (level, text) that come while the block runs; a block around this one gets them too."""
        kept: list[tuple[int, str]] = []
        around, self._kept = self._kept, kept
        try:
            yield kept
        finally:
            if around is not None:
                around += kept
            self._kept = around


LOG = Log()
"""The process's one log, as llama.cpp has one callback."""
