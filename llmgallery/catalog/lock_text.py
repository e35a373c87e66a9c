"""The text of a lock file: written so that git merges it well, read with the place of everything that is wrong."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import msgspec
from yaml.nodes import MappingNode, Node, ScalarNode

from llmgallery.catalog.locked import Locked, LockedModel, check_locked
from llmgallery.config.nodes import Unreadable, compose, kind, place, scalar
from llmgallery.config.problems import Problem, as_error
from llmgallery.core.errors import ConfigError

HEADER = "# What llmgallery installed here, and which bytes these are. Written by llmgallery: keep it, and do not edit it.\n"
VERSION = 1
MAX_BYTES = 32 * 1024 * 1024
_CONFLICT = re.compile(rb"^(<{7}|>{7}) ", re.MULTILINE)


def lock_text(data: Mapping[str, Any]) -> str:
    """The YAML: one value a line, keys in order, all texts in double quotes, so that none of them can be read as a number."""
    first = {"version": data.get("version", VERSION)}
    return HEADER + "".join(_lines(first, "")) + "".join(_lines({k: v for k, v in data.items() if k != "version"}, ""))


def _lines(data: Mapping[str, Any], indent: str) -> Iterator[str]:
    for key, value in sorted(data.items()):
        word = key if key.isascii() and key.isidentifier() and key.lower() not in ("null", "true", "false") else _quoted(key)
        yield from _value(f"{indent}{word}:", value, indent)


def _value(head: str, value: Any, indent: str) -> Iterator[str]:
    if isinstance(value, dict) and value:
        yield f"{head}\n"
        yield from _lines(value, indent + "  ")
    elif isinstance(value, list) and value:
        yield f"{head}\n"
        for item in value:
            yield from _item(item, indent + "  ")
    else:
        yield f"{head} {_scalar(value)}\n"


def _item(value: Any, indent: str) -> Iterator[str]:
    if isinstance(value, dict) and value:
        first, *rest = _lines(value, indent + "  ")
        yield f"{indent}- {first[len(indent) + 2 :]}"
        yield from rest
    else:
        yield from _value(f"{indent}-", value, indent)


def _scalar(value: Any) -> str:
    if isinstance(value, str):
        return _quoted(value)
    if value is None or isinstance(value, bool):
        return {None: "null", True: "true", False: "false"}[value]
    if isinstance(value, float):
        return {"inf": ".inf", "-inf": "-.inf", "nan": ".nan"}.get(repr(value), repr(value))
    return str(value) if isinstance(value, int) else ("{}" if isinstance(value, dict) else "[]")


def _quoted(text: str) -> str:
    return '"' + "".join(map(_character, text)) + '"'


def _character(character: str) -> str:
    if character in '"\\':
        return "\\" + character
    if character.isprintable():
        return character
    code = ord(character)
    return f"\\x{code:02x}" if code < 0x100 else f"\\u{code:04x}" if code < 0x10000 else f"\\U{code:08x}"


# --- reading -----------------------------------------------------------------------------------------------------------------


def parse_lock(data: bytes, path: Path) -> Locked:
    """What the text says. `path` names it in problems. Raises ConfigError with all of them."""
    if conflict := _CONFLICT.search(data):
        line = data.count(b"\n", 0, conflict.start()) + 1
        raise _broken([Problem(path, line, 1, "", "a merge left this conflict", "keep the models of both sides")], path)
    try:
        root = compose(data, path, MAX_BYTES)
    except Unreadable as error:
        raise _broken([error.problem], path) from error
    if root is None:
        return Locked()
    reading = _Reading(path)
    models, plain = reading.root(root)
    if reading.problems:
        raise _broken(reading.problems, path)
    return Locked(models, plain)


def _broken(problems: list[Problem], path: Path) -> ConfigError:
    error = as_error(problems, str(path))
    advice = f"mend {path}, or restore it from version control; it stays as it is until then"
    return ConfigError(f"{error.message}\n{advice}", hints=error.hints)


class _Reading:
    """Collects problems; what it returns counts only without any."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.problems: list[Problem] = []
        self._seen: set[int] = set()

    def fail(self, node: Node, key: str, message: str) -> None:
        self.problems.append(Problem(self.path, *place(node), key, message))

    def root(self, node: Node) -> tuple[dict[str, LockedModel], dict[str, Any]]:
        plain = self.plain(node, "")
        if not isinstance(node, MappingNode) or self.problems:
            if not self.problems:
                self.fail(node, "", f"expected `version:` and `models:`, found {kind(node)}")
            return {}, {}
        nodes = {key.value: value for key, value in node.value}
        version = plain.get("version")
        if version != VERSION:
            message = "this file was written by a newer llmgallery" if isinstance(version, int) and version > VERSION else ""
            self.fail(nodes.get("version", node), "version", message or f"expected {VERSION}")
            return {}, {}
        below = nodes.get("models")
        if below is not None and not isinstance(below, MappingNode):
            if plain["models"] is not None:
                self.fail(below, "models", f"expected models by name, found {kind(below)}")
            return {}, plain
        pairs = below.value if below is not None else []
        return {key.value: self.model(key.value, value, plain["models"][key.value]) for key, value in pairs}, plain

    def model(self, name: str, node: Node, data: Any) -> LockedModel:
        try:
            model = msgspec.convert(data, LockedModel)
        except msgspec.ValidationError as error:
            message, _, where = str(error).partition(" - at `$")
            where = where.rstrip("`")
            self.fail(_below(node, where), f"models.{name}{where}", message[:1].lower() + message[1:])
            return LockedModel(source="-", files=())
        for index, file in enumerate(model.files):
            try:
                check_locked(file)
            except ConfigError as error:
                where = f".files[{index}]"
                self.fail(_below(node, where), f"models.{name}{where}", error.message)
        return model

    def plain(self, node: Node, key: str) -> Any:
        """The node as Python's own values."""
        if isinstance(node, ScalarNode):
            try:
                return scalar(node)
            except ValueError as error:
                self.fail(node, key, str(error))
                return None
        if id(node) in self._seen:
            self.fail(node, key, "an *alias is not read here")
            return None
        self._seen.add(id(node))
        if not isinstance(node, MappingNode):
            return [self.plain(item, f"{key}[{index}]") for index, item in enumerate(node.value)]
        found: dict[str, Any] = {}
        for name, value in node.value:
            if not isinstance(name, ScalarNode):
                self.fail(name, key, f"expected a key, found {kind(name)}")
            elif name.value in found:
                self.fail(name, f"{key}.{name.value}".lstrip("."), "this key is there twice: a merge may have left it")
            else:
                found[name.value] = self.plain(value, f"{key}.{name.value}".lstrip("."))
        return found


def _below(node: Node, where: str) -> Node:
    """The node at a path as msgspec writes it, `.files[0].size`, or the last one of it that is there."""
    for step in where.replace("[", ".").replace("]", "").split(".")[1:]:
        if isinstance(node, MappingNode):
            below = next((value for key, value in node.value if key.value == step), None)
        else:
            below = node.value[int(step)] if step.isdecimal() and not isinstance(node, ScalarNode) else None
        if below is None:
            break
        node = below
    return node
