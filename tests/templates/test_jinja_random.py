"""Whatever a template is made of, it renders or it raises a TemplateError."""

from __future__ import annotations

import random
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from llmgallery.core.errors import TemplateError
from llmgallery.templates.jinja import Limits, check, compile_template

VARIABLES: dict[str, Any] = {
    "messages": [{"role": "user", "content": "a b"}, {"role": "assistant", "content": None, "tool_calls": [{"id": "1"}]}],
    "tools": [{"type": "function", "function": {"name": "f", "parameters": {"type": "object", "properties": {"a": {}}}}}],
    "n": 3,
    "s": "text",
    "x": [1, 2.5, None, {"a": "b"}],
}
FEW = Limits(steps=20_000, chars=200_000, seconds=2)

NAMES = st.sampled_from(["messages", "tools", "n", "s", "x", "m", "loop", "ns", "missing", "f", "caller", "none", "true", "dict"])
CONSTANTS = st.sampled_from(
    ["0", "1", "-1", "9" * 30, "1.5", "1e999", "'a'", "'%s %d'", "'{0.a}'", "''", "[]", "{}", "(1, 'a')", "{'a': [1]}"]
)
_FILTERS = """abs attr('a') batch(2) capitalize center(9) count d('x') default('x',true) dictsort e escape filesizeformat first
float forceescape format(1) groupby('role') indent(2) int items join(',') last length list lower map('upper')
map(attribute='role') max min reject('none') rejectattr('content') replace('a','b') reverse round(1) safe select('string')
selectattr('role','equalto','user') slice(2) sort sort(attribute='role') string sum title tojson tojson(indent=2) trim
truncate(3) unique upper urlencode wordcount"""
_TESTS = """defined undefined none string number mapping sequence iterable boolean even odd true eq(1) in([1]) sameas(1) lower
divisibleby(0)"""
_ENDS = """.role .content .items() .get('a') .a.b [0] [-1] [1:] [::-1] ['role'] .split('') .strip() .upper() .startswith('a')
.index('z') .format(1) .replace('a','bb') .keys() .index0 .first .cycle(1,2) .__class__ (1) () (loop) .join(x)"""
_SIGNS = "+ - * / // % ** ~ == != < > <= >= in not|in and or"
FILTERS, TESTS, ENDS = (st.sampled_from(words.split()) for words in (_FILTERS, _TESTS, _ENDS))
SIGNS = st.sampled_from([sign.replace("|", " ") for sign in _SIGNS.split()])


def larger(inner: st.SearchStrategy[str]) -> st.SearchStrategy[str]:
    return st.one_of(
        st.builds("{}{}".format, inner, ENDS),
        st.builds("({} {} {})".format, inner, SIGNS, inner),
        st.builds("({} | {})".format, inner, FILTERS),
        st.builds("({} is {})".format, inner, TESTS),
        st.builds("({} if {} else {})".format, inner, inner, inner),
        st.builds("[{}, {}]".format, inner, inner),
        st.builds("{{{}: {}}}".format, inner, inner),
        st.builds("namespace(a={})".format, inner),
        st.builds("range({})".format, inner),
        st.builds("raise_exception({})".format, inner),
        st.builds("(not {})".format, inner),
        st.builds("strftime_now({})".format, inner),
    )


EXPRESSIONS = st.recursive(NAMES | CONSTANTS, larger, max_leaves=6)
TRIMS = st.sampled_from(["{%", "{%-", "{%+"])


def blocks(inner: st.SearchStrategy[str]) -> st.SearchStrategy[str]:
    e = EXPRESSIONS
    return st.one_of(
        st.builds("{} if {} %}}{}{{% elif {} -%}}{}{{% else %}}{}{{% endif %}}".format, TRIMS, e, inner, e, inner, inner),
        st.builds("{} for m in {} %}}{}{{% else %}}{}{{%- endfor -%}}".format, TRIMS, e, inner, inner),
        st.builds("{} for m in {} if {} recursive %}}{}{{% endfor %}}".format, TRIMS, e, e, inner),
        st.builds("{} macro f(m={}) %}}{}{{% endmacro %}}{{{{ f({}) }}}}".format, TRIMS, e, inner, e),
        st.builds("{{% call f({}) %}}{}{{% endcall %}}".format, e, inner),
        st.builds("{{% filter {} %}}{}{{% endfilter %}}".format, FILTERS, inner),
        st.builds("{{% set m %}}{}{{% endset %}}{}".format, inner, inner),
        st.builds("{{% generation %}}{}{{% endgeneration %}}".format, inner),
        st.builds("{{% with m = {} %}}{}{{% endwith %}}".format, e, inner),
        st.builds("{}{}".format, inner, inner),
    )


PIECES = st.one_of(
    st.builds("{{{{ {} }}}}".format, EXPRESSIONS),
    st.builds("{{{{- {} -}}}}".format, EXPRESSIONS),
    st.builds("{{% set ns = {} %}}".format, EXPRESSIONS),
    st.builds("{{% set ns.a = {} %}}".format, EXPRESSIONS),
    st.sampled_from(
        ["text\n", " ", "{# note #}", "{% break %}", "{% continue %}", "{% include 'x' %}", "{% raw %}{{{% endraw %}"]
    ),
)
TEMPLATES = st.recursive(PIECES, blocks, max_leaves=8)


def renders_or_refuses(source: str) -> None:
    if check(source) is not None:
        with pytest.raises(TemplateError):
            compile_template(source)
        return
    try:
        compile_template(source).render(VARIABLES, FEW)
    except TemplateError as error:
        assert error.message.strip()


def holds(source: str, seed: int) -> None:
    """For a template, and for three of it that are broken somewhere."""
    renders_or_refuses(source)
    chance = random.Random(seed)
    for _ in range(3):
        renders_or_refuses(mangled(source, chance))


@settings(max_examples=125, deadline=None, suppress_health_check=list(HealthCheck))
@given(TEMPLATES, st.integers(0, 2**32))
def test_a_random_template_renders_or_is_refused(source: str, seed: int) -> None:
    holds(source, seed)


@pytest.mark.slow
@settings(max_examples=10_000, deadline=None, suppress_health_check=list(HealthCheck))
@given(TEMPLATES, st.integers(0, 2**32))
def test_ten_thousand_random_templates_render_or_are_refused(source: str, seed: int) -> None:
    holds(source, seed)


def mangled(source: str, chance: random.Random) -> str:
    """The template with a piece of it gone, twice there, or swapped for another."""
    start, end = sorted(chance.choices(range(len(source) + 1), k=2))
    other = chance.choice(["", source[start:end] * 2, chance.choice("{}%#|().'\"-+*~[]:,\n\0é")])
    return source[:start] + other + source[end:]
