"""Ollama's Modelfile: a text to its instructions, as Ollama reads it. Source: docs/modelfile.mdx and parser/parser.go of
https://github.com/ollama/ollama."""

from __future__ import annotations

import codecs
import re
from dataclasses import dataclass
from pathlib import Path

from yaml.error import Mark
from yaml.nodes import ScalarNode

from llmgallery.config.nodes import PLAIN
from llmgallery.config.problems import Problem, as_error

INSTRUCTIONS = (
    *("FROM", "PARAMETER", "TEMPLATE", "SYSTEM", "ADAPTER", "MESSAGE", "LICENSE"),
    *("REQUIRES", "DRAFT", "RENDERER", "PARSER", "CAPABILITY"),
)
ROLES = ("system", "user", "assistant")
_WITH_WORD = {"PARAMETER": "a parameter's name and its value", "MESSAGE": "a role and what it says"}
_NAME = re.compile(r"[A-Za-z]+")
_BOMS = ((codecs.BOM_UTF8, "utf-8"), (codecs.BOM_UTF16_LE, "utf-16-le"), (codecs.BOM_UTF16_BE, "utf-16-be"))


@dataclass(frozen=True)
class Instruction:
    """`name` in capitals; `word`: the parameter's name, or the role, of those that have one. `line` counts from 1; 0 = it stands
    in no file that people wrote."""

    name: str
    value: str
    path: Path
    word: str = ""
    line: int = 0

    @property
    def key(self) -> str:
        """What messages call it."""
        return f"{self.name} {self.word}" if self.word else self.name

    def node(self) -> ScalarNode:
        """The value, as a place and a plain scalar."""
        mark = Mark(str(self.path), 0, max(self.line - 1, 0), 0, None, 0)
        return ScalarNode(PLAIN, self.value, mark, mark)


def decoded(data: bytes) -> str:
    """The text; UTF-8 unless a byte order mark says UTF-16. What is neither shows as �."""
    for mark, encoding in _BOMS:
        if data.startswith(mark):
            return data[len(mark) :].decode(encoding, "replace")
    return data.decode("utf-8", "replace")


def parse(text: str, path: Path) -> tuple[list[Instruction], list[Problem]]:
    """The instructions, and lines that are none. Raises ConfigError for quotes without an end."""
    lines = text.replace("\r\n", "\n").replace("\r", "\n").split("\n")
    found: list[Instruction] = []
    odd: list[Problem] = []
    at = 0
    while at < len(lines):
        line, number = lines[at].strip(" \t"), at + 1
        at += 1
        if not line or line.startswith("#"):
            continue
        match = _NAME.match(line)
        name = match[0].upper() if match else ""
        rest = line[len(name) :]
        if name not in INSTRUCTIONS or not rest.startswith((" ", "\t")):
            odd.append(Problem(path, number, 1, name or line[:20], _complaint(name), f"known: {', '.join(INSTRUCTIONS)}"))
            continue
        word, rest = _word(rest) if name in _WITH_WORD else ("", rest)
        if name in _WITH_WORD and not rest.strip():
            odd.append(Problem(path, number, 1, name, f"expected {_WITH_WORD[name]}: not imported"))
            continue
        value, at = _value(rest, lines, at, Problem(path, number, 1, name, "the quotes are never closed"))
        found.append(Instruction(name, value, path, word, number))
    return found, odd


def _complaint(name: str) -> str:
    return (
        "nothing follows the instruction: not imported"
        if name in INSTRUCTIONS
        else "is no instruction of a Modelfile: not imported"
    )


def _word(rest: str) -> tuple[str, str]:
    first, *after = re.split(r"[ \t]", rest.lstrip(" \t"), maxsplit=1)
    return first, "".join(after)


def _value(rest: str, lines: list[str], at: int, unclosed: Problem) -> tuple[str, int]:
    """The value that begins in this line, and the index of the line after it: quotes go on until they close at a line's end."""
    value = rest.lstrip()
    while (plain := _unquoted(value.rstrip())) is None:
        if at >= len(lines):
            raise as_error([unclosed], str(unclosed.path))
        value = f"{value}\n{lines[at]}"
        at += 1
    return plain, at


def _unquoted(text: str) -> str | None:
    """Without the quotes around it; None = they are not closed yet."""
    if text.startswith('"""'):
        return text[3:-3] if len(text) >= 6 and text.endswith('"""') else None
    if text.startswith('"'):
        return text[1:-1] if len(text) >= 2 and text.endswith('"') else None
    return text
