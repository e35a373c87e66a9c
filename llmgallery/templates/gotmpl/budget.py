"""What one render of a Go template may cost. Knows values, not the language."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from llmgallery.core.errors import TemplateError
from llmgallery.templates.account import CHARS_A_STEP, Account


@dataclass(frozen=True)
class Limits:
    """Bounds of one render.

    `steps`: nodes of the template that are evaluated, plus one per 128 characters made, 4 list places made and half a value
    visited. `chars`: of the answer, and of any string on the way. `depth`: of templates that call each other. `nesting`: of
    values. `seconds`: wall time; a belt, for steps that are slower than they should be.
    """

    steps: int = 1_000_000
    chars: int = 8_000_000
    depth: int = 100
    nesting: int = 100
    seconds: float = 5.0


class Budget(Account):
    """The account of one render of a Go template."""

    def __init__(self, limits: Limits) -> None:
        super().__init__(limits, "the template")
        self.limits = limits
        self._written = 0
        self._depth = 0

    def write(self, length: int) -> None:
        """Before `length` characters are added to the answer."""
        self._written += length
        self.text(self._written if self._written > self.limits.chars else length)

    @contextmanager
    def call(self) -> Iterator[None]:
        """Around a template that another one calls."""
        if self._depth >= self.limits.depth:
            raise TemplateError(f"the templates call each other too deeply (limit: {self.limits.depth})")
        self._depth += 1
        try:
            yield
        finally:
            self._depth -= 1

    def weigh(self, value: Any) -> int:
        """Before work that visits all of `value`: printing it, encoding it, comparing it. Shared parts count each time, for
        that is what the work costs. Returns about how many characters the value's text has.
        """
        chars = 0
        todo = [(value, 0)]
        while todo:
            node, depth = todo.pop()
            inner = _children(node)
            if inner is None:
                size = len(node) if isinstance(node, str) else 16
                self.step(1 + size // CHARS_A_STEP)
            else:
                if depth >= self.limits.nesting:
                    raise TemplateError(f"a value in the template is nested too deeply (limit: {self.limits.nesting})")
                size = 2 + len(inner)
                self.step(1 + size // 2)
                todo.extend((child, depth + 1) for child in inner)
            chars += size
        return chars


def _children(node: Any) -> list[Any] | None:
    """What a list, map or struct holds (a struct tells by `fields`); None for any other value."""
    if isinstance(node, list):
        return node
    if isinstance(node, dict):
        return [*node.keys(), *node.values()]
    fields = getattr(node, "fields", None)
    return None if fields is None else [field.value for field in fields]


_active = threading.local()


@contextmanager
def guarding(limits: Limits) -> Iterator[Budget]:
    """Make a Budget this thread's current one. Renders do not nest."""
    budget = Budget(limits)
    _active.budget = budget
    try:
        yield budget
    finally:
        _active.budget = None


def current() -> Budget:
    """This thread's Budget. Without one nothing of a template may run."""
    budget: Budget | None = getattr(_active, "budget", None)
    if budget is None:
        raise TemplateError("a part of a template was evaluated outside a render")
    return budget
