"""What a template's author reads when it fails: what, where, and what was meant."""

from __future__ import annotations

import pytest

from llmgallery.core.errors import TemplateError
from llmgallery.templates.gotmpl import check_go, compile_go
from llmgallery.templates.gotmpl.values import Field, Struct
from llmgallery.templates.problem import Problem

MESSAGE = Struct("Message", (Field("Role", "user", "Role"), Field("Content", None, "Content")))


@pytest.mark.parametrize(
    ("source", "problem"),
    [
        ("{{ .Content }", Problem(1, 13, 'unexpected "}" in operand')),
        ("a\n é {{ .Content", Problem(2, 4, "unclosed action: }} is missing")),
        ("{{if .a}}\nx", Problem(2, 2, "unexpected end of the template: the {{if}} of line 1 has no {{end}}")),
        ("{{if .a}}{{range .b}}\n{{end}}", Problem(2, 8, "unexpected end of the template: the {{if}} of line 1 has no {{end}}")),
        ("x\n{{end}}", Problem(2, 3, "unexpected {{end}} in the template")),
        ("{{ tojson .a }}", Problem(1, 4, 'function "tojson" not defined; did you mean toJson?')),
        ("{{ if and .a\n(nott .b) }}{{end}}", Problem(2, 2, 'function "nott" not defined; did you mean not?')),
        ("{{ zzzzzz }}", Problem(1, 4, 'function "zzzzzz" not defined')),
        ("{{ $x }}", Problem(1, 4, 'undefined variable "$x"')),
        ("{{ .a | }}{{ | .a }}", Problem(1, 14, 'unexpected "|" in command')),
        ('{{ define "a" "b" }}', Problem(1, 15, 'unexpected "b" in define clause')),
        (
            "a\n{{-.Input}}",
            Problem(2, 3, "bad number syntax: '-.I' (to trim white space, the minus wants a space after it: {{- )"),
        ),
        ("{{ .a.b.c+1 }}", Problem(1, 10, "bad character U+002B '+'")),
    ],
)
def test_what_does_not_parse(source: str, problem: Problem) -> None:
    assert check_go(source) == problem
    with pytest.raises(TemplateError) as caught:
        compile_go(source, "template.chat")
    assert caught.value.message == f"template.chat, line {problem.line}, column {problem.column}: {problem.message}"


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("\n {{.Contnet}}", "line 2, column 4: can't evaluate field Contnet in type Message (did you mean Content?)"),
        ("{{.Zzz}}", "line 1, column 3: can't evaluate field Zzz in type Message"),
        ("{{.Content.Parts}}", "line 1, column 3: nil pointer evaluating interface {}.Parts: it is asked of a null"),
        ("{{.Role.Name}}", "line 1, column 3: can't evaluate field Name in type string"),
        (
            "{{(list 1 2).Name}}",
            "line 1, column 4: can't evaluate field Name in type []interface {} "
            "(a list: go through it with range, or take one with index)",
        ),
        ("{{upper .Content}}", "line 1, column 9: invalid value; expected string: .Content is missing or null"),
        ("{{upper 1}}", "line 1, column 9: expected string; found 1"),
        ("{{ .Role | trunc .Role }}", "line 1, column 18: wrong type for value; expected int; got string"),
        ("{{ trunc 1 }}", "line 1, column 4: wrong number of args for trunc: want 2 got 1"),
        (
            '{{ template "mesage" }}{{define "message"}}{{end}}',
            'line 1, column 13: template "mesage" not defined (did you mean message?)',
        ),
        ('{{ fail "no tools, please" }}', "line 1, column 4: error calling fail: no tools, please"),
        ("{{ $x = 1 }}", "line 1, column 4: undefined variable: $x (:= declares one)"),
        (
            '{{define "t"}}\n{{index . 3}}{{end}}\n{{template "t" list}}',
            "line 2, column 3: error calling index: index out of range: 3",
        ),
    ],
)
def test_what_does_not_render(source: str, message: str) -> None:
    assert check_go(source) is None
    with pytest.raises(TemplateError) as caught:
        compile_go(source, "template.chat").render(MESSAGE)
    assert caught.value.message == f"template.chat, {message}"


@pytest.mark.parametrize("name", ["env", "expandenv", "getHostByName", "genPrivateKey"])
def test_functions_that_reach_outside_are_refused_by_name(name: str) -> None:
    problem = check_go(f"ab\n{{{{ {name} }}}}")
    assert problem is not None
    assert (problem.line, problem.column) == (2, 4)
    assert problem.message.startswith(f'function "{name}" is refused: ')


def test_a_jinja_template_is_told_its_place() -> None:
    problem = check_go("{% for m in messages %}{{ m['content'] }}{% endfor %}")
    assert problem is not None
    assert problem.message.endswith("(this looks like a Jinja template, which belongs under template.chat_template)")


def test_a_template_is_parsed_once_and_named_each_time() -> None:
    source = "{{.a.b}}"
    for name in ("one", "two"):
        with pytest.raises(TemplateError, match=f"^{name}, line 1, column 3: "):
            compile_go(source, name).render({"a": 1})


def test_a_message_of_millions_of_characters_is_cut() -> None:
    with pytest.raises(TemplateError) as caught:
        compile_go('{{ fail (repeat 5000000 "x") }}').render({})
    assert len(caught.value.message) < 1100 and "x... (5000020 characters)" in caught.value.message
