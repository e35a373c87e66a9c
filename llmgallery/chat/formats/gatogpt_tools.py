"""Functions on offer, and calls made, in the words of a prompt that has no place of its own for them.

In GatoGPT's manner (a list of names and parameters in a system message, JSON objects as calls), without its examples, which are
no JSON, and without its function `respond`: who wants to talk just talks.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from llmgallery.config.model import Function
from llmgallery.core.messages import Tool, ToolCall

NAME, ARGUMENTS = "name", "arguments"
"""The keys of a call where the model YAML names no others."""


def tools_text(tools: Iterable[Tool], function: Function) -> str:
    """What the functions are, and how one is called: with the keys that answers are searched for."""
    example = f'{{{_keys(function)[0]}: "function_name", {_keys(function)[1]}: {{"argument_name": "argument_value"}}}}'
    lines = [
        "You can call the functions below. To call one, answer with a JSON object and nothing else:",
        example,
        "If no function helps, answer in plain words.",
        "Available functions:",
    ]
    return "\n".join([*lines, *(line for tool in tools for line in _tool_lines(tool))])


def calls_text(calls: Iterable[ToolCall], function: Function) -> str:
    """Calls as the model wrote them, one a line."""
    name, arguments = _keys(function)
    return "\n".join(f"{{{name}: {_json(call.name)}, {arguments}: {call.arguments}}}" for call in calls)


def _keys(function: Function) -> tuple[str, str]:
    return _json(function.function_name_key or NAME), _json(function.function_arguments_key or ARGUMENTS)


def _tool_lines(tool: Tool) -> Iterator[str]:
    yield f"  {tool.name}" + (f" ({tool.description}):" if tool.description else ":")
    parameters = tool.parameters or {}
    properties, required = parameters.get("properties"), parameters.get("required")
    for name, schema in (properties if isinstance(properties, Mapping) else {}).items():
        yield f"    {name}:"
        needed = isinstance(required, list) and name in required
        yield from (f"      {line}" for line in _parameter_lines(schema if isinstance(schema, Mapping) else {}, needed))


def _parameter_lines(schema: Mapping[str, Any], needed: bool) -> Iterator[str]:
    if type_ := schema.get("type"):
        yield f"data_type: {type_ if isinstance(type_, str) else _json(type_)}"
    if description := schema.get("description"):
        yield f"description: {description}"
    if isinstance(allowed := schema.get("enum"), list):
        yield f"allowed_values: {', '.join(one if isinstance(one, str) else _json(one) for one in allowed)}"
    yield f"required: {needed}"


def _json(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False)
