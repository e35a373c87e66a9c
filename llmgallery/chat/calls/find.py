"""Which calls an answer makes, by the rules of the model file's `function:` block. The rules, and their order where it matters,
are those of LocalAI's pkg/functions/parse.go (ParseFunctionCall)."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from llmgallery.chat.calls.base import Found, is_text, json_at, json_text, json_values
from llmgallery.chat.calls.tagged import start_of, tagged_calls, tags_of
from llmgallery.config.calls import JSON_PRESETS, PRESETS
from llmgallery.config.model import Function, KeyValue
from llmgallery.templates.gotmpl.budget import current
from llmgallery.templates.gotmpl.regexp import Regexp, compile_regexp
from llmgallery.templates.gotmpl.regexp.machine import Marks

NAME, ARGUMENTS = "name", "arguments"
"""The keys of a call where the model file names no others."""
PLAIN_STARTS = ("<tool_call>", "<function=")
"""Tags that are looked for even with disable_peg_parser."""


def find_calls(text: str, function: Function) -> list[Found]:
    """In the order in which they stand in `text`. To be called within an Allowance's `spending`."""
    return sorted(_find(text, function), key=lambda call: call.begin)


def _find(text: str, function: Function) -> list[Found]:
    """The first way of these that finds any: the tags that the file names, its expressions, all known tags, plain JSON."""
    tags = tags_of(function.xml_format_preset, function.xml_format)
    if tags is not None and (calls := tagged_calls(text, tags)):
        return calls
    if between := _json_tags(function):
        return _in_json_between(text, *between, function)
    matched = _matched(text, function)
    if function.response_regex:
        calls = _by_names(text, function)
    else:
        calls = [call for match in matched for call in _in_json(text, match, function)]
    if calls or tags is not None:
        return calls
    if not function.disable_peg_parser or any(start in text for start in PLAIN_STARTS):
        for preset in dict.fromkeys(PRESETS.values()):
            if calls := tagged_calls(text, preset):
                return calls
    return [] if matched or function.response_regex else _in_json(text, (0, len(text), 0, len(text)), function)


def starts(function: Function) -> list[str] | None:
    """Texts one of which every call begins with; None = nobody knows."""
    tags = tags_of(function.xml_format_preset, function.xml_format)
    if between := _json_tags(function):
        return [between[0]]
    found = [start_of(tags)] if tags is not None else [start_of(preset) for preset in PRESETS.values()]
    for pattern in (*function.response_regex, *function.json_regex_match):
        prefix = compile_regexp(pattern).prefix
        if not prefix:
            return None
        found.append(prefix)
    plain = tags is None and not function.response_regex
    return [*dict.fromkeys(found), *(["{"] if plain else [])]


def replaced(text: str, rules: Iterable[KeyValue]) -> str:
    """With what each expression matches replaced, in their order, as Go's ReplaceAllString does it."""
    for rule in rules:
        text = _replace_all(compile_regexp(rule.key), text, rule.value)
    return text


def _replace_all(regexp: Regexp, text: str, value: str) -> str:
    return regexp.replace_all(text, lambda marks: regexp.expand(value, text, marks))


def captured(text: str, patterns: Iterable[str]) -> str | None:
    """The first group of the first expression that matches, without spaces around it; None = none does."""
    for pattern in patterns:
        marks = compile_regexp(pattern).search(text)
        if marks is not None:
            return text[marks[2] : marks[3]].strip() if len(marks) > 2 and marks[2] >= 0 else ""
    return None


# --- expressions -------------------------------------------------------------------------------------------------------------


def _matched(text: str, function: Function) -> list[Marks]:
    """What the first expression of json_regex_match that matches at all finds."""
    for pattern in function.json_regex_match:
        found = [marks for marks in compile_regexp(pattern).find_all(text) if len(marks) > 2 and marks[2] >= 0]
        if found:
            return found
    return []


def _by_names(text: str, function: Function) -> list[Found]:
    """By the groups that response_regex names."""
    calls: list[Found] = []
    for pattern in function.response_regex:
        regexp, earlier = compile_regexp(pattern), calls.copy()  # the matches of one expression are apart
        for marks in regexp.find_all(text):
            groups = _groups(regexp, text, marks)
            name = groups.get(function.function_name_key or NAME, "")
            if not name:
                return calls
            arguments = _arguments(groups.get(function.function_arguments_key or ARGUMENTS, ""), function)
            current().items(len(earlier))
            if not any(call.begin < marks[1] and marks[0] < call.end for call in earlier):
                calls.append(Found(name, arguments, marks[0], marks[1]))
    return calls


def _groups(regexp: Regexp, text: str, marks: Marks) -> dict[str, str]:
    named = [(number, name) for number, name in enumerate(regexp.names) if name]
    return {name: text[max(0, marks[2 * number]) : max(0, marks[2 * number + 1])] for number, name in named}


def _arguments(text: str, function: Function) -> str:
    """What the model wrote as arguments, or JSON of what argument_regex finds in it: every value is a text."""
    if not function.argument_regex:
        return text if text.strip() else "{}"
    key, value = function.argument_regex_key_name or "key", function.argument_regex_value_name or "value"
    values: dict[str, str] = {}
    for pattern in function.argument_regex:
        regexp = compile_regexp(pattern)
        for marks in regexp.find_all(text):
            groups = _groups(regexp, text, marks)
            if key in groups:
                values[groups[key]] = groups.get(value, "")
    return json_text(dict(sorted(values.items())))


def _json_tags(function: Function) -> tuple[str, str] | None:
    """The tags between which all calls are, by the preset that the file names."""
    return None if function.xml_format else JSON_PRESETS.get(function.xml_format_preset or "")


# --- JSON --------------------------------------------------------------------------------------------------------------------


def _in_json(text: str, marks: Marks, function: Function) -> list[Found]:
    """Objects with a name and arguments in the first group, alone or in arrays. The calls of one match, and of one array, share
    their place."""
    alone = (marks[0], marks[1]) == (marks[2], marks[3])
    calls = []
    for value, begin, end in json_values(text, marks[2], marks[3]):
        begin, end = (begin, end) if alone else (marks[0], marks[1])
        for item in value if isinstance(value, list) else [value]:
            call = _call(item, function)
            if call is not None:
                calls.append(Found(*call, begin, end))
    return calls


def _in_json_between(text: str, opening: str, closing: str, function: Function) -> list[Found]:
    calls: list[Found] = []
    at = 0
    while (begin := text.find(opening, at)) >= 0:
        start = begin + len(opening)
        end = text.find(closing, start)
        inner, at = (end, end + len(closing)) if end >= 0 else (len(text), len(text))
        calls += _in_json(text, (begin, at, start, inner), function)
    return calls


def _call(item: Any, function: Function) -> tuple[str, str] | None:
    if not isinstance(item, dict):
        return None
    name = item.get(function.function_name_key or NAME)
    arguments = item.get(function.function_arguments_key or ARGUMENTS, ...)
    if not isinstance(name, str) or not name or not is_text(name) or arguments is ...:
        return None
    if not arguments and not isinstance(arguments, (bool, int, float, list)):
        return name, "{}"  # null or an empty text: there are none
    if not isinstance(arguments, str):
        return name, json_text(arguments)
    read = json_at(arguments.strip(), 0)
    if read is not None and isinstance(read[0], dict) and read[1] == len(arguments.strip()):
        return name, arguments if is_text(arguments) else json_text(read[0])
    if function.automatic_tool_parsing_fallback:
        return name, json_text({"query": arguments})
    return name, arguments if is_text(arguments) else json_text(arguments)
