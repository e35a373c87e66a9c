"""The parts of a parsed Go template. `pos` is the offset in the source where a part begins, for messages."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TypeAlias


@dataclass(frozen=True, slots=True)
class Dot:
    pos: int
    text: str = "."


@dataclass(frozen=True, slots=True)
class Nil:
    pos: int
    text: str = "nil"


@dataclass(frozen=True, slots=True)
class Bool:
    pos: int
    text: str
    value: bool


@dataclass(frozen=True, slots=True)
class String:
    """`text` is as written, `value` without quotes and escapes."""

    pos: int
    text: str
    value: str


@dataclass(frozen=True, slots=True)
class Number:
    """A constant as every type that can hold it exactly; the parameter that it is passed to chooses, else `ideal`."""

    pos: int
    text: str
    as_int: int | None = None
    as_uint: int | None = None
    as_float: float | None = None
    as_complex: complex | None = None


@dataclass(frozen=True, slots=True)
class Field:
    """.A.B"""

    pos: int
    names: tuple[str, ...]

    @property
    def text(self) -> str:
        return "".join(f".{name}" for name in self.names)


@dataclass(frozen=True, slots=True)
class Variable:
    """$x.A.B; `name` has its dollar sign."""

    pos: int
    name: str
    names: tuple[str, ...] = ()

    @property
    def text(self) -> str:
        return ".".join((self.name, *self.names))


@dataclass(frozen=True, slots=True)
class Identifier:
    """A function's name."""

    pos: int
    text: str


@dataclass(frozen=True, slots=True)
class Chain:
    """(pipeline).A.B, or function.A.B"""

    pos: int
    operand: Operand
    names: tuple[str, ...]

    @property
    def text(self) -> str:
        return self.operand.text + "".join(f".{name}" for name in self.names)


@dataclass(frozen=True, slots=True)
class Command:
    """An operand with arguments."""

    pos: int
    operands: tuple[Operand, ...]


@dataclass(frozen=True, slots=True)
class Pipe:
    """Commands, each the last argument of the next; declares (:=) or assigns (=) the named variables."""

    pos: int
    commands: tuple[Command, ...]
    variables: tuple[str, ...] = ()
    assigns: bool = False
    text: str = "(...)"


Operand: TypeAlias = Dot | Nil | Bool | String | Number | Field | Variable | Identifier | Chain | Pipe


@dataclass(frozen=True, slots=True)
class Text:
    pos: int
    text: str


@dataclass(frozen=True, slots=True)
class Action:
    pos: int
    pipe: Pipe


@dataclass(frozen=True, slots=True)
class Choice:
    """if or with, and what follows as else if or else with: the first arm whose pipeline is true."""

    pos: int
    sets_dot: bool
    arms: tuple[tuple[Pipe, Block], ...]
    otherwise: Block


@dataclass(frozen=True, slots=True)
class Range:
    pos: int
    pipe: Pipe
    body: Block
    otherwise: Block


@dataclass(frozen=True, slots=True)
class Call:
    """template NAME pipeline"""

    pos: int
    name: str
    pipe: Pipe | None


@dataclass(frozen=True, slots=True)
class Break:
    pos: int


@dataclass(frozen=True, slots=True)
class Continue:
    pos: int


Statement: TypeAlias = Text | Action | Choice | Range | Call | Break | Continue
Block: TypeAlias = tuple[Statement, ...]


@dataclass(frozen=True, slots=True)
class Tree:
    """A whole template: its own text and those that it defines, by name. `source` is what `pos` counts in."""

    source: str
    main: str
    templates: dict[str, Block]

    def place(self, pos: int) -> tuple[int, int]:
        """Line and column, from 1, of an offset."""
        return place(self.source, pos)


def place(source: str, pos: int) -> tuple[int, int]:
    return source.count("\n", 0, pos) + 1, pos - source.rfind("\n", 0, pos)


def is_blank(block: Block) -> bool:
    """Whether there is nothing but white space: such a definition gives way to another of its name."""
    return all(isinstance(statement, Text) and not statement.text.strip() for statement in block)
