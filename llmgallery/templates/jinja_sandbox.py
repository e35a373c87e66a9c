"""The environment that chat templates run in: Jinja's immutable sandbox, with every road of a template leading past the Guard."""

from __future__ import annotations

import functools
import types
from collections.abc import Callable, Iterable, Iterator, Sized
from datetime import datetime
from typing import Any

from jinja2 import Undefined, nodes, pass_context
from jinja2.exceptions import SecurityError, TemplateSyntaxError
from jinja2.ext import Extension, LoopControlExtension
from jinja2.parser import Parser
from jinja2.runtime import BlockReference, Context, LoopContext, Macro
from jinja2.sandbox import ImmutableSandboxedEnvironment, safe_range
from jinja2.utils import Cycler, Joiner, Namespace
from jinja2.visitor import NodeTransformer

from llmgallery.core.errors import TemplateError
from llmgallery.templates import jinja_values as values
from llmgallery.templates.jinja_guard import current

NODES_A_STEP = 8

_TEXT_METHODS = """capitalize casefold center count endswith find format format_map index isalnum isalpha isascii
isdecimal isdigit isidentifier islower isnumeric isprintable isspace istitle isupper join ljust lower lstrip partition
removeprefix removesuffix replace rfind rindex rjust rpartition rsplit rstrip split splitlines startswith strip swapcase
title upper zfill"""
_LOOP_ATTRIBUTES = """index index0 revindex revindex0 first last length depth depth0 previtem nextitem cycle
changed"""
_READABLE: tuple[tuple[type, frozenset[str]], ...] = (
    (str, frozenset(_TEXT_METHODS.split())),
    (dict, frozenset({"copy", "get", "items", "keys", "values"})),
    (list, frozenset({"copy", "count", "index"})),
    (tuple, frozenset({"count", "index"})),
    (range, frozenset({"start", "stop", "step"})),
    (float, frozenset({"is_integer"})),
    (LoopContext, frozenset(_LOOP_ATTRIBUTES.split())),
    (Cycler, frozenset({"current", "next", "reset"})),
    (BlockReference, frozenset({"super"})),
    (Macro, frozenset({"name", "arguments", "catch_kwargs", "catch_varargs", "caller"})),
)
"""What a template may read of which type, beside the data's own keys."""

_COMPARING = "in == eq equalto != ne > gt greaterthan >= ge < lt lessthan <= le upper lower"
_DEEP_TESTS = frozenset(_COMPARING.split())


class GenerationBlock(Extension):
    """`{% generation %}...{% endgeneration %}`: marks what the assistant said, for training. Here it renders its content."""

    tags = {"generation"}  # noqa: RUF012  (declared so by jinja2.ext.Extension)

    def parse(self, parser: Parser) -> nodes.Node:
        line = next(parser.stream).lineno
        return nodes.Scope(parser.parse_statements(("name:endgeneration",), drop_needle=True), lineno=line)


class Charge(NodeTransformer):
    """Puts the Guard's filters, whose names no template can spell, wherever generated code would work unseen."""

    def visit_For(self, node: nodes.For) -> nodes.Node:
        cost = _cost(node)
        self.generic_visit(node)
        node.iter = _charged(node.iter, "@items", nodes.Const(cost))
        if node.recursive:
            node.body.insert(0, _tick(node, cost))
        return node

    def _body(self, node: Any) -> nodes.Node:
        cost = _cost(node)
        self.generic_visit(node)
        node.body.insert(0, _tick(node, cost))
        return node  # type: ignore[no-any-return]

    visit_Macro = visit_CallBlock = visit_Block = _body

    def visit_Compare(self, node: nodes.Compare) -> nodes.Node:
        self.generic_visit(node)
        node.expr = _compared_node(node.expr)
        for operand in node.ops:
            operand.expr = _compared_node(operand.expr)
        return node

    def visit_Concat(self, node: nodes.Concat) -> nodes.Node:
        self.generic_visit(node)
        return _charged(nodes.Tuple(node.nodes, "load", lineno=node.lineno), "@concat")

    def visit_Pair(self, node: nodes.Pair) -> nodes.Node:
        self.generic_visit(node)
        node.key = _compared_node(node.key)
        return node

    def visit_Getitem(self, node: nodes.Getitem) -> nodes.Node:
        self.generic_visit(node)
        if not isinstance(node.arg, nodes.Slice):
            return node
        ends = (node.arg.start, node.arg.stop, node.arg.step)
        return _charged(node.node, "@cut", *(end or nodes.Const(None) for end in ends))

    def visit_ScopedEvalContextModifier(self, node: nodes.Node) -> nodes.Node:
        raise TemplateSyntaxError("'autoescape' has no place in a chat template", node.lineno)


def _cost(node: nodes.Node) -> int:
    return 1 + sum(1 for _ in node.find_all(nodes.Node)) // NODES_A_STEP


def _charged(node: Any, name: str, *args: nodes.Expr) -> nodes.Expr:
    return nodes.Filter(node, name, list(args), [], None, None, lineno=node.lineno)


def _compared_node(node: nodes.Expr) -> nodes.Expr:
    return node if isinstance(node, nodes.Const) else _charged(node, "@compared")


def _tick(node: nodes.Node, cost: int) -> nodes.Node:
    return nodes.ExprStmt(nodes.Filter(nodes.Const(cost), "@tick", [], [], None, None), lineno=node.lineno)


def _compared(value: Any) -> Any:
    current().heavy(value)
    return value


def _tick_filter(cost: int) -> None:
    current().step(cost)


INTERNAL_FILTERS: dict[str, Callable[..., Any]] = {
    "@items": values.counted,
    "@compared": _compared,
    "@concat": values.concat,
    "@cut": values.cut,
    "@tick": _tick_filter,
}


class Refusal(TemplateError):
    """The template's own words, to be told without an addition."""


def raise_exception(message: Any) -> None:
    """What templates call to refuse a conversation."""
    raise Refusal(values.text_of(message) or "the chat template refuses this conversation, and does not say why")


def strftime_now(format: str) -> str:
    """The local time now."""
    values.small(len(format), "a time format", 1000)
    return datetime.now().strftime(format)


def bounded_range(*args: int) -> range:
    for arg in args:
        values.small(arg, "a range", 2**53)  # above 2**61 numbers can be chosen whose hashes are all the same
    return safe_range(*args)


def bounded_dict(*args: Any, **kwargs: Any) -> dict[Any, Any]:
    guard = current()
    result: dict[Any, Any] = {}
    for arg in args:
        guard.weigh(arg)
        # Pair by pair: keys with equal hashes take quadratic time, which must not pass in one call.
        for key, value in arg.items() if isinstance(arg, dict) else arg:
            guard.step()
            result[key] = value
    return {**result, **kwargs}


def new_namespace(*args: Any, **kwargs: Any) -> Namespace:
    return Namespace(bounded_dict(*args, **kwargs))


GLOBALS: dict[str, Callable[..., Any]] = {
    "raise_exception": raise_exception,
    "strftime_now": strftime_now,
    "range": bounded_range,
    "dict": bounded_dict,
    "namespace": new_namespace,
    "cycler": Cycler,
    "joiner": Joiner,
}


def _guarded(name: str, function: Any) -> Callable[..., Any]:
    """A filter or test that charges for its arguments before and for its result after."""
    shallow, lazy, textual = name in values.SHALLOW, name in values.LAZY, name in values.TEXTUAL
    # Jinja passes contexts and environments as the first argument; it has marked who wants one.
    skip = 1 if hasattr(function, "jinja_pass_arg") else 0

    @functools.wraps(function)
    def guarded(*args: Any, **kwargs: Any) -> Any:
        guard = current()
        guard.step()
        if lazy:
            guard.step(len(args[skip]) if isinstance(args[skip], Sized) else 0)
        elif not shallow:
            # What comes from a lazy filter is gathered: it must be weighed before it is sorted, joined or compared.
            args = tuple(list(arg) if isinstance(arg, Iterator) else arg for arg in args)
            for value in (*args[skip:], *kwargs.values()):
                guard.heavy(value)
            if textual and args[skip:] and not isinstance(args[skip], str):
                args = (*args[:skip], values.text_of(args[skip]), *args[skip + 1 :])
        result = guard.made(function(*args, **kwargs))
        return values.counted(result) if isinstance(result, types.GeneratorType) else result

    return guarded


@pass_context
def _finalize(context: Context, value: Any) -> str:
    return values.text_of(value)


class ChatEnvironment(ImmutableSandboxedEnvironment):
    """As transformers sets its own up, less what could reach outside the data or run away."""

    intercepted_binops = frozenset({"+", "-", "*", "/", "//", "%", "**"})

    def __init__(self) -> None:
        super().__init__(
            trim_blocks=True,
            lstrip_blocks=True,
            extensions=[GenerationBlock, LoopControlExtension],
            finalize=_finalize,
            cache_size=0,
        )
        self.globals = dict(GLOBALS)
        self.filters.update(values.OWN_FILTERS)
        self.filters = {name: _guarded(name, self.filters[name]) for name in self.filters.keys() - values.LEFT_OUT}
        self.filters.update(INTERNAL_FILTERS)
        self.tests.update({name: _guarded(name, self.tests[name]) for name in _DEEP_TESTS})

    concat = staticmethod(values.concat)

    def is_safe_attribute(self, obj: Any, attr: str, value: Any) -> bool:
        if attr.startswith("_"):
            return False
        if isinstance(obj, Namespace):
            return True
        return any(attr in names for kind, names in _READABLE if isinstance(obj, kind))

    def unsafe_undefined(self, obj: Any, attribute: str) -> Undefined:
        if attribute.startswith("_"):
            raise SecurityError(f"access to attribute {attribute!r} of a {type(obj).__name__} is not allowed")
        return super().unsafe_undefined(obj, attribute)

    def wrap_str_format(self, value: Any) -> Callable[..., str] | None:
        if not isinstance(value, types.MethodType | types.BuiltinMethodType) or value.__name__ not in ("format", "format_map"):
            return None
        owner = value.__self__
        return values.bounded_format(self, owner, value.__name__ == "format_map") if isinstance(owner, str) else None

    def getitem(self, obj: Any, argument: Any) -> Any:
        if not isinstance(argument, str | int):
            current().heavy(argument)
        return super().getitem(obj, argument)

    def call_binop(self, context: Context, operator: str, left: Any, right: Any) -> Any:
        return values.binary(operator, left, right)

    def call(__self, __context: Context, __obj: Any, *args: Any, **kwargs: Any) -> Any:
        guard = current()
        guard.step(1 + len(args) + len(kwargs))
        if isinstance(__obj, types.BuiltinMethodType | types.MethodType):
            args = values.before_method(__obj.__self__, __obj.__name__, args, kwargs)
        elif isinstance(__obj, LoopContext) and args:
            args = (values.counted(args[0]), *args[1:])
        elif not isinstance(__obj, _CALLABLE) and __obj is not Cycler and __obj is not Joiner:
            raise TypeError(f"a {type(__obj).__name__} cannot be called")
        with guard.call():
            return guard.made(super().call(__context, __obj, *args, **kwargs))


_CALLABLE = (types.FunctionType, Macro, LoopContext, BlockReference, Joiner, Undefined)


def prepare(env: ChatEnvironment, source: str) -> types.CodeType:
    """Parse, charge and compile. Raises jinja2's TemplateSyntaxError, or what Python's compiler says of absurd nesting.

    Jinja writes a template's name into the generated code without quoting it well, so it gets none.
    """
    tree: nodes.Template = Charge().visit(env.parse(source))
    return env.compile(tree, None, "<chat template>")


def texts(parts: Iterable[str]) -> str:
    """What a render yields, as one text."""
    return values.concat(parts)
