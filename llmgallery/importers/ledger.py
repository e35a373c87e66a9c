"""A source with places: every key that is read is ticked off, and what nobody read is told with file, line and column."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from yaml.nodes import MappingNode, Node, ScalarNode, SequenceNode

from llmgallery.config.nodes import MAX_BYTES, Unreadable, bool_word, compose, kind, place
from llmgallery.config.problems import Problem, as_error
from llmgallery.config.readers import FAILED, AnyReader, Reading, entries, is_null
from llmgallery.config.regular import open_regular
from llmgallery.core.errors import ConfigError

_ANY = AnyReader()
_EXPECTED = {
    int: "a whole number",
    float: "a number",
    bool: "true or false",
    str: "text",
    list: "a list of texts",
    dict: "a mapping",
}
UNREAD = "has no counterpart here: not imported"


@dataclass
class Ledger:
    """What is wrong with one source, and what of it nobody read. `left`: dotted key -> value of what was not imported."""

    path: Path | str
    warnings: list[Problem] = field(default_factory=list)
    left: dict[str, Any] = field(default_factory=dict)
    _tables: list[Table] = field(default_factory=list)

    def warn(self, node: Node | None, key: str, message: str, suggestion: str = "") -> None:
        """Note what is not imported as it is written. `node` None = the source as a whole."""
        at = place(node) if node is not None else (0, 0)
        self.warnings.append(Problem(self.path, *at, key, message, suggestion))

    def table(self, node: Node, key: str = "", *, folded: bool = False) -> Table:
        """A mapping to read from. `folded`: capitals and underscores of its keys do not count. Raises ConfigError for what is no
        mapping."""
        if not isinstance(node, MappingNode):
            raise as_error([Problem(self.path, *place(node), key, f"expected a mapping, found {kind(node)}")], str(self.path))
        table = Table(self, node, key, folded)
        self._tables.append(table)
        return table

    def leave(self, node: Node, key: str, message: str = UNREAD, suggestion: str = "") -> None:
        """Note a key that is not imported, with its value."""
        self.left[key] = self.plain(node, key)
        self.warn(node, key, message, suggestion)

    def plain(self, node: Node, key: str) -> Any:
        """Whatever stands there, as plain data. Raises ConfigError for what aliases make too large."""
        reading = Reading(self.path, lambda name, parent: "")
        value = _ANY.read(node, key, reading)
        if reading.overrun:
            raise as_error(reading.problems, str(self.path))
        self.warnings += [replace(problem, key=problem.key.lstrip(".")) for problem in reading.problems]
        return None if value is FAILED else value

    def close(self) -> tuple[Problem, ...]:
        """All warnings in the source's order, those about unread keys among them."""
        for table in self._tables:
            table.close()
        self._tables.clear()
        return tuple(sorted(self.warnings, key=lambda problem: (problem.line, problem.column)))


class Table:
    """A mapping of a source. Each reader ticks the key off; a value of another kind is noted and counts as not written."""

    def __init__(self, ledger: Ledger, node: MappingNode, key: str, folded: bool) -> None:
        self.ledger, self.node, self.key, self.folded = ledger, node, key, folded
        reading = Reading(ledger.path, lambda name, parent: "")
        self._found: dict[str, tuple[str, Node, Node]] = {}
        for name, key_node, value_node in entries(node, key, reading):
            first = self._found.setdefault(self._fold(name), (name, key_node, value_node))
            if first[1] is not key_node:
                line = place(first[1])[0]
                ledger.leave(value_node, self.path(name), f"means the same as the key in line {line}: not imported")
        ledger.warnings += reading.problems
        self._read: set[str] = set()

    def __contains__(self, name: str) -> bool:
        return self._fold(name) in self._found

    def __iter__(self) -> Iterator[str]:
        """The keys as they are written."""
        return (name for name, _, _ in self._found.values())

    def path(self, name: str) -> str:
        """The dotted key, as it is written."""
        written = self._found[self._fold(name)][0] if name in self else name
        return f"{self.key}.{written}" if self.key else written

    def place(self, name: str) -> Node | None:
        """Where the key stands, for messages; None = it does not."""
        found = self._found.get(self._fold(name))
        return found[1] if found else None

    def node_of(self, name: str) -> Node | None:
        """The value's node; ticks the key off. None = not written, or nothing stands there."""
        found = self._found.get(self._fold(name))
        self._read.add(self._fold(name))
        return None if found is None or is_null(found[2]) else found[2]

    def table(self, name: str, *, folded: bool | None = None) -> Table | None:
        """A mapping below; `folded`: else as this one."""
        node = self.node_of(name)
        if node is None:
            return None
        if not isinstance(node, MappingNode):
            self._wrong(name, dict, node)
            return None
        return self.ledger.table(node, self.path(name), folded=self.folded if folded is None else folded)

    def get(self, name: str, wanted: type) -> Any:
        """The value as int, float, bool, str or list (of texts); None = not written, or not of that kind, which is noted."""
        node = self.node_of(name)
        if node is None:
            return None
        value = self._as(node, name, wanted)
        if value is FAILED:
            self._wrong(name, wanted, node)
            return None
        return value

    def plain(self, name: str) -> Any:
        """Whatever stands there."""
        node = self.node_of(name)
        return None if node is None else self.ledger.plain(node, self.path(name))

    def leave(self, name: str, message: str = UNREAD, suggestion: str = "") -> None:
        """Tick the key off, and note that it is not imported."""
        node = self.node_of(name)
        if node is not None:
            self.ledger.leave(node, self.path(name), message, suggestion)

    def warn(self, name: str, message: str, suggestion: str = "") -> None:
        """Note something about a key."""
        self.ledger.warn(self.place(name), self.path(name), message, suggestion)

    def unread(self) -> list[str]:
        """The keys that nobody has read yet, as they are written."""
        return [written for name, (written, _, _) in self._found.items() if name not in self._read]

    def close(self) -> None:
        """Note all keys that nobody read. Empty ones say nothing."""
        for name, (written, key_node, value_node) in self._found.items():
            if name not in self._read and not is_null(value_node):
                key = self.path(written)
                self.ledger.left[key] = self.ledger.plain(value_node, key)
                self.ledger.warn(key_node, key, UNREAD)

    def _as(self, node: Node, name: str, wanted: type) -> Any:
        if wanted is list:
            items = node.value if isinstance(node, SequenceNode) else [node]
            good = all(isinstance(item, ScalarNode) and not is_null(item) for item in items)
            return [str(item.value) for item in items] if good else FAILED
        if not isinstance(node, ScalarNode):
            return FAILED
        if wanted is str:
            return str(node.value)
        value = self.ledger.plain(node, self.path(name))
        if wanted is bool:
            return value if isinstance(value, bool) else FAILED if (word := bool_word(node)) is None else word
        if isinstance(value, bool) or not isinstance(value, (int, float)):
            return FAILED
        if wanted is int:
            return int(value) if float(value).is_integer() else FAILED
        return value

    def _wrong(self, name: str, wanted: type, node: Node) -> None:
        message = f"expected {_EXPECTED.get(wanted, 'a value')}, found {kind(node)}: not imported"
        self.ledger.leave(node, self.path(name), message)

    def _fold(self, name: str) -> str:
        return name.lower().replace("_", "") if self.folded else name


def read_yaml(path: Path, data: bytes | None = None) -> Node | None:
    """The root of a YAML or JSON file; None = nothing but comments. Raises ConfigError."""
    try:
        return compose(read_source(path) if data is None else data, path)
    except Unreadable as error:
        raise as_error([error.problem], str(path)) from error


def read_source(path: Path, limit: int = MAX_BYTES) -> bytes:
    """All of a file of at most `limit` bytes. Raises ConfigError, also for what is no file: a FIFO would block its reader."""
    try:
        with open_regular(path) as file:
            data = file.read(limit + 1)
    except (OSError, ValueError) as error:
        raise ConfigError(f"{path} cannot be read: {getattr(error, 'strerror', None) or error}") from error
    if len(data) > limit:
        raise ConfigError(f"{path} cannot be read: it is too large; at most {limit:,} bytes are read")
    return data


def keys_of(path: Path, limit: int = 1024 * 1024) -> frozenset[str]:
    """The top-level keys of a YAML or JSON file, for recognising it; none where it cannot be read."""
    try:
        with open_regular(path) as file:
            root = compose(file.read(limit + 1), path)
    except (OSError, Unreadable):
        return frozenset()
    if not isinstance(root, MappingNode):
        return frozenset()
    return frozenset(key.value for key, _ in root.value if isinstance(key, ScalarNode))
