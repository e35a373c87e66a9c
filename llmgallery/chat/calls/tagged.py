"""Calls in tags, as LocalAI's function.xml_format describes them (llama.cpp's xml_tool_call_format): a name, then its arguments,
each with its own tags, or as JSON."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from llmgallery.chat.calls.base import Found, is_text, json_at, json_text
from llmgallery.config.calls import PRESETS, Tags
from llmgallery.templates.gotmpl.budget import current

_NAME = re.compile(r"[A-Za-z0-9_.\-]{1,128}")
_LONGEST_NAME = 1024
"""With the spaces around it."""
SPACES_A_STEP = 64
STEPS_AN_ARGUMENT = 8
_SPACES = re.compile(r"\s*")
_KIMI_NAME = re.compile(r"(?:functions\.)?([A-Za-z0-9_.\-]{1,128}):\d{1,6}")
"""Kimi's calls are named `functions.NAME:NUMBER`."""


def tags_of(preset: str | None, written: Mapping[str, Any] | None) -> Tags | None:
    """What a model file says: its own tags, else those of the preset."""
    if written:
        return Tags(**written)
    return PRESETS.get(preset) if preset else None


def start_of(tags: Tags) -> str:
    """What the first call begins with."""
    return (tags.scope_start or tags.tool_start).strip()


def tagged_calls(text: str, tags: Tags) -> list[Found]:
    """All calls in these tags. What is not whole, or no call's name, is none. To be called within an Allowance's `spending`."""
    found: list[Found] = []
    marked, start, at = _Marked(text), start_of(tags), 0
    while start and (at := marked.find(start, at)) >= 0:
        scope = _Scope(marked, tags, at)
        calls = scope.read()
        found += calls
        at = scope.at if calls else at + len(start)
    return found


class _Marked:
    """A text, and where marks stand in it: a part that was searched for one is not searched again by who reads on there."""

    def __init__(self, text: str) -> None:
        self.text = text
        self._known: dict[str, tuple[int, int]] = {}
        """For each mark from where it was searched for, and where it was found, if it was."""

    def find(self, mark: str, at: int) -> int:
        """As str.find."""
        begin, found = self._known.get(mark, (len(self.text) + 1, -1))
        if begin <= at and (found < 0 or at <= found):
            return found
        found = self.text.find(mark, at)
        current().text((len(self.text) if found < 0 else found) - at)
        self._known[mark] = at, found
        return found


class _Scope:
    """Calls in a row: in one scope, where the format has one."""

    def __init__(self, marked: _Marked, tags: Tags, at: int) -> None:
        self.marked, self.text, self.tags, self.at = marked, marked.text, tags, at

    def read(self) -> list[Found]:
        begin = self.at
        if self.tags.scope_start:
            self.take(self.tags.scope_start)
        calls: list[Found] = []
        while True:
            before = self.at
            call = self.call(begin if not calls else None)
            if call is None:
                self.at = before
                break
            calls.append(call)
        if calls and self.tags.scope_end and self.take(self.tags.scope_end):
            calls[-1] = Found(calls[-1].name, calls[-1].arguments, calls[-1].begin, self.at)
        return calls

    def take(self, mark: str) -> bool:
        """Goes on behind `mark`, if it is next but for spaces. Those at its own ends are the model's to leave out."""
        at = self.next()
        if not self.text.startswith(mark.strip(), at):
            return False
        self.at = at + len(mark.strip())
        return True

    def next(self) -> int:
        match = _SPACES.match(self.text, self.at)
        at = match.end() if match else self.at
        current().step(1 + (at - self.at) // SPACES_A_STEP)
        return at

    def upto(self, mark: str) -> str | None:
        """What stands before the next `mark`; goes on behind that."""
        end = self.marked.find(mark.strip(), self.at)
        if end < 0:
            return None
        current().text(end - self.at)
        part, self.at = self.text[self.at : end], end + len(mark.strip())
        return part

    def call(self, begin: int | None) -> Found | None:
        begin = self.next() if begin is None else begin
        if not self.take(self.tags.tool_start):
            return None
        name = self.name()
        if name is None:
            return None
        arguments = self.arguments() if self.tags.key_start else self.whole()
        return None if arguments is None else Found(name, json_text(arguments), begin, self.at)

    def name(self) -> str | None:
        if self.tags.tool_sep:
            mark = self.tags.tool_sep.strip()
            end = self.marked.find(mark, self.at)
        else:
            mark = ""
            ends = [self.marked.find(mark, self.at) for mark in (self.tags.key_start, self.tags.tool_end) if mark]
            end = min((place for place in ends if place >= 0), default=-1)
        if not 0 < end - self.at <= _LONGEST_NAME:
            return None
        name, self.at = self.text[self.at : end].strip(), end + len(mark)
        if kimi := _KIMI_NAME.fullmatch(name):
            return kimi[1]
        return name if _NAME.fullmatch(name) else None

    def whole(self) -> Any:
        """All arguments as one JSON object."""
        at = self.next()
        found = json_at(self.text, at) if self.text.startswith("{", at) else None
        if found is None:
            return None
        self.at = found[1]
        return found[0] if self.end() else None

    def arguments(self) -> dict[str, Any] | None:
        values: dict[str, Any] = {}
        while not self.end():
            current().step(STEPS_AN_ARGUMENT)
            if not self.take(self.tags.key_start):
                return None
            key = self.upto(self.tags.key_val_sep)
            if key is None or (self.tags.key_val_sep2 and not self.take(self.tags.key_val_sep2)):
                return None
            value = self.value()
            if value is None or not is_text(key):
                return None
            values[key.strip()] = value[0]
        return values

    def end(self) -> bool:
        """Of the call. The last of several may end otherwise."""
        marks = (self.tags.tool_end, self.tags.last_tool_end)
        return any(self.take(mark) for mark in marks if mark)

    def value(self) -> tuple[Any] | None:
        """Of one argument, in a tuple, as it may be null."""
        if self.tags.raw_argval is False and (found := json_at(self.text, self.next())) is not None:
            self.at = found[1]
            ended = self.take(self.tags.val_end) or self.tags.last_val_end == "" or self.take(self.tags.last_val_end or "\0")
            return (found[0],) if ended else None
        ends = [mark for mark in (self.tags.val_end, self.tags.last_val_end) if mark]
        value = self.upto(min(ends, key=self.place)) if ends else None
        if value is None:
            return None
        value = value.strip() if self.tags.trim_raw_argval else value
        return (value if self.tags.raw_argval else _json_or_text(value),)

    def place(self, mark: str) -> int:
        found = self.marked.find(mark.strip(), self.at)
        return found if found >= 0 else len(self.text)


def _json_or_text(value: str) -> Any:
    text = value.strip()
    found = json_at(text, 0)
    return found[0] if found is not None and found[1] == len(text) else value
