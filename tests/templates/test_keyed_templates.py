"""`{{ Key }}` and nothing else."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from llmgallery.core.errors import TemplateError
from llmgallery.templates.keyed import fill, fill_to


@pytest.mark.parametrize(
    ("template", "text"),
    [
        ("{{ A }}", "a"),
        ("{{ A }}{{ A }}-{{ B }}", "aa-b"),
        ("{{A}} {{  A  }} {{ a }} {{ A}}", "{{A}} {{  A  }} {{ a }} {{ A}}"),
        ("{{ C }}", "{{ C }}"),
        ("{{ A }", "{{ A }"),
        ("", ""),
        ("{% if A %}{{ A | upper }}", "{% if A %}{{ A | upper }}"),
    ],
)
def test_exact_keys_are_replaced_and_all_else_stays(template: str, text: str) -> None:
    assert fill(template, {"A": "a", "B": "b"}) == text


def test_a_text_may_hold_keys_that_come_later_and_none_that_came_before() -> None:
    assert fill("{{ A }}", {"A": "<{{ B }}>", "B": "{{ A }}"}) == "<{{ A }}>"
    assert fill("{{ {{ A }} }}", {"A": "B", "B": "b"}) == "b"


def test_what_was_said_is_not_looked_into() -> None:
    values = {"A": "{{ B }}", "B": "b"}
    assert fill("{{ A }}{{ B }}", values, ["A"]) == "{{ B }}b"
    # Nor does it make a key together with what stands around it.
    assert fill("{{ {{ A }} }}", {"A": "B", "B": "b"}, ["A"]) == "{{ B }}"


def test_up_to_the_end_of_the_last_place_of_a_key() -> None:
    assert fill_to("B", "<{{ B }}|{{ A }}|{{ B }}>", {"A": "a", "B": "b"}, ["B"]) == "<b|a|b"
    assert fill_to("B", "<{{ A }}>", {"A": "a", "B": "b"}, ["B"]) is None
    assert fill_to("B", "{{ A }}.", {"A": "({{ B }})", "B": "b"}, ["B"]) == "(b"


def test_growth_is_refused_before_it_happens() -> None:
    values = {key: ("{{ " + chr(ord(key) + 1) + " }}") * 10_000 for key in "ABC"}
    with pytest.raises(TemplateError, match=r"too long \(limit: 8000000 characters\)"):
        fill("{{ A }}", values)
    with pytest.raises(TemplateError, match=r"limit: 10 characters"):
        fill("{{ A }}", {"A": "x" * 11}, limit=10)
    assert fill("{{ A }}", {"A": "x" * 10}, limit=10) == "x" * 10


@given(st.text(alphabet="{} AB", max_size=30), st.text(alphabet="{} AB", max_size=10), st.text(alphabet="{} AB", max_size=10))
def test_without_said_texts_it_is_one_replacement_after_the_other(template: str, a: str, b: str) -> None:
    assert fill(template, {"A": a, "B": b}) == template.replace("{{ A }}", a).replace("{{ B }}", b)
