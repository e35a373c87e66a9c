"""Go's regexp package: RE2's syntax and semantics, bounded by the current budget."""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache

from llmgallery.core.errors import TemplateError
from llmgallery.templates.gotmpl.budget import Limits, current, guarding
from llmgallery.templates.gotmpl.printing import joined
from llmgallery.templates.gotmpl.regexp.machine import Marks, Search, compile_tree, search
from llmgallery.templates.gotmpl.regexp.syntax import parse
from llmgallery.templates.gotmpl.values import GoError

LONGEST = 10_000  # characters of a pattern


class Regexp:
    """A compiled expression. Every method runs within `budget.guarding` and raises TemplateError when that is spent."""

    def __init__(self, pattern: str) -> None:
        tree = parse(pattern)
        self.pattern = pattern
        self.names = tree.names
        self._program = compile_tree(tree, pattern)

    def search(self, text: str, start: int = 0) -> Marks | None:
        """Begin and end of the match, then of each group; -1 for a group that took no part."""
        return search(self._program, text, start)

    @property
    def prefix(self) -> str:
        """What every match begins with; "" when nobody knows."""
        return self._program.prefix

    def scan(self, start: int = 0) -> Search:
        """A search in a text that comes in pieces."""
        return Search(self._program, start)

    def find_all(self, text: str, most: int = -1) -> list[Marks]:
        """Matches that do not overlap; an empty one right behind another does not count."""
        found: list[Marks] = []
        at, last_end = 0, -1
        while at <= len(text) and (most < 0 or len(found) < most):
            marks = self.search(text, at)
            if marks is None:
                break
            accepted = marks[1] > at or marks[0] != last_end
            at = marks[1] if marks[1] > at else at + 1
            last_end = marks[1]
            if accepted:
                current().items(4)
                found.append(marks)
        return found

    def replace_all(self, text: str, replacement: Callable[[Marks], str]) -> str:
        out: list[str] = []
        at = last_end = 0
        while at <= len(text):
            marks = self.search(text, at)
            if marks is None:
                break
            out.append(text[last_end : marks[0]])
            if marks[1] > last_end or marks[0] == 0:
                out.append(replacement(marks))
            last_end = marks[1]
            at = max(at + 1, marks[1])
        return joined([*out, text[last_end:]])

    def split(self, text: str, most: int) -> list[str]:
        if most == 0:
            return []
        if self.pattern and not text:
            return [""]
        parts: list[str] = []
        begin = end = 0
        for marks in self.find_all(text, most):
            if most > 0 and len(parts) == most - 1:
                break
            end = marks[0]
            if marks[1] != 0:
                parts.append(text[begin:end])
            begin = marks[1]
        return [*parts, text[begin:]] if end != len(text) else parts

    def expand(self, template: str, text: str, marks: Marks) -> str:
        """`template` with $1, ${1}, $name and ${name} put in, and $$ for a dollar sign."""
        out: list[str] = []
        while "$" in template:
            before, _, template = template.partition("$")
            out.append(before)
            name, rest = _reference(template)
            if name:
                out.append(self._group(name, text, marks))
                template = rest
            else:
                out.append("$")
                template = template.removeprefix("$")
        return joined([*out, template])

    def _group(self, name: str, text: str, marks: Marks) -> str:
        """What a group matched; of groups with the same name, the first that took part."""
        if name.isascii() and name.isdigit():
            numbers = [int(name)] if len(name) < 6 and int(name) < len(self.names) else []
        else:
            numbers = [number for number, each in enumerate(self.names) if each == name]
        found = next((number for number in numbers if marks[2 * number] >= 0), None)
        return "" if found is None else text[marks[2 * found] : marks[2 * found + 1]]


def _reference(template: str) -> tuple[str, str]:
    """The name behind a dollar sign, and what follows; "" when there is none."""
    braced = template.startswith("{")
    body = template[braced:]
    length = next((at for at, char in enumerate(body) if not (char.isalnum() or char == "_")), len(body))
    if not length or (braced and body[length : length + 1] != "}"):
        return "", template
    return body[:length], body[length + braced :]


@lru_cache(maxsize=64)
def _compiled(pattern: str) -> Regexp:
    return Regexp(pattern)


def compile_regexp(pattern: str) -> Regexp:
    """Raises GoError with Go's message for a pattern that is none."""
    current().text(len(pattern))
    if len(pattern) > LONGEST:
        raise GoError(f"the regular expression is too long (limit: {LONGEST} characters)")
    return _compiled(pattern)


def check_regexp(pattern: str) -> tuple[str, tuple[str, ...]]:
    """What is wrong with the pattern, "" when nothing is, and the names of its groups in order, "" for those without one.
    To be called outside of a render."""
    try:
        with guarding(Limits()):
            return "", tuple(compile_regexp(pattern).names[1:])
    except (GoError, TemplateError) as exc:
        return exc.message, ()


def quote_meta(text: str) -> str:
    """A pattern that matches `text` and nothing else."""
    return "".join("\\" + char if char in r"\.+*?()|[]{}^$" else char for char in text)
