"""The prompt format of weights that bring no template: told by their vocabulary and metadata, else by their file's name.

The rules are data: detect.toml, and GatoGPT's patterns in gatogpt.toml.
"""

from __future__ import annotations

import functools
import re
import tomllib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from fnmatch import fnmatchcase
from importlib import resources
from pathlib import PurePosixPath
from typing import Any

from llmgallery.core.clues import Clues
from llmgallery.templates import presets
from llmgallery.templates.presets import Preset

_CACHED = re.compile(r"(?:^|/)models--([^/]+)/snapshots/[^/]+/")
"""Where huggingface_hub keeps files."""


@dataclass(frozen=True)
class Detected:
    """A preset, and what speaks for it, in words for people."""

    preset: Preset
    why: str


@functools.lru_cache(maxsize=64)
def detect(clues: Clues) -> Detected:
    """The preset that suits the weights best; never none: what nobody knows gets presets.FALLBACK."""
    name, why = next(_found(clues), (presets.FALLBACK, "nothing about the weights tells a format"))
    return Detected(presets.get(name), why)


def _found(clues: Clues) -> Iterator[tuple[str, str]]:
    rules = _rules()
    tokens = frozenset(clues.tokens)
    for rule in rules["rules"]:
        if why := _fits(rule, clues, tokens):
            yield rule["preset"], why
    path = logical_path(clues.file)
    if profile := presets.gatogpt_profile_for(path):
        yield rules["profiles"][profile], f"the file's path {path}, by which GatoGPT takes {profile}"
    for name in (PurePosixPath(path).name, clues.name):
        folded = re.sub(r"[\s_]", "-", name.casefold())
        for rule in rules["names"]:
            if any(fnmatchcase(folded, pattern) for pattern in rule["patterns"]):
                yield rule["preset"], f"the name {name}"


def _fits(rule: Mapping[str, Any], clues: Clues, tokens: frozenset[str]) -> str:
    """What speaks for the rule; "" = it does not fit."""
    wanted = rule.get("tokens", [])
    facts = [("architecture", clues.architecture), ("pre_tokenizer", clues.pre_tokenizer)]
    asked = [(key.replace("_", "-"), value) for key, value in facts if f"{key}s" in rule]
    if not tokens.issuperset(wanted) or any(value not in rule[f"{key}s"] for key, value in facts if f"{key}s" in rule):
        return ""
    said = [f"the vocabulary has {' and '.join(wanted)}"] if wanted else []
    return ", ".join([*said, *(f"the {key} is {value}" for key, value in asked)])


def logical_path(file: str) -> str:
    """owner/repo/file of a file in huggingface_hub's cache, below a slash as GatoGPT's patterns want it; else the path itself."""
    path = file.replace("\\", "/")
    if found := _CACHED.search(path):
        path = f"{found[1].replace('--', '/')}/{path[found.end() :]}"
    return path if path.startswith("/") else f"/{path}"


@functools.cache
def _rules() -> Mapping[str, Any]:
    return tomllib.loads((resources.files("llmgallery.templates") / "detect.toml").read_text("utf-8"))
