"""`key=value` of the command line as plain data: dots lead into maps, values are YAML's."""

from __future__ import annotations

import re
from typing import Any

from yaml.nodes import MappingNode, Node, ScalarNode, SequenceNode

from llmgallery.config.nodes import Unreadable, compose, scalar

_KEY = re.compile(r"[\w-]+")


class AssignmentError(ValueError):
    """What is wrong with one of them."""


def assign(found: dict[str, Any], text: str) -> None:
    """Enter `a.b=1` into `found`. Raises AssignmentError."""
    key, equals, value = text.partition("=")
    *path, last = key.split(".")
    if not equals or not all(_KEY.fullmatch(step) for step in (*path, last)):
        raise AssignmentError("write it as key=value, such as context_size=8192 or parameters.temperature=0.7")
    for step in path:
        found = found.setdefault(step, {})
        if not isinstance(found, dict):
            raise AssignmentError(f"{step} has a value already")
    found[last] = _value(value)


def _value(text: str) -> Any:
    try:
        node = compose(text.encode(), "the value")
    except Unreadable as exc:
        raise AssignmentError(exc.problem.message) from exc
    return _plain(node) if node is not None else None


def _plain(node: Node) -> Any:
    try:
        match node:
            case ScalarNode():
                return scalar(node)
            case SequenceNode():
                return [_plain(item) for item in node.value]
            case MappingNode():
                return {str(_plain(key)): _plain(value) for key, value in node.value}
    except ValueError as exc:
        raise AssignmentError(str(exc)) from exc
    raise AssignmentError("expected a value, a list or a map")
