"""Templates come from strangers: whatever they hold, a render ends soon, with a text or a clean TemplateError."""

from __future__ import annotations

import random
import re
import threading
import time
from typing import Any

import pytest
from hypothesis import HealthCheck, event, given, settings
from hypothesis import strategies as st

from llmgallery.core.errors import TemplateError
from llmgallery.templates.gotmpl import MAX_SOURCE, Limits, check_go, compile_go
from llmgallery.templates.gotmpl.builtins import FUNCTIONS

PLACED = re.compile(r"t, line \d+, column \d+: .", re.DOTALL)
SMALL = Limits(steps=20_000, chars=50_000, seconds=2.0)


def refused(source: str, data: Any = None, limits: Limits | None = None) -> str:
    began = time.perf_counter()
    with pytest.raises(TemplateError) as caught:
        compile_go(source, "t").render(data, limits)
    # It takes about a second at most; the slack is for busy machines.
    assert time.perf_counter() - began < 10
    assert PLACED.match(caught.value.message), caught.value.message
    return caught.value.message


DOUBLING = "{{$x := 1}}{{range 60}}{{$x = list $x $x}}{{end}}"


@pytest.mark.parametrize(
    "source",
    [
        "{{range 1000000000}}{{end}}",
        "{{range 100000}}{{range 100000}}{{range 100000}}{{end}}{{end}}{{end}}",
        "{{range 1000000}}{{if eq 1 2}}{{else if eq 1 3}}{{else}}{{$x := 1}}{{end}}{{end}}",
        "{{range 10000000}}{{continue}}{{end}}",
        '{{template "prompt" .}}',
        '{{define "a"}}{{template "b" .}}{{end}}{{define "b"}}{{range 3}}{{template "a" .}}{{end}}{{end}}{{template "a" .}}',
        '{{define "d"}}{{if lt . 60}}{{range 2}}{{template "d" (add1 $ | int)}}{{end}}{{end}}{{end}}{{template "d" 0}}',
        '{{$x := "xx"}}{{range 60}}{{$x = print $x $x}}{{end}}{{$x}}',
        '{{$x := "xx"}}{{range 60}}{{$x = printf "%s%s" $x $x}}{{end}}{{$x}}',
        "{{range 2000000}}{{`a text of some length, which is written again and again`}}{{end}}",
        '{{range 100000}}{{printf "%999999d" 1 | len}}{{end}}',
        '{{range 100000}}{{printf "%.999999f" 1.5 | len}}{{end}}',
        '{{repeat 1000000000 "x"}}',
        '{{range 100000}}{{repeat 1000000 "x" | len}}{{end}}',
        "{{until 1000000000}}",
        DOUBLING + "{{$x}}",
        DOUBLING + "{{toJson $x}}",
        DOUBLING + "{{deepEqual $x $x}}",
        DOUBLING + '{{printf "%v" $x}}',
        '{{$d := dict "a" 1}}{{$_ := set $d "a" $d}}{{$d}}',
        '{{$d := dict "a" 1}}{{$_ := set $d "a" $d}}{{toJson $d}}',
        "{{$x := list}}{{range 1000000}}{{$x = append $x .}}{{end}}",
    ],
)
def test_what_never_ends_or_grows_without_end(source: str) -> None:
    refused(source, limits=Limits(steps=100_000))


@pytest.mark.parametrize("name", ["quote", "snakecase", "kebabcase", "swapcase", "upper", "camelcase", "shuffle"])
@pytest.mark.parametrize("char", ["\n", "A", "\u0416"])
def test_functions_that_look_at_each_character_cost_as_much(name: str, char: str) -> None:
    """A long text is refused before it is gone through, one of a few thousand characters is not."""
    compile_go(f"{{{{{name} .X}}}}", "t").render({"X": char * 5000}, SMALL)
    if (name, char) == ("quote", "A"):
        return
    limits = Limits(steps=20_000, seconds=60)
    began = time.process_time()
    refused(f"{{{{{name} .X}}}}", {"X": char * 7_000_000}, limits)
    assert time.process_time() - began < 0.5


def test_the_limits_that_are_in_force_end_a_render_in_seconds() -> None:
    refused("{{range 1000000000}}{{if eq . 1 2 3}}{{else}}{{$x := print .}}{{end}}{{end}}")


def test_limits_are_named_and_placed() -> None:
    endless = "{{range 100000}}\n  {{print 1}}{{end}}"
    assert refused(endless, limits=Limits(steps=1000)).endswith("the template does too much work (limit: 1000 steps)")
    assert refused("a\n  {{print 1234567890}}", limits=Limits(chars=10)) == (
        "t, line 2, column 5: the template makes a text that is too long (limit: 10 characters)"
    )
    deep = refused('a\n{{template "prompt"}}', limits=Limits(depth=5))
    assert deep == "t, line 2, column 12: the templates call each other too deeply (limit: 5)"
    assert refused(endless, limits=Limits(seconds=0)).endswith("the template takes too long (limit: 0 s)")


def test_deep_values_in_data() -> None:
    nested: Any = []
    for _ in range(5000):
        nested = [nested]
    assert "nested too deeply" in refused("{{.}}", nested)
    assert "nested too deeply" in refused("{{toJson .}}", nested)


@pytest.mark.parametrize(
    "source",
    [
        "{{" + "(" * 5000 + "1" + ")" * 5000 + "}}",
        "{{if 1}}" * 5000 + "{{end}}" * 5000,
        "{{range .}}" * 5000,
        '{{block "x" .}}' * 5000,
    ],
)
def test_nesting_has_a_limit(source: str) -> None:
    assert "nested too deeply (limit: 60)" in refused(source)


def test_length_has_a_limit_but_chains_have_not() -> None:
    assert "too long" in refused("x" * (MAX_SOURCE + 1))
    chain = "{{if eq . 0}}0" + "".join(f"{{{{else if eq . {number}}}}}{number}" for number in range(1, 3000)) + "{{end}}"
    assert compile_go(chain).render(2999) == "2999"
    nested: Any = 5
    for _ in range(2000):
        nested = {"a": nested}
    assert compile_go("{{" + ".a" * 2000 + "}}").render(nested) == "5"
    assert compile_go("{{1" + " | print" * 1000 + "}}").render(None) == "1"


def test_threads_render_one_template_at_once() -> None:
    template = compile_go("{{$x := 0}}{{range $i, $e := .}}{{$x = $e}}{{$i}}{{end}}{{$x}}")
    wanted = "".join(map(str, range(500)))
    answers: dict[int, str] = {}

    def render(number: int) -> None:
        answers[number] = template.render([*range(499), number])

    threads = [threading.Thread(target=render, args=(number,)) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert answers == {number: f"{wanted}{number}" for number in range(8)}


# Random templates, in two ways: pieces without any order, which hypothesis can make smaller, and control structures that are
# closed, grown from a seed: that is ten times as fast as drawing each part.

NAMES = [*sorted(FUNCTIONS), *["and", "or", "print", "index", "toJson", "printf", "list", "dict", "eq", "len"] * 8, "uper"]
FIELDS = [".", ".a", ".b.c", ".list", ".map", ".s", ".n", ".f", ".no", ".nil", ".nil.x", "$", "$.a", "$x", "$x.a", "$x.b.c"]
CONSTANTS = [
    "nil",
    "true",
    "0",
    "1",
    "-1",
    "3.5",
    "1e9",
    "0x1F",
    "'a'",
    '"a"',
    '""',
    "`r`",
    '"%v %d"',
    '"%*[1]d"',
    '"é\\n"',
    "1i",
]
SIGNS = ["{{", "}}", "{{-", " -}}", "{{- ", "(", ")", "|", ",", ":=", "=", "$", ".", " ", "\n", "/*", "*/", '"', "`", "'", "\\"]
KEYWORDS = ["if ", "else", "end", "range ", "with ", "define ", "template ", "block ", "break", "continue", "{{end}}", "{{else}}"]
PIECES = st.one_of(*map(st.sampled_from, (SIGNS, KEYWORDS, NAMES, FIELDS, CONSTANTS)), st.text(max_size=5))
SOUP = st.lists(PIECES, max_size=30).map("".join)


def pipeline(chance: random.Random, depth: int = 2) -> str:
    commands = []
    for _ in range(chance.choice([1, 1, 1, 2])):
        words = [chance.choice(chance.choice([NAMES, NAMES, FIELDS]))]
        for _ in range(chance.choice([0, 1, 1, 2, 3])):
            inner = depth and chance.random() < 0.2
            words.append(f"({pipeline(chance, depth - 1)})" if inner else chance.choice(chance.choice([FIELDS, CONSTANTS])))
        commands.append(" ".join(words))
    return " | ".join(commands)


def control(chance: random.Random, depth: int) -> str:
    pipe, body = pipeline(chance), statements(chance, depth - 1)
    head = chance.choice(["if ", "with ", "range ", "range $i, $x := ", "range $x = ", f'block "b{chance.random()}" '])
    other = chance.choice(["", "{{else}}", "{{else}}y", "{{break}}", "{{continue}}"]) if head.startswith("range") else ""
    return f"{{{{{head}{pipe}}}}}{body}{other}{{{{- end}}}}"


def statements(chance: random.Random, depth: int = 3) -> str:
    made = ""
    for _ in range(chance.choice([0, 1, 1, 2, 3])):
        if depth and chance.random() < 0.4:
            made += control(chance, depth)
        else:
            made += chance.choice(
                ["text \n", f"{{{{{pipeline(chance)}}}}}", f"{{{{$x = {pipeline(chance)}}}}}", '{{template "prompt" .a}}']
            )
    return made


GROWN = st.integers(0, 2**64).map(lambda seed: "{{$x := .}}" + statements(random.Random(seed)))
LEAVES = st.one_of(st.none(), st.booleans(), st.integers(-(2**63), 2**63 - 1), st.floats(), st.text(max_size=8))
VALUES = st.recursive(
    LEAVES, lambda inner: st.one_of(st.lists(inner, max_size=3), st.dictionaries(st.text(max_size=3), inner, max_size=3))
)
DATA = st.builds(
    lambda a, b: {
        "a": a,
        "b": {"c": b, "a": [a]},
        "list": [a, b, "x"],
        "map": {"k": b},
        "s": "é x",
        "n": 3,
        "f": -0.5,
        "nil": None,
    },
    VALUES,
    LEAVES,
)
SOURCES = st.one_of(SOUP, GROWN)


def never_crashes(source: str, data: Any) -> None:
    problem = check_go(source)
    if problem is not None:
        event("does not parse")
        assert problem.message and problem.line >= 1 and problem.column >= 1
        assert problem.line <= source.count("\n") + 1
        return
    try:
        text = compile_go(source, "t").render(data, SMALL)
    except TemplateError as error:
        event("fails")
        assert PLACED.match(error.message), error.message
    else:
        event("renders")
        assert isinstance(text, str)


@given(source=SOURCES, data=DATA)
@settings(max_examples=500, deadline=None, suppress_health_check=list(HealthCheck))
def test_random_templates_raise_nothing_but_template_errors(source: str, data: Any) -> None:
    never_crashes(source, data)


@pytest.mark.slow
@given(source=SOURCES, data=DATA)
@settings(max_examples=10_000, deadline=None, suppress_health_check=list(HealthCheck))
def test_many_random_templates_raise_nothing_but_template_errors(source: str, data: Any) -> None:
    never_crashes(source, data)
