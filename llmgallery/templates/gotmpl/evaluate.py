"""Walks a parsed template over data, as exec.go of Go's text/template does. Knows no function but and, or."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from llmgallery.templates.gotmpl.budget import Budget
from llmgallery.templates.gotmpl.constants import can_be_nil, constant, ideal
from llmgallery.templates.gotmpl.functions import ANY, REFLECT, Function, check_type
from llmgallery.templates.gotmpl.lookup import MISSING, Fault, field, meant, plain, sorted_keys
from llmgallery.templates.gotmpl.nodes import (
    Action,
    Block,
    Bool,
    Break,
    Call,
    Chain,
    Choice,
    Command,
    Continue,
    Dot,
    Field,
    Identifier,
    Nil,
    Number,
    Operand,
    Pipe,
    Range,
    String,
    Text,
    Tree,
    Variable,
)
from llmgallery.templates.gotmpl.printing import text
from llmgallery.templates.gotmpl.values import (
    ArgumentError,
    GoError,
    Object,
    TypedNil,
    is_int,
    kind,
    truth,
    type_name,
)

_NOTHING = object()  # no value came through the pipeline


class _Leave(Exception):
    """A break or continue on its way to its range."""

    def __init__(self, ends: bool) -> None:
        super().__init__()
        self.ends = ends


class Run:
    """One render. `pos` is the offset of the part that is at work, for errors that know no place."""

    def __init__(self, tree: Tree, functions: Mapping[str, Function], budget: Budget) -> None:
        self.tree = tree
        self.functions = functions
        self.budget = budget
        self.pos = 0
        self.out: list[str] = []
        self.variables: list[tuple[str, Any]] = []

    def render(self, data: Any) -> str:
        """The template's text over `data`. Raises Fault, TemplateError, and what functions raise."""
        self._template(self.tree.templates[self.tree.main], MISSING if data is None else data)
        return "".join(self.out)

    def _template(self, body: Block, dot: Any) -> None:
        outer, self.variables = self.variables, [("$", dot)]
        self._walk(body, dot)
        self.variables = outer

    # Statements

    def _walk(self, block: Block, dot: Any) -> None:
        for statement in block:
            self.budget.step()
            self.pos = statement.pos
            self._statements[type(statement)](self, statement, dot)

    def _write(self, written: str) -> None:
        self.budget.write(len(written))
        self.out.append(written)

    def _text(self, node: Text, dot: Any) -> None:
        self._write(node.text)

    def _action(self, node: Action, dot: Any) -> None:
        value = self._pipeline(node.pipe, dot)
        if node.pipe.variables:
            return
        self.pos = node.pos
        shown = plain(value)
        if kind(shown) == "func":
            raise Fault(node.pos, f"can't print a value of type {type_name(shown)}")
        self._write(text(shown))

    def _choice(self, node: Choice, dot: Any) -> None:
        mark = len(self.variables)
        for pipe, body in node.arms:
            value = self._pipeline(pipe, dot)
            if truth(plain(value)):
                self._walk(body, value if node.sets_dot else dot)
                break
        else:
            self._walk(node.otherwise, dot)
        del self.variables[mark:]

    def _range(self, node: Range, dot: Any) -> None:
        mark = len(self.variables)
        pairs = self._pairs(node, plain(self._pipeline(node.pipe, dot)))
        inner = len(self.variables)
        empty = True
        for index, element in pairs:
            empty = False
            self.budget.step()
            self._iterate(node.pipe, index, element)
            try:
                self._walk(node.body, element)
            except _Leave as leave:
                if leave.ends:
                    break
            finally:
                del self.variables[inner:]
        if empty:
            self._walk(node.otherwise, dot)
        del self.variables[mark:]

    def _pairs(self, node: Range, value: Any) -> Iterable[tuple[Any, Any]]:
        """Index and element of everything in `value`, which is copied: the body may change it."""
        if isinstance(value, list | tuple):
            self.budget.items(len(value))
            return enumerate(tuple(value))
        if isinstance(value, dict):
            self.budget.items(len(value))
            return [(key, value[key]) for key in sorted_keys(value)]
        if is_int(value):
            if len(node.pipe.variables) > 1:
                raise Fault(self.pos, f"can't use {text(value)} to iterate over more than one variable")
            return ((MISSING, type(value)(number)) for number in range(value))
        if value is None or (isinstance(value, TypedNil) and not value.type_name.startswith("*")):
            return ()
        raise Fault(self.pos, f"range can't iterate over {text(value)}, a value of type {type_name(value)}")

    def _iterate(self, pipe: Pipe, index: Any, element: Any) -> None:
        """Sets the variables of one round: the last is the element, one before it the index."""
        values = (index, element)[-len(pipe.variables) :] if pipe.variables else ()
        for back, (name, value) in enumerate(reversed(tuple(zip(pipe.variables, values, strict=True))), 1):
            if pipe.assigns:
                self._assign(name, value, pipe.pos)
            else:
                self.variables[-back] = (name, value)

    def _call_template(self, node: Call, dot: Any) -> None:
        body = self.tree.templates.get(node.name)
        if body is None:
            raise Fault(node.pos, f'template "{node.name}" not defined{meant(node.name, self.tree.templates)}')
        value = MISSING if node.pipe is None else self._pipeline(node.pipe, dot)
        with self.budget.call():
            self._template(body, value)

    def _break(self, node: Break, dot: Any) -> None:
        raise _Leave(ends=True)

    def _continue(self, node: Continue, dot: Any) -> None:
        raise _Leave(ends=False)

    # Pipelines

    def _pipeline(self, pipe: Pipe, dot: Any) -> Any:
        value: Any = _NOTHING
        for command in pipe.commands:
            value = self._command(command, dot, value)
            if value is None:
                value = MISSING
        for name in pipe.variables:
            if pipe.assigns:
                self._assign(name, value, pipe.pos)
            else:
                self.variables.append((name, value))
        return value

    def _assign(self, name: str, value: Any, pos: int) -> None:
        for index in range(len(self.variables) - 1, -1, -1):
            if self.variables[index][0] == name:
                self.variables[index] = (name, value)
                return
        raise Fault(pos, f"undefined variable: {name} (:= declares one)")

    def _lookup(self, node: Variable) -> Any:
        for name, value in reversed(self.variables):
            if name == node.name:
                return value
        raise Fault(node.pos, f"undefined variable: {node.name}")

    def _command(self, command: Command, dot: Any, final: Any) -> Any:
        self.budget.step()
        first, arguments = command.operands[0], command.operands[1:]
        self.pos = first.pos
        if isinstance(first, Identifier):
            return self._function(first, arguments, dot, final)
        if isinstance(first, Field | Chain) or (isinstance(first, Variable) and first.names):
            return self._fields(first, arguments, dot, final)
        if arguments or final is not _NOTHING:
            raise Fault(first.pos, f"can't give argument to non-function {first.text}")
        if isinstance(first, Nil):
            raise Fault(first.pos, "nil is not a command")
        return self._operand(first, dot)

    def _operand(self, node: Operand, dot: Any) -> Any:
        """The value of an operand alone."""
        self.budget.step()
        self.pos = node.pos
        if isinstance(node, Dot):
            return dot
        if isinstance(node, String | Bool):
            return node.value
        if isinstance(node, Number):
            return ideal(node)
        if isinstance(node, Pipe):
            return self._pipeline(node, dot)
        if isinstance(node, Identifier):
            return self._function(node, (), dot, _NOTHING)
        if isinstance(node, Nil):
            return None
        return self._fields(node, (), dot, _NOTHING)

    # Fields

    def _fields(self, node: Field | Variable | Chain, arguments: Sequence[Operand], dot: Any, final: Any) -> Any:
        """A chain of fields. Only the last may be a method with arguments."""
        self.pos = node.pos
        if isinstance(node, Field):
            value = dot
        elif isinstance(node, Variable):
            value = self._lookup(node)
        else:
            value = self._operand(node.operand, dot)
        for place, name in enumerate(node.names, 1):
            self.budget.step()
            last = place == len(node.names)
            if isinstance(value, Object):
                value = self._method(node, value, name, arguments if last else (), dot, final if last else _NOTHING)
                continue
            value = field(self.pos, value, name)
            if last and (arguments or final is not _NOTHING):
                raise Fault(node.pos, f"{name} has arguments but cannot be invoked as function")
        return value

    def _method(self, node: Operand, value: Object, name: str, arguments: Sequence[Operand], dot: Any, final: Any) -> Any:
        method = value.methods().get(name)
        if method is None:
            hint = meant(name, value.methods())
            raise Fault(node.pos, f"can't evaluate field {name} in type {type_name(value)}{hint}")
        return self._invoke(node, name, method, arguments, dot, final)

    # Functions

    def _function(self, node: Identifier, arguments: Sequence[Operand], dot: Any, final: Any) -> Any:
        if node.text in ("and", "or"):
            return self._short_circuit(node, arguments, dot, final)
        return self._invoke(node, node.text, self.functions[node.text], arguments, dot, final)

    def _short_circuit(self, node: Identifier, arguments: Sequence[Operand], dot: Any, final: Any) -> Any:
        """The first argument that decides, else the last; those after it are not evaluated."""
        if not arguments and final is _NOTHING:
            raise Fault(node.pos, f"wrong number of args for {node.text}: want at least 1 got 0")
        value: Any = MISSING
        for argument in arguments:
            value = self._argument(argument, REFLECT, dot)
            if truth(plain(value)) == (node.text == "or"):
                return value
        return value if final is _NOTHING else final

    def _invoke(
        self, node: Operand, name: str, function: Callable[..., Any], arguments: Sequence[Operand], dot: Any, final: Any
    ) -> Any:
        count = len(arguments) + (final is not _NOTHING)
        try:
            if isinstance(function, Function):
                function.check_count(count)
            values = [self._argument(each, _parameter(function, index), dot) for index, each in enumerate(arguments)]
            self.pos = node.pos
            values = [plain(value) for value in (values if final is _NOTHING else [*values, final])]
            return function(*values)
        except ArgumentError as error:
            raise Fault(self.pos, error.message) from error
        except GoError as error:
            raise Fault(node.pos, f"error calling {name}: {error.message}") from error

    def _argument(self, node: Operand, wanted: str, dot: Any) -> Any:
        """The value of an argument. Constants become what the parameter wants; other values must be that already."""
        if isinstance(node, Nil):
            if not can_be_nil(wanted):
                raise Fault(node.pos, f"cannot assign nil to {wanted}")
            return None
        if isinstance(node, Bool | String | Number) and wanted not in (ANY, REFLECT):
            return constant(node, wanted)
        value = self._operand(node, dot)
        self.pos = node.pos
        try:
            check_type(plain(value), wanted)
        except ArgumentError as error:
            hint = f": {node.text} is missing or null" if plain(value) is None else ""
            raise Fault(node.pos, error.message + hint) from error
        return value

    _statements: Mapping[type, Callable[[Run, Any, Any], None]] = {
        Text: _text,
        Action: _action,
        Choice: _choice,
        Range: _range,
        Call: _call_template,
        Break: _break,
        Continue: _continue,
    }


def _parameter(function: Callable[..., Any], index: int) -> str:
    wanted = function.parameter(index) if isinstance(function, Function) else None
    return wanted or ANY
