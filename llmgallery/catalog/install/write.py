"""The text of an installed model's YAML: commented, the same for the same plan, and read back before anybody gets it."""

from __future__ import annotations

import hashlib
import re
import textwrap
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import yaml

from llmgallery.config.load import LoadedModel, parse_model
from llmgallery.config.nodes import PLAIN, scalar
from llmgallery.config.outside import Outside, Spec
from llmgallery.core.errors import ConfigError

WIDTH = 110
"""Columns of a comment; an address is never broken."""

_MAX_FILE_NAME = 200
_SAFE = re.compile(r"[A-Za-z0-9_./-][A-Za-z0-9_.,/@+() :'-]*")
_BOOLEANS = frozenset({"y", "n", "yes", "no", "on", "off"})
"""Texts that other readers of YAML, of version 1.1, take for booleans."""


def file_name(name: str) -> str:
    """The name of a model's YAML file: `/` becomes `__`, and what no file system likes becomes -. Names that only differ in
    that get the same: look before writing."""
    plain = re.sub(r'[:\\*?"<>|\x00-\x1f\x7f]', "-", name.replace("/", "__"))
    plain = f"_{plain[1:]}" if plain.startswith(".") else plain
    if len(plain.encode(errors="replace")) > _MAX_FILE_NAME:
        digest = hashlib.sha256(name.encode(errors="replace")).hexdigest()[:16]
        plain = plain.encode(errors="replace")[: _MAX_FILE_NAME - 17].decode(errors="ignore") + "-" + digest
    return f"{plain}.yaml"


def yaml_text(config: Mapping[str, Any], head: Iterable[str] = (), notes: Mapping[str, str] | None = None) -> str:
    """`config` as YAML, in its own order. `head`: paragraphs of comment above it; `notes`: top-level key -> the comment above
    that key. Texts of several lines are written as blocks. The same values give the same text."""
    parts = [comment(paragraph) for paragraph in head]
    for key, value in config.items():
        above = comment(notes[key]) if notes and key in notes else ""
        parts.append(above + yaml.dump({key: value}, Dumper=_Dumper, sort_keys=False, allow_unicode=True, width=10_000))
    return "".join(parts)


def comment(text: str) -> str:
    """Lines that begin with #; control characters and line breaks of `text` cannot end the comment."""
    plain = "".join(sign if sign.isprintable() else " " for sign in text)
    lines = textwrap.wrap(plain, WIDTH - 2, break_long_words=False, break_on_hyphens=False)
    return "".join(f"# {line}\n" for line in lines)


def checked(text: str, name: str, folder: Path, specs: Mapping[str, Spec], outside: Outside | None = None) -> LoadedModel:
    """What the server will read in the text, once it lies in `folder`. Raises ConfigError with all its problems as hints."""
    loaded = parse_model(text.encode(), folder / file_name(name), specs, outside)
    if loaded.config is None:
        problems = tuple(map(str, loaded.problems))
        raise ConfigError(f"the model file for {name} would not be valid: {'; '.join(problems)}", hints=problems)
    return loaded


class _Dumper(yaml.SafeDumper):
    """Lists are indented below their key; every text is read back as a text, by versions 1.1 and 1.2."""

    def increase_indent(self, flow: bool = False, indentless: bool = False) -> None:
        super().increase_indent(flow, False)

    def ignore_aliases(self, data: Any) -> bool:
        return True


def _represent_text(dumper: yaml.SafeDumper, value: str) -> yaml.ScalarNode:
    if "\n" in value.strip() and not value.endswith("\n\n"):
        style: str | None = "|"  # the emitter takes double quotes where a block could not hold it
    else:
        style = None if _reads_as_text(value) else '"'
    return dumper.represent_scalar("tag:yaml.org,2002:str", value, style=style)


def _reads_as_text(value: str) -> bool:
    if not _SAFE.fullmatch(value) or value.lower() in _BOOLEANS:
        return False
    try:
        return isinstance(scalar(yaml.ScalarNode(PLAIN, value)), str)
    except ValueError:
        return False


def _represent_float(dumper: yaml.SafeDumper, value: float) -> yaml.ScalarNode:
    """As Python writes it: PyYAML's own 1e-05 becomes a text in YAML 1.2."""
    text = repr(value).replace("inf", ".inf").replace("nan", ".nan")
    if "e" in text and "." not in text:
        text = text.replace("e", ".0e", 1)
    return dumper.represent_scalar("tag:yaml.org,2002:float", text)


_Dumper.add_representer(str, _represent_text)
_Dumper.add_representer(float, _represent_float)
