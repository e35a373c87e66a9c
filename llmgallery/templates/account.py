"""What every render is charged to: work, text and time, whatever the language.

A render cannot be stopped from another thread, so everything that it does is charged before it is done.
"""

from __future__ import annotations

import time
from typing import Protocol

from llmgallery.core.errors import TemplateError

CHARS_A_STEP = 128
ITEMS_A_STEP = 4
STEPS_A_LOOK = 256
"""Steps between two looks at the clock."""


class Bounds(Protocol):
    """`steps`: pieces of work of about a microsecond. `chars`: of any string on the way. `seconds`: wall time."""

    @property
    def steps(self) -> int: ...
    @property
    def chars(self) -> int: ...
    @property
    def seconds(self) -> float: ...


class Account:
    """Of one render, used by one thread. Every method raises TemplateError, about `what`, when a bound is passed."""

    def __init__(self, bounds: Bounds, what: str) -> None:
        self._bounds = bounds
        self._what = what
        self._left = bounds.steps
        self._look = self._left - STEPS_A_LOOK
        self._deadline = time.monotonic() + bounds.seconds

    @property
    def left(self) -> int:
        """Steps that may still be taken."""
        return max(0, self._left)

    def step(self, count: int = 1) -> None:
        """Before `count` pieces of work of about a microsecond each."""
        self._left -= count
        if self._left < self._look:
            self._check()

    def _check(self) -> None:
        if self._left < 0:
            raise TemplateError(f"{self._what} does too much work (limit: {self._bounds.steps} steps)")
        if time.monotonic() > self._deadline:
            raise TemplateError(f"{self._what} takes too long (limit: {self._bounds.seconds:g} s)")
        self._look = self._left - STEPS_A_LOOK

    def text(self, length: int) -> None:
        """Before a string of `length` characters is made or read through."""
        if length > self._bounds.chars:
            raise TemplateError(f"{self._what} makes a text that is too long (limit: {self._bounds.chars} characters)")
        self.step(1 + length // CHARS_A_STEP)

    def items(self, count: int) -> None:
        """Before a list or map of `count` places is made or gone through."""
        self.step(1 + count // ITEMS_A_STEP)
