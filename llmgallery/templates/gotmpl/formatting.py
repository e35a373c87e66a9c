"""fmt.Sprintf: verbs, flags, widths, argument indexes, and what Go writes for a verb that does not fit its operand."""

from __future__ import annotations

import re
from dataclasses import replace
from typing import Any

from llmgallery.templates.gotmpl.budget import current
from llmgallery.templates.gotmpl.numbers import Flags, float_verb, int_verb, pad
from llmgallery.templates.gotmpl.printing import NIL, is_print, joined, plain, quoted
from llmgallery.templates.gotmpl.values import Byte, Object, Struct, TypedNil, is_int, kind, type_name, utf8

_DIRECTIVE = re.compile(
    r"(?P<flags>[-+# 0]*)(?P<width_at>\[[^]%]*\])?(?P<width>\*|\d+)?"
    r"(?P<dot>\.(?!\Z)(?P<precision_at>\[[^]%]*\])?(?P<precision>\*|\d*))?(?P<at>\[[^]%]*\])?",
    re.ASCII,
)
_MOST = 1_000_000  # Go's own bound of widths and precisions
_INT_VERBS = "vdboOxXcqU"
_FLOAT_VERBS = "vbgGxXfFeE"
_TEXT_VERBS = "vsxXq"


class _Run:
    """One call: which operand is next, and what is written so far."""

    def __init__(self, template: str, args: tuple[Any, ...]) -> None:
        self.template = template
        self.args = args
        self.next = 0
        self.reordered = False
        self.bad_index = False
        self.out: list[str] = []

    def whole(self) -> str:
        at = 0
        while (found := self.template.find("%", at)) >= 0:
            self.out.append(self.template[at:found])
            at = self.directive(found + 1)
        self.out.append(self.template[at:])
        if not self.reordered and self.next < len(self.args):
            extra = ", ".join(NIL if arg is None else f"{type_name(arg)}={plain(arg)}" for arg in self.args[self.next :])
            self.out.append(f"%!(EXTRA {extra})")
        return joined(self.out)

    def directive(self, at: int) -> int:
        """Writes the directive that begins at `at`, behind its percent sign; returns where it ends."""
        found = _DIRECTIVE.match(self.template, at)
        assert found is not None  # every part is optional
        self.bad_index = False
        flags = Flags(*(sign in found["flags"] for sign in "-+# 0"))
        indexed = self.seek(found["width_at"])
        if found["width"] is not None:
            self.width(found["width"], flags)
            self.bad_index |= indexed and found["width"] != "*"
            indexed = False
        if found["dot"] is not None:
            self.bad_index |= indexed
            self.seek(found["precision_at"])
            self.precision(found["precision"], flags)
        self.seek(found["at"])
        end = found.end()
        if _is_crazy(found["width"]) or _is_crazy(found["precision"]):
            end = len(self.template)
        if end >= len(self.template):
            self.out.append("%!(NOVERB)")
            return end
        self.verb(self.template[end], flags)
        return end + 1

    def seek(self, index: str | None) -> bool:
        """Goes to the operand that an index such as `[2]` names."""
        if not index:
            return False
        self.reordered = True
        number = int(index[1:-1]) if re.fullmatch(r"\[[0-9]{1,7}\]", index) else 0
        if 1 <= number <= len(self.args):
            self.next = number - 1
        else:
            self.bad_index = True
        return True

    def star(self) -> int | None:
        """The operand that gives a width or precision; None when there is none or it is no such number."""
        if self.next >= len(self.args):
            return None
        value = self.args[self.next]
        self.next += 1
        return int(value) if is_int(value) and abs(value) <= _MOST else None

    def width(self, written: str, flags: Flags) -> None:
        number = self.star() if written == "*" else _bounded(written)
        if written == "*" and number is None:
            self.out.append("%!(BADWIDTH)")
        elif number is not None and number < 0:
            flags.minus, flags.zero, number = True, False, -number
        flags.width = number

    def precision(self, written: str, flags: Flags) -> None:
        number = self.star() if written == "*" else _bounded(written or "0")
        if written == "*" and (number is None or number < 0):
            number = None
            self.out.append("%!(BADPREC)")
        flags.precision = number

    def verb(self, verb: str, flags: Flags) -> None:
        if verb == "%":
            self.out.append("%")
        elif self.bad_index:
            self.out.append(f"%!{verb}(BADINDEX)")
        elif self.next >= len(self.args):
            self.out.append(f"%!{verb}(MISSING)")
        else:
            value = self.args[self.next]
            self.next += 1
            if verb == "v":
                flags.source, flags.named, flags.sharp, flags.plus = flags.sharp, flags.plus, False, False
            self.out.append(_operand(value, verb, flags))


def sprintf(template: str, args: tuple[Any, ...]) -> str:
    """fmt.Sprintf. A wrong directive is no error but text: `%!d(string=x)`, `%!s(MISSING)`, `%!(EXTRA int=1)`."""
    return _Run(template, args).whole()


def _is_crazy(digits: str | None) -> bool:
    """At a number that is too large Go gives up the rest of the format."""
    return digits is not None and len(digits) > 7 and int(digits[:-1][:20]) > _MOST


def _bounded(digits: str) -> int | None:
    return None if _is_crazy(digits) else int(digits)


def _operand(value: Any, verb: str, flags: Flags) -> str:
    current().text(max(flags.width or 0, flags.precision or 0) + current().weigh(value))
    if value is None:
        return pad(NIL, flags) if verb in "vT" else f"%!{verb}({NIL})"
    if verb == "T":
        return _text(type_name(value), "s", flags)
    if verb == "p":
        return _bad(value, verb, flags)
    return _write(value, verb, flags, top=True)


def _write(value: Any, verb: str, flags: Flags, *, top: bool = False) -> str:
    if isinstance(value, bool):
        return pad("true" if value else "false", flags) if verb in "tv" else _bad(value, verb, flags)
    if isinstance(value, str):
        return _text(value, verb, flags) if verb in _TEXT_VERBS else _bad(value, verb, flags)
    if is_int(value):
        return _int(value, verb, flags) if verb in _INT_VERBS else _bad(value, verb, flags)
    if isinstance(value, float):
        return float_verb(value, verb, flags) if verb in _FLOAT_VERBS else _bad(value, verb, flags)
    if isinstance(value, complex):
        return _complex(value, verb, flags)
    if isinstance(value, Object) and verb in _TEXT_VERBS:
        return _text(value.text(), "s" if verb == "v" else verb, flags)
    if value is None:
        return "interface {}(nil)" if flags.source else NIL
    if isinstance(value, TypedNil):
        return _typed_nil(value, verb, flags)
    return _composite(value, verb, flags, top)


def _typed_nil(value: TypedNil, verb: str, flags: Flags) -> str:
    pointer = kind(value) == "ptr"
    if flags.source:
        return f"({value.type_name})(nil)" if pointer else f"{value.type_name}(nil)"
    if pointer and verb in "bodxX":
        return int_verb(0, verb, flags)
    if pointer:
        return pad(NIL, flags) if verb == "v" else _bad(value, verb, flags)
    return plain(value)


def _composite(value: Any, verb: str, flags: Flags, top: bool) -> str:
    """Of maps, slices and structs the verb goes to the elements."""
    source = flags.source
    if isinstance(value, dict):
        pairs = [f"{_write(key, verb, flags)}:{_write(value[key], verb, flags)}" for key in sorted(value)]
        return f"{type_name(value)}{{{', '.join(pairs)}}}" if source else f"map[{' '.join(pairs)}]"
    if isinstance(value, list | tuple):
        items = [_write(item, verb, flags) for item in value]
        return f"{type_name(value)}{{{', '.join(items)}}}" if source else f"[{' '.join(items)}]"
    return _struct(value, verb, flags, top) if isinstance(value, Struct) else _bad(value, verb, flags)


def _struct(value: Struct, verb: str, flags: Flags, top: bool) -> str:
    pointer = value.type_name.startswith("*")
    if pointer and not top:
        return "0xc000000000"
    source = flags.source
    parts = [f"{field.name}:" * (source or flags.named) + _write(field.value, verb, flags) for field in value.fields]
    name = value.type_name.removeprefix("*") if source else ""
    return f"{'&' * pointer}{name}{{{(', ' if source else ' ').join(parts)}}}"


def _bad(value: Any, verb: str, flags: Flags) -> str:
    return f"%!{verb}({type_name(value)}={_write(value, 'v', flags, top=True)})"


def _int(value: int, verb: str, flags: Flags) -> str:
    if flags.source and isinstance(value, Byte):
        return int_verb(value, "x", replace(flags, sharp=True))
    if verb == "c":
        return pad(_rune(value), flags)
    if verb == "q":
        return pad(quoted(_rune(value), quote="'", ascii_only=flags.plus), flags)
    if verb == "U":
        name = f"U+{value % (1 << 64):0{max(4, flags.precision or 0)}X}"
        shown = f"{name} '{_rune(value)}'" if flags.sharp and 0 <= value <= 0x10FFFF and is_print(_rune(value)) else name
        return pad(shown, replace(flags, zero=False))
    return int_verb(value, "d" if verb == "v" else verb, flags)


def _rune(code: int) -> str:
    return chr(code) if 0 <= code <= 0x10FFFF and not 0xD800 <= code <= 0xDFFF else "�"


def _text(value: str, verb: str, flags: Flags) -> str:
    if verb in "xX":
        return pad(_hex(utf8(value), verb, flags), flags)
    cut = value if flags.precision is None else value[: flags.precision]
    if flags.source:
        return pad(quoted(cut), flags)
    if verb != "q":
        return pad(cut, flags)
    raw = flags.sharp and "`" not in cut and "\ufeff" not in cut and not re.search(r"[\x00-\x08\x0a-\x1f\x7f]", cut)
    return pad(f"`{cut}`" if raw else quoted(cut, ascii_only=flags.plus), flags)


def _hex(data: bytes, verb: str, flags: Flags) -> str:
    data = data if flags.precision is None else data[: flags.precision]
    current().text(5 * len(data))
    current().step(len(data) // 4)
    digits = [f"{byte:02x}" for byte in data]
    start = "0x" if flags.sharp else ""
    shown = " ".join(start + pair for pair in digits) if flags.space else start * bool(data) + "".join(digits)
    return shown.upper() if verb == "X" else shown


def _complex(value: complex, verb: str, flags: Flags) -> str:
    if verb not in "vbgGxXfFeE":
        return _bad(value, verb, flags)
    return f"({float_verb(value.real, verb, flags)}{float_verb(value.imag, verb, replace(flags, plus=True))}i)"
