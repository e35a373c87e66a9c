"""Jinja chat templates as transformers renders them, sandboxed and bounded. Text in, text out; knows no chat."""

from __future__ import annotations

import functools
import re
from collections.abc import Mapping
from types import TracebackType
from typing import Any

import jinja2
from jinja2.exceptions import TemplateSyntaxError

from llmgallery.core.errors import TemplateError
from llmgallery.templates.jinja_guard import Limits, guarding
from llmgallery.templates.jinja_sandbox import ChatEnvironment, Refusal, prepare, texts
from llmgallery.templates.problem import Problem, told

__all__ = ["ChatTemplate", "Limits", "Problem", "check", "compile_template"]

MAX_SOURCE = 100_000
_TOO_MUCH_TO_COMPILE = (RecursionError, MemoryError, ValueError, OverflowError)
_RENDER_FAILS = (
    jinja2.TemplateError,
    ArithmeticError,
    AssertionError,
    AttributeError,
    LookupError,
    MemoryError,
    NameError,
    RuntimeError,
    TypeError,
    ValueError,
)
_GO = re.compile(r"\{\{-?\s*(\.\w|range\b|if\b|end\b|else\b|with\b|template\b|define\b|block\b)")


class ChatTemplate:
    """A compiled template. Rendering is thread-safe and changes nothing. `name` is for messages."""

    def __init__(self, template: jinja2.Template, name: str) -> None:
        self._template = template
        self.name = name

    def render(self, variables: Mapping[str, Any], limits: Limits | None = None) -> str:
        """The template's text for `variables`: plain data, as decoded from JSON.

        Raises TemplateError: the template's own refusal with its words alone, a limit that was passed, or any failure with
        the template's name and line.
        """
        with guarding(limits or Limits()):
            try:
                context = self._template.new_context(dict(variables))
                return texts(self._template.root_render_func(context))
            except Refusal as error:
                raise TemplateError(told(error.message)) from None
            except TemplateError as error:
                raise TemplateError(f"{self._place(error)}: {error.message}") from None
            except RecursionError as error:
                raise TemplateError(f"{self._place(error)}: calls or values are nested too deeply") from error
            except _RENDER_FAILS as error:
                raise TemplateError(f"{self._place(error)}: {told(_words(error))}") from error

    def _place(self, error: BaseException) -> str:
        line = None
        trace: TracebackType | None = error.__traceback__
        while trace is not None:
            if trace.tb_frame.f_globals.get("__jinja_template__") is self._template:
                line = self._template.get_corresponding_lineno(trace.tb_lineno)
            trace = trace.tb_next
        return self.name if line is None else f"{self.name}, line {line}"


def compile_template(source: str, name: str = "chat template") -> ChatTemplate:
    """The template of `source`; compiled once for the last 64 texts. `name` is for messages.

    Raises TemplateError with line and column when it does not parse.
    """
    result = _compile(source)
    if isinstance(result, Problem):
        raise TemplateError(f"{name}, line {result.line}, column {result.column}: {result.message}")
    return ChatTemplate(result, name)


def check(source: str) -> Problem | None:
    """What keeps `source` from being a template, or None."""
    result = _compile(source)
    return result if isinstance(result, Problem) else None


@functools.cache
def _environment() -> ChatEnvironment:
    return ChatEnvironment()


@functools.lru_cache(maxsize=64)
def _compile(source: str) -> jinja2.Template | Problem:
    if len(source) > MAX_SOURCE:
        return Problem(1, 1, f"the template is too long: {len(source)} characters (limit: {MAX_SOURCE})")
    env = _environment()
    try:
        return jinja2.Template.from_code(env, prepare(env, source), dict(env.globals))
    except TemplateSyntaxError as error:
        return _problem(source, error.lineno, error.message or "syntax error")
    except SyntaxError as error:
        return Problem(1, 1, f"the template does not compile: {error.msg}")
    except _TOO_MUCH_TO_COMPILE:
        return Problem(1, 1, "the template is nested too deeply to compile")


def _problem(source: str, number: int, message: str) -> Problem:
    lines = source.splitlines() or [""]
    number = min(max(number, 1), len(lines))
    if _GO.search(source):
        message += " (this looks like a Go template, which belongs under template.chat or template.chat_message)"
    return Problem(number, _column(lines[number - 1], message), told(message))


def _column(line: str, message: str) -> int:
    """Jinja tells lines only: the column is that of the word it complains of, else of the line's first tag."""
    word = re.search(r"got '([^']+)'", message) or re.search(r"'([^']+)'", message)
    inside = re.search(r"\{[{%#]", line)
    start = inside.start() if inside else 0
    at = line.find(word[1], start) if word else -1
    return (at if at >= 0 else start) + 1


def _words(error: BaseException) -> str:
    words = error.message if isinstance(error, jinja2.TemplateError) and error.message else str(error)
    return words or type(error).__name__
