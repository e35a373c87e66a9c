"""Tokens to nodes, by the grammar of Go's text/template (as of Go 1.24): text, actions and control structures."""

from __future__ import annotations

from collections.abc import Callable
from typing import NoReturn

from llmgallery.templates.gotmpl.lexer import Token
from llmgallery.templates.gotmpl.nodes import (
    Action,
    Block,
    Break,
    Call,
    Choice,
    Continue,
    Pipe,
    Range,
    Statement,
    Text,
    Tree,
    is_blank,
    place,
)
from llmgallery.templates.gotmpl.pipelines import MAX_NESTING, ParseFault, Reader, Scope

__all__ = ["ParseFault", "parse"]


def parse(source: str, main: str, complain: Callable[[str], str | None]) -> Tree:
    """The tree of `source`. `main` is the name under which the text itself can be called; `complain(name)` says what is wrong
    with a function's name, if anything.

    Raises ParseFault.
    """
    parser = _Parser(source, complain)
    parser.add(main, parser.document(), len(source))
    return Tree(source, main, parser.templates)


class _Parser(Reader):
    def __init__(self, source: str, complain: Callable[[str], str | None]) -> None:
        super().__init__(source, complain)
        self.templates: dict[str, Block] = {}

    def document(self) -> Block:
        """All of the source; definitions are put aside."""
        statements: list[Statement] = []
        while self.peek().kind != "eof":
            if self.is_definition():
                self.definition()
            else:
                statements.append(self.statement("the template"))
        return tuple(statements)

    def is_definition(self) -> bool:
        kinds = [token.kind for token in self.tokens[self.at : self.at + 3]]
        return kinds[:2] == ["left", "define"] or kinds == ["left", "space", "define"]

    def definition(self) -> None:
        opening = self.next()
        self.take()
        name = self.name("define clause")
        self.expect("right", "define clause")
        self.add(name, self.apart(opening, "define"), opening.pos)

    def apart(self, opening: Token, keyword: str) -> Block:
        """The body of a define or block: a template of its own, which sees no variables from outside."""
        outer, self.scope = self.scope, Scope()
        body, ended_by = self.block(opening, keyword)
        if ended_by.kind != "end":
            self.unexpected_action(ended_by, f"{{{{{keyword}}}}}")
        self.expect("right", "end")
        self.scope = outer
        return body

    def add(self, name: str, body: Block, pos: int) -> None:
        known = self.templates.get(name)
        if known is None or is_blank(known):
            self.templates[name] = body
        elif not is_blank(body):
            raise ParseFault(pos, f'multiple definition of template "{name}"')

    def block(self, opening: Token, keyword: str) -> tuple[Block, Token]:
        """Statements until an end or else, which is returned and whose keyword has been read."""
        self.nesting += 1
        if self.nesting > MAX_NESTING:
            raise ParseFault(opening.pos, f"control structures are nested too deeply (limit: {MAX_NESTING})")
        statements: list[Statement] = []
        while self.skip_space().kind != "eof":
            keyword_after = self.closing()
            if keyword_after is not None:
                self.nesting -= 1
                return tuple(statements), keyword_after
            statements.append(self.statement("input"))
        line, _ = place(self.source, opening.pos)
        message = f"unexpected end of the template: the {{{{{keyword}}}}} of line {line} has no {{{{end}}}}"
        raise ParseFault(len(self.source), message)

    def closing(self) -> Token | None:
        """The keyword of an end or else action, if that is next; then it is read up to there."""
        start = self.at
        if self.peek().kind == "left":
            self.at += 1
            if self.skip_space().kind in ("end", "else"):
                return self.next()
        self.at = start
        return None

    def statement(self, context: str) -> Statement:
        token = self.take()
        if token.kind == "text":
            return Text(token.pos, token.text)
        if token.kind != "left":
            self.unexpected(token, context)
        keyword = self.skip_space()
        controls: dict[str, Callable[[Token], Statement]] = {
            "if": self.choice,
            "with": self.choice,
            "range": self.range,
            "template": self.call,
            "block": self.block_clause,
            "break": self.leave,
            "continue": self.leave,
        }
        if keyword.kind in controls:
            return controls[keyword.kind](self.next())
        if keyword.kind in ("end", "else"):
            self.unexpected_action(keyword, context)
        return Action(keyword.pos, self.pipeline("command"))

    def unexpected_action(self, keyword: Token, context: str) -> NoReturn:
        raise ParseFault(keyword.pos, f"unexpected {{{{{keyword.text}}}}} in {context}")

    def choice(self, opening: Token) -> Choice:
        """if or with. A chain of else if is one node, so that its length is not its depth."""
        mark = len(self.scope.variables)
        arms: list[tuple[Pipe, Block]] = []
        otherwise: Block = ()
        while True:
            pipe = self.pipeline(opening.kind)
            body, ended_by = self.block(opening, opening.kind)
            arms.append((pipe, body))
            if ended_by.kind == "else" and self.skip_space().kind == opening.kind:
                self.next()
                continue
            if ended_by.kind == "else":
                otherwise = self.otherwise(opening)
            self.expect("right", "end")
            break
        del self.scope.variables[mark:]
        return Choice(opening.pos, opening.kind == "with", tuple(arms), otherwise)

    def otherwise(self, opening: Token) -> Block:
        """What follows an else, up to the end, whose keyword is read."""
        self.expect("right", "else")
        body, ended_by = self.block(opening, opening.kind)
        if ended_by.kind != "end":
            raise ParseFault(ended_by.pos, f"expected {{{{end}}}}; found another {{{{else}}}} of the same {{{{{opening.kind}}}}}")
        return body

    def range(self, opening: Token) -> Range:
        mark = len(self.scope.variables)
        pipe = self.pipeline("range")
        self.scope.ranges += 1
        body, ended_by = self.block(opening, "range")
        self.scope.ranges -= 1
        otherwise = self.otherwise(opening) if ended_by.kind == "else" else ()
        self.expect("right", "end")
        del self.scope.variables[mark:]
        return Range(opening.pos, pipe, body, otherwise)

    def leave(self, keyword: Token) -> Break | Continue:
        self.expect("right", f"{{{{{keyword.kind}}}}}")
        if not self.scope.ranges:
            raise ParseFault(keyword.pos, f"{{{{{keyword.kind}}}}} outside {{{{range}}}}")
        return Break(keyword.pos) if keyword.kind == "break" else Continue(keyword.pos)

    def call(self, keyword: Token) -> Call:
        pos = self.skip_space().pos
        name = self.name("template clause")
        if self.skip_space().kind == "right":
            self.next()
            return Call(pos, name, None)
        return Call(pos, name, self.pipeline("template clause"))

    def block_clause(self, keyword: Token) -> Call:
        pos = self.skip_space().pos
        name = self.name("block clause")
        pipe = self.pipeline("block clause")
        self.add(name, self.apart(keyword, "block"), pos)
        return Call(pos, name, pipe)

    def name(self, context: str) -> str:
        token = self.expect("string", context)
        return self.literal(token)
