"""Nodes to typed values along a struct's fields: every problem is noted with its place, none stops the reading."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

import msgspec
from msgspec import inspect
from yaml.nodes import MappingNode, Node, ScalarNode, SequenceNode

from llmgallery.config.leaves import convert, expectation, python_type
from llmgallery.config.nodes import MAX_DEPTH, MAX_VISITS, PLAIN, bool_word, describe, kind, place, scalar
from llmgallery.config.problems import Problem
from llmgallery.config.suggest import did_you_mean

FAILED: Any = object()
"""What a reader returns after it has noted a problem."""

MAX_PROBLEMS = 100

Unknown = Callable[[str, str], str]
"""(key, dotted path of its mapping) -> advice for a key that is not known there."""

Ignored = Callable[[str], tuple[str, str] | None]
"""Dotted unknown key -> the warning that it is passed over with, and advice; None = it is a problem."""


@dataclass(frozen=True)
class Source:
    """A file, and its text."""

    path: Path
    text: bytes


@dataclass
class Reading:
    """One file being read: what has been noted, and where each key stands. `lent`: keys that stand in another file."""

    path: Path | str
    unknown: Unknown
    ignored: Ignored = lambda key: None
    problems: list[Problem] = field(default_factory=list)
    warnings: list[Problem] = field(default_factory=list)
    places: dict[str, tuple[int, int]] = field(default_factory=dict)
    nodes: dict[str, Node] = field(default_factory=dict)
    lent: dict[str, Source] = field(default_factory=dict)
    visits: int = 0
    depth: int = 0
    overrun: bool = False

    def source(self, key: str) -> Source | None:
        """The other file that lent this key, or the one above it; None = it is this file's own."""
        name = key.partition("[")[0]
        while name and name not in self.lent:
            name = name.rpartition(".")[0]
        return self.lent.get(name)

    def path_of(self, key: str) -> Path | str:
        """The file in which a key stands."""
        source = self.source(key)
        return self.path if source is None else source.path

    def at(self, key: str, message: str, suggestion: str = "") -> Problem:
        """A problem at the key itself, not noted yet."""
        return Problem(self.path_of(key), *self.places[key], key, message, suggestion)

    def fail(self, node: Node, key: str, message: str, suggestion: str = "") -> Any:
        """Note a problem at the node; returns FAILED."""
        if len(self.problems) < MAX_PROBLEMS:
            self.problems.append(Problem(self.path_of(key), *place(node), key, message, suggestion))
        elif len(self.problems) == MAX_PROBLEMS:
            self.problems.append(Problem(self.path, *place(node), "", "from here on there are more problems than are listed"))
        return FAILED

    def warn(self, node: Node, key: str, message: str, suggestion: str = "") -> None:
        """Note what is passed over; a file of which that is all that is wrong is good."""
        if len(self.warnings) < MAX_PROBLEMS:
            self.warnings.append(Problem(self.path, *place(node), key, message, suggestion))

    def advice(self, key: str, parent: str) -> str:
        """What to say about an unknown key; nothing once nobody will read it."""
        return self.unknown(key, parent) if len(self.problems) < MAX_PROBLEMS else ""

    def bounded(self, node: Node, key: str, count: int = 1) -> bool:
        """Count nodes; False once aliases have made the file too large or too deep, which is noted once."""
        self.visits += count
        if self.visits <= MAX_VISITS and self.depth <= MAX_DEPTH:
            return True
        if not self.overrun:
            self.overrun = True
            large = f"more than {MAX_VISITS:,} values, aliases counted in full"
            message, advice = (large, "use fewer aliases") if self.visits > MAX_VISITS else ("nested too deeply", "")
            self.fail(node, key if len(key) <= 60 else key[:57] + "...", message, advice)
        return False


class Reader:
    """Reads one kind of value. `expected` says which, in words."""

    expected = "a value"

    def read(self, node: Node, key: str, reading: Reading) -> Any:
        raise NotImplementedError


class AnyReader(Reader):
    """Whatever stands there, as plain data."""

    def read(self, node: Node, key: str, reading: Reading) -> Any:
        if not reading.bounded(node, key):
            return FAILED
        if isinstance(node, ScalarNode):
            return read_scalar(node, key, reading)
        reading.depth += 1
        try:
            if isinstance(node, SequenceNode):
                return kept(self.read(item, f"{key}[{index}]", reading) for index, item in enumerate(node.value))
            assert isinstance(node, MappingNode)
            pairs = [(name, self.read(value, f"{key}.{name}", reading)) for name, _, value in entries(node, key, reading)]
            return {name: value for name, value in pairs if value is not FAILED}
        finally:
            reading.depth -= 1


class LeafReader(Reader):
    """A scalar, converted by msgspec."""

    def __init__(self, type_: Any, infos: tuple[inspect.Type, ...]) -> None:
        self.type = type_
        self.expected = " or ".join(dict.fromkeys(expectation(info) for info in infos))
        self.takes_bool = any(isinstance(info, inspect.BoolType) for info in infos)
        self.takes_text = any(isinstance(info, (inspect.StrType, inspect.CustomType, inspect.LiteralType)) for info in infos)
        self.numeric = any(isinstance(info, (inspect.IntType, inspect.FloatType)) for info in infos)
        self.whole = not any(isinstance(info, inspect.FloatType) for info in infos)
        texts = any(isinstance(info, inspect.StrType) or getattr(info, "cls", None) is Path for info in infos)
        self.choices = [str(value) for info in infos if isinstance(info, inspect.LiteralType) for value in info.values]
        self.quotable = texts and not self.numeric and not self.choices

    def read(self, node: Node, key: str, reading: Reading) -> Any:
        if not reading.bounded(node, key):
            return FAILED
        if not isinstance(node, ScalarNode):
            advice = _braces(node) if self.takes_text else ""
            return reading.fail(node, key, f"expected {self.expected}, found {kind(node)}", advice)
        value = read_scalar(node, key, reading)
        if value is FAILED:
            return FAILED
        try:
            return convert(value, self.type)
        except (msgspec.ValidationError, ValueError):
            word = bool_word(node) if self.takes_bool else None
            return self.refuse(node, key, value, reading) if word is None else word

    def refuse(self, node: ScalarNode, key: str, value: Any, reading: Reading) -> Any:
        number = isinstance(value, (int, float)) and not isinstance(value, bool)
        if number and self.numeric and not (self.whole and isinstance(value, float)):
            return reading.fail(node, key, f"{node.value} is out of range; expected {self.expected}")
        advice = ""
        if isinstance(value, str) and self.choices:
            advice = did_you_mean(value, self.choices)
        elif isinstance(value, str) and node.tag != PLAIN and self.convertible(node):
            advice = "remove the quotes"
        elif self.quotable and value is not None and not isinstance(value, str):
            advice = f'put it in quotes: "{node.value}"'
        return reading.fail(node, key, f"expected {self.expected}, found {describe(node)}", advice)

    def convertible(self, node: ScalarNode) -> bool:
        plain = ScalarNode(PLAIN, node.value)
        try:
            convert(scalar(plain), self.type)
        except (msgspec.ValidationError, ValueError):
            return False
        return True


class ListReader(Reader):
    """A list of one kind."""

    def __init__(self, item: Reader) -> None:
        self.item = item
        self.expected = f"a list ({item.expected} each)"

    def read(self, node: Node, key: str, reading: Reading) -> Any:
        if not reading.bounded(node, key):
            return FAILED
        if not isinstance(node, SequenceNode):
            advice = f"write {key.rpartition('.')[2]}: [{node.value!r}]" if isinstance(node, ScalarNode) and node.value else ""
            return reading.fail(node, key, f"expected {self.expected}, found {kind(node)}", advice)
        reading.depth += 1
        values = kept(self.item.read(item, f"{key}[{index}]", reading) for index, item in enumerate(node.value))
        reading.depth -= 1
        return values


class MapReader(Reader):
    """A mapping from text to one kind."""

    def __init__(self, value: Reader) -> None:
        self.value = value
        self.expected = f"a mapping ({value.expected} each)"

    def read(self, node: Node, key: str, reading: Reading) -> Any:
        if not reading.bounded(node, key):
            return FAILED
        if not isinstance(node, MappingNode):
            return reading.fail(node, key, f"expected {self.expected}, found {kind(node)}")
        reading.depth += 1
        pairs = [(name, self.value.read(value, f"{key}.{name}", reading)) for name, _, value in entries(node, key, reading)]
        reading.depth -= 1
        return {name: value for name, value in pairs if value is not FAILED}


class UnionReader(Reader):
    """One of several kinds, told apart by how they are written: scalar, list or mapping."""

    def __init__(self, options: dict[type[Node], Reader]) -> None:
        self.options = options
        self.expected = " or ".join(option.expected for option in options.values())

    def read(self, node: Node, key: str, reading: Reading) -> Any:
        option = self.options.get(type(node))
        if option is None:
            return reading.fail(node, key, f"expected {self.expected}, found {kind(node)}")
        return option.read(node, key, reading)


class StructReader(Reader):
    """A mapping with known keys. A key without a value counts as not written. A struct with IN_A_WORD may be a scalar, which
    stands for each of those fields."""

    def __init__(self, cls: type[msgspec.Struct]) -> None:
        self.cls = cls
        self.fields = {item.encode_name: (item.name, reader_of(item.type)) for item in _struct_info(cls).fields}
        self.in_a_word: tuple[str, ...] = getattr(cls, "IN_A_WORD", ())
        self.required = [item.encode_name for item in _struct_info(cls).fields if item.required]
        self.expected = f"a mapping with keys such as {', '.join(list(self.fields)[:3])}" if self.fields else "an empty mapping"

    def read(self, node: Node, key: str, reading: Reading) -> Any:
        values = self.values(node, key, reading)
        if values is FAILED:
            return FAILED
        missing = [name for name in self.required if name not in values and f"{key}.{name}" not in reading.places]
        for name in missing:
            reading.fail(node, key, f"the key {name} is missing")
        # A value that failed is left out; the struct then holds its default, and the problem list says so.
        return FAILED if any(name not in values for name in self.required) else self.cls(**values)

    def values(self, node: Node, key: str, reading: Reading) -> Any:
        """Field name -> value for every key that could be read; FAILED when the node is no mapping."""
        if not reading.bounded(node, key):
            return FAILED
        if isinstance(node, ScalarNode) and self.in_a_word:
            return self._spread(node, key, reading)
        if not isinstance(node, MappingNode):
            return reading.fail(node, key, f"expected {self.expected}, found {kind(node)}")
        reading.depth += 1
        values: dict[str, Any] = {}
        for name, key_node, value_node in entries(node, key, reading):
            path = f"{key}.{name}" if key else name
            reading.places[path] = place(key_node)
            reading.nodes[path] = value_node
            known = self.fields.get(name)
            if known is None and (told := reading.ignored(path)) is not None:
                reading.warn(key_node, path, *told)
            elif known is None:
                reading.fail(key_node, path, "unknown key", reading.advice(name, key))
            elif not is_null(value_node):
                value = known[1].read(value_node, path, reading)
                if value is not FAILED:
                    values[known[0]] = value
        reading.depth -= 1
        return values

    def _spread(self, node: ScalarNode, key: str, reading: Reading) -> Any:
        """The one value, for each field that it stands for."""
        first, *_ = (self.fields[name] for name in self.in_a_word)
        value = first[1].read(node, key, reading)
        if value is FAILED:
            return FAILED
        for name in self.in_a_word:
            reading.places[f"{key}.{name}"], reading.nodes[f"{key}.{name}"] = place(node), node
        return dict.fromkeys((self.fields[name][0] for name in self.in_a_word), value)


def is_null(node: Node) -> bool:
    """Nothing stands there."""
    return isinstance(node, ScalarNode) and node.tag == PLAIN and node.value in ("", "~", "null", "Null", "NULL")


def kept(values: Iterator[Any]) -> list[Any]:
    """All that did not fail."""
    return [value for value in values if value is not FAILED]


def read_scalar(node: ScalarNode, key: str, reading: Reading) -> Any:
    """The scalar by YAML's rules, or FAILED."""
    try:
        return scalar(node)
    except ValueError as error:
        return reading.fail(node, key, str(error))


def entries(node: MappingNode, key: str, reading: Reading) -> list[tuple[str, Node, Node]]:
    """(name, key node, value node) of a mapping; merges (<<) come in below its own keys, duplicates are noted."""
    own: dict[str, tuple[str, Node, Node]] = {}
    merged: dict[str, tuple[str, Node, Node]] = {}
    for key_node, value_node in node.value:
        if not isinstance(key_node, ScalarNode):
            reading.fail(key_node, key, f"a key must be text, found {kind(key_node)}", _braces(key_node))
        elif key_node.value == "<<" and key_node.tag in (PLAIN, "tag:yaml.org,2002:merge"):
            for name, item in _merged(value_node, key, reading).items():
                merged.setdefault(name, item)
        elif key_node.value in own:
            line = own[key_node.value][1].start_mark.line + 1
            path = f"{key}.{key_node.value}" if key else str(key_node.value)
            reading.fail(key_node, path, f"the key is already in line {line}", "keep one of them")
        else:
            own[key_node.value] = (key_node.value, key_node, value_node)
    return list({**merged, **own}.values()) if merged else list(own.values())


def _merged(node: Node, key: str, reading: Reading) -> dict[str, tuple[str, Node, Node]]:
    if not reading.bounded(node, key):
        return {}
    sources = node.value if isinstance(node, SequenceNode) else [node]
    found: dict[str, tuple[str, Node, Node]] = {}
    reading.depth += 1
    for source in sources:
        if not isinstance(source, MappingNode):
            reading.fail(source, key, f"<< merges mappings, found {kind(source)}")
            continue
        for item in entries(source, key, reading) if reading.bounded(source, key, 1 + len(source.value)) else ():
            found.setdefault(item[0], item)
    reading.depth -= 1
    return found


def _braces(node: Node) -> str:
    text = "put it in quotes: a value that starts with { or [ is YAML's own"
    return text if isinstance(node, (MappingNode, SequenceNode)) and node.flow_style else ""


def _struct_info(cls: type[msgspec.Struct]) -> inspect.StructType:
    info = inspect.type_info(cls)
    assert isinstance(info, inspect.StructType)
    return info


@cache
def struct_reader(cls: type[msgspec.Struct]) -> StructReader:
    """The reader of a struct; built once."""
    return StructReader(cls)


def reader_of(info: inspect.Type) -> Reader:
    """The reader for a type as msgspec describes it."""
    leaves: list[inspect.Type] = []
    options: dict[type[Node], Reader] = {}
    for item in _flat(info):
        if isinstance(item, inspect.AnyType):
            return AnyReader()
        if isinstance(item, inspect.StructType):
            options[MappingNode] = struct_reader(item.cls)
        elif isinstance(item, inspect.DictType):
            options[MappingNode] = MapReader(reader_of(item.value_type))
        elif isinstance(item, (inspect.ListType, inspect.VarTupleType)):
            options[SequenceNode] = ListReader(reader_of(item.item_type))
        elif not isinstance(item, inspect.NoneType):
            leaves.append(item)
    if leaves:
        options[ScalarNode] = LeafReader(python_type(leaves), tuple(leaves))
    return next(iter(options.values())) if len(options) == 1 else UnionReader(options)


def _flat(info: inspect.Type) -> Iterator[inspect.Type]:
    if isinstance(info, inspect.Metadata):
        yield from _flat(info.type)
    elif isinstance(info, inspect.UnionType):
        for item in info.types:
            yield from _flat(item)
    else:
        yield info
