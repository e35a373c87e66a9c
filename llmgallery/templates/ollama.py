"""Ollama's TEMPLATE: a Go template over a conversation, in the two ways in which Ollama executes one.

Source: template/template.go of https://github.com/ollama/ollama.
"""

from __future__ import annotations

import datetime
import functools
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from llmgallery.core.errors import TemplateError
from llmgallery.templates.gotmpl import GoTemplate
from llmgallery.templates.gotmpl.builtins import FUNCTIONS
from llmgallery.templates.gotmpl.encode import encode
from llmgallery.templates.gotmpl.functions import Library
from llmgallery.templates.gotmpl.nodes import (
    Action,
    Block,
    Call,
    Choice,
    Command,
    Field,
    Operand,
    Pipe,
    Range,
    Statement,
    Tree,
    Variable,
    place,
)
from llmgallery.templates.gotmpl.parser import ParseFault, parse
from llmgallery.templates.gotmpl.values import Field as Named
from llmgallery.templates.gotmpl.values import Object, Struct
from llmgallery.templates.problem import Problem, told

MAX_SOURCE = 100_000
_MAIN = ""
_OWN = Library()


@_OWN.add("json", "any", deep=True)
def _json(value: Any) -> str:
    return encode(value)


@_OWN.add("currentDate", "string...")
def _today(*formats: str) -> str:
    return datetime.date.today().isoformat()


@_OWN.add("yesterdayDate", "string...")
def _yesterday(*formats: str) -> str:
    return (datetime.date.today() - datetime.timedelta(days=1)).isoformat()


_FUNCTIONS = {**FUNCTIONS, **_OWN}


class JsonMap(Object, dict[str, Any]):
    """A map that prints as JSON: the arguments of a call, a tool's properties."""

    go_type = "map[string]interface {}"
    go_kind = "map"

    def text(self) -> str:
        return encode(dict(self))

    def json(self) -> str:
        return encode(dict(self))


class JsonList(Object, list[Any]):
    """A slice that prints as JSON: the tools."""

    go_type = "[]interface {}"
    go_kind = "slice"

    def text(self) -> str:
        return encode(list(self))

    def json(self) -> str:
        return encode(list(self))


class JsonStruct(Object):
    """A struct that prints as JSON: a tool, and what it is made of."""

    go_type = "api.Tool"

    def __init__(self, fields: Sequence[Named]) -> None:
        self._struct = Struct(self.go_type, tuple(fields))

    def methods(self) -> Mapping[str, Callable[..., Any]]:
        return {field.name: functools.partial(_value, field) for field in self._struct.fields}

    def text(self) -> str:
        return encode(self._struct)

    def json(self) -> str:
        return encode(self._struct)


def _value(field: Named) -> Any:
    return field.value


@dataclass(frozen=True)
class OllamaTemplate:
    """A parsed template. `reads_messages`: it writes a whole conversation from .Messages; else it writes a turn at a time, from
    .System, .Prompt and .Response. `turn` and `last` are for the latter: last ends where the response begins."""

    turn: GoTemplate
    last: GoTemplate
    reads_messages: bool


def compile_ollama(source: str, name: str = "template") -> OllamaTemplate:
    """The template of `source`, parsed once for the last 64 texts. Raises TemplateError, "NAME, line L, column C: ..."."""
    found = _parsed(source)
    if isinstance(found, Problem):
        raise TemplateError(f"{name}, line {found.line}, column {found.column}: {found.message}")
    names = {part.lower() for block in found.templates.values() for part in _names(block)}
    reads_messages = "messages" in names
    main = found.templates[_MAIN]
    if not reads_messages and "response" not in names:
        field = Field(len(source), ("Response",))
        main = (*main, Action(len(source), Pipe(len(source), (Command(len(source), (field,)),))))
    cut, _ = _to_response(main)
    turn, last = (replace(found, templates={**found.templates, _MAIN: block}) for block in (main, cut))
    return OllamaTemplate(GoTemplate(turn, name, _FUNCTIONS), GoTemplate(last, name, _FUNCTIONS), reads_messages)


def check_ollama(source: str) -> Problem | None:
    """What keeps `source` from being a template, or None."""
    found = _parsed(source)
    return found if isinstance(found, Problem) else None


@functools.lru_cache(maxsize=64)
def _parsed(source: str) -> Tree | Problem:
    if len(source) > MAX_SOURCE:
        return Problem(1, 1, f"the template is too long: {len(source)} characters (limit: {MAX_SOURCE})")
    try:
        return parse(source, _MAIN, lambda name: None if name in _FUNCTIONS or name in ("and", "or") else _unknown(name))
    except ParseFault as fault:
        return Problem(*place(source, fault.pos), told(fault.message))
    except RecursionError:
        return Problem(1, 1, "the template is nested too deeply")


def _unknown(name: str) -> str:
    return f'function "{name}" not defined'


def _names(block: Block) -> Iterator[str]:
    """All names of fields and variables in it."""
    for statement in block:
        for pipe in _pipes(statement):
            yield from _in_pipe(pipe)
        for inner in _blocks(statement):
            yield from _names(inner)


def _pipes(statement: Statement) -> tuple[Pipe, ...]:
    if isinstance(statement, Action | Range):
        return (statement.pipe,)
    if isinstance(statement, Choice):
        return tuple(pipe for pipe, _ in statement.arms)
    return (statement.pipe,) if isinstance(statement, Call) and statement.pipe is not None else ()


def _blocks(statement: Statement) -> tuple[Block, ...]:
    if isinstance(statement, Choice):
        return (*(block for _, block in statement.arms), statement.otherwise)
    return (statement.body, statement.otherwise) if isinstance(statement, Range) else ()


def _in_pipe(pipe: Pipe) -> Iterator[str]:
    for command in pipe.commands:
        for operand in command.operands:
            yield from _in_operand(operand)


def _in_operand(operand: Operand) -> Iterator[str]:
    if isinstance(operand, Field | Variable):
        yield from operand.names
    elif isinstance(operand, Pipe):
        yield from _in_pipe(operand)


def _to_response(block: Block) -> tuple[Block, bool]:
    """What stands before the end of the first {{ .Response }}, and whether there is one."""
    kept: list[Statement] = []
    for statement in block:
        statement, ends = _cut(statement)
        kept.append(statement)
        if ends:
            return tuple(kept), True
    return tuple(kept), False


def _cut(statement: Statement) -> tuple[Statement, bool]:
    if isinstance(statement, Action):
        return statement, "Response" in _in_pipe(statement.pipe)
    if isinstance(statement, Range):
        body, ends = _to_response(statement.body)
        otherwise, also = ((), False) if ends else _to_response(statement.otherwise)
        return replace(statement, body=body, otherwise=otherwise), ends or also
    if not isinstance(statement, Choice):
        return statement, False
    ends = False
    blocks: list[Block] = []
    for block in (*(block for _, block in statement.arms), statement.otherwise):
        inner, found = ((), False) if ends else _to_response(block)
        blocks.append(inner)
        ends = ends or found
    arms = tuple((pipe, inner) for (pipe, _), inner in zip(statement.arms, blocks[:-1], strict=True))
    return replace(statement, arms=arms, otherwise=blocks[-1]), ends
