"""YAML text to nodes with places: libyaml's parser, our own reading of scalars (YAML 1.2 core). Knows no key."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import yaml
from yaml.events import CollectionEndEvent, CollectionStartEvent
from yaml.nodes import MappingNode, Node, ScalarNode, SequenceNode
from yaml.tokens import AliasToken, AnchorToken, DocumentStartToken

from llmgallery.config.problems import Problem

T = TypeVar("T")

MAX_BYTES = 1024 * 1024
MAX_VISITS = 50_000
MAX_DEPTH = 40
MAX_PATCHES = 200
MAX_NESTING = 200

_OPENERS = re.compile(r"[\[{?-]")
_ANCHOR = re.compile(r"[&*]([\w-]+)")
_DEEP_INDENT = re.compile(r"^[ ?-]{200}", re.MULTILINE)

PLAIN = "plain"
"""The tag that we give to scalars without quotes and without a tag."""

_TAG = "tag:yaml.org,2002:"
_INT = re.compile(r"[-+]?[0-9]+")
_BASED = re.compile(r"0o[0-7]+|0x[0-9a-fA-F]+")
_FLOAT = re.compile(r"[-+]?(\.[0-9]+|[0-9]+(\.[0-9]*)?)([eE][-+]?[0-9]+)?")
_WORDS: dict[str, Any] = {
    **dict.fromkeys(("", "~", "null", "Null", "NULL")),
    **dict.fromkeys(("true", "True", "TRUE"), True),
    **dict.fromkeys(("false", "False", "FALSE"), False),
    **dict.fromkeys((".inf", ".Inf", ".INF", "+.inf", "+.Inf", "+.INF"), float("inf")),
    **dict.fromkeys(("-.inf", "-.Inf", "-.INF"), float("-inf")),
    **dict.fromkeys((".nan", ".NaN", ".NAN"), float("nan")),
}
_TAGGED: dict[str, tuple[type, ...]] = {"null": (type(None),), "bool": (bool,), "int": (int,), "float": (int, float)}
_BOOL_WORDS = {"yes": True, "no": False, "on": True, "off": False}


class _Loader(yaml.CSafeLoader):
    """Composes only; leaves plain scalars unresolved, since their meaning depends on what is expected."""

    def resolve(self, kind: type[Node], value: Any, implicit: Any) -> str:
        if kind is ScalarNode:
            return PLAIN if implicit[0] else _TAG + "str"
        return _TAG + ("seq" if kind is SequenceNode else "map")

    def descend_resolver(self, current_node: Any, current_index: Any) -> None:
        return None

    def ascend_resolver(self) -> None:
        return None


class Unreadable(Exception):
    """The text is no YAML that we read; carries the one problem."""

    def __init__(self, problem: Problem) -> None:
        super().__init__(str(problem))
        self.problem = problem


def compose(data: bytes, path: Path | str, limit: int = MAX_BYTES) -> Node | None:
    """The root node of the only document; None = nothing but comments. Raises Unreadable."""
    return _read(decode(data, path, limit), path, _compose)


def documents(text: str, path: Path | str) -> list[Node]:
    """The root nodes of all documents; aliases reach no further than their own. Raises Unreadable."""
    return _read(text, path, _compose_all)


def check_syntax(text: str, path: Path | str) -> None:
    """Raises Unreadable for what is no YAML, whatever its aliases mean."""
    _read(text, path, _check_nesting)


def decode(data: bytes, path: Path | str, limit: int = MAX_BYTES) -> str:
    """The text of a file of at most `limit` bytes. Raises Unreadable."""
    if len(data) > limit:
        raise Unreadable(Problem(path, 0, 0, "", f"the file has {len(data):,} bytes; at most {limit:,} are read"))
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        column = error.start - data.rfind(b"\n", 0, error.start)
        raise Unreadable(Problem(path, line, column, "", "the file is not UTF-8", "save it as UTF-8")) from error


def _read(text: str, path: Path | str, composer: Callable[[str], T]) -> T:
    """What the composer makes of the text. Raises Unreadable."""
    for _ in range(MAX_PATCHES):
        try:
            return composer(text)
        except yaml.MarkedYAMLError as error:
            text = _patched(text, error, path)
        except yaml.reader.ReaderError as error:
            raise Unreadable(_bad_character(error, text, path)) from error
        except RecursionError as error:
            raise Unreadable(Problem(path, 1, 1, "", "nested too deeply")) from error
    raise Unreadable(Problem(path, 1, 1, "", "too many \\' escapes", "write ' without a backslash"))


def _compose(text: str) -> Node | None:
    (node,) = _composed(text, lambda loader: [loader.get_single_node()])
    return node


def _compose_all(text: str) -> list[Node]:
    def every(loader: _Loader) -> list[Node | None]:
        found = []
        while loader.check_node():
            found.append(loader.get_node())
        return found

    return [node for node in _composed(text, every) if node is not None]


def _composed(text: str, read: Callable[[_Loader], list[Node | None]]) -> list[Node | None]:
    loader = _Loader(text)
    try:
        if _may_nest_deeply(text):
            _check_nesting(text)
        return read(loader)
    finally:
        loader.dispose()


def _may_nest_deeply(text: str) -> bool:
    """A cheap bound: fewer openers than this cannot nest too deeply."""
    return len(_OPENERS.findall(text)) > MAX_NESTING * 5 or _DEEP_INDENT.search(text) is not None


def _check_nesting(text: str) -> None:
    """Raises RecursionError. PyYAML's composer recurses in C without a bound: 100,000 brackets kill the process."""
    depth = 0
    loader = _Loader(text)
    try:
        while (event := loader.get_event()) is not None:
            depth += isinstance(event, CollectionStartEvent) - isinstance(event, CollectionEndEvent)
            if depth > MAX_NESTING:
                raise RecursionError
    finally:
        loader.dispose()


def _patched(text: str, error: yaml.MarkedYAMLError, path: Path | str) -> str:
    """What others read as this text is meant. Raises Unreadable for what is no YAML to anybody."""
    if "duplicate anchor" in (error.context or ""):
        try:
            return _with_distinct_anchors(text)
        except yaml.MarkedYAMLError as further:
            error = further  # below the anchor, where the composer had not been yet
    patched = _without_escaped_quote(text, error)
    if patched is None:
        raise Unreadable(explain(error, text, path)) from error
    return patched


def _without_escaped_quote(text: str, error: yaml.MarkedYAMLError) -> str | None:
    """The text without the backslash of the \\' in double quotes that stopped the parser (go-yaml reads it, libyaml does not)."""
    mark = error.problem_mark
    if mark is None or "unknown escape" not in (error.problem or ""):
        return None
    start = mark.index  # not by its line: YAML breaks lines at U+2028 and the like too
    return text[:start] + text[start + 1 :] if text.startswith("\\'", start) else None


def _with_distinct_anchors(text: str) -> str:
    """The text with a name of its own for each anchor that is defined again, and for the aliases that mean it: those from
    there on (YAML 1.2.2, 7.1). PyYAML refuses what is defined twice. Raises MarkedYAMLError."""
    loader, pieces, done = _Loader(text), list[str](), 0
    counts, taken = Counter[str](), set(_ANCHOR.findall(text))
    names: dict[str, str] = {}
    try:
        while (token := loader.get_token()) is not None:
            if isinstance(token, DocumentStartToken):
                counts, names = Counter(), {}
            if not isinstance(token, (AnchorToken, AliasToken)):
                continue
            name: str = token.value
            if isinstance(token, AnchorToken):
                counts[name] += 1
                names[name] = _free(name, counts[name], taken)
            start = token.start_mark.index + 1
            pieces += [text[done:start], names.get(name, name)]
            done = start + len(name)
    finally:
        loader.dispose()
    return "".join([*pieces, text[done:]])


def _free(name: str, count: int, taken: set[str]) -> str:
    """What the definition of an anchor is called; the first keeps its name."""
    found = name if count == 1 else f"{name}-{count}"
    while count > 1 and found in taken:
        found += "-"
    return found


def _bad_character(error: yaml.reader.ReaderError, text: str, path: Path | str) -> Problem:
    at = min(int(error.position), len(text))
    line, column = text.count("\n", 0, at) + 1, at - text.rfind("\n", 0, at)
    return Problem(path, line, column, "", "a control character", "remove it, or write it as an escape in double quotes")


def explain(error: yaml.MarkedYAMLError, text: str, path: Path | str) -> Problem:
    """libyaml's complaint in words that say what to do."""
    mark = error.problem_mark or error.context_mark
    line, column = (mark.line, mark.column) if mark else (0, 0)
    lines = text.split("\n")
    first = error.context_mark.line if error.context_mark else line
    for number in range(max(0, min(first, line - 1)), min(line + 1, len(lines))):
        indent = lines[number][: len(lines[number]) - len(lines[number].lstrip())]
        if "\t" in indent:
            place = indent.index("\t") + 1
            return Problem(path, number + 1, place, "", "a tab in the indentation", "YAML indents by spaces only")
    if "end of stream" in (error.problem or "") and "quoted" in (error.context or "") and error.context_mark:
        line, column = error.context_mark.line, error.context_mark.column
    here = lines[line][column : column + 1] if line < len(lines) else ""
    message, suggestion = _wording(error, here, first + 1)
    return Problem(path, line + 1, column + 1, "", message, suggestion)


def _wording(error: yaml.MarkedYAMLError, here: str, opened: int) -> tuple[str, str]:
    problem, context = error.problem or "", error.context or ""
    if "expected a single document" in problem or "expected a single document" in context:
        return "a second document starts here", "one file is one model: split it, and remove the ---"
    if "cannot start any token" in problem:
        if here == "\t":
            return "a tab where spaces are expected", "YAML indents by spaces only"
        return f"a value cannot start with {here}", "put it in quotes"
    if "mapping values are not allowed" in problem:
        return "a second `: ` in a line, or a line indented too far", "put the value in quotes, or mend the indentation"
    if "end of stream" in problem and "quoted" in context:
        return "the quote that begins here is not closed", "close it"
    if "could not find expected ':'" in problem:
        return "a key without `: value`, or text that is not indented under its key", "mend this line or the one before"
    if "expected ',' or" in problem:
        return f"the bracket opened in line {opened} is not closed, or a comma is missing", "close it, or put the value in quotes"
    if "expected node content" in problem:
        return "a value is missing here, or a bracket is not closed", "write the value, or close the bracket"
    if "expected <block end>" in problem or "did not find expected key" in problem or "'-' indicator" in problem:
        return f"does not fit the block that begins in line {opened}", "mend the indentation, or put the value in quotes"
    if "unknown escape" in problem:
        return "an unknown escape in double quotes", "double the backslash, or use single quotes"
    if "undefined alias" in problem:
        return "this *alias has no &anchor before it", "a value that starts with * must be in quotes"
    if "undefined tag" in problem or "tag" in context:
        return "a tag (!...) that cannot be read", "a value that starts with ! must be in quotes"
    if "alias" in context or "anchor" in context:
        return "an anchor or alias without a name", "a value that starts with & or * must be in quotes"
    return f"not valid YAML: {problem}" + (f" ({context})" if context else ""), ""


def scalar(node: ScalarNode) -> Any:
    """The value by YAML 1.2's core rules: str, int, float, bool or None. Raises ValueError for what we do not read."""
    text: str = node.value
    tag: str = node.tag
    if tag == PLAIN:
        return _plain(text)
    if tag == _TAG + "str":
        return text
    value = _plain(text)
    if not isinstance(value, _TAGGED.get(tag.removeprefix(_TAG), ())):
        raise ValueError(f"the tag {tag.replace(_TAG, '!!')} is not read here; a value that starts with ! must be in quotes")
    return float(text) if tag == _TAG + "float" and isinstance(value, int) else value


def _plain(text: str) -> Any:
    if text in _WORDS:
        return _WORDS[text]
    if text[0] not in "+-.0123456789" or len(text) > 400:
        return text
    if _INT.fullmatch(text):
        return _whole(int(text))
    if _FLOAT.fullmatch(text):
        return float(text)
    return _whole(int(text, 0)) if _BASED.fullmatch(text) else text


def _whole(number: int) -> int:
    """The number, if it crosses a process border as msgpack has it. Raises ValueError."""
    if not -(2**63) <= number < 2**63:
        raise ValueError("the number does not fit 64 bits")
    return number


def bool_word(node: ScalarNode) -> bool | None:
    """What a plain yes, no, on or off means where true or false is expected; None = none of them."""
    return _BOOL_WORDS.get(node.value.lower()) if node.tag == PLAIN else None


def place(node: Node) -> tuple[int, int]:
    """Line and column, from 1; (0, 0) for a node that was made from a flag or variable."""
    mark = node.start_mark
    return (mark.line + 1, mark.column + 1) if mark else (0, 0)


def kind(node: Node) -> str:
    """What stands there, in words."""
    if isinstance(node, MappingNode):
        return "a mapping"
    return "a list" if isinstance(node, SequenceNode) else describe(node)


def describe(node: Node) -> str:
    """A scalar in words, shortened."""
    text = str(node.value)
    text = text if len(text) <= 40 else text[:37] + "..."
    try:
        value = scalar(node) if isinstance(node, ScalarNode) else None
    except ValueError:
        return text
    if value is None:
        return "nothing"
    if isinstance(value, bool):
        return text
    return f"the number {text}" if isinstance(value, (int, float)) else f"the text {text!r}"
