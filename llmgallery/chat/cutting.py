"""LocalAI's keys that cut answers: cutstrings, extract_regex, trimspace, trimsuffix, in the order of its sources (Finetune in
core/backend/llm.go). Text that comes in pieces goes out as soon as nothing that may follow can change it."""

from __future__ import annotations

import re
from collections.abc import Sequence
from itertools import islice

from llmgallery.chat.rules import Allowance
from llmgallery.config.model import ModelConfig
from llmgallery.templates.gotmpl.regexp import Regexp, compile_regexp

SPACE = (
    "\t\n\v\f\r \x85\xa0\u1680\u2000\u2001\u2002\u2003\u2004\u2005\u2006\u2007\u2008\u2009\u200a\u2028\u2029\u202f\u205f\u3000"
)
"""What Go's strings.TrimSpace takes away."""

_UPTO_DENSE = re.compile(f"[{SPACE}]*[^{SPACE}]")
"""A character that is no space, and the spaces before it."""

KEPT = 4096
"""Characters that are done with and still at hand, at most about twice as many."""


class Cutter:
    """All of these keys of a model file, for one answer."""

    def __init__(self, config: ModelConfig, allowance: Allowance) -> None:
        self._deleters = [_Deleter(pattern, allowance) for pattern in config.cutstrings]
        self._extractor = _Extractor(config.extract_regex, allowance) if config.extract_regex else None
        self._trimmer = _Trimmer(config.trimspace, config.trimsuffix)

    @staticmethod
    def is_needed(config: ModelConfig) -> bool:
        return bool(config.cutstrings or config.extract_regex or config.trimspace or config.trimsuffix)

    def feed(self, text: str) -> str:
        """What may go out."""
        for deleter in self._deleters:
            text = deleter.feed(text)
        if self._extractor is not None:
            text = self._extractor.feed(text)
        return self._trimmer.feed(text)

    def finish(self) -> str:
        """The rest."""
        text = ""
        for deleter in self._deleters:
            text = deleter.feed(text) + deleter.finish()
        if self._extractor is not None:
            self._extractor.feed(text)
            text = self._extractor.finish()
        return self._trimmer.feed(text) + self._trimmer.finish()


class _Deleter:
    """Passes on what one expression does not match, as Go's ReplaceAllString with an empty text does."""

    def __init__(self, pattern: str, allowance: Allowance) -> None:
        self._pattern = pattern
        self._allowance = allowance
        self._regexp: Regexp | None = None
        self._text = ""
        self._done = 0
        """Up to here the text has gone out, or was deleted."""
        self._start = 0

    def feed(self, text: str) -> str:
        self._text += text
        return self._cut(final=False)

    def finish(self) -> str:
        return self._cut(final=True)

    def _cut(self, *, final: bool) -> str:
        out: list[str] = []
        with self._allowance.spending():
            if not self._allowance.is_spent:
                self._delete(out, final=final)
        if final or self._allowance.is_spent:
            out.append(self._text[self._done :])
            self._text, self._done = "", 0
        return "".join(out)

    def _delete(self, out: list[str], *, final: bool) -> None:
        if self._regexp is None:
            self._regexp = compile_regexp(self._pattern)
            self._search = self._regexp.scan()
        while self._start <= len(self._text) and self._search.run(self._text, final=final):
            found = self._search.found
            if found is None:
                break
            out.append(self._text[self._done : found[0]])
            self._done = found[1]
            self._start = max(self._start + 1, found[1])
            self._search = self._regexp.scan(self._start)
        # Go deletes nothing between a match and an empty one right behind it, and so `done` is never behind `earliest`.
        safe = max(self._done, min(self._search.earliest, len(self._text)))
        out.append(self._text[self._done : safe])
        self._done = safe
        self._forget()

    def _forget(self) -> None:
        """All but one of the characters that are done with: what stands before a text decides whether a line or word begins."""
        count = min(self._done, self._start, self._search.earliest) - 1
        if count >= KEPT:
            self._text = self._text[count:]
            self._done -= count
            self._start -= count
            self._search.forget(count)


class _Extractor:
    """Holds all back until the end: then the first match of each expression, or where nothing matches the text."""

    def __init__(self, patterns: Sequence[str], allowance: Allowance) -> None:
        self._patterns = patterns
        self._allowance = allowance
        self._pieces: list[str] = []

    def feed(self, text: str) -> str:
        self._pieces.append(text)
        return ""

    def finish(self) -> str:
        text = "".join(self._pieces)
        found: list[str] = []
        with self._allowance.spending():
            for pattern in self._patterns:
                if not self._allowance.is_spent and (marks := compile_regexp(pattern).search(text)):
                    found.append(text[marks[0] : marks[1]])
        return text if self._allowance.is_spent else "".join(found) or text


class _Trimmer:
    """Takes each of `prefixes` from the beginning and each of `suffixes` from the end, and spaces from both ends after each."""

    def __init__(self, prefixes: Sequence[str], suffixes: Sequence[str]) -> None:
        self._prefixes, self._suffixes = prefixes, suffixes
        self._trims = bool(prefixes or suffixes)
        self._most = sum(_dense(suffix) for suffix in suffixes)
        """Characters that are no spaces which the end may lose."""
        self._held: list[str] = []
        self._dense = 0
        """How many characters of what is held are no spaces."""
        self._begun = False

    def feed(self, text: str) -> str:
        if not self._trims or not text:
            return text
        self._held.append(text)
        self._dense += (dense := _dense(text))
        if not dense or self._dense <= self._most:
            return ""  # more spaces set nothing free
        held = "".join(self._held)
        self._held = [held]
        if not self._begun:
            beginning = self._beginning(held)
            if beginning is None or (dense := _dense(beginning)) <= self._most:
                return ""
            self._begun, self._dense, held = True, dense, beginning
        end = self._safe(held)
        self._held, self._dense = [held[end:]], self._most
        return held[:end]

    def finish(self) -> str:
        text, self._held = "".join(self._held), []
        if self._begun and self._prefixes:
            text = text.rstrip(SPACE)
        elif not self._begun:
            for prefix in self._prefixes:
                text = text.removeprefix(prefix).strip(SPACE)
        for suffix in self._suffixes:
            text = text.removesuffix(suffix)
            text = text.rstrip(SPACE) if self._begun else text.strip(SPACE)
        return text

    def _beginning(self, text: str) -> str | None:
        """`text` without what its beginning loses; None = what is still to come decides that."""
        for prefix in self._prefixes:
            if len(text) < len(prefix) and prefix.startswith(text):
                return None
            text = text.removeprefix(prefix).lstrip(SPACE)
        return text.lstrip(SPACE)

    def _safe(self, held: str) -> int:
        """How much of what is held is before anything that the end may lose."""
        end = 0
        for match in islice(_UPTO_DENSE.finditer(held), self._dense - self._most):
            end = match.end()
        return end


def _dense(text: str) -> int:
    return sum(char not in SPACE for char in text)
