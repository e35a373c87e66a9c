"""A model file's rules at work on an answer, bounded for each. Their regular expressions are Go's, run in linear time."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from llmgallery.core.errors import TemplateError
from llmgallery.templates.gotmpl.budget import Limits, guarding
from llmgallery.templates.gotmpl.values import GoError

STEPS = 2_000_000
SECONDS = 5.0
_TOO_MUCH = "what the model's YAML has done to answers was too much work for this one: from there on it is as the model wrote it"


class Allowance:
    """The work that the rules may do on one answer, however it is cut into pieces. When it is spent, `fault` says so, and the
    rules are over: what they have not changed by then stays as the model wrote it."""

    def __init__(self, steps: int | None = None) -> None:
        self.fault = ""
        self.left = STEPS if steps is None else steps

    @property
    def is_spent(self) -> bool:
        return bool(self.fault)

    @contextmanager
    def spending(self) -> Iterator[None]:
        """Around work with regular expressions and the search for calls; what is not done of it when the allowance ends is left
        out."""
        with guarding(Limits(steps=self.left, seconds=SECONDS)) as budget:
            try:
                yield
            except TemplateError:
                self.fault = _TOO_MUCH
            except GoError as exc:  # reading the model file has let none through
                self.fault = exc.message
            finally:
                self.left = budget.left
