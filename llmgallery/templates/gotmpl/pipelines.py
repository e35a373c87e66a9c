"""Tokens to pipelines: declarations, commands, operands, by the grammar of Go's text/template (as of Go 1.24)."""

from __future__ import annotations

from collections.abc import Callable
from typing import ClassVar, NoReturn

from llmgallery.templates.gotmpl.lexer import Token, lex
from llmgallery.templates.gotmpl.literals import LiteralError, number, unquote
from llmgallery.templates.gotmpl.nodes import (
    Bool,
    Chain,
    Command,
    Dot,
    Field,
    Identifier,
    Nil,
    Number,
    Operand,
    Pipe,
    String,
    Variable,
)

MAX_NESTING = 60
_NAMED = frozenset({"identifier", "field", "variable", "bool", "number", "complex", "rune", "text"})
_OPERANDS = frozenset(
    {"bool", "rune", "complex", ".", "field", "identifier", "number", "nil", "string", "variable", "("},
)


class ParseFault(Exception):
    """The source is no template. `pos` is the offset where that shows."""

    def __init__(self, pos: int, message: str) -> None:
        super().__init__(message)
        self.pos = pos
        self.message = message


class Scope:
    """What is known while one template's text is read."""

    def __init__(self) -> None:
        self.variables = ["$"]
        self.ranges = 0


class Reader:
    """Reads tokens and pipelines."""

    def __init__(self, source: str, complain: Callable[[str], str | None]) -> None:
        self.source = source
        self.complain = complain
        self.tokens = lex(source)
        self.at = 0
        self.scope = Scope()
        self.nesting = 0

    # Tokens

    def next(self) -> Token:
        token = self.tokens[self.at]
        if token.kind == "error":
            raise ParseFault(token.pos, token.text)
        if token.kind != "eof":
            self.at += 1
        return token

    def peek(self) -> Token:
        return self.tokens[self.at]

    def skip_space(self) -> Token:
        """The next token that is no white space, without taking it."""
        while self.peek().kind == "space":
            self.at += 1
        return self.peek()

    def take(self) -> Token:
        self.skip_space()
        return self.next()

    def expect(self, kind: str, context: str) -> Token:
        token = self.take()
        if token.kind != kind:
            self.unexpected(token, context)
        return token

    def unexpected(self, token: Token, context: str) -> NoReturn:
        if token.kind == "error":
            raise ParseFault(token.pos, token.text)
        raise ParseFault(token.pos, f"unexpected {_shown(token)} in {context}")

    # Pipelines

    def pipeline(self, context: str, end: str = "right") -> Pipe:
        """Up to and including its `end`."""
        pos = self.skip_space().pos
        variables, assigns = self.declarations(context)
        commands: list[Command] = []
        while True:
            token = self.skip_space()
            if token.kind == end:
                self.next()
                break
            if token.kind not in _OPERANDS:
                self.unexpected(token, context)
            commands.append(self.command())
        self.check_commands(commands, context, pos)
        return Pipe(pos, tuple(commands), variables, assigns)

    def declarations(self, context: str) -> tuple[tuple[str, ...], bool]:
        """$x := or $x = or, in a range, $i, $e := at the head of a pipeline."""
        names: list[str] = []
        while self.skip_space().kind == "variable":
            start, variable = self.at, self.next()
            sign = self.skip_space()
            if sign.kind not in (":=", "=", ","):
                self.at = start
                break
            self.next()
            names.append(variable.text)
            self.scope.variables.append(variable.text)
            if sign.kind != ",":
                return tuple(names), sign.kind == "="
            if context != "range" or len(names) > 1:
                raise ParseFault(variable.pos, f"too many declarations in {context}")
            if self.skip_space().kind not in ("variable", "right", ")"):
                raise ParseFault(self.peek().pos, "range can only initialize variables")
        return tuple(names), False

    def check_commands(self, commands: list[Command], context: str, pos: int) -> None:
        if not commands:
            raise ParseFault(pos, f"missing value for {context}")
        for stage, command in enumerate(commands[1:], 2):
            if isinstance(command.operands[0], Bool | Dot | Nil | Number | String):
                raise ParseFault(command.pos, f"non executable command in pipeline stage {stage}: it is no function")

    def command(self) -> Command:
        """Operands with spaces between, up to a | (which is taken) or the end of the pipeline (which is not)."""
        pos = self.skip_space().pos
        operands: list[Operand] = []
        while True:
            operand = self.operand()
            if operand is not None:
                operands.append(operand)
            token = self.peek()
            if token.kind == "space":
                self.next()
                continue
            if token.kind == "|":
                self.next()
            elif token.kind not in ("right", ")"):
                self.unexpected(token, "operand")
            break
        if not operands:
            raise ParseFault(pos, "empty command")
        return Command(pos, tuple(operands))

    def operand(self) -> Operand | None:
        """A term and the fields that follow it without a space."""
        term = self.term()
        names = []
        while term is not None and self.peek().kind == "field":
            names.append(self.next().text[1:])
        if term is None or not names:
            return term
        if isinstance(term, Field):
            return Field(term.pos, (*term.names, *names))
        if isinstance(term, Variable):
            return Variable(term.pos, term.name, tuple(names))
        if isinstance(term, Identifier | Pipe):
            return Chain(term.pos, term, tuple(names))
        raise ParseFault(term.pos, f"unexpected . after term {term.text}")

    def term(self) -> Operand | None:
        token = self.skip_space()
        made = self.terms.get(token.kind)
        if made is None:
            return None
        self.next()
        return made(self, token)

    def function(self, token: Token) -> Operand:
        complaint = self.complain(token.text)
        if complaint:
            raise ParseFault(token.pos, complaint)
        return Identifier(token.pos, token.text)

    def variable(self, token: Token) -> Operand:
        if token.text not in self.scope.variables:
            raise ParseFault(token.pos, f'undefined variable "{token.text}"')
        return Variable(token.pos, token.text)

    def constant(self, token: Token) -> Operand:
        try:
            return number(token.text, token.kind, token.pos)
        except LiteralError as error:
            raise ParseFault(token.pos, str(error)) from error

    def literal(self, token: Token) -> str:
        try:
            return unquote(token.text)
        except LiteralError as error:
            raise ParseFault(token.pos, str(error)) from error

    def string(self, token: Token) -> Operand:
        return String(token.pos, token.text, self.literal(token))

    def parenthesised(self, token: Token) -> Operand:
        self.nesting += 1
        if self.nesting > MAX_NESTING:
            raise ParseFault(token.pos, f"parentheses are nested too deeply (limit: {MAX_NESTING})")
        pipe = self.pipeline("parenthesized pipeline", ")")
        self.nesting -= 1
        return pipe

    terms: ClassVar[dict[str, Callable[[Reader, Token], Operand]]] = {
        "identifier": function,
        "variable": variable,
        "number": constant,
        "complex": constant,
        "rune": constant,
        "string": string,
        "(": parenthesised,
        ".": lambda _, token: Dot(token.pos),
        "nil": lambda _, token: Nil(token.pos),
        "bool": lambda _, token: Bool(token.pos, token.text, token.text == "true"),
        "field": lambda _, token: Field(token.pos, (token.text[1:],)),
    }


def _shown(token: Token) -> str:
    if token.kind == "string":
        return token.text
    if token.kind in _NAMED:
        return f'"{token.text[:10]}..."' if len(token.text) > 12 else f'"{token.text}"'
    if token.kind == "eof":
        return "end of the template"
    return {"left": '"{{"', "right": '"}}"', "space": "space"}.get(token.kind, f'"{token.text}"')
