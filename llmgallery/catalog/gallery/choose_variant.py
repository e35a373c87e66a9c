"""Which variant of an entry a host takes: what it cannot run or hold is dropped, the rest ranked. Pure.

LocalAI's rule (core/gallery/resolve_variant.go): what fits, then the engines that the host prefers, then features, then size;
but nothing above Q8_0 of itself.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence

import msgspec

from llmgallery.catalog.gallery.entry import GalleryEntry
from llmgallery.catalog.gallery.quantisation import quantisation
from llmgallery.catalog.install.choose import ENOUGH, QUALITY

LOAD_FACTOR = 1.1
"""What loading takes at least, beside the bytes of the files, as runtime.memory counts; a cache comes on top."""


class Host(msgspec.Struct, frozen=True):
    """What there is. `runs(backend)`: whether it is installed here, by any of its names; `memory`: bytes that a model may take,
    None = not known.

    `engines`: backends that the host prefers, best first. `features`: the same of features, as tags or words of names tell
    them (dflash, mtp): only such as its backends have.
    """

    runs: Callable[[str], bool]
    memory: int | None = None
    engines: tuple[str, ...] = ()
    features: tuple[str, ...] = ()


class Candidate(msgspec.Struct, frozen=True):
    """`backend` None = not known, and then it is no reason to drop it; `size` in bytes of all files, the same."""

    entry: GalleryEntry
    backend: str | None = None
    size: int | None = None


class Choice(msgspec.Struct, frozen=True):
    """`entry` is what to install. `dropped`: why others are not, a sentence each. `fits` False = nothing does, and it is the
    entry itself."""

    entry: GalleryEntry
    dropped: tuple[str, ...] = ()
    fits: bool = True


def choose_variant(candidates: Sequence[Candidate], host: Host) -> Choice:
    """The best of `candidates`, of which the first is the entry itself: it is always eligible, but where it cannot run or does
    not fit, anything that may goes before it. A variant of unknown size stays, behind what is known to fit.
    """
    first, kept, dropped = candidates[0], [], []
    for candidate in candidates:
        reason = _reason(candidate, host)
        if reason is None:
            kept.append(candidate)
        else:
            dropped.append(f"{candidate.entry.name} {reason}")
    if not kept:
        return Choice(first.entry, tuple(dropped), fits=False)
    return Choice(min(kept, key=lambda candidate: _rank(candidate, host)).entry, tuple(dropped))


def _reason(candidate: Candidate, host: Host) -> str | None:
    """Why it is dropped, as the rest of a sentence."""
    if candidate.backend is not None and not host.runs(candidate.backend):
        return f"needs the backend {candidate.backend}, which is not installed here"
    if candidate.size is not None and host.memory is not None and (needed := int(candidate.size * LOAD_FACTOR)) > host.memory:
        return f"needs about {needed:,} bytes of memory; {host.memory:,} may be had"
    return None


def _rank(candidate: Candidate, host: Host) -> tuple[bool, int, int, bool, int]:
    """Smaller is better; `min` takes the first of equals, and the entry itself comes first. Without a known memory, nothing
    tells that the largest is right: then size does not count."""
    size = candidate.size or 0
    unknown = candidate.size is None and host.memory is not None
    engine = _place(host.engines, lambda name: name == candidate.backend)
    feature = _place(host.features, lambda name: name in _features(candidate.entry))
    return unknown, engine, feature, _more_than_enough(candidate.entry), -size if host.memory is not None else 0


def _place(preferred: Sequence[str], matches: Callable[[str], bool]) -> int:
    return next((at for at, name in enumerate(preferred) if matches(name)), len(preferred))


def _more_than_enough(entry: GalleryEntry) -> bool:
    """It has more bits than could be measured to help, as for repos of the Hub; LocalAI takes it all the same."""
    quant = quantisation(entry)
    return quant in QUALITY and QUALITY.index(quant) < QUALITY.index(ENOUGH)


def _features(entry: GalleryEntry) -> set[str]:
    """Tags, and whole words of the name: `mtp` is not in `smtp-agent`."""
    return {tag.lower() for tag in entry.tags} | set(re.findall(r"[a-z0-9]+", entry.name.lower()))
