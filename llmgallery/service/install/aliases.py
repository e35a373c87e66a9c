"""So that what was asked for finds the model again: the other name goes into the YAML's text, whose comments stay."""

from __future__ import annotations

import json
from pathlib import Path

import msgspec
from yaml.nodes import MappingNode, Node, ScalarNode, SequenceNode

from llmgallery.catalog.index import is_glob
from llmgallery.catalog.install.job import Asked
from llmgallery.catalog.install.plan import InstallPlan
from llmgallery.config.checks import name_fault
from llmgallery.config.nodes import compose


def with_alias(plan: InstallPlan, asked: Asked, folder: Path) -> InstallPlan:
    """The plan, whose YAML answers to the reference that was asked for, unless it was to be called otherwise."""
    name = asked.reference
    if asked.name is not None or asked.overrides or asked.files or name == plan.name or name_fault(name) or is_glob(name):
        return plan
    return msgspec.structs.replace(plan, yaml=add_alias(plan.yaml, name, folder / "model.yaml"))


def add_alias(text: str, alias: str, path: Path) -> str:
    """`text`, a model file's, with one more alias. `path` is for messages. Raises Unreadable."""
    root = compose(text.encode(), path)
    assert isinstance(root, MappingNode)
    keys: dict[str, tuple[Node, Node]] = {
        str(key.value): (key, value) for key, value in root.value if isinstance(key, ScalarNode)
    }
    lines = (text if text.endswith("\n") else f"{text}\n").splitlines(keepends=True)
    if "aliases" not in keys:
        at = keys["name"][1].end_mark.line + 1 if "name" in keys else len(lines)
        return "".join([*lines[:at], f"aliases: {_listed([alias])}\n", *lines[at:]])
    key, value = keys["aliases"]
    names = [str(item.value) for item in value.value] if isinstance(value, SequenceNode) else []
    if alias in names:
        return text
    last = (
        value.value[-1].end_mark if isinstance(value, SequenceNode) and not value.flow_style and value.value else value.end_mark
    )
    rest = lines[last.line][last.column :] if last.line < len(lines) else "\n"
    written = f"aliases: {_listed([*names, alias])}"
    return "".join([*lines[: key.start_mark.line], written, rest, *lines[last.line + 1 :]])


def _listed(names: list[str]) -> str:
    return json.dumps(names, ensure_ascii=False)
