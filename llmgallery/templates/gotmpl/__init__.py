"""Go's text/template with sprig's functions: text in, text out; knows no chat. Templates are interpreted, never translated.

Sources of the meaning: pkg.go.dev/text/template (Go 1.24) and masterminds.github.io/sprig.
"""

from __future__ import annotations

import difflib
import functools
import re
from collections.abc import Mapping
from typing import Any

from llmgallery.core.errors import TemplateError
from llmgallery.templates.gotmpl.budget import Limits, guarding
from llmgallery.templates.gotmpl.builtins import FUNCTIONS, REFUSED
from llmgallery.templates.gotmpl.evaluate import Run
from llmgallery.templates.gotmpl.functions import Function
from llmgallery.templates.gotmpl.lookup import Fault
from llmgallery.templates.gotmpl.nodes import Tree, place
from llmgallery.templates.gotmpl.parser import ParseFault, parse
from llmgallery.templates.problem import Problem, told

__all__ = ["GoTemplate", "Limits", "check_go", "compile_go"]

MAX_SOURCE = 100_000
MAIN = "prompt"
"""The name that LocalAI gives to every template: `{{template "prompt" .}}` calls it again."""
_JINJA = re.compile(r"\{%-?\s*(if|for|set|macro|generation)\b")
_RENDER_FAILS = (ArithmeticError, AttributeError, LookupError, MemoryError, RuntimeError, TypeError, ValueError)


class GoTemplate:
    """A parsed template. Rendering is thread-safe and changes nothing of it. `name` is for messages."""

    def __init__(self, tree: Tree, name: str, functions: Mapping[str, Function] = FUNCTIONS) -> None:
        self._tree = tree
        self.name = name
        self._functions = functions

    def render(self, data: Any, limits: Limits | None = None) -> str:
        """The template's text over `data`, which is its dot: values as values.py describes them.

        Raises TemplateError with the template's name and the line and column of the part at fault, and nothing else: what Go
        would fail at, and any limit that was passed.
        """
        with guarding(limits or Limits()) as budget:
            run = Run(self._tree, self._functions, budget)
            try:
                return run.render(data)
            except Fault as fault:
                raise TemplateError(self._placed(fault.pos, fault.message)) from fault
            except TemplateError as error:
                raise TemplateError(self._placed(run.pos, error.message)) from error
            except RecursionError as error:
                raise TemplateError(self._placed(run.pos, "templates or values are nested too deeply")) from error
            except _RENDER_FAILS as error:
                raise TemplateError(self._placed(run.pos, str(error) or type(error).__name__)) from error

    def _placed(self, pos: int, message: str) -> str:
        line, column = self._tree.place(pos)
        return f"{self.name}, line {line}, column {column}: {told(message)}"


def compile_go(source: str, name: str = "template") -> GoTemplate:
    """The template of `source`; parsed once for the last 64 texts. `name` is for messages.

    Raises TemplateError, "NAME, line L, column C: ...", when it does not parse.
    """
    result = _parse(source)
    if isinstance(result, Problem):
        raise TemplateError(f"{name}, line {result.line}, column {result.column}: {result.message}")
    return GoTemplate(result, name)


def check_go(source: str) -> Problem | None:
    """What keeps `source` from being a template, or None."""
    result = _parse(source)
    return result if isinstance(result, Problem) else None


@functools.lru_cache(maxsize=64)
def _parse(source: str) -> Tree | Problem:
    if len(source) > MAX_SOURCE:
        return Problem(1, 1, f"the template is too long: {len(source)} characters (limit: {MAX_SOURCE})")
    try:
        return parse(source, MAIN, _complaint)
    except ParseFault as fault:
        message = fault.message
        if _JINJA.search(source):
            message += " (this looks like a Jinja template, which belongs under template.chat_template)"
        return Problem(*place(source, fault.pos), told(message))
    except RecursionError:
        return Problem(1, 1, "the template is nested too deeply")


def _complaint(name: str) -> str | None:
    """What is wrong with a function's name."""
    if name in FUNCTIONS or name in ("and", "or"):
        return None
    if name in REFUSED:
        return f'function "{name}" is refused: {REFUSED[name]}'
    near = difflib.get_close_matches(name, [*FUNCTIONS, "and", "or"], n=1)
    return f'function "{name}" not defined' + (f"; did you mean {near[0]}?" if near else "")
