"""The text of an index to the nodes of its entries; one that is no YAML does not cost the others. Knows no key."""

from __future__ import annotations

import re
from dataclasses import replace
from itertools import pairwise

from yaml.nodes import MappingNode, Node

from llmgallery.config import nodes
from llmgallery.config.nodes import Unreadable
from llmgallery.config.problems import Problem

MAX_REPAIRS = 20
MAX_EXACT = 50
LEFT_OUT = "\ue000left out"
"""The key of a mapping that stands for an entry which is no YAML."""

_ITEM = re.compile(r"^( *)-(?= |$)", re.MULTILINE)
_ANCHOR = re.compile(r"(?<![^\s\[{,])&([\w-]+)")


def documents(text: str, source: str) -> tuple[list[Node], list[Problem]]:
    """The roots, and why entries are missing in them: those that are no YAML are looked for one by one, and left out."""
    try:
        return nodes.documents(text, source), []
    except Unreadable as error:
        first = error.problem
    lines, problems = text.split("\n"), list[Problem]()
    begin = found[0] if (found := _ITEM.search(text)) else "-"
    spans = _spans(lines, begin)
    for start, end in list(spans):
        piece = "\n".join(lines[start:end])
        if (fault := _fault(piece, source)) is not None:
            # Once more with all lines above it, as the words too name lines; not for all of a file of nonsense.
            whole = _fault("\n" * start + piece, source) if len(problems) < MAX_EXACT else None
            problems.append(whole or replace(fault, line=fault.line + start))
            _leave_out(lines, start, end, begin)
            spans.remove((start, end))
    for _ in range(MAX_REPAIRS):
        try:
            return nodes.documents("\n".join(lines), source), problems
        except Unreadable as error:
            last = error.problem
        # Each alone is YAML, but not beside the others: one is indented otherwise, or names an anchor that nobody has.
        span = next(((start, end) for start, end in spans if start < last.line <= end), None)
        if span is None:
            break
        problems.append(last)
        _leave_out(lines, *span, begin)
        spans.remove(span)
    return [], problems or [first]


def _fault(text: str, source: str) -> Problem | None:
    """Why a piece is no YAML; its aliases may well be of another piece."""
    try:
        nodes.check_syntax(text, source)
    except Unreadable as error:
        return error.problem
    return None


def _spans(lines: list[str], begin: str) -> list[tuple[int, int]]:
    """First line and end of each item of the outermost list, and of each document."""
    starts = [at for at, line in enumerate(lines) if line == begin or line.startswith((begin + " ", "---"))]
    spans = [(start, end) for start, end in pairwise([0, *starts, len(lines)]) if end > start]
    return [(start + 1, end) if lines[start].rstrip() == "---" else (start, end) for start, end in spans]


def _leave_out(lines: list[str], start: int, end: int, begin: str) -> None:
    """In the entry's place stand its anchors alone, so that who builds on them can be told why it is not read."""
    anchors = dict.fromkeys(_ANCHOR.findall("\n".join(lines[start:end])))
    mark = f'"{LEFT_OUT}": {start + 1}'
    kept = ", ".join(f"&{anchor} {{{mark}}}" for anchor in anchors)
    is_item = lines[start] == begin or lines[start].startswith(begin + " ")
    lines[start:end] = [f"{begin} {{{mark}, anchors: [{kept}]}}" if is_item else "", *[""] * (end - start - 1)]


def is_left_out(node: Node) -> bool:
    """It stands for an entry that is no YAML."""
    first = node.value[0] if isinstance(node, MappingNode) and node.value else None
    return first is not None and first[0].value == LEFT_OUT
