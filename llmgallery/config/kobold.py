"""template.adapter of a model file: what is wrong with it, and where."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol

from yaml.nodes import MappingNode, Node, ScalarNode

from llmgallery.config.model import Template
from llmgallery.config.nodes import place
from llmgallery.config.problems import Problem
from llmgallery.config.readers import Reading

KEY = "template.adapter"


class AdapterFault(Protocol):
    """What is wrong with an adapter. `key`: its dotted path below the adapter, "" = the whole."""

    @property
    def key(self) -> str: ...
    @property
    def message(self) -> str: ...
    @property
    def suggestion(self) -> str: ...


AdapterCheck = Callable[[Mapping[str, Any] | str], Sequence[AdapterFault]]


def check(template: Template, reading: Reading, examine: AdapterCheck | None) -> list[Problem]:
    """Note what is wrong with the adapter; warnings for what of it, or because of it, is not used."""
    if not template.adapter or KEY not in reading.nodes:
        return []
    whole = reading.nodes[KEY]
    for fault in examine(template.adapter) if examine is not None else ():
        key = f"{KEY}.{fault.key}" if fault.key else KEY
        if KEY not in reading.lent and reading.source(key) is not None:
            continue  # told where it stands
        reading.fail(_below(whole, fault.key), key, fault.message, fault.suggestion)
    if template.chat_template is not None or template.chat_template_file is not None:
        return []  # nothing of it is used
    warnings = []
    if isinstance(template.adapter, dict) and "max_length" in template.adapter:
        at, message = place(_below(whole, "max_length")), "not used: parameters.max_tokens says how long an answer may be"
        warnings.append(Problem(reading.path_of(f"{KEY}.max_length"), *at, f"{KEY}.max_length", message))
    return warnings


def _below(node: Node, path: str) -> Node:
    """The key that a dotted path names, as far as it is there."""
    for step in filter(None, path.split(".")):
        pairs = node.value if isinstance(node, MappingNode) else []
        found = next(((key, value) for key, value in pairs if isinstance(key, ScalarNode) and key.value == step), None)
        if found is None:
            return node
        node = found[1] if isinstance(found[1], MappingNode) else found[0]
    return node
