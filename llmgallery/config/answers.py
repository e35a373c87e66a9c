"""The keys of a model file that cut answers and find calls in them: expressions that must be Go's, groups that they need."""

from __future__ import annotations

from collections.abc import Callable, Iterator

from yaml.nodes import MappingNode, Node

from llmgallery.config.calls import JSON_PRESETS, PRESETS, tags_fault
from llmgallery.config.model import Function, ModelConfig
from llmgallery.config.nodes import place
from llmgallery.config.problems import Problem
from llmgallery.config.readers import Reading
from llmgallery.config.suggest import did_you_mean

RegexpCheck = Callable[[str], tuple[str, tuple[str, ...]]]
"""An expression -> what is wrong with it, "" when nothing is, and the names of its groups in order, "" for those without one."""

PLAIN_KEYS = ("cutstrings", "extract_regex")
FUNCTION_KEYS = ("response_regex", "json_regex_match", "argument_regex", "capture_llm_results")
REPLACING_KEYS = ("replace_function_results", "replace_llm_results")


def check(config: ModelConfig, reading: Reading, regexp: RegexpCheck | None) -> list[Problem]:
    """Notes expressions that are none, and tags that cannot work; warnings for expressions without the groups that are looked
    for."""
    _tags(config.function, reading)
    if regexp is None:
        return []
    warnings = []
    for key, index, pattern in _patterns(config):
        named, node = f"{key}[{index}]", _item(reading.nodes[key], index)
        fault, groups = regexp(pattern)
        if fault:
            advice = "Go's expressions have neither lookaround nor backreferences" if "Perl syntax" in fault else ""
            reading.fail(node, named, fault, advice)
        elif lacking := _lacking(key, groups, config.function):
            message = f"finds nothing: the expression has no group {lacking}".rstrip()
            warnings.append(Problem(reading.path, *place(node), named, message))
    return warnings


def _patterns(config: ModelConfig) -> Iterator[tuple[str, int, str]]:
    """Each with the key of the list that it stands in, and its place there."""
    for key in PLAIN_KEYS:
        yield from ((key, index, pattern) for index, pattern in enumerate(getattr(config, key)))
    for key in FUNCTION_KEYS:
        yield from ((f"function.{key}", index, pattern) for index, pattern in enumerate(getattr(config.function, key)))
    for key in REPLACING_KEYS:
        yield from ((f"function.{key}", index, rule.key) for index, rule in enumerate(getattr(config.function, key)))


def _lacking(key: str, groups: tuple[str, ...], function: Function) -> str:
    """The group that the expression needs and does not have; "" when it has all."""
    match key:
        case "function.response_regex":
            needed = [function.function_name_key or "name"]
        case "function.argument_regex":
            needed = [function.argument_regex_key_name or "key", function.argument_regex_value_name or "value"]
        case "function.json_regex_match" | "function.capture_llm_results":
            return "" if groups else "(...) whose text is taken"
        case _:
            return ""
    return next((f"(?P<{name}>...)" for name in needed if name not in groups), "")


def _tags(function: Function, reading: Reading) -> None:
    if function.xml_format is not None and (fault := tags_fault(function.xml_format)):
        reading.fail(reading.nodes["function.xml_format"], "function.xml_format", fault)
    preset = function.xml_format_preset
    known = [*PRESETS, *JSON_PRESETS]
    if preset and preset not in known:
        advice = did_you_mean(preset, known) or f"known: {', '.join(known)}"
        node = reading.nodes["function.xml_format_preset"]
        reading.fail(node, "function.xml_format_preset", f"no format of calls is called {preset!r}", advice)


def _item(node: Node, index: int) -> Node:
    """The expression itself, also where it is the `key` of a replacement."""
    item: Node = node.value[index]
    if isinstance(item, MappingNode):
        return next((value for key, value in item.value if key.value == "key"), item)
    return item
