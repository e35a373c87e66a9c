"""What keeps a text from being a template."""

from __future__ import annotations

from dataclasses import dataclass

MOST_TOLD = 1000


@dataclass(frozen=True)
class Problem:
    """Why a template does not parse. `line` and `column` count from 1, in the template's own text."""

    line: int
    column: int
    message: str


def told(message: str) -> str:
    """The message as far as anybody reads it: templates fail with texts of millions of characters, too."""
    return message if len(message) <= MOST_TOLD else f"{message[:MOST_TOLD]}... ({len(message)} characters)"
