"""JSON as other programs read it, to nodes with places: comments, commas and brackets too many, escapes beyond 16 bits."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

from yaml.nodes import Node

from llmgallery.config.nodes import Unreadable, decode
from llmgallery.config.problems import Problem, as_error
from llmgallery.importers.ledger import Ledger, read_source, read_yaml

_PART = re.compile(r'"(?:\\.|[^"\\])*"|//[^\n]*|/\*.*?\*/|[\[{\]}]', re.DOTALL)
_PAIR = re.compile(r"\\u(d[89ab][0-9a-f]{2})\\u(d[c-f][0-9a-f]{2})", re.IGNORECASE)
_NO_SIGN = re.compile(r"[^\s,\]}]")


def read_json(path: Path, ledger: Ledger) -> Node | None:
    """The root of a JSON file. Brackets that close nothing are noted, and passed over. Raises ConfigError."""
    try:
        text = decode(read_source(path), path)
    except Unreadable as error:
        raise as_error([error.problem], str(path)) from error
    plain = "".join(_plain(text))
    end = _end(plain)
    if end is not None and not _NO_SIGN.search(plain, end):
        line, column = plain.count("\n", 0, end) + 1, end - plain.rfind("\n", 0, end)
        message = "the brackets from here on close nothing: they are passed over, and one of those above closes too early"
        ledger.warnings.append(Problem(path, line, column, "", message))
        plain = plain[:end]
    return read_yaml(path, plain.encode())


def _plain(text: str) -> Iterator[str]:
    """Comments as spaces; \\ud83d\\ude00 as one escape, which YAML has."""
    done = 0
    for match in _PART.finditer(text):
        part = match[0]
        yield text[done : match.start()]
        done = match.end()
        if part.startswith("/"):
            yield re.sub(r"[^\n]", " ", part)
        else:
            yield _PAIR.sub(_joined, part) if part.startswith('"') else part
    yield text[done:]


def _joined(match: re.Match[str]) -> str:
    high, low = int(match[1], 16), int(match[2], 16)
    return f"\\U{0x10000 + ((high - 0xD800) << 10) + (low - 0xDC00):08x}"


def _end(text: str) -> int | None:
    """Where the first bracket stands that closes nothing, if one does."""
    depth = 0
    for match in _PART.finditer(text):
        if match[0] in "[{":
            depth += 1
        elif match[0] in "]}":
            depth -= 1
            if depth < 0:
                return match.start()
    return None
