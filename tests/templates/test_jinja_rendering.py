"""What the renderer itself does: data, names, places of errors. test_jinja_referee.py compares prompts."""

from __future__ import annotations

import json
from datetime import datetime

import pytest
from hypothesis import given
from hypothesis import strategies as st

from llmgallery.core.errors import TemplateError
from llmgallery.templates import jinja
from llmgallery.templates.jinja import check, compile_template


@given(st.text(st.characters(exclude_characters="{\r"), min_size=1))
def test_plain_text_renders_as_itself(text: str) -> None:
    # Jinja drops one newline at the end, and normalises line ends.
    assert compile_template(text).render({}) == text.removesuffix("\n")


@given(st.text())
def test_contents_are_data(text: str) -> None:
    assert (
        compile_template("[{{ x }}|{{ x | tojson }}]").render({"x": text}) == f"[{text}|{json.dumps(text, ensure_ascii=False)}]"
    )


def test_strftime_now_is_the_local_time() -> None:
    before = datetime.now().year
    assert before <= int(compile_template("{{ strftime_now('%Y') }}").render({})) <= datetime.now().year


def test_compiled_once() -> None:
    compile_template("{{ cached }}")
    hits = jinja._compile.cache_info().hits
    assert check("{{ cached }}") is None
    assert compile_template("{{ cached }}", "another name").render({"cached": 1}) == "1"
    assert jinja._compile.cache_info().hits == hits + 2


def test_names_are_only_told() -> None:
    name = """it's "x" """
    with pytest.raises(TemplateError) as caught:
        compile_template("{{ 'a' if missing }}{{ a.b.c }}", name).render({})
    assert caught.value.message == name + ", line 1: 'a' is undefined"


def test_a_render_changes_nothing() -> None:
    messages = [{"role": "user", "content": "x"}]
    template = compile_template("{% set messages = messages + [1] %}{{ messages | length }}")
    assert [template.render({"messages": messages}) for _ in range(2)] == ["2", "2"]
    assert messages == [{"role": "user", "content": "x"}]


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("a\n\n{{ a.b.c }}", "chat template, line 3: 'a' is undefined"),
        ("{{ 1 + 'a' }}", "chat template, line 1: unsupported operand type(s) for +: 'int' and 'str'"),
        ("\n{{ 1 / 0 }}", "chat template, line 2: division by zero"),
        ("{{ x | tojson }}", "chat template, line 1: Object of type Undefined is not JSON serializable"),
        ("{% for x in none %}{% endfor %}", "chat template, line 1: 'NoneType' object is not iterable"),
        ("{{ raise_exception('Roles must ' ~ 'alternate') }}", "Roles must alternate"),
        ("{% include 'x' %}", "chat template, line 1: no loader for this environment specified"),
        ("{{ 'a' | truncate(-5) }}", "chat template, line 1: expected length >= 3, got -5"),
        ("{{ raise_exception('x' * 5000) }}", "x" * 1000 + "... (5000 characters)"),
    ],
)
def test_failures_tell_the_line(source: str, message: str) -> None:
    with pytest.raises(TemplateError) as caught:
        compile_template(source).render({})
    assert caught.value.message == message


@pytest.mark.parametrize(
    ("source", "line", "column", "message"),
    [
        ("{% if x %}", 1, 1, "Unexpected end of template"),
        ("a\n  {{ x | nofilter }}", 2, 10, "No filter named 'nofilter'"),
        ("a\nbc {% endfro %}", 2, 7, "unknown tag 'endfro'"),
        ("{{ x", 1, 1, "unexpected end of template"),
        ("{{ .Input }}", 1, 4, "Go template"),
        ("{% autoescape true %}{% endautoescape %}", 1, 4, "'autoescape' has no place"),
        ("{{ " + "(" * 2000 + "1" + ")" * 2000 + " }}", 1, 1, "nested too deeply"),
        ("a\n{% break %}", 1, 1, "'break' outside loop"),
        ("{% for x in y %}" * 30 + "{% endfor %}" * 30, 1, 1, "too many statically nested blocks"),
        ("{{ " + " + ".join(["x"] * 3000) + " }}", 1, 1, "nested too deeply"),
        ("a {{ x y }}", 1, 8, "expected token 'end of print statement', got 'y'"),
        ("x" * 100_001, 1, 1, "too long"),
    ],
)
def test_what_does_not_parse_is_told_with_its_place(source: str, line: int, column: int, message: str) -> None:
    problem = check(source)
    assert problem is not None
    assert (problem.line, problem.column) == (line, column)
    assert message in problem.message
    with pytest.raises(TemplateError, match=f"line {line}, column {column}: "):
        compile_template(source)


@pytest.mark.parametrize(
    ("source", "text"),
    [
        ("{{ ''.join }}", "<built-in method join of str object>"),
        ("{{ [messages.items, 1] }}", "[<built-in method items of dict object>, 1]"),
        ("{{ ''.join ~ '!' }}", "<built-in method join of str object>!"),
        ("{{ '%s' % ''.join }}", "<built-in method join of str object>"),
        ("{{ '%s|%s' % (''.join, 'b at 0xab') }}", "<built-in method join of str object>|b at 0xab"),
        ("{{ '{}'.format(''.join) }}", "<built-in method join of str object>"),
        ("{{ '%s'|format(''.join) }}", "<built-in method join of str object>"),
        ("{{ ''.join|e }}", "&lt;built-in method join of str object&gt;"),
        ("{{ [''.join]|upper }}", "[<BUILT-IN METHOD JOIN OF STR OBJECT>]"),
        ("{{ ''.join|urlencode }}", "%3Cbuilt-in%20method%20join%20of%20str%20object%3E"),
        ("{{ {'a': 'b c'}|urlencode }}", "a=b+c"),
        ("{{ [''.join]|join }}", "<built-in method join of str object>"),
        ("{{ namespace(a=''.join) }}", "<Namespace {'a': <built-in method join of str object>}>"),
        ("{{ range }}", "<function bounded_range>"),
        ("{{ cycler(1) }}", "<jinja2.utils.Cycler object>"),
        ("{{ [1]|map('upper') }}", "<generator object _count>"),
        ("{% block b %}{{ self.b }}{% endblock %}", "<jinja2.runtime.BlockReference object>"),
        ("{{ messages }}", "{'a': 'lies at 0x7f'}"),
    ],
)
def test_what_is_no_data_is_printed_without_its_place_in_memory(source: str, text: str) -> None:
    assert compile_template(source).render({"messages": {"a": "lies at 0x7f"}}) == text


def test_a_template_refuses_without_a_place_in_memory() -> None:
    with pytest.raises(TemplateError) as caught:
        compile_template("{{ raise_exception(''.join) }}").render({})
    assert caught.value.message == "<built-in method join of str object>"
