"""sprig's functions on regular expressions."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from llmgallery.templates.gotmpl.functions import Code, Library
from llmgallery.templates.gotmpl.printing import quoted
from llmgallery.templates.gotmpl.regexp import compile_regexp, quote_meta
from llmgallery.templates.gotmpl.values import GoError, TypedList, TypedNil

LIBRARY = Library()

LIBRARY.add("regexQuoteMeta", "string", slow=True)(quote_meta)


def _add(name: str, params: str) -> Callable[[Code], Code]:
    """Both regexName and mustRegexName. They differ in what they say of a bad pattern alone."""

    def register(code: Code) -> Code:
        def loud(pattern: str, *args: Any) -> Any:
            try:
                return code(pattern, *args)
            except GoError as exc:
                shown = quoted(pattern) if "`" in pattern else f"`{pattern}`"
                raise GoError(f"regexp: Compile({shown}): {exc.message}") from exc

        LIBRARY.add(f"mustRegex{name}", params)(code)
        LIBRARY.add(f"regex{name}", params)(loud)
        return code

    return register


@LIBRARY.add("regexMatch", "string string")
def _match(pattern: str, text: str) -> bool:
    """Alone among those without `must` it takes a bad pattern for one that matches nothing."""
    try:
        return _must_match(pattern, text)
    except GoError:
        return False


@LIBRARY.add("mustRegexMatch", "string string")
def _must_match(pattern: str, text: str) -> bool:
    return compile_regexp(pattern).search(text) is not None


@_add("FindAll", "string string int")
def _find_all(pattern: str, text: str, most: int) -> list[str] | TypedNil:
    found = compile_regexp(pattern).find_all(text, most)
    return TypedList(text[marks[0] : marks[1]] for marks in found) if found else TypedNil("[]string")


@_add("Find", "string string")
def _find(pattern: str, text: str) -> str:
    marks = compile_regexp(pattern).search(text)
    return text[marks[0] : marks[1]] if marks else ""


@_add("ReplaceAll", "string string string")
def _replace_all(pattern: str, text: str, replacement: str) -> str:
    regexp = compile_regexp(pattern)
    return regexp.replace_all(text, lambda marks: regexp.expand(replacement, text, marks))


@_add("ReplaceAllLiteral", "string string string")
def _replace_all_literal(pattern: str, text: str, replacement: str) -> str:
    return compile_regexp(pattern).replace_all(text, lambda _: replacement)


@_add("Split", "string string int")
def _split(pattern: str, text: str, most: int) -> list[str] | TypedNil:
    found = compile_regexp(pattern).split(text, most)
    return TypedList(found) if most else TypedNil("[]string")
