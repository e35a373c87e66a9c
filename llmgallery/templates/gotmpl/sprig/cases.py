"""sprig's functions that change upper and lower case. Go maps character by character: the result has as many as the text."""

from __future__ import annotations

import unicodedata
from collections.abc import Iterator

from llmgallery.templates.gotmpl.budget import current
from llmgallery.templates.gotmpl.functions import Library
from llmgallery.templates.gotmpl.sprig.strings import SPACE

LIBRARY = Library()
STEPS_A_CHAR = 2
"""Of a text that is taken apart into words, each looked at several times."""


def upper_char(char: str) -> str:
    """unicode.ToUpper: what has no single upper case character stays."""
    for found in (char.upper(), char.title()):
        if len(found) == 1:
            return found
    return char


def lower_char(char: str) -> str:
    found = char.lower()
    return found[0] if len(found) > 1 else found


def _title_char(char: str) -> str:
    found = char.title()
    return found if len(found) == 1 else char


@LIBRARY.add("upper", "string", slow=True)
def _upper(text: str) -> str:
    return text.upper() if text.isascii() else "".join(map(upper_char, text))


@LIBRARY.add("lower", "string", slow=True)
def _lower(text: str) -> str:
    return text.lower() if text.isascii() else "".join(map(lower_char, text))


def _separates(char: str) -> bool:
    """Whether a word ends here, for strings.Title."""
    if char.isascii():
        return not (char.isalnum() or char == "_")
    return char in SPACE and not char.isalnum()


@LIBRARY.add("title", "string", slow=True)
def _title(text: str) -> str:
    before = " " + text
    return "".join(_title_char(char) if _separates(last) else char for last, char in zip(before, text, strict=False))


@LIBRARY.add("untitle", "string", slow=True)
def _untitle(text: str) -> str:
    before = " " + text
    return "".join(lower_char(char) if last in SPACE else char for last, char in zip(before, text, strict=False))


@LIBRARY.add("swapcase", "string", slow=True)
def _swapcase(text: str) -> str:
    out = []
    at_word = True
    for char in text:
        category = unicodedata.category(char)
        if category in ("Lu", "Lt"):
            out.append(lower_char(char))
            at_word = False
        elif category == "Ll":
            out.append(_title_char(char) if at_word else upper_char(char))
            at_word = False
        else:
            out.append(char)
            at_word = char in SPACE
    return "".join(out)


def _connects(char: str) -> bool:
    return char in "-_" or char in SPACE


def _is_upper(char: str) -> bool:
    return unicodedata.category(char) == "Lu"


@LIBRARY.add("camelcase", "string", slow=True)
def _camelcase(text: str) -> str:
    """xstrings' ToPascalCase: "http_server" is "HttpServer", "GOLANG_IS" is "GolangIs", connectors at the ends stay."""
    start = next((index for index, char in enumerate(text) if not _connects(char)), len(text))
    if start == len(text):
        return text
    out = [text[:start]]
    last, shouting = upper_char(text[start]), _is_upper(text[start])
    for char in text[start + 1 :]:
        if _connects(char) and _connects(last):
            out.append(last)
        elif _connects(last):
            shouting, char = _is_upper(char), upper_char(char)
        else:
            out.append(last)
            if shouting and _is_upper(char):
                char = lower_char(char)
            else:
                shouting = False
        last = char
    return "".join([*out, last])


_HAN = (("\u3400", "\u4d85"), ("\u4e00", "\u9fcc"), ("\U00020000", "\U0002b81d"))  # as xstrings has them


def _category(char: str) -> str:
    if _connects(char):
        return "connector"
    category = unicodedata.category(char)
    if category[0] == "P":
        return "punctuation"
    if category == "Lu":
        return "upper"
    if category[0] == "L":
        return "other" if any(first <= char <= last for first, last in _HAN) else "letters"
    return "number" if category[0] == "N" else "other"


def _words(text: str) -> Iterator[tuple[str, str]]:
    """Runs of one category each. An upper case letter takes the lower case ones behind it along, and "HTTPStatus" is
    "HTTP" and "Status".
    """
    at = 0
    while at < len(text):
        category = _category(text[at])
        end = at + 1
        if category == "punctuation":
            while end < len(text) and unicodedata.category(text[end])[0] == "P":
                end += 1
        else:
            end = _run(text, end, category)
        if category == "upper":
            if end == at + 1:
                end = _run(text, end, "letters")
            elif end < len(text) and _category(text[end]) == "letters":
                end -= 1
        yield category, text[at:end]
        at = end


def _run(text: str, at: int, category: str) -> int:
    while at < len(text) and _category(text[at]) == category:
        at += 1
    return at


def _joined_words(text: str, connector: str) -> str:
    """xstrings' camelCaseToLowerCase: "HTTPServer2xx" is "http_server_2xx", "Bld4Floor" is "bld4_floor"."""
    current().step(STEPS_A_CHAR * len(text))
    words = [*_words(text), ("end", "")]
    out: list[str] = []

    def put(category: str, word: str) -> None:
        if category in ("upper", "connector"):
            word = "".join(connector if _connects(char) else lower_char(char) if _is_upper(char) else char for char in word)
        out.append(word)

    def run(at: int) -> int:
        """A number's own letters and digits."""
        while words[at][0] in ("letters", "number"):
            put(*words[at])
            at += 1
        return at

    def connect(at: int) -> None:
        if words[at][0] not in ("connector", "punctuation", "end"):
            out.append(connector)

    at = 0
    while words[at][0] != "end":
        category, word = words[at]
        put(category, word)
        at += 1
        if category == "number":
            at = run(at)
            connect(at)
        elif category in ("upper", "letters", "other"):
            if words[at][0] != "number":
                connect(at)
            elif words[at + 1][0] == "letters":
                out.append(connector)
                at = run(at)
                connect(at)
            else:
                put(*words[at])
                at += 1
                connect(at)
    return "".join(out)


@LIBRARY.add("snakecase", "string", slow=True)
def _snakecase(text: str) -> str:
    return _joined_words(text, "_")


@LIBRARY.add("kebabcase", "string", slow=True)
def _kebabcase(text: str) -> str:
    return _joined_words(text, "-")
