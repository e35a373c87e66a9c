"""What encoding/json says of a text that is no JSON: the states of its scanner, without the values."""

from __future__ import annotations

import re

from llmgallery.templates.gotmpl.budget import current
from llmgallery.templates.gotmpl.printing import quoted

_END = "unexpected end of JSON input"
_SPACE = re.compile(r"[ \t\r\n]*")
_PLAIN = re.compile(r'[^"\\\x00-\x1f]*')
_LITERALS = {"t": "true", "f": "false", "n": "null"}
_NUMBER = (  # what may come, and the complaint when it must and does not
    (re.compile(r"-?"), ""),
    (re.compile(r"0|[1-9][0-9]*"), "in numeric literal"),
    (re.compile(r"\.?"), ""),
    (re.compile(r"[0-9]+"), "after decimal point in numeric literal"),
    (re.compile(r"([eE][+-]?)?"), ""),
    (re.compile(r"[0-9]+"), "in exponent of numeric literal"),
)


class _Fault(Exception):
    pass


def json_fault(text: str) -> str:
    """The message of the first error in `text`: "invalid character 'x' after array element"."""
    current().step(len(text) // 4)
    try:
        _Scanner(text).scan()
    except _Fault as fault:
        return str(fault)
    return _END


class _Scanner:
    def __init__(self, text: str) -> None:
        self.text = text
        self.at = 0
        self.open: list[str] = []

    def char(self) -> str:
        if self.at >= len(self.text):
            raise _Fault(_END)
        return self.text[self.at]

    def wrong(self, where: str) -> _Fault:
        char = self.char()
        shown = {"'": "'\\''", '"': "'\"'"}.get(char) or quoted(char, quote="'")
        return _Fault(f"invalid character {shown} {where}")

    def space(self) -> None:
        found = _SPACE.match(self.text, self.at)
        self.at = found.end() if found else self.at

    def scan(self) -> None:
        """Goes on to the first error, or the end."""
        self.value("")
        while True:
            self.space()
            if not self.open:
                if self.at < len(self.text):
                    raise self.wrong("after top-level value")
                return
            self.after_member()

    def after_member(self) -> None:
        inside = self.open[-1]
        char = self.char()
        if char == inside:
            self.open.pop()
            self.at += 1
        elif char != ",":
            raise self.wrong("after object key:value pair" if inside == "}" else "after array element")
        else:
            self.at += 1
            self.member()

    def member(self) -> None:
        """What comes behind a comma."""
        if self.open[-1] == "}":
            self.key("")
        self.value("")

    def key(self, end: str) -> bool:
        """An object's key and the colon; False when `end` stands in its place."""
        self.space()
        char = self.char()
        if end and char == end:
            return False
        if char != '"':
            raise self.wrong("looking for beginning of object key string")
        self.string()
        self.space()
        if self.char() != ":":
            raise self.wrong("after object key")
        self.at += 1
        return True

    def value(self, end: str) -> None:
        """Of a list or an object no more than its beginning."""
        while True:
            self.space()
            char = self.char()
            if end and char == end:
                return
            if char not in "{[":
                self.scalar(char)
                return
            self.at += 1
            end = "}" if char == "{" else "]"
            self.open.append(end)
            if char == "{" and not self.key(end):
                return
            end = "" if char == "{" else end

    def scalar(self, char: str) -> None:
        if char == '"':
            self.string()
        elif char in _LITERALS:
            for wanted in _LITERALS[char]:
                if self.char() != wanted:
                    raise self.wrong(f"in literal {_LITERALS[char]} (expecting {quoted(wanted, quote=chr(39))})")
                self.at += 1
        elif char == "-" or ("0" <= char <= "9"):
            self.number()
        else:
            raise self.wrong("looking for beginning of value")

    def number(self) -> None:
        wanted = True
        for pattern, complaint in _NUMBER:
            if not wanted:
                wanted = True
                continue
            found = pattern.match(self.text, self.at)
            if found is None:
                raise self.wrong(complaint)
            self.at = found.end()
            # A point and an exponent's letter want digits behind them.
            wanted = bool(complaint) or pattern is _NUMBER[0][0] or bool(found[0])

    def string(self) -> None:
        self.at += 1
        while True:
            found = _PLAIN.match(self.text, self.at)
            self.at = found.end() if found else self.at
            char = self.char()
            if char < " ":
                raise self.wrong("in string literal")
            self.at += 1
            if char == '"':
                return
            self.escape()

    def escape(self) -> None:
        char = self.char()
        if char not in '"\\/bfnrtu':
            raise self.wrong("in string escape code")
        self.at += 1
        for _ in range(4 if char == "u" else 0):
            if self.char() not in "0123456789abcdefABCDEF":
                raise self.wrong("in \\u hexadecimal character escape")
            self.at += 1
