"""What one render of a chat template may cost. Knows values, not Jinja's syntax."""

from __future__ import annotations

import threading
from collections.abc import ItemsView, Iterator, KeysView, Mapping, ValuesView
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from jinja2.utils import Namespace

from llmgallery.core.errors import TemplateError
from llmgallery.templates.account import CHARS_A_STEP, Account

INT_BITS = 4096


@dataclass(frozen=True)
class Limits:
    """Bounds of one render.

    `steps`: loop iterations, calls, filters and outputs, plus one per 128 characters made, 4 list places made and half a value
    visited. `chars`: of the answer, and of any string on the way. `depth`: of nested macro calls. `nesting`: of values.
    `seconds`: wall time; a belt, for steps that are slower than they should be.
    """

    steps: int = 2_000_000
    chars: int = 8_000_000
    depth: int = 50
    nesting: int = 100
    seconds: float = 5.0


@dataclass(frozen=True)
class Weight:
    """An upper bound of a value's text in characters (escapes aside), its nodes counted with repeats, and its depth."""

    chars: int
    nodes: int
    depth: int


class Guard(Account):
    """The account of one render of a chat template."""

    def __init__(self, limits: Limits) -> None:
        super().__init__(limits, "the chat template")
        self.limits = limits
        self._depth = 0

    @contextmanager
    def call(self) -> Iterator[None]:
        """Around a call that may come back to the template."""
        self._depth += 1
        try:
            if self._depth > self.limits.depth:
                raise TemplateError(f"the chat template's macros call each other too deeply (limit: {self.limits.depth})")
            yield
        finally:
            self._depth -= 1

    def weigh(self, value: Any) -> Weight:
        """Before work that visits all of `value`: its text, a comparison, a hash. Shared nodes count again, for that is
        what the work costs.
        """
        inner = _children(value)
        if inner is None:
            chars = _scalar(value)
            self.step(1 + chars // CHARS_A_STEP)
            return Weight(chars, 1, 0)
        chars, nodes, deepest = 0, 1, 0
        todo = [(inner, 1)]
        while todo:
            children, depth = todo.pop()
            if depth > self.limits.nesting:
                raise TemplateError(f"a value in the chat template is nested too deeply (limit: {self.limits.nesting})")
            size = 2 + 4 * len(children)
            nodes += len(children)
            deepest = max(deepest, depth)
            for child in children:
                inner = _children(child)
                if inner is None:
                    size += _scalar(child)
                else:
                    todo.append((inner, depth + 1))
            chars += size
            self.step(1 + 2 * len(children) + size // CHARS_A_STEP)
        return Weight(chars, nodes, deepest)

    def heavy(self, value: Any) -> None:
        """As `weigh`, in no time for the short strings and numbers that most comparisons are about."""
        if isinstance(value, str):
            if len(value) > CHARS_A_STEP:
                self.text(len(value))
        elif _children(value) is not None:
            self.weigh(value)

    def made(self, value: Any) -> Any:
        """After something came about by a way that could not be charged before: its size alone."""
        if isinstance(value, str):
            if len(value) > CHARS_A_STEP:
                self.text(len(value))
        elif isinstance(value, list | tuple | dict):
            self.items(len(value))
        elif isinstance(value, int) and value.bit_length() > INT_BITS:
            raise TemplateError(f"a number in the chat template is too large (limit: {INT_BITS} bits)")
        return value


def leaves(value: Any) -> Iterator[Any]:
    """All that `value` holds, or is, that holds nothing itself. To be called once it has been weighed: it may hold itself."""
    todo = [value]
    while todo:
        node = todo.pop()
        inner = _children(node)
        if inner is None:
            yield node
        else:
            todo.extend(inner)


def _scalar(value: Any) -> int:
    """Characters, about, of a value that holds no others."""
    if isinstance(value, str):
        return len(value) + 2
    return 1 + value.bit_length() // 3 if isinstance(value, int) else 32


def _children(node: Any) -> list[Any] | None:
    if isinstance(node, str):
        return None
    if isinstance(node, list | tuple | range | set | frozenset | KeysView | ValuesView | ItemsView):
        return list(node)
    if isinstance(node, Namespace):
        node = node._Namespace__attrs
    if isinstance(node, Mapping):
        return [*node.keys(), *node.values()]
    return None


_active = threading.local()


@contextmanager
def guarding(limits: Limits) -> Iterator[Guard]:
    """Make a Guard this thread's current one. Renders do not nest."""
    guard = Guard(limits)
    _active.guard = guard
    try:
        yield guard
    finally:
        _active.guard = None


def current() -> Guard:
    """This thread's Guard. Without one nothing may run: the compiler then leaves constant expressions to the render."""
    guard: Guard | None = getattr(_active, "guard", None)
    if guard is None:
        raise TemplateError("a template's expression was evaluated outside a render")
    return guard
