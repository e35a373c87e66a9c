"""A Go template's text as tokens, as the lexer of text/template cuts it: actions, trim markers, comments, literals."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import NamedTuple

SPACES = " \t\r\n"
DIGITS = "0123456789"
KEYWORDS = frozenset(
    {"block", "break", "continue", "define", "else", "end", "if", "nil", "range", "template", "with"},
)
_SPACE = re.compile(r"[ \t\r\n]+?(?=[ \t\r\n]-}})|[ \t\r\n]+")
_RIGHT = re.compile(r"(?:[ \t\r\n]-)?}}")
_LEFT_TRIM = re.compile(r"-[ \t\r\n]")
_NUMBER = re.compile(
    r"[+-]?(?:0[xX][0-9a-fA-F_]*(?:\.[0-9a-fA-F_]*)?(?:[pP][+-]?[0-9_]*)?"
    r"|0[oO][0-7_]*(?:\.[0-7_]*)?|0[bB][01_]*(?:\.[01_]*)?"
    r"|[0-9_]*(?:\.[0-9_]*)?(?:[eE][+-]?[0-9_]*)?)i?"
)
_QUOTED = {'"': re.compile(r'"(?:[^"\\\n]|\\[^\n])*"'), "'": re.compile(r"'(?:[^'\\\n]|\\[^\n])*'")}
_NAMES = {'"': "quoted string", "'": "character constant", "`": "raw quoted string"}


class Token(NamedTuple):
    """`kind` is text, left, right, space, number, complex, rune, string, field, variable, identifier, bool, eof, error, a
    keyword, or the sign itself. `text` is the source's (of an error: the message).
    """

    kind: str
    pos: int
    text: str


class _Stop(Exception):
    """The rest cannot be cut into tokens."""

    def __init__(self, pos: int, message: str) -> None:
        super().__init__(message)
        self.pos = pos
        self.message = message


def lex(source: str) -> list[Token]:
    """The tokens of `source`. The last is "eof", or "error" where the text could not be cut further."""
    tokens: list[Token] = []
    try:
        tokens.extend(_Lexer(source).run())
    except _Stop as stop:
        tokens.append(Token("error", stop.pos, stop.message))
    return tokens


def is_alphanumeric(char: str) -> bool:
    """Whether it may stand in a name: letters and digits of any script, and the underscore."""
    return char == "_" or char.isalpha() or char.isdecimal()


class _Lexer:
    def __init__(self, source: str) -> None:
        self.source = source
        self.pos = 0
        self.parens: list[int] = []

    def run(self) -> Iterator[Token]:
        """Text and actions by turns."""
        while True:
            start = self.source.find("{{", self.pos)
            end = len(self.source) if start < 0 else start
            text = self.source[self.pos : end]
            if start >= 0 and _LEFT_TRIM.match(self.source, start + 2):
                text = text.rstrip(SPACES)
            if text:
                yield Token("text", self.pos, text)
            self.pos = end
            if start < 0:
                yield Token("eof", end, "")
                return
            after = start + (4 if _LEFT_TRIM.match(self.source, start + 2) else 2)
            if self.source.startswith("/*", after):
                self._comment(after)
            else:
                yield from self._action(start, after)

    def _comment(self, start: int) -> None:
        end = self.source.find("*/", start + 2)
        if end < 0:
            raise _Stop(start, "unclosed comment: */ is missing")
        self.pos = end + 2
        if not self._right():
            raise _Stop(start, "comment ends before closing delimiter: only -}} or }} may follow its */")

    def _right(self) -> bool:
        """Go over a closing delimiter, and over the white space after it where it trims."""
        match = _RIGHT.match(self.source, self.pos)
        if match is None:
            return False
        self.pos = match.end()
        if match[0] != "}}":
            while self.source[self.pos : self.pos + 1] in tuple(SPACES):
                self.pos += 1
        return True

    def _action(self, start: int, inside: int) -> Iterator[Token]:
        yield Token("left", start, "{{")
        self.pos = inside
        self.parens = []
        while True:
            here = self.pos
            if _RIGHT.match(self.source, here):
                if self.parens:
                    raise _Stop(self.parens[-1], "unclosed left paren: ) is missing")
                self._right()
                yield Token("right", here, "}}")
                return
            if here >= len(self.source):
                raise _Stop(start, "unclosed action: }} is missing")
            kind = self._token(self.source[here])
            yield Token(kind, here, self.source[here : self.pos])

    def _token(self, char: str) -> str:
        """Go over one token inside an action; says its kind."""
        space = _SPACE.match(self.source, self.pos)
        if space:
            self.pos = space.end()
            return "space"
        if char in _NAMES:
            return self._quoted(char)
        if char == "$" or (char == "." and self.source[self.pos + 1 : self.pos + 2] not in tuple(DIGITS)):
            return self._field_or_variable(char)
        if char in "+-." or char in DIGITS:
            return self._number()
        if is_alphanumeric(char):
            return self._word()
        return self._sign(char)

    def _sign(self, char: str) -> str:
        start = self.pos
        self.pos += 1
        if char == ":":
            if not self.source.startswith("=", self.pos):
                raise _Stop(start, "expected :=")
            self.pos += 1
            return ":="
        if char == "(":
            self.parens.append(start)
        elif char == ")":
            if not self.parens:
                raise _Stop(start, "unexpected right paren: there is no ( before it")
            self.parens.pop()
        elif not (char.isascii() and char.isprintable()):
            raise _Stop(start, f"unrecognized character in action: {_point(char)}")
        return char

    def _quoted(self, quote: str) -> str:
        if quote == "`":
            end = self.source.find("`", self.pos + 1) + 1
        else:
            match = _QUOTED[quote].match(self.source, self.pos)
            end = match.end() if match else 0
        if not end:
            raise _Stop(self.pos, f"unterminated {_NAMES[quote]}")
        self.pos = end
        return "rune" if quote == "'" else "string"

    def _field_or_variable(self, char: str) -> str:
        self.pos += 1
        if self._name() or char == "$":
            return "field" if char == "." else "variable"
        return "."

    def _word(self) -> str:
        start = self.pos
        self._name()
        word = self.source[start : self.pos]
        if word in ("true", "false"):
            return "bool"
        return word if word in KEYWORDS else "identifier"

    def _name(self) -> bool:
        """Go over a name; says whether there was one. Raises when something follows that must stand apart."""
        start, size = self.pos, len(self.source)
        while self.pos < size and is_alphanumeric(self.source[self.pos]):
            self.pos += 1
        if self.pos < size and self.source[self.pos] not in " \t\r\n.,|:)(" and not self.source.startswith("}}", self.pos):
            raise _Stop(self.pos, f"bad character {_point(self.source[self.pos])}")
        return self.pos > start

    def _number(self) -> str:
        start, kind = self.pos, "number"
        self._digits(start)
        if self.source[self.pos : self.pos + 1] in ("+", "-"):
            self._digits(start)
            if self.source[self.pos - 1] != "i":
                raise _Stop(start, f"bad number syntax: {self.source[start : self.pos]!r}")
            kind = "complex"
        return kind

    def _digits(self, start: int) -> None:
        match = _NUMBER.match(self.source, self.pos)
        self.pos = match.end() if match else self.pos
        following = self.source[self.pos : self.pos + 1]
        if following and is_alphanumeric(following):
            trims = self.source.startswith("{{-", start - 2)
            hint = " (to trim white space, the minus wants a space after it: {{- )" if trims else ""
            raise _Stop(start, f"bad number syntax: {self.source[start : self.pos + 1]!r}{hint}")


def _point(char: str) -> str:
    return f"U+{ord(char):04X} {char!r}"
