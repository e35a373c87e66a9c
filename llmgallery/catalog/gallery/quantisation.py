"""Which quantisation an entry is, told by the names of its files, and what a word after a colon means. Pure."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import msgspec

from llmgallery.catalog.gallery.compose import merge
from llmgallery.catalog.gallery.entry import GalleryEntry
from llmgallery.catalog.gallery.localai import plain_backend
from llmgallery.catalog.reference import PREFERRED_QUANT, parse_reference
from llmgallery.core.errors import ConfigError

_QUANT = re.compile(
    r"(?<![A-Za-z0-9])"
    r"(?:(?:UD[-_])?I?T?Q\d(?:[-_](?:K|[01248]|XXS|XS|S|M|L|XL|NL|P))*|MXFP4|NVFP4|B?F16|F32|FP(?:16|8|4)|INT[48]|AWQ|GPTQ|EXL[23]"
    r"|\d(?:\.\d+)?bpw)"
    r"(?![A-Za-z0-9])",
    re.IGNORECASE,
)
_GGUF = "llama-cpp"
_BESIDE = re.compile(r"(^|[-_./])(mmproj|imatrix|draft)([-_.]|$)", re.IGNORECASE)


def quantisation(entry: GalleryEntry) -> str | None:
    """Such as Q4_K_M: what its weights' name says, else its own; None = neither tells."""
    for name in (*_weights(entry), entry.name):
        if found := _QUANT.findall(name.rpartition("/")[2]):
            return plain(found[-1])
    return None


def plain(word: str) -> str:
    """In capital letters, with _ for -."""
    return word.upper().replace("-", "_")


def pick(word: str, entry: GalleryEntry, variants: Sequence[GalleryEntry]) -> GalleryEntry | None:
    """The entry, or the variant of it, that `word` names: by its whole name, its quantisation, the end of its name (`dflash`),
    or the beginning of its quantisation (`q8`), where Q4_K_M comes before others. None = no such."""
    entries, wanted = (entry, *variants), plain(word)
    named = [other for other in entries if other.name.lower() == word.lower()]
    exact = [other for other in entries if quantisation(other) == wanted]
    ending = [other for other in entries if plain(other.name).endswith(f"_{wanted}")]
    begun = [other for other in entries if (quantisation(other) or "").startswith(f"{wanted}_")]
    begun.sort(key=lambda other: quantisation(other) != PREFERRED_QUANT)
    return next(iter([*named, *exact, *ending, *begun]), None)


def with_quantisation(entry: GalleryEntry, word: str) -> GalleryEntry | None:
    """The entry with the quantisation that `word` names, where it leaves that open: its weights are a whole Hub repo
    (`owner/repo`) of GGUF files. None = it does not, or `word` is none."""
    weights = list(_own_weights(entry))
    backend = str((entry.overrides or {}).get("backend") or (entry.config or {}).get("backend") or _GGUF)
    if (
        len(set(weights)) != 1
        or any(not _BESIDE.search(file.filename) for file in entry.files)
        or plain_backend(backend) != _GGUF
    ):
        return None
    try:
        reference = parse_reference(weights[0])
        if reference is None or reference.file is not None or reference.quant is not None:
            return None
        model = str(msgspec.structs.replace(reference, quant=word))
    except ConfigError:
        return None
    return msgspec.structs.replace(entry, overrides=_with_weights(entry, model))


def _with_weights(entry: GalleryEntry, model: str) -> Mapping[str, Any]:
    """The overrides with other weights, under the key that has them now: a file that has both keys is refused."""
    if entry.overrides.get("model") or (entry.config or {}).get("model"):
        return {**entry.overrides, "model": model}
    return merge(entry.overrides, {"parameters": {"model": model}})


def _weights(entry: GalleryEntry) -> Iterable[str]:
    """The names of its weights, the main one first; projectors and the like are none."""
    yield from _own_weights(entry)
    for file in entry.files:
        if not _BESIDE.search(file.filename):
            yield from (file.filename, file.uri)


def _own_weights(entry: GalleryEntry) -> Iterable[str]:
    for keys in (entry.overrides, entry.config or {}):
        parameters = keys.get("parameters")
        model = parameters.get("model") if isinstance(parameters, dict) else None
        for value in (model, keys.get("model")):
            if isinstance(value, str) and value:
                yield value
