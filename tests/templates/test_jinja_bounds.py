"""Templates come with weights from strangers: none may leave the data, and none may run on."""

from __future__ import annotations

import time
from typing import Any

import pytest

from llmgallery.core.errors import TemplateError
from llmgallery.templates.jinja import Limits, compile_template

MESSAGES = [{"role": "user", "content": "x" * 100}]
DOUBLED = (
    "{% set n = namespace(a=[1], b=[1]) %}"
    "{% for i in range(60) %}{% set n.a = [n.a, n.a] %}{% set n.b = [n.b, n.b] %}{% endfor %}"
)
TUPLES = DOUBLED.replace("[1]", "(1,)").replace("[n.a, n.a]", "(n.a, n.a)").replace("[n.b, n.b]", "(n.b, n.b)")
BIG = "{% set big = 'x' * 4000000 %}"
FOREVER = "{% for a in range(100000) %}{% for b in range(100000) %}{% for c in range(100000) %}"


def refused(source: str, variables: dict[str, Any] | None = None, limits: Limits | None = None) -> str:
    template = compile_template(source)
    began = time.perf_counter()
    with pytest.raises(TemplateError) as caught:
        template.render({"messages": MESSAGES, **(variables or {})}, limits)
    # It takes about a second at most; the slack is for busy machines.
    assert time.perf_counter() - began < 10
    return caught.value.message


@pytest.mark.parametrize(
    "source",
    [
        # As in CVE-2024-34359, and other ways that are known out of Jinja's sandboxes.
        "{% for c in ().__class__.__base__.__subclasses__() %}{% if 'warning' in c.__name__ %}{{ c() }}{% endif %}{% endfor %}",
        "{{ ''.__class__.__mro__[1].__subclasses__() }}",
        "{{ ''['__class__'] }}",
        "{{ '' | attr('__class__') }}",
        "{{ '' | attr('__cla' ~ 'ss__') }}",
        "{{ [''] | map(attribute='__class__') | list }}",
        "{{ [''] | map('attr', '__class__') | list }}",
        "{{ [messages] | selectattr('__class__') | list }}",
        "{{ [messages] | sort(attribute='__class__') }}",
        "{{ [messages] | groupby('__class__') }}",
        "{{ [messages] | sum(attribute='__class__') }}",
        "{{ [messages] | join(attribute='__class__') }}",
        "{{ '{0.__class__}'.format(1) }}",
        "{{ '{0[__class__]}'.format('') }}",
        "{{ '{x.__class__}'.format_map({'x': 1}) }}",
        "{{ ('{0.__class__}' | attr('format'))(1) }}",
        "{{ '{0.__class__}'['format'](1) }}",
        "{{ (['{0.__class__}'] | map(attribute='format') | first)(1) }}",
        "{{ namespace.__init__.__globals__ }}",
        "{{ cycler.__init__.__globals__.os.popen('id').read() }}",
        "{{ joiner.__init__ }}",
        "{{ range.__class__ }}",
        "{{ raise_exception.__globals__ }}",
        "{{ strftime_now.__code__ }}",
        "{{ self.__init__ }}",
        "{{ self._TemplateReference__context }}",
        "{% macro m() %}{% endmacro %}{{ m._func.__globals__ }}",
        "{% for x in [1] %}{{ loop._iterable }}{% endfor %}",
        "{{ namespace(a=1)._Namespace__attrs }}",
        "{{ messages.append(1) }}",
        "{{ messages[0].update(role='system') }}",
        "{{ messages[0].pop('role') }}",
        "{{ messages.clear() }}",
        "{{ 'x'.encode() }}",
        "{{ 'x'.translate({120: 'y'}) }}",
        "{{ 'x'.maketrans('x', 'y') }}",
        "{{ (1).to_bytes(9) }}",
        "{{ {}.fromkeys([1]) }}",
        "{{ dict.fromkeys([1]) }}",
        "{{ lipsum() }}",
        "{{ messages() }}",
        "{{ messages[0].role() }}",
        "{{ undefined_function() }}",
        "{% import 'os' as os %}",
        "{% extends 'x' %}",
    ],
)
def test_nothing_outside_the_data(source: str) -> None:
    assert refused(source)


def test_objects_that_came_with_the_variables_are_closed() -> None:
    class Secret:
        token = "abc"

        def read(self) -> str:
            return self.token

    secret = Secret()
    assert "unsafe" in refused("{{ secret.read() }}", {"secret": secret})
    assert "cannot be called" in refused("{{ f() }}", {"f": secret})
    assert compile_template("{{ secret.token }}").render({"secret": secret}) == ""


@pytest.mark.parametrize(
    "source",
    [
        # loops
        FOREVER + "{% endfor %}" * 3,
        FOREVER + "x" * 1000 + "{% endfor %}" * 3,
        FOREVER + "{{ c }}" + "{% endfor %}" * 3,
        FOREVER + "{% if c > 5 %}{% break %}{% endif %}" + "{% endfor %}" * 3,
        FOREVER + "{% set l = [" + "1," * 3000 + "] %}" + "{% endfor %}" * 3,
        "{% for a in range(100000) if false %}{% endfor %}" * 100,
        "{% for a in range(99999) recursive %}{% if loop.depth < 40 %}{{ loop(range(99999)) }}{% endif %}{% endfor %}",
        "{% for a in range(99999) %}{{ range(99999) | select('none') | list }}{% endfor %}",
        "{% for a in range(99999) %}{{ range(99999) | map('string') | join }}{% endfor %}",
        "{% for a in range(99999) %}{{ range(99999) | sum }}{% endfor %}",
        "{% for a in range(99999) %}{{ 1.5 in range(99999) }}{% endfor %}",
        "{% for a in range(99999) %}{{ range(99999) | list | reverse | first }}{% endfor %}",
        "{{ range(1000000) }}",
        # calls
        "{% macro f(x) %}{{ f(x) }}{% endmacro %}{{ f(1) }}",
        "{% macro f(x) %}{{ f(x - 1) ~ f(x - 1) if x > 0 else '' }}{% endmacro %}{{ f(40) }}",
        "{% macro f() %}{% call f() %}{{ caller() }}{% endcall %}{% endmacro %}{{ f() }}",
        "{% block b %}{{ self.b() }}{% endblock %}",
        "{% for x in [1] recursive %}{{ loop([1]) }}{% endfor %}",
        # long texts
        "{{ 'a' * 10 ** 9 }}",
        "{{ 10 ** 9 * 'a' }}",
        "{% set n = namespace(s='a') %}{% for i in range(99) %}{% set n.s = n.s ~ n.s %}{% endfor %}",
        "{% set n = namespace(s='a') %}{% for i in range(99) %}{% set n.s = n.s + n.s %}{% endfor %}",
        "{% set n = namespace(s='a') %}{% for i in range(99) %}{% set n.s %}{{ n.s }}{{ n.s }}{% endset %}{% endfor %}",
        "{% macro f(s) %}{{ s }}{{ s }}{% endmacro %}"
        "{% set n = namespace(s='a') %}{% for i in range(99) %}{% set n.s = f(n.s) %}{% endfor %}",
        BIG + "{{ big }}{{ big }}{{ big }}",
        BIG + "{% for i in range(99999) %}{% set x = big.upper() %}{% endfor %}",
        BIG + "{% for i in range(99999) %}{% set x = big[1:] %}{% endfor %}",
        BIG + "{% for i in range(99999) %}{% set x = 'y' in big %}{% endfor %}",
        BIG + "{{ big.replace('x', 'xxxxxxxx') }}",
        BIG + "{{ big | replace('x', 'xxxxxxxx') }}",
        BIG + "{{ big.replace('', 'xxxxxxxx') }}",
        BIG + "{{ big.join(['', '', '', '']) }}",
        BIG + "{{ ['', '', '', ''] | join(big) }}",
        BIG + "{{ [big, big, big, big] | string }}",
        BIG + "{{ [big, big, big, big] }}",
        BIG + "{{ [big, big, big, big] | tojson }}",
        BIG + "{{ '{0}{0}{0}'.format(big) }}",
        BIG + "{{ '%(a)s%(a)s%(a)s' % {'a': big} }}",
        BIG + "{{ raise_exception([big, big, big]) }}",
        BIG + "{% for i in range(99) %}{% set x = big.split('x') %}{% endfor %}",
        BIG + "{% for i in range(99) %}{% set x = big | list %}{% endfor %}",
        BIG + "{{ big.rfind('x' * 1000 ~ 'y' ~ 'x' * 2000000) }}",
        BIG + "{{ big.rsplit(sep='x' * 1000 ~ 'y' ~ 'x' * 2000000) }}",
        BIG + "{{ big.strip('y' * 1000000 ~ 'x') }}",
        BIG + "{{ big | trim('y' * 1000000 ~ 'x') }}",
        "{{ 'a'.center(10 ** 9) }}",
        "{{ 'a'.ljust(1000000000) }}",
        "{{ 'a'.zfill(1000000000) }}",
        "{{ 'a' | center(1000000000) }}",
        "{{ 'a' | indent(1000000000, true) }}",
        "{{ 'a\n' * 10000 | indent(10000) }}",
        "{{ ('a\n' * 10000) | indent(10000) }}",
        "{{ '{:1000000000}'.format(1) }}",
        "{{ '{:{}}'.format(1, 1000000000) }}",
        "{{ '{:.1000000000f}'.format(1.5) }}",
        "{{ '%1000000000d' % 1 }}",
        "{{ '%.1000000000f' % 1 }}",
        "{{ '%*d' % (1000000000, 1) }}",
        "{{ '%((a)b)1000000000s' % {'(a)b': 1} }}",
        "{{ '%1000000000d' | format(1) }}",
        "{{ [1] | tojson(indent=1000000000) }}",
        "{{ [1, 2] | tojson(separators=('a' * 1000000, '')) }}",
        "{{ strftime_now('%Y' * 100000) }}",
        # big numbers and lists
        "{{ 9 ** (9 ** 9) }}",
        "{% set n = namespace(x=9) %}{% for i in range(99) %}{% set n.x = n.x * n.x %}{% endfor %}",
        "{{ 5 | round(-1000000000) }}",
        "{{ 5 | round(1000000000, 'floor') }}",
        "{{ ('f' * 1000000) | int(base=16) }}",
        "{{ range(0, 9 * 2305843009213693951, 2305843009213693951) }}",
        "{{ [1] * 10 ** 9 }}",
        "{{ (1,) * 10 ** 9 }}",
        "{% set n = namespace(l=[1]) %}{% for i in range(99) %}{% set n.l = n.l + n.l %}{% endfor %}",
        "{{ [[1] * 10000] * 1000 | sum(start=[]) }}",
        "{{ ([[1] * 10000] * 1000) | sum(start=[]) }}",
        "{{ [1] | batch(1000000000, 0) | list }}",
        "{{ [1] | slice(1000000000) | list }}",
        # small values that unfold to huge ones
        DOUBLED + "{{ n.a }}",
        DOUBLED + "{{ n.a == n.b }}",
        DOUBLED + "{{ n.a in [n.b] }}",
        DOUBLED + "{{ n.a < n.b }}",
        DOUBLED + "{{ n.a is eq(n.b) }}",
        DOUBLED + "{{ n.a | tojson }}",
        DOUBLED + "{{ n.a ~ '' }}",
        DOUBLED + "{{ [n.a] | join }}",
        DOUBLED + "{{ [n.a, n.b] | sort | length }}",
        DOUBLED + "{{ [n.a, n.b] | map('list') | sort | length }}",
        DOUBLED + "{{ [n.a, n.b] | max | length }}",
        DOUBLED + "{{ [n.a].index(n.b) }}",
        DOUBLED + "{{ [n.a] | select('eq', n.b) | list | length }}",
        DOUBLED + "{{ '%s' % n.a }}",
        DOUBLED + "{{ '{}'.format(n.a) }}",
        DOUBLED + "{{ n }}",
        DOUBLED + "{{ {'a': n.a}.values() | string }}",
        DOUBLED + "{% for x in [n.a, n.b] %}{{ loop.changed(x) }}{% endfor %}",
        TUPLES + "{{ {n.a: 1} | length }}",
        TUPLES + "{{ {}[n.a] }}",
        TUPLES + "{{ {}.get(n.a) }}",
        TUPLES + "{{ dict([(n.a, 1)]) | length }}",
        TUPLES + "{{ [n.a, n.b] | unique | list | length }}",
        "{% set n = namespace() %}{% set n.a = [n] %}{{ n.a }}",
        "{% set n = namespace(a=[]) %}{% for i in range(5000) %}{% set n.a = [n.a] %}{% endfor %}{{ n.a }}",
    ],
)
def test_nothing_runs_on(source: str) -> None:
    # A part of the default steps, for the sake of the suite's time.
    assert refused(source, limits=Limits(steps=200_000))


@pytest.mark.parametrize(
    "source",
    [
        FOREVER + "{% endfor %}" * 3,
        DOUBLED + "{{ n.a == n.b }}",
        BIG + "{% for i in range(999) %}{% set x = big | list %}{% endfor %}",
    ],
)
def test_the_default_limits_end_in_about_a_second(source: str) -> None:
    assert refused(source)


def test_time_is_a_belt_beside_the_steps() -> None:
    limits = Limits(steps=10**12, seconds=0.2)
    assert "too long (limit: 0.2 s)" in refused(FOREVER + "{% endfor %}" * 3, limits=limits)


def test_limits_are_the_callers() -> None:
    template = compile_template("{% for i in range(100) %}{{ i }}{% endfor %}")
    assert len(template.render({})) == 190
    assert "limit: 150 steps" in refused("{% for i in range(100) %}{{ i }}{% endfor %}", limits=Limits(steps=150))
    assert "limit: 100 characters" in refused("{% for i in range(100) %}{{ i }}{% endfor %}", limits=Limits(chars=100))


def test_a_limit_tells_the_line() -> None:
    assert refused("a\n{{ 'a' * 10 ** 9 }}").startswith("chat template, line 2: ")


def test_numbers_with_equal_hashes_end_by_the_clock() -> None:
    numbers = ",".join(str(at * (2**61 - 1)) for at in range(60_000))
    source = "{{ dict(numbers.split(',') | map('int') | batch(2) | list) | length }}"
    assert "too long" in refused(source, {"numbers": numbers}, Limits(seconds=0.5))


def test_honest_long_conversations_fit() -> None:
    source = (
        "{% set ns = namespace(all='') %}{% for m in messages %}"
        "{% set ns.all = ns.all + m.role %}{{ '<|' + m.role + '|>' + m.content | trim + '<|end|>' }}{% endfor %}"
    )
    messages = [{"role": "user", "content": "word " * 100}] * 5_000
    text = compile_template(source).render({"messages": messages})
    assert text == ("<|user|>" + ("word " * 100).strip() + "<|end|>") * 5_000


def test_deep_macros_fit() -> None:
    source = "{% macro f(x) %}[{{ f(x - 1) if x > 0 }}]{% endmacro %}{{ f(40) }}"
    assert compile_template(source).render({}) == "[" * 41 + "]" * 41
