"""What keeps a text from being a template."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Problem:
    """Why a template does not parse. `line` and `column` count from 1, in the template's own text."""

    line: int
    column: int
    message: str
