"""One thing that is wrong in a file or setting: where, what, and what to do."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from llmgallery.core.errors import ConfigError


@dataclass(frozen=True, slots=True)
class Problem:
    """`path` is a file, or the name of a flag or environment variable. `line` and `column` count from 1; 0 = no place.

    `key` is the dotted key path, "" for the file as a whole. `suggestion` is a sentence, "" when there is none.
    """

    path: Path | str
    line: int
    column: int
    key: str
    message: str
    suggestion: str = ""

    def __str__(self) -> str:
        place = f"{shown(self.path)}:{self.line}:{self.column}" if self.line else shown(self.path)
        subject = f"{self.key}: " if self.key else ""
        advice = f"; {self.suggestion}" if self.suggestion else ""
        return f"{place}: {subject}{self.message}{advice}"


def shown(path: Path | str) -> str:
    """A path as people read it: from the working directory when it lies below."""
    if isinstance(path, str):
        return path
    try:
        return str(path.relative_to(Path.cwd()))
    except (ValueError, OSError):
        return str(path)


def as_error(problems: Iterable[Problem], subject: str) -> ConfigError:
    """A ConfigError that carries all problems; `subject` says what they are in."""
    lines = tuple(map(str, problems))
    count = "1 problem" if len(lines) == 1 else f"{len(lines)} problems"
    return ConfigError("\n".join([f"{subject}: {count}", *lines]), hints=lines)
