"""Sets of characters: ranges, Perl's, POSIX's and Unicode's."""

from __future__ import annotations

import unicodedata
from dataclasses import dataclass, field


@dataclass(frozen=True)
class Chars:
    """The characters of `ranges`, of `parts`, and of the Unicode class `named`; all others when `negated`. With `fold` upper
    and lower case are the same.
    """

    ranges: tuple[tuple[str, str], ...] = ()
    parts: tuple[Chars, ...] = ()
    named: str = ""
    negated: bool = False
    fold: bool = False
    known: dict[str, bool] = field(default_factory=dict, compare=False, repr=False)

    @property
    def only(self) -> str:
        """The one character of it; "" when there may be others."""
        plain = len(self.ranges) == 1 and not (self.parts or self.named or self.negated or self.fold)
        return self.ranges[0][0] if plain and self.ranges[0][0] == self.ranges[0][1] else ""

    def has(self, char: str) -> bool:
        found = self.known.get(char)
        if found is None:
            wanted = folds(char) if self.fold else (char,)
            found = any(map(self._has, wanted)) != self.negated
            if len(self.known) < 4096:
                self.known[char] = found
        return found

    def _has(self, char: str) -> bool:
        if any(low <= char <= high for low, high in self.ranges):
            return True
        return any(part.has(char) for part in self.parts) or (bool(self.named) and _is_named(char, self.named))


# Characters that fold to an ASCII letter without being its upper case.
_ODD_FOLDS = {"k": "\u212a", "K": "\u212a", "s": "\u017f", "S": "\u017f"}


def folds(char: str) -> set[str]:
    """All characters that are the same but for their case."""
    found = {char, _ODD_FOLDS.get(char, char)}
    for _ in range(2):
        found |= {other for each in found for other in (each.lower(), each.upper(), each.title()) if len(other) == 1}
    return found


ANY = Chars(negated=True)
_DIGIT = (("0", "9"),)
_LETTERS = (("A", "Z"), ("a", "z"))
_SPACE = (("\t", "\n"), ("\f", "\r"), (" ", " "))
_WORD = (*_DIGIT, *_LETTERS, ("_", "_"))
PERL = {
    "d": Chars(_DIGIT),
    "D": Chars(_DIGIT, negated=True),
    "s": Chars(_SPACE),
    "S": Chars(_SPACE, negated=True),
    "w": Chars(_WORD),
    "W": Chars(_WORD, negated=True),
}
POSIX = {
    "alnum": Chars((*_DIGIT, *_LETTERS)),
    "alpha": Chars(_LETTERS),
    "ascii": Chars((("\0", "\x7f"),)),
    "blank": Chars((("\t", "\t"), (" ", " "))),
    "cntrl": Chars((("\0", "\x1f"), ("\x7f", "\x7f"))),
    "digit": Chars(_DIGIT),
    "graph": Chars((("!", "~"),)),
    "lower": Chars((("a", "z"),)),
    "print": Chars(((" ", "~"),)),
    "punct": Chars((("!", "/"), (":", "@"), ("[", "`"), ("{", "~"))),
    "space": Chars((("\t", "\r"), (" ", " "))),
    "upper": Chars((("A", "Z"),)),
    "word": Chars(_WORD),
    "xdigit": Chars((*_DIGIT, ("A", "F"), ("a", "f"))),
}
_KINDS = {"C": "cfos", "L": "lmotu", "M": "cen", "N": "dlo", "P": "cdefios", "S": "ckmo", "Z": "lps"}
_CATEGORIES = frozenset(major + minor for major, minors in _KINDS.items() for minor in ("", *minors))
# Python knows no scripts, but the names of characters begin with them.
_SCRIPTS = {
    "Arabic": "ARABIC",
    "Armenian": "ARMENIAN",
    "Bengali": "BENGALI",
    "Cyrillic": "CYRILLIC",
    "Devanagari": "DEVANAGARI",
    "Georgian": "GEORGIAN",
    "Greek": "GREEK",
    "Han": "CJK",
    "Hangul": "HANGUL",
    "Hebrew": "HEBREW",
    "Hiragana": "HIRAGANA",
    "Katakana": "KATAKANA",
    "Latin": "LATIN",
    "Tamil": "TAMIL",
    "Thai": "THAI",
}


def named_class(name: str) -> Chars | None:
    """The class of `\\p{name}`: a general category, or one of the commoner scripts."""
    if name == "Any":
        return ANY
    return Chars(named=name) if name in _CATEGORIES or name in _SCRIPTS else None


def _is_named(char: str, name: str) -> bool:
    if name in _CATEGORIES:
        return unicodedata.category(char).startswith(name)
    return unicodedata.category(char)[0] in "LMN" and unicodedata.name(char, "").startswith(_SCRIPTS[name])
