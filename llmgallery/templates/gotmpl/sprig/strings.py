"""sprig's functions on texts. Positions and lengths count bytes, as in Go."""

from __future__ import annotations

import random
import secrets
import string
from typing import Any
from uuid import uuid4

from llmgallery.templates.gotmpl.budget import current
from llmgallery.templates.gotmpl.functions import Library
from llmgallery.templates.gotmpl.printing import joined, plain, quoted
from llmgallery.templates.gotmpl.sprig.convert import to_text, to_texts
from llmgallery.templates.gotmpl.values import GoError, TypedDict, TypedList, from_utf8, utf8

LIBRARY = Library()
SPACE = "\t\n\v\f\r \x85\xa0\u1680" + "".join(map(chr, range(0x2000, 0x200B))) + "\u2028\u2029\u202f\u205f\u3000"
_SPACES = frozenset(SPACE)

LIBRARY.add("hello")(lambda: "Hello!")
LIBRARY.add("trim", "string")(lambda text: text.strip(SPACE))
LIBRARY.add("trimAll", "string string", also="trimall")(lambda chars, text: text.strip(chars))
LIBRARY.add("trimSuffix", "string string")(lambda end, text: text.removesuffix(end))
LIBRARY.add("trimPrefix", "string string")(lambda start, text: text.removeprefix(start))
LIBRARY.add("contains", "string string")(lambda part, text: part in text)
LIBRARY.add("hasPrefix", "string string")(lambda start, text: text.startswith(start))
LIBRARY.add("hasSuffix", "string string")(lambda end, text: text.endswith(end))
LIBRARY.add("plural", "string string int")(lambda one, many, count: one if count == 1 else many)
LIBRARY.add("toString", "any", deep=True)(to_text)
LIBRARY.add("toStrings", "any", deep=True)(lambda value: TypedList(to_texts(value)))
LIBRARY.add("uuidv4")(lambda: str(uuid4()))


@LIBRARY.add("nospace", "string", slow=True)
def _nospace(text: str) -> str:
    """goutils goes by bytes: a character beyond ASCII comes out as its bytes, once there was a space to delete."""
    data = utf8(text)
    kept = "".join(chr(byte) for byte in data if chr(byte) not in _SPACES)
    return text if len(kept) == len(data) else kept


@LIBRARY.add("initials", "string", slow=True)
def _initials(text: str) -> str:
    chars = [chr(byte) for byte in utf8(text)]
    gaps = [True, *(char in _SPACES for char in chars)]
    return "".join(char for char, gap in zip(chars, gaps, strict=False) if gap and char not in _SPACES)


@LIBRARY.add("repeat", "int string")
def _repeat(count: int, text: str) -> str:
    if count < 0:
        raise GoError("strings: negative Repeat count")
    current().text(count * len(text))
    return text * count if text else ""


@LIBRARY.add("replace", "string string string")
def _replace(old: str, new: str, text: str) -> str:
    current().text(len(text) + (len(text) // max(1, len(old)) + 1) * len(new))
    return text.replace(old, new)


@LIBRARY.add("indent", "int string")
def _indent(spaces: int, text: str) -> str:
    if spaces < 0:
        raise GoError("strings: negative Repeat count")
    lines = text.count("\n") + 1
    current().text(len(text) + lines * spaces)
    pad = " " * spaces
    return pad + text.replace("\n", "\n" + pad)


@LIBRARY.add("nindent", "int string")
def _nindent(spaces: int, text: str) -> str:
    return "\n" + _indent(spaces, text)


def _cut(data: bytes, start: int, end: int) -> str:
    """data[start:end] as Go slices: out of range is an error."""
    if end < 0 or end > len(data):
        raise GoError(f"runtime error: slice bounds out of range [:{end}]" + (f" with length {len(data)}" if end >= 0 else ""))
    if start > end:
        raise GoError(f"runtime error: slice bounds out of range [{start}:{end}]")
    return from_utf8(data[start:end])


@LIBRARY.add("trunc", "int string")
def _trunc(count: int, text: str) -> str:
    data = utf8(text)
    if count < 0:
        return from_utf8(data[count:]) if len(data) + count > 0 else text
    return from_utf8(data[:count]) if len(data) > count else text


@LIBRARY.add("substr", "int int string")
def _substr(start: int, end: int, text: str) -> str:
    data = utf8(text)
    if start < 0:
        return _cut(data, 0, end)
    return _cut(data, start, len(data) if end < 0 or end > len(data) else end)


@LIBRARY.add("abbrev", "int string")
def _abbrev(width: int, text: str) -> str:
    return text if width < 4 else _abbreviated(utf8(text), 0, width)


@LIBRARY.add("abbrevboth", "int int string")
def _abbrevboth(left: int, right: int, text: str) -> str:
    return text if right < 4 or (left > 0 and right < 7) else _abbreviated(utf8(text), left, right)


def _abbreviated(data: bytes, offset: int, width: int) -> str:
    if len(data) <= width:
        return from_utf8(data)
    offset = min(offset, len(data))
    if len(data) - offset < width - 3:
        offset = len(data) - (width - 3)
    if offset <= 4:
        return from_utf8(data[: width - 3]) + "..."
    if width < 7:
        return ""
    if offset + width - 3 < len(data):
        return "..." + _abbreviated(data[offset:], 0, width - 3)
    return "..." + from_utf8(data[-(width - 3) :])


@LIBRARY.add("wrap", "int string")
def _wrap(width: int, text: str) -> str:
    return _wrapped(utf8(text), width, b"\n", cut_words=False)


@LIBRARY.add("wrapWith", "int string string")
def _wrap_with(width: int, separator: str, text: str) -> str:
    return _wrapped(utf8(text), width, utf8(separator) or b"\n", cut_words=True)


def _wrapped(data: bytes, width: int, separator: bytes, *, cut_words: bool) -> str:
    """goutils' WrapCustom: lines of at most `width` bytes, broken at spaces; a longer word is cut or stands over."""
    width = max(1, width)
    current().text(len(data) + (len(data) // width + 1) * len(separator))
    out: list[bytes] = []
    at = 0
    while len(data) - at > width:
        current().step()
        if data[at : at + 1] == b" ":
            at += 1
            continue
        space = data.rfind(b" ", at, at + width + 1)
        if space < 0 and cut_words:
            out += [data[at : at + width], separator]
            at += width
            continue
        if space < 0:
            space = data.find(b" ", at + width)
        if space < 0:
            break
        out += [data[at:space], separator]
        at = space + 1
    return from_utf8(b"".join([*out, data[at:]]))


@LIBRARY.add("quote", "any...", deep=True)
def _quote(*values: Any) -> str:
    return joined([quoted(to_text(value)) for value in values if value is not None], " ")


@LIBRARY.add("squote", "any...", deep=True)
def _squote(*values: Any) -> str:
    return joined([f"'{plain(value)}'" for value in values if value is not None], " ")


@LIBRARY.add("cat", "any...", deep=True)
def _cat(*values: Any) -> str:
    return joined([plain(value) for value in values if value is not None], " ")


@LIBRARY.add("join", "string any", deep=True)
def _join(separator: str, value: Any) -> str:
    return joined(to_texts(value), separator)


def _parts(separator: str, text: str, most: int = -1) -> list[str]:
    """strings.SplitN: at most `most` parts, none at all for 0, all for less."""
    if most == 0:
        return []
    current().items(len(text) if not separator else text.count(separator) + 1)
    if separator:
        return text.split(separator, most - 1 if most > 0 else -1)
    chars = list(text)
    return chars if most < 0 or len(chars) <= most else [*chars[: most - 1], "".join(chars[most - 1 :])]


@LIBRARY.add("splitList", "string string")
def _split_list(separator: str, text: str) -> list[str]:
    return TypedList(_parts(separator, text))


@LIBRARY.add("split", "string string")
def _split(separator: str, text: str) -> dict[str, str]:
    return _numbered(_parts(separator, text))


@LIBRARY.add("splitn", "string int string")
def _splitn(separator: str, most: int, text: str) -> dict[str, str]:
    return _numbered(_parts(separator, text, most))


def _numbered(parts: list[str]) -> dict[str, str]:
    return TypedDict((f"_{index}", part) for index, part in enumerate(parts))


@LIBRARY.add("shuffle", "string", slow=True)
def _shuffle(text: str) -> str:
    return "".join(random.sample(text, len(text)))


_ALPHABETS = {
    "randAlphaNum": string.ascii_letters + string.digits,
    "randAlpha": string.ascii_letters,
    "randNumeric": string.digits,
    "randAscii": "".join(map(chr, range(32, 127))),
}


def _random_text(alphabet: str, count: int) -> str:
    current().text(max(0, count))
    current().step(max(0, count))
    return "".join(secrets.choice(alphabet) for _ in range(count))


for _name, _alphabet in _ALPHABETS.items():
    LIBRARY.add(_name, "int")(lambda count, alphabet=_alphabet: _random_text(alphabet, count))
