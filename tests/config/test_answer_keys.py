"""The expressions of a model file that cut answers and find calls: faults with their place, groups that are looked for."""

from __future__ import annotations

from pathlib import Path

import pytest

from llmgallery.backends.loader import specs
from llmgallery.chat.calls.tagged import tags_of
from llmgallery.config.calls import JSON_PRESETS, PRESETS
from llmgallery.config.load import LoadedModel, parse_model
from llmgallery.config.outside import Outside
from llmgallery.templates.gotmpl.regexp import check_regexp


def load(text: str, outside: Outside | None = None) -> LoadedModel:
    return parse_model(f"backend: echo\n{text}".encode(), Path("m.yaml"), specs(), outside or Outside(regexp=check_regexp))


@pytest.mark.parametrize(
    ("text", "place", "message"),
    [
        ("cutstrings: ['ok', 'a(b']", (2, 20, "cutstrings[1]"), "missing closing )"),
        ("extract_regex:\n- '(?<=a)b'", (3, 3, "extract_regex[0]"), "invalid"),
        ("function:\n  response_regex: ['(?P<name>x)', '(']", (3, 35, "function.response_regex[1]"), "missing closing )"),
        ("function: {json_regex_match: ['(a)\\1']}", (2, 31, "function.json_regex_match[0]"), "invalid escape sequence"),
        ("function: {argument_regex: ['[']}", (2, 29, "function.argument_regex[0]"), "missing closing ]"),
        ("function: {capture_llm_results: ['*']}", (2, 34, "function.capture_llm_results[0]"), "missing argument"),
        (
            "function:\n  replace_llm_results:\n  - key: 'x'\n    value: ''\n  - value: ''\n    key: 'a{2000}'",
            (7, 10, "function.replace_llm_results[1]"),
            "invalid repeat count",
        ),
        (
            "function: {replace_function_results: [{key: ')', value: ''}]}",
            (2, 45, "function.replace_function_results[0]"),
            "unexpected",
        ),
        ("function: {xml_format: {tool_start: '<c>'}}", (2, 24, "function.xml_format"), "tool_start and tool_end are needed"),
        ("function: {xml_format: {tool_begin: '<c>'}}", (2, 24, "function.xml_format"), "unknown field `tool_begin`"),
        ("function: {xml_format_preset: qwen3coder}", (2, 31, "function.xml_format_preset"), "no format of calls"),
    ],
)  # fmt: skip
def test_faults_have_a_place(text: str, place: tuple[int, int, str], message: str) -> None:
    (problem,) = load(text).problems
    assert (problem.line, problem.column, problem.key) == place
    assert message in problem.message


def test_lookaround_is_explained_and_near_names_are_told() -> None:
    (problem,) = load("cutstrings: ['a(?!b)']").problems
    assert "lookaround" in problem.suggestion
    (problem,) = load("function: {xml_format_preset: qwen3coder}").problems
    assert "qwen3-coder" in problem.suggestion


@pytest.mark.parametrize(
    ("text", "group"),
    [
        ("function: {response_regex: ['(?P<function>x)(?P<arguments>y)']}", "(?P<name>...)"),
        ("function: {function_name_key: function, response_regex: ['(?P<name>x)']}", "(?P<function>...)"),
        ("function: {json_regex_match: ['x']}", "(...)"),
        ("function: {capture_llm_results: ['x']}", "(...)"),
        ("function: {argument_regex: ['(?P<key>x)']}", "(?P<value>...)"),
        ("function: {argument_regex: ['(?P<key>x)(?P<v>y)'], argument_regex_value_name: val}", "(?P<val>...)"),
    ],
)
def test_groups_that_are_missing_are_warned_of(text: str, group: str) -> None:
    loaded = load(text)
    (warning,) = loaded.warnings
    assert group in warning.message and warning.line == 2 and not loaded.problems


def test_sound_keys_are_no_news() -> None:
    text = r"""
cutstrings: ['(?s)<think>.*?</think>']
extract_regex: ['\d+']
trimspace: ["A:"]
trimsuffix: ["."]
function:
  disable_no_action: true
  response_regex: ['<function=(?P<name>\w+)>(?P<arguments>.*)</function>']
  json_regex_match: ['(?s)\[TOOL\_CALLS\](.*)']
  argument_regex: ['(?P<key>\w+)=(?P<value>\w+)']
  replace_function_results: [{key: '(?s)^[^{\[]*', value: ""}]
  capture_llm_results: ['(?s)<scratchpad>(.*?)</scratchpad>']
  automatic_tool_parsing_fallback: true
  xml_format_preset: glm-4.5
  grammar: {disable: true}
"""
    loaded = load(text)
    assert loaded.config is not None and not loaded.problems and not loaded.warnings
    assert load("cutstrings: ['(']", Outside()).problems == ()


def test_keys_of_grammars_wait_for_them() -> None:
    (warning,) = load("function: {grammar: {parallel_calls: true}}").warnings
    assert warning.key == "function.grammar.parallel_calls" and "does not use" in warning.message


def test_presets_have_localais_names() -> None:
    names = ["functionary", "qwen3-coder", "qwen3.5", "glm-4.5", "minimax-m2", "kimi-k2", "apriel-1.5", "xiaomi-mimo"]
    assert [*PRESETS, *JSON_PRESETS] == names
    for name in names:
        assert load(f"function: {{xml_format_preset: {name}}}").problems == ()
    assert tags_of("glm-4.5", {"tool_start": "a", "tool_end": "b"}) != PRESETS["glm-4.5"] == tags_of("glm-4.5", None)
