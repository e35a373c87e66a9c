"""All entries of all galleries at one moment: what a name means, what is like it, and what fits some words. Pure."""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import msgspec

from llmgallery.catalog.gallery.entry import GalleryEntry
from llmgallery.catalog.gallery.localai import is_text
from llmgallery.catalog.gallery.quantisation import pick, quantisation, with_quantisation

MAX_NAME = 512
"""Longer names mean nothing; no entry has one."""

_COMPARED = 60  # of all names, those that share most with what was asked are compared in full
_WORD = re.compile(r"[^\W_]+(?:\.[^\W_]+)*")


class Found(msgspec.Struct, frozen=True):
    """What a name means. `quant`: the quantisation that was asked for of an entry that leaves it open, and that `entry` now has
    written into its weights; else None. `chosen`: a variant or quantisation was named, and none need be chosen."""

    entry: GalleryEntry
    quant: str | None = None
    chosen: bool = False


@dataclass(frozen=True, slots=True)
class _Card:
    """An entry as searched: everything in small letters."""

    entry: GalleryEntry
    order: int
    name: str
    words: frozenset[str]
    tags: frozenset[str]
    family: str
    description: str
    pairs: frozenset[str]
    is_text: bool


class _Names:
    """The names and aliases of one gallery. `folded`: in small letters, where one entry fits; names go before aliases."""

    def __init__(self, entries: Mapping[str, GalleryEntry]) -> None:
        aliases = [(alias, entry) for entry in entries.values() for alias in entry.aliases]
        self.exact = {**dict(reversed(aliases)), **entries}
        self.folded = {**_only(aliases), **_only(entries.items())}


class Contents:
    """Entries by gallery, in the order of the configuration, which decides between galleries that have the same name."""

    def __init__(self, galleries: Mapping[str, Mapping[str, GalleryEntry]] | None = None) -> None:
        self.galleries = galleries or {}
        self._names = {gallery: _Names(entries) for gallery, entries in self.galleries.items()}
        held = (entry for entries in self.galleries.values() for entry in entries.values())
        self._cards = [_card(entry, order) for order, entry in enumerate(held)]

    def __len__(self) -> int:
        return len(self._cards)

    def find(self, name: str) -> Found | None:
        """What `name` means: `entry`, `gallery@entry`, an alias, each with `:` and a variant or quantisation. As it is written
        first, then in any case of letters where one entry of a gallery fits."""
        if len(name) > MAX_NAME:
            return None
        for lookup in (self._as_written, self._in_any_case):
            if (entry := lookup(name)) is not None:
                return Found(entry)
        for at in _colons(name):
            head, word = name[:at], name[at + 1 :]
            entry = self._as_written(head) or self._in_any_case(head)
            if entry is not None and (found := self._chosen(entry, word)) is not None:
                return found
        return None

    def variants(self, entry: GalleryEntry) -> tuple[GalleryEntry, ...]:
        """The entries that are variants of this one, of its own gallery where that has them; itself is none."""
        own = self.galleries.get(entry.gallery, {})
        found = {name: own.get(name) or self._as_written(name) for name in entry.variants}
        return tuple(other for other in found.values() if other is not None and other.id != entry.id)

    def quantisations(self, entry: GalleryEntry) -> tuple[str, ...]:
        """What may follow the colon, beside the variants' names."""
        found = [quantisation(other) for other in (entry, *self.variants(entry))]
        return tuple(dict.fromkeys(name for name in found if name is not None))

    def near(self, name: str, count: int = 3) -> tuple[str, ...]:
        """Names most like `name`; with the quantisations that there are, where only that was wrong."""
        name = name[:MAX_NAME]
        for colon in _colons(name):
            head = name[:colon]
            if (entry := self._as_written(head) or self._in_any_case(head)) is not None:
                return tuple(f"{head}:{quant}" for quant in self.quantisations(entry))[:count]
        gallery, at, rest = name.partition("@")
        inside = self._gallery(gallery) if at else None
        wanted = (rest if inside is not None else name).lower()
        cards = [card for card in self._cards if inside is None or card.entry.gallery == inside]
        names = _nearest(wanted, cards, count)
        return tuple(f"{inside}@{near}" for near in names) if inside is not None else names

    def search(self, text: str = "", *, tag: str | None = None, gallery: str | None = None) -> list[GalleryEntry]:
        """Entries that have every word of `text` in their name, tags, family, quantisation or description, best first; without
        words, all in their order. What makes no text comes later. `tag`: in any case of letters."""
        words, whole = list(dict.fromkeys(_words(text))), text.strip().lower()
        ranked = []
        for card in self._cards:
            if (gallery is not None and card.entry.gallery != gallery) or (tag is not None and tag.lower() not in card.tags):
                continue
            scores = [_score(word, card) for word in words]
            if all(scores):
                score = sum(scores) if card.is_text else sum(scores) // 2
                score += _as_whole(whole, card) if words else 0
                ranked.append((-score, len(card.entry.name) if words else 0, card.order, card.entry))
        return [entry for *_, entry in sorted(ranked, key=lambda item: item[:3])]

    def _as_written(self, name: str) -> GalleryEntry | None:
        for names in self._names.values():
            if (entry := names.exact.get(name)) is not None:
                return entry
        gallery, at, rest = name.partition("@")
        return self._names[gallery].exact.get(rest) if at and gallery in self._names else None

    def _in_any_case(self, name: str) -> GalleryEntry | None:
        for names in self._names.values():
            if (entry := names.folded.get(name.lower())) is not None:
                return entry
        gallery, at, rest = name.partition("@")
        inside = self._gallery(gallery) if at else None
        return self._names[inside].folded.get(rest.lower()) if inside is not None else None

    def _gallery(self, name: str) -> str | None:
        return next((gallery for gallery in self.galleries if gallery.lower() == name.lower()), None)

    def _chosen(self, entry: GalleryEntry, word: str) -> Found | None:
        if (variant := pick(word, entry, self.variants(entry))) is not None:
            return Found(variant, chosen=True)
        quantised = with_quantisation(entry, word)
        return Found(quantised, word, chosen=True) if quantised is not None else None


def family(entry: GalleryEntry) -> str:
    """What its base file is called, such as qwen3; "" where it has none, or one that says nothing."""
    stem = (entry.url or "").partition("@")[0].rpartition("/")[2].rpartition(".")[0].lower()
    return "" if stem in ("virtual", "index", "base") else stem


def _only(names: Iterable[tuple[str, GalleryEntry]]) -> dict[str, GalleryEntry | None]:
    """Names in small letters; None where several entries have it."""
    found: dict[str, GalleryEntry | None] = {}
    for name, entry in names:
        before = found.setdefault(name.lower(), entry)
        if before is not entry:
            found[name.lower()] = None
    return found


def _colons(name: str) -> list[int]:
    """Where a variant may begin; names of variants hold colons as well, and then an earlier one is it."""
    return [at for at in range(len(name) - 2, 0, -1) if name[at] == ":"]


def _card(entry: GalleryEntry, order: int) -> _Card:
    name = entry.name.lower()
    aliases = [alias.lower() for alias in entry.aliases]
    words = {*_words(" ".join([name, *aliases])), *_words((quantisation(entry) or "").lower().replace("_", "-"))}
    if quant := quantisation(entry):
        words.add(quant.lower())
    tags = frozenset(tag.lower() for tag in entry.tags)
    pairs = frozenset(_pairs(name))
    return _Card(
        entry,
        order,
        " ".join([name, *aliases]),
        frozenset(words),
        tags,
        family(entry),
        entry.description.lower(),
        pairs,
        is_text({**(entry.config or {}), **entry.overrides}),
    )


def _words(text: str) -> Iterator[str]:
    """Runs of letters and digits, with the points between them; q4_k_m stays one."""
    for run in re.split(r"[\s,;/@:-]+", text.lower()):
        if run := run.strip("._()[]'\"!?"):
            yield run


def _as_whole(text: str, card: _Card) -> int:
    """What it counts beside the words that the text is a name, or the beginning of one."""
    name = card.entry.name.lower()
    if text == name:
        return 1000
    if any(text == alias.lower() for alias in card.entry.aliases):
        return 500
    return 100 if name.startswith(text) else 0


def _score(word: str, card: _Card) -> int:
    """How well one word fits; 0 = not at all."""
    if word in card.words:
        return 60
    if word in card.tags or word == card.family:
        return 40
    if any(part.startswith(word) for part in card.words):
        return 30
    if word in card.name:
        return 20
    if card.family.startswith(word) or any(tag.startswith(word) or word in tag.split("-") for tag in card.tags):
        return 15
    return 5 if _begins_a_word(word, card.description) else 0


def _begins_a_word(word: str, text: str) -> bool:
    at = text.find(word)
    while at > 0 and text[at - 1].isalnum():
        at = text.find(word, at + 1)
    return at >= 0


def _nearest(wanted: str, cards: Sequence[_Card], count: int) -> tuple[str, ...]:
    """Those of which `wanted` is a part first, then by likeness; only the few that share most pairs of letters are compared."""
    pairs = frozenset(_pairs(wanted))
    held = [card for card in cards if len(wanted) > 2 and wanted in card.name]
    held.sort(key=lambda card: (len(card.name), card.order))
    shared = sorted(cards, key=lambda card: -len(pairs & card.pairs) / (1 + len(card.pairs)))[:_COMPARED]
    likeness = {card.entry.name: difflib.SequenceMatcher(None, wanted, card.entry.name.lower()).ratio() for card in shared}
    cutoff = 0.6 if len(wanted) > 4 else 0.7
    alike = sorted((name for name, ratio in likeness.items() if ratio >= cutoff), key=lambda name: -likeness[name])
    return tuple(dict.fromkeys([*(card.entry.name for card in held), *alike]))[:count]


def _pairs(text: str) -> Iterator[str]:
    return (text[at : at + 2] for at in range(len(text) - 1))
