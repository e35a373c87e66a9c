"""LocalAI's files as nodes: which are its own, and where their keys stand."""

from __future__ import annotations

from pathlib import Path

from yaml.nodes import MappingNode, Node, ScalarNode, SequenceNode

from llmgallery.catalog.formats import YAML_SUFFIXES
from llmgallery.config.nodes import MAX_DEPTH, MAX_VISITS, Unreadable
from llmgallery.config.nodes import compose as nodes_of
from llmgallery.config.problems import as_error
from llmgallery.config.readers import Reading, entries, is_null
from llmgallery.config.suggest import model_levels
from llmgallery.core.errors import ConfigError
from llmgallery.importers.ledger import Ledger, read_source

COMMON = frozenset({"name", "description", "usage", "type", "model", "options", "step", "limits", "disabled", "aliases", "proxy"})
"""Keys of a model file that other files may have at their top as well."""

INDEX = frozenset({"overrides", "url", "files", "variants"})
"""Keys of a gallery's entries."""


def yamls(folder: Path) -> list[Path]:
    """LocalAI reads a folder's own files, not those below; what begins with a dot is its own."""
    return sorted(path for path in folder.iterdir() if path.suffix.lower() in YAML_SUFFIXES and not path.name.startswith("."))


def is_ours(path: Path) -> bool:
    """The file holds a model, a list of models, a base file or an index."""
    try:
        root = nodes_of(read_source(path), path)
    except (ConfigError, Unreadable):
        return False
    items = root.value if isinstance(root, SequenceNode) else [root]
    telling = {*model_levels()[""], *INDEX, "config_file"} - COMMON
    return any(isinstance(item, MappingNode) and keys_in(item) & telling for item in items)


def keys_in(node: MappingNode) -> set[str]:
    """Of the mapping itself."""
    return {str(key.value) for key, _ in node.value if isinstance(key, ScalarNode)}


def places_of(node: Node, path: Path | str) -> dict[str, Node]:
    """Dotted key -> the node of the key, of all mappings. As many and as deep as a model file may have them."""
    found: dict[str, Node] = {}
    waiting = [(node, "", 0)]
    while waiting and len(found) < MAX_VISITS:
        here, prefix, depth = waiting.pop()
        if isinstance(here, MappingNode) and depth < MAX_DEPTH:
            for name, key_node, value_node in entries(here, prefix, Reading(path, lambda key, parent: "")):
                key = f"{prefix}.{name}" if prefix else name
                found[key] = key_node
                waiting.append((value_node, key, depth + 1))
    return found


def places_within(text: Node, path: Path) -> dict[str, Node]:
    """A base file's keys, all of them where its text begins."""
    if not isinstance(text, ScalarNode):
        return places_of(text, path)
    try:
        root = nodes_of(text.value.encode(), path)
    except Unreadable as error:
        raise as_error([error.problem], str(path)) from error
    return dict.fromkeys(places_of(root, path), text) if root is not None else {}


def prompt_templates(node: Node | None, ledger: Ledger) -> dict[str, str]:
    """[{name, content}] of a base file."""
    found: dict[str, str] = {}
    for index, item in enumerate(node.value if isinstance(node, SequenceNode) else []):
        table = ledger.table(item, f"prompt_templates[{index}]")
        name, content = table.get("name", str), table.get("content", str)
        if name and content is not None:
            found[name] = content
    if node is not None and not isinstance(node, SequenceNode) and not is_null(node):
        ledger.leave(node, "prompt_templates", "expected a list of `name` and `content`: not imported")
    return found
