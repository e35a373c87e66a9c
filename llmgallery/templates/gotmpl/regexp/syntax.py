"""Go's regular expressions (RE2's syntax), read into a tree. No backreferences and no looking around: so has Go none."""

from __future__ import annotations

import string
from dataclasses import dataclass, field, replace

from llmgallery.templates.gotmpl.regexp.classes import ANY, PERL, POSIX, Chars, named_class
from llmgallery.templates.gotmpl.values import GoError

MOST_REPEATS = 1000
DEEPEST = 100


@dataclass(frozen=True)
class One:
    """A character of a class."""

    chars: Chars


@dataclass(frozen=True)
class At:
    """A place: `text start`, `text end`, `line start`, `line end`, `word`, `no word`."""

    place: str


@dataclass(frozen=True)
class Sequence:
    parts: tuple[Node, ...]


@dataclass(frozen=True)
class Choice:
    """The first that leads to a match."""

    options: tuple[Node, ...]


@dataclass(frozen=True)
class Repeat:
    """`most` is None for any number."""

    part: Node
    least: int
    most: int | None
    greedy: bool


@dataclass(frozen=True)
class Group:
    number: int
    part: Node


Node = One | At | Sequence | Choice | Repeat | Group


@dataclass(frozen=True)
class Flags:
    fold: bool = False
    lines: bool = False
    dot_all: bool = False
    lazy: bool = False


@dataclass
class Tree:
    """`names` has a name or "" for each group, the whole match first."""

    root: Node
    names: list[str] = field(default_factory=lambda: [""])


_FLAG_NAMES = {"i": "fold", "m": "lines", "s": "dot_all", "U": "lazy"}
_PLAIN_ESCAPES = {"a": "\a", "f": "\f", "n": "\n", "r": "\r", "t": "\t", "v": "\v"}
_PLACES = {"A": "text start", "z": "text end", "b": "word", "B": "no word"}
_WORD = frozenset(string.ascii_letters + string.digits + "_")


def parse(pattern: str) -> Tree:
    """Raises GoError with Go's message: "error parsing regexp: missing closing ): `(a`"."""
    return _Parser(pattern).tree()


def wrong(what: str, where: str) -> GoError:
    return GoError(f"error parsing regexp: {what}: `{where}`")


class _Parser:
    def __init__(self, pattern: str) -> None:
        self.text = pattern
        self.at = 0
        self.flags = Flags()
        self.names = [""]

    def tree(self) -> Tree:
        root = self.choice(0)
        if self.at < len(self.text):
            raise wrong("unexpected )", self.text)
        return Tree(root, self.names)

    def ahead(self, start: str) -> bool:
        return self.text.startswith(start, self.at)

    def take(self) -> str:
        char = self.text[self.at]
        self.at += 1
        return char

    def choice(self, depth: int) -> Node:
        if depth > DEEPEST:
            raise wrong("expression nests too deeply", self.text)
        options = [self.sequence(depth)]
        while self.ahead("|"):
            self.at += 1
            options.append(self.sequence(depth))
        return options[0] if len(options) == 1 else Choice(tuple(options))

    def sequence(self, depth: int) -> Node:
        parts: list[Node] = []
        while self.at < len(self.text) and self.text[self.at] not in "|)":
            start = self.at
            if self.ahead("\\Q"):
                parts += self.quoted()
            elif self.text[self.at] in "*+?" or (self.ahead("{") and self.counts() is not None):
                self.repeat(parts, start)
            else:
                found = self.atom(depth)
                parts += [] if found is None else [found]
        return parts[0] if len(parts) == 1 else Sequence(tuple(parts))

    def quoted(self) -> list[Node]:
        end = self.text.find("\\E", self.at)
        inner = self.text[self.at + 2 : end if end >= 0 else None]
        self.at = end + 2 if end >= 0 else len(self.text)
        return [self.literal(char) for char in inner]

    def literal(self, char: str) -> Node:
        return One(Chars(((char, char),), fold=self.flags.fold))

    def repeat(self, parts: list[Node], start: int) -> None:
        """An operator behind the last of `parts`."""
        least, most = self.operator()
        lazy = self.ahead("?")
        self.at += lazy
        if not parts:
            raise wrong("missing argument to repetition operator", self.text[start : self.at])
        if self.at < len(self.text) and (self.text[self.at] in "*+?" or (self.ahead("{") and self.counts() is not None)):
            self.operator()
            raise wrong("invalid nested repetition operator", self.text[start : self.at])
        parts[-1] = Repeat(parts[-1], least, most, lazy == self.flags.lazy)
        if not _fits(parts[-1], MOST_REPEATS):
            raise wrong("invalid repeat count", self.text[start : self.at])

    def operator(self) -> tuple[int, int | None]:
        start = self.at
        char = self.text[start]
        if char != "{":
            self.at += 1
            return {"*": (0, None), "+": (1, None), "?": (0, 1)}[char]
        counts = self.counts()
        assert counts is not None
        least, most, self.at = counts
        if least > MOST_REPEATS or (most is not None and not least <= most <= MOST_REPEATS):
            raise wrong("invalid repeat count", self.text[start : self.at])
        return least, most

    def counts(self) -> tuple[int, int | None, int] | None:
        """`{2}`, `{2,}` or `{2,5}` with where it ends; None for a brace that is a plain character."""
        end = self.text.find("}", self.at)
        inner = self.text[self.at + 1 : end] if end >= 0 else ""
        first, comma, second = inner.partition(",")
        if not _is_count(first) or (second and not _is_count(second)):
            return None
        least = _count(first)
        return least, (None if not second else _count(second)) if comma else least, end + 1

    def atom(self, depth: int) -> Node | None:
        """None for what only sets flags."""
        char = self.text[self.at]
        if char == "(":
            return self.group(depth)
        if char == "[":
            return One(self.char_class())
        if char == "\\":
            return self.escape()
        self.at += 1
        if char == ".":
            return One(ANY if self.flags.dot_all else Chars((("\n", "\n"),), negated=True))
        if char == "^":
            return At("line start" if self.flags.lines else "text start")
        if char == "$":
            return At("line end" if self.flags.lines else "text end")
        return self.literal(char)

    def group(self, depth: int) -> Node | None:
        start, flags = self.at, self.flags
        self.at += 1
        number = 0
        if self.ahead("?"):
            if self.ahead("?P<") or self.ahead("?<"):
                number = self.name(start)
            elif not self.set_flags(start):
                return None
        else:
            number = self.new_group("")
        inner = self.choice(depth + 1)
        if not self.ahead(")"):
            raise wrong("missing closing )", self.text)
        self.at += 1
        self.flags = flags
        return Group(number, inner) if number else Sequence((inner,))

    def new_group(self, name: str) -> int:
        self.names.append(name)
        return len(self.names) - 1

    def name(self, start: int) -> int:
        end = self.text.find(">", self.at)
        name = self.text[self.text.index("<", self.at) + 1 : end] if end >= 0 else ""
        if not name or not set(name) <= _WORD:
            raise wrong("invalid named capture", self.text[start : end + 1] if end >= 0 else self.text[start:])
        self.at = end + 1
        return self.new_group(name)

    def set_flags(self, start: int) -> bool:
        """`(?i)` for what follows, `(?i:` for a group: True for the latter."""
        self.at += 1
        flags, value = self.flags, True
        seen = False
        while self.at < len(self.text):
            char = self.take()
            if char in _FLAG_NAMES:
                flags, seen = replace(flags, **{_FLAG_NAMES[char]: value}), True
            elif char == "-" and value:
                value, seen = False, False
            elif char in ":)" and (seen or value):
                self.flags = flags
                return char == ":"
            else:
                break
        raise wrong("invalid or unsupported Perl syntax", self.text[start : self.at])

    def escape(self) -> Node:
        start = self.at
        after = self.text[start + 1 : start + 2]
        if after in PERL and after:
            self.at += 2
            return One(PERL[after])
        if after in _PLACES and after:
            self.at += 2
            return At(_PLACES[after])
        if after in ("p", "P"):
            return One(self.unicode_class())
        if after == "C":
            raise wrong("invalid escape sequence", "\\C")
        return self.literal(self.escaped_char())

    def escaped_char(self) -> str:
        start = self.at
        self.at += 2
        if start + 1 >= len(self.text):
            raise wrong("trailing backslash at end of expression", "")
        char = self.text[start + 1]
        if char in _PLAIN_ESCAPES:
            return _PLAIN_ESCAPES[char]
        if char == "x":
            return self.hex_char(start)
        if char in "01234567" and (char == "0" or self.text[self.at : self.at + 1] in tuple("01234567")):
            while self.at < start + 4 and self.at < len(self.text) and self.text[self.at] in "01234567":
                self.at += 1
            return chr(int(self.text[start + 1 : self.at], 8))
        if char == "_" or (char.isascii() and char not in _WORD):
            return char
        raise wrong("invalid escape sequence", self.text[start : self.at])

    def hex_char(self, start: int) -> str:
        if self.ahead("{"):
            end = self.text.find("}", self.at)
            digits = self.text[self.at + 1 : end] if end >= 0 else ""
            self.at = end + 1 if end >= 0 else len(self.text)
        else:
            digits = self.text[self.at : self.at + 2]
            self.at += 2
            digits = digits if len(digits) == 2 else ""
        if not digits or len(digits) > 8 or not set(digits) <= set(string.hexdigits) or int(digits, 16) > 0x10FFFF:
            raise wrong("invalid escape sequence", self.text[start : self.at])
        return chr(int(digits, 16))

    def unicode_class(self) -> Chars:
        start = self.at
        negated = self.text[start + 1] == "P"
        self.at += 2
        if self.ahead("{"):
            end = self.text.find("}", self.at)
            name = self.text[self.at + 1 : end] if end >= 0 else ""
            self.at = end + 1 if end >= 0 else len(self.text)
        else:
            name = self.text[self.at : self.at + 1]
            self.at += 1
        if name.startswith("^"):
            negated, name = not negated, name[1:]
        found = named_class(name)
        if found is None:
            raise wrong("invalid character class range", self.text[start : self.at])
        return replace(found, negated=negated, fold=self.flags.fold)

    def char_class(self) -> Chars:
        start = self.at
        self.at += 1
        negated = self.ahead("^")
        self.at += negated
        ranges: list[tuple[str, str]] = []
        parts: list[Chars] = []
        first = True
        while first or not self.ahead("]"):
            if self.at >= len(self.text):
                raise wrong("missing closing ]", self.text[start:])
            inner = self.class_part()
            if inner is not None:
                parts.append(inner)
            else:
                ranges.append(self.char_range(first))
            first = False
        self.at += 1
        return Chars(tuple(ranges), tuple(parts), negated=negated, fold=self.flags.fold)

    def class_part(self) -> Chars | None:
        """A class within a class: `[:alpha:]`, `\\d`, `\\pL`."""
        if self.ahead("[:"):
            end = self.text.find(":]", self.at + 2)
            if end >= 0:
                name = self.text[self.at + 2 : end]
                whole = self.text[self.at : end + 2]
                self.at = end + 2
                if name.removeprefix("^") not in POSIX:
                    raise wrong("invalid character class range", whole)
                return replace(POSIX[name.removeprefix("^")], negated=name.startswith("^"))
        if self.ahead("\\") and self.text[self.at + 1 : self.at + 2] in (*PERL, "p", "P"):
            if self.text[self.at + 1] in "pP":
                return self.unicode_class()
            self.at += 2
            return PERL[self.text[self.at - 1]]
        return None

    def char_range(self, first: bool) -> tuple[str, str]:
        start = self.at
        if self.ahead("-") and not first and self.text[self.at + 1 : self.at + 2] != "]":
            raise wrong("invalid character class range", self.text[start : start + 2])
        low = self.class_char()
        high = low
        if self.ahead("-") and self.text[self.at + 1 : self.at + 2] not in ("]", ""):
            self.at += 1
            high = self.class_char()
            if high < low:
                raise wrong("invalid character class range", self.text[start : self.at])
        return low, high

    def class_char(self) -> str:
        return self.escaped_char() if self.ahead("\\") else self.take()


def _is_count(digits: str) -> bool:
    return digits.isascii() and digits.isdigit() and (digits == "0" or digits[0] != "0")


def _count(digits: str) -> int:
    return int(digits) if len(digits) < 8 else MOST_REPEATS + 1


def _fits(node: Node, most: int) -> bool:
    """Whether repeats within repeats come to no more than `most`."""
    match node:
        case Repeat():
            count = node.least if node.most is None else node.most
            return count <= most and _fits(node.part, most // max(count, 1))
        case Sequence():
            return all(_fits(part, most) for part in node.parts)
        case Choice():
            return all(_fits(option, most) for option in node.options)
        case Group():
            return _fits(node.part, most)
    return True
