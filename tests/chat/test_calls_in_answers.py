"""Calls of functions in the ways in which models write them, and what becomes of the text beside them."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from llmgallery.chat.calls.reader import CallReader
from llmgallery.chat.parser import AnswerParser
from llmgallery.chat.rules import Allowance
from llmgallery.config.model import Function, KeyValue, ModelConfig

F = ("f", {"a": 1})
NAMES = {"function_name_key": "function", "function_arguments_key": "args"}
MISTRAL = {
    "json_regex_match": [r"(?s)\[TOOL\_CALLS\](.*)"],
    "replace_function_results": [KeyValue(key=r"(?s)[^}\]]*$", value="")],
}
LLAMA = {"response_regex": [r"<function=(?P<name>\w+)>(?P<arguments>.*)</function>"]}
LFM = {
    "response_regex": [r"<\|tool_call_start\|>\[(?P<name>\w+)\((?P<arguments>.*?)\)\]<\|tool_call_end\|>"],
    "argument_regex": [r"(?P<key>\w+)\s*=\s*(?P<value>-?\d+(?:\.\d+)?)", r'(?P<key>\w+)\s*=\s*"(?P<value>[^"]*)"'],
}
SCRATCHPAD = "(?s)<scratchpad>(.*?)</scratchpad>"
HERMES = {
    "capture_llm_results": [SCRATCHPAD],
    "replace_llm_results": [KeyValue(key=SCRATCHPAD, value="")],
    "json_regex_match": ["(?s)<tool_call>(.*?)</tool_call>", "(?s)<tool_call>(.*)"],
}
OWN_TAGS = {
    "xml_format": {
        "tool_start": "CALL ",
        "tool_sep": ":",
        "key_start": "-",
        "key_val_sep": "=",
        "val_end": ";",
        "tool_end": "END",
    }
}
KIMI = (
    '<|tool_calls_section_begin|><|tool_call_begin|>functions.f:0<|tool_call_argument_begin|>{"a": 1}<|tool_call_end|>'
    "<|tool_call_begin|>functions.g:1<|tool_call_argument_begin|>{}<|tool_call_end|><|tool_calls_section_end|>"
)

CASES: list[tuple[str, dict[str, Any], str, list[tuple[str, Any]]]] = [
    # the function block's keys, the answer, the text of it, its calls
    ('{"name": "f", "arguments": {"a": 1}}', {}, "", [F]),
    ('I look.\n\n{"name": "f", "arguments": {"a": 1}}', {}, "I look.", [F]),
    ('<tool_call>\n{"name": "f", "arguments": {"a": "x\ny"}}\n</tool_call>', {}, "", [("f", {"a": "x\ny"})]),
    ('<tool_call>{"name": "f", "arguments": {"a": 1}}</tool_call>\n'
     '<tool_call>{"name": "g", "arguments": {}}</tool_call> Bye.', {}, "Bye.", [F, ("g", {})]),
    ('Now:\n```json\n[{"name": "f", "arguments": {"a": 1}},\n {"name": "g", "arguments": {}}]\n```', {}, "Now:", [F, ("g", {})]),
    ('{"function": "f", "args": {"a": 1}}', NAMES, "", [F]),
    ('{"name": "f", "arguments": "{\\"a\\": 1}"}', {}, "", [F]),
    ('{"name": "f", "arguments": "Paris"}', {"automatic_tool_parsing_fallback": True}, "", [("f", {"query": "Paris"})]),
    ("<function=f>\n{\"a\": 1}\n</function>", {}, "", [F]),
    ('x <function=f>{"a": 1}</function>', LLAMA, "x", [F]),
    ("<function=f></function>", LLAMA, "", [("f", {})]),
    ('[TOOL_CALLS] [{"name": "f", "arguments": {"a": 1}}] so be it', MISTRAL, "", [F]),
    ('<|tool_call_start|>[f(a=5, b="x y")]<|tool_call_end|>', LFM, "", [("f", {"a": "5", "b": "x y"})]),
    ('<scratchpad> I think </scratchpad><tool_call>{"name": "f", "arguments": {"a": 1}}', HERMES, "I think", [F]),
    ("<scratchpad>I think</scratchpad>Yes.", HERMES, "Yes.", []),
    ("So.<tool_call>\n<function=f>\n<parameter=a>\n1\n</parameter>\n<parameter=b>\ntwo words\n</parameter>\n</function>\n"
     "</tool_call>", {}, "So.", [("f", {"a": 1, "b": "two words"})]),
    ("<tool_call>f\n<arg_key>a</arg_key>\n<arg_value>1</arg_value>\n</tool_call>", {}, "", [F]),
    ('<minimax:tool_call>\n<invoke name="f">\n<parameter name="a">1</parameter>\n</invoke>\n<invoke name="g">\n</invoke>\n'
     "</minimax:tool_call>", {}, "", [F, ("g", {})]),
    (KIMI, {}, "", [F, ("g", {})]),
    ('<tool_calls>[{"name": "f", "arguments": {"a": 1}}, {"name":"g","arguments":{}}]</tool_calls>',
     {"xml_format_preset": "apriel-1.5"}, "", [F, ("g", {})]),
    ('{"name": "g", "arguments": {}} <tool_call>\n{"name": "f", "arguments": {"a": 1}}\n</tool_call>',
     {"xml_format_preset": "xiaomi-mimo"}, '{"name": "g", "arguments": {}}', [F]),
    ("Well CALL f: -a=1; -b=x; END", OWN_TAGS, "Well", [("f", {"a": 1, "b": "x"})]),
    ('<function=f>{"a": 1}</function>', {"disable_peg_parser": True}, "", [F]),
    (KIMI, {"disable_peg_parser": True}, KIMI, []),
    # LocalAI's own function, by which a model says that it calls none
    ('{"name": "answer", "arguments": {"message": "Hi."}}', {}, "Hi.", []),
    ('{"name": "respond", "arguments": {"response": "Hi."}}', {"no_action_function_name": "respond"}, "Hi.", []),
    ('[{"name": "f", "arguments": {"a": 1}}, {"name": "answer", "arguments": {"message": "Hi."}}]', {}, "Hi.", [F]),
    ('{"name": "answer", "arguments": {"x": 1}}', {"disable_no_action": True}, "", [("answer", {"x": 1})]),
    ('{"name": "answer", "arguments": {}}', {}, "{}", []),
    # what is no call is text
    ("Plain {text}, [a link](x) and <b>tags</b>.", {}, None, []),  # type: ignore[list-item]
    ('{"name": "f", "arguments": {"a": 1', {}, None, []),  # type: ignore[list-item]
    ('{"name": 5, "arguments": {}} {"name": "f"} {"a": NaN}', {}, None, []),  # type: ignore[list-item]
    ("<tool_call>no name at all</tool_call>", {}, None, []),  # type: ignore[list-item]
    ('{"name": "f", "arguments": {"a": 1}}', LLAMA, None, []),  # type: ignore[list-item]
    ("[" * 3000, {}, None, []),  # type: ignore[list-item]
    ('{"a":' * 3000, {}, None, []),  # type: ignore[list-item]
]  # fmt: skip


def read(text: str, keys: dict[str, Any], size: int = 0, **more: Any) -> tuple[str, list[tuple[str, str]]]:
    parser = AnswerParser((), ModelConfig(function=Function(**keys)), ("f", "g"), **more)
    pieces = [text[at : at + size] for at in range(0, len(text), size)] if size else [text]
    told = "".join(parser.feed(piece).text for piece in pieces) + parser.finish().text
    assert not parser.fault
    return told, [(call.name, call.arguments) for call in parser.calls]


@pytest.mark.parametrize("case", CASES, ids=[f"{number} {case[0][:20]}" for number, case in enumerate(CASES)])
def test_calls_and_text(case: tuple[str, dict[str, Any], str | None, list[tuple[str, Any]]]) -> None:
    text, keys, content, calls = case
    told, found = read(text, keys)
    assert [(name, json.loads(arguments)) for name, arguments in found] == calls
    assert told == (text if content is None else content)
    if len(text) < 1000:
        assert read(text, keys, 1) == read(text, keys, 3) == (told, found)


def test_text_before_a_call_goes_out_as_it_comes() -> None:
    parser = AnswerParser((), ModelConfig(function=Function(automatic_tool_parsing_fallback=True)), ("f",))
    pieces = ["Let ", "me see", ". <b>x</b>", " <tool", "_call>{", '"name": "f", "arguments": {}}']
    assert [parser.feed(piece).text for piece in pieces] == ["Let", " me see", ". <b>x", "", "", ""]
    assert parser.calls == () and parser.finish().text == "</b>"
    (call,) = list(parser.calls)
    assert (call.index, call.name, call.arguments) == (0, "f", "{}") and call.id.startswith("call_")


def test_arguments_that_are_no_json_stay_as_they_were_written() -> None:
    assert read('{"name": "f", "arguments": "Paris"}', {}) == ("", [("f", "Paris")])
    assert read(r'{"name": "f", "arguments": {"a": "\ud800é"}}', {}) == ("", [("f", r'{"a":"\ud800\u00e9"}')])
    assert read("<function=f>{a: 1}</function>", LLAMA) == ("", [("f", "{a: 1}")])


@pytest.mark.parametrize("none", ["null", '""', "{}"])
def test_no_arguments_are_an_empty_object(none: str) -> None:
    assert read(f'{{"name": "f", "arguments": {none}}}', {}) == ("", [("f", "{}")])


def test_a_number_that_json_cannot_hold_is_no_call() -> None:
    text = '{"name": "f", "arguments": {"a": 1e999}}'
    assert read(text, {}) == (text, [])


def test_one_call_where_no_more_are_wanted() -> None:
    assert read(KIMI, {}, parallel=False)[1] == [("f", '{"a":1}')]


def test_ids_differ() -> None:
    parser = AnswerParser((), ModelConfig(), ("f",))
    parser.feed(KIMI)
    parser.finish()
    assert len({call.id for call in parser.calls}) == 2


def test_expressions_that_are_too_much_work_find_nothing() -> None:
    function = Function(response_regex=["(?P<name>(a?){500}a{500})(?P<arguments>b)"])
    reader = CallReader(function, ("f",), allowance := Allowance(20_000))
    assert reader.feed("a" * 1000) + reader.finish() == "a" * 1000
    assert "too much work" in allowance.fault and reader.calls == ()


SPACED = "<tool_call>a<arg_key>k</arg_key><arg_value>"
MANY_MARKS = ["<tool_call>{", "<tool_call>", "<tool_call>x\n", "<tool_call>a<arg_key>", "<function=f>", SPACED]


@pytest.mark.parametrize("mark", MANY_MARKS)
def test_what_begins_many_calls_and_ends_none_is_read_in_linear_time(mark: str) -> None:
    """Within the work allowed, of which a search that reads on to the end each time would need many times as much."""
    text = mark * (200_000 // len(mark))
    reader = CallReader(Function(automatic_tool_parsing_fallback=True), ("f",), allowance := Allowance(1_000_000))
    assert reader.feed(text) + reader.finish() == text
    assert not allowance.is_spent and reader.calls == ()


@pytest.mark.parametrize(
    "text",
    [
        SPACED * 3000 + "</arg_value><arg_key>k</arg_key><arg_value>v" * 3000,
        "[" * 250 + "0," * 100_000,
        '{"name": "' * 10 + "[1,2],[" * 50_000,
    ],
)
def test_the_search_for_calls_is_bounded(text: str) -> None:
    reader = CallReader(Function(automatic_tool_parsing_fallback=True), ("f",), allowance := Allowance(50_000))
    assert reader.feed(text) + reader.finish() == text
    assert "too much work" in allowance.fault and reader.calls == ()


def test_many_calls_are_found() -> None:
    text = '<tool_call>{"name": "f", "arguments": {"a": "' + "x" * 300 + '"}}</tool_call>'
    told, calls = read(text * 300, {})
    assert told == "" and len(calls) == 300
    named = "<function=f></function>"
    keys = {"response_regex": [r"<function=(?P<name>\w+)>(?P<arguments>.*?)</function>", r"<(?P<name>function)=f>"]}
    told, calls = read(named * 300, keys)
    assert told == "" and calls == [("f", "{}")] * 300


@pytest.mark.parametrize("blank", [" ", "[ ", "\x1c", "\n"])
def test_blanks_wait_for_what_comes_and_are_looked_at_once(blank: str) -> None:
    """In small pieces: a reader that looked at all of them with each would take minutes."""
    text = blank * (400_000 // len(blank))
    reader = CallReader(Function(automatic_tool_parsing_fallback=True), ("f",), Allowance())
    assert "".join(reader.feed(text[at : at + 4]) for at in range(0, len(text), 4)) == ""
    assert reader.feed("so") == text + "so" and reader.finish() == ""


PARTS = st.sampled_from([
    "Yes. ", "\n", " ", "{", "}", "[", "]", ",", '"', "<tool_call>", "</tool_call>", "<function=f>", "</function>",
    "<parameter=a>", "</parameter>", "```json\n", "```", '{"name": "f", "arguments": {"a": 1}}',
    '{"name": "answer", "arguments": {"message": "m"}}', "<", "</", "<arg_key>", "f(x)", KIMI, KIMI[:40],
])  # fmt: skip
RULES: list[dict[str, Any]] = [{}, LLAMA, LFM, MISTRAL, HERMES, OWN_TAGS, {"xml_format_preset": "qwen3-coder"}]


@settings(max_examples=300, deadline=None)
@given(st.lists(PARTS, max_size=8).map("".join), st.sampled_from(RULES), st.integers(1, 9))
def test_any_answer_reads_the_same_in_pieces(text: str, keys: dict[str, Any], size: int) -> None:
    told, calls = read(text, keys)
    assert read(text, keys, size) == (told, calls)
    if not calls and "answer" not in text and "replace_llm_results" not in keys:
        assert told == text
