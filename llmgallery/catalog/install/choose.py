"""Which files of a repo a model is: the quantisation, all parts of it, its projector. Pure, by names and sizes."""

from __future__ import annotations

import difflib
import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

from llmgallery.catalog.hub_repo import RepoFile
from llmgallery.catalog.reference import PREFERRED_QUANT, choose_file, split_parts
from llmgallery.core.errors import HubNotFound

QUALITY = (
    "F32", "BF16", "F16",
    "Q8_K_XL", "Q8_K_P", "Q8_0", "Q6_K_XL", "Q6_K_L", "Q6_K", "Q5_K_XL", "Q5_K_L", "Q5_K_M", "Q5_K_S", "Q5_1", "Q5_0",
    "Q4_K_XL", "Q4_K_L", "MXFP4_MOE", "Q4_K_M", "NVFP4", "IQ4_NL", "Q4_K_S", "IQ4_XS", "Q4_1", "Q4_0",
    "Q3_K_XL", "Q3_K_L", "IQ3_M", "Q3_K_M", "IQ3_S", "IQ3_XS", "Q3_K_S", "IQ3_XXS",
    "Q2_K_XL", "Q2_K_L", "IQ2_M", "Q2_K", "Q2_K_S", "IQ2_S", "IQ2_XS", "IQ2_XXS", "TQ2_0",
    "IQ1_M", "TQ1_0", "IQ1_S", "Q1_0",
)  # fmt: skip
"""Quantisations of GGUF files (gguf_types.FILE_TYPES), best first: by the perplexity that llama-quantize's help
states for Llama-3-8B (Q8_0 +0.003, Q6_K +0.02, Q5_K_M +0.06, Q4_K_M +0.18, Q4_0 +0.47, Q3_K_M +0.66, Q2_K +3.5), by bits per
weight where it states none. _L, _XL and _P are their makers' names for mixtures that keep some tensors in a better type."""

ENOUGH = "Q8_0"
"""What stands before it in QUALITY is no better that could be measured (F16 +0.0020, Q8_0 +0.0026), and twice as much to
fetch and to read for every token: taken where it is asked for, or where there is nothing else."""

_SHORT = {
    "FP32": "F32", "FP16": "F16", "Q8": "Q8_0", "Q6": "Q6_K", "Q5": "Q5_0", "Q4": "Q4_0", "Q3": "Q3_K_M", "Q2": "Q2_K",
    "Q5_K": "Q5_K_M", "Q4_K": "Q4_K_M", "Q3_K": "Q3_K_M", "MXFP4": "MXFP4_MOE", "IQ4": "IQ4_XS", "IQ3": "IQ3_S",
    "IQ2": "IQ2_S", "IQ1": "IQ1_S",
}  # fmt: skip
"""Aliases of llama-quantize, and what people write."""

_QUANT = re.compile(
    r"(?<![A-Za-z0-9])(?P<made>UD[-_]|i1[-_])?"
    r"(?P<quant>I?Q[1-8](?:_(?:[0-8]|K|XXS|XS|S|M|L|XL|NL|P))*|TQ[12]_0|BF16|FP?16|FP?32|MXFP4(?:_MOE)?|NVFP4)(?![A-Za-z0-9])",
    re.IGNORECASE,
)
_SPLIT = re.compile(r"-\d{5}-of-\d{5}(?=\.gguf$)", re.IGNORECASE)
_GGUF = re.compile(r"\.gguf(\.bin)?$", re.IGNORECASE)
_NO_MODEL = re.compile(r"(^|[-_./])(mmproj|imatrix)([-_.]|$)", re.IGNORECASE)
_PROJECTOR = re.compile(r"(^|[-_./])mmproj([-_.]|$)", re.IGNORECASE)
_PROJECTOR_ORDER = ("F16", "BF16", "F32", "Q8_0")
_MOST_HINTS = 20


@dataclass(frozen=True)
class Candidate:
    """A GGUF model of a repo, complete. `parts`: its files, first first. `quant`: as QUALITY has it where it is known there,
    "" = the name tells none. `label`: as the file's name writes it. `stem`: the name without it, in small letters."""

    parts: tuple[RepoFile, ...]
    quant: str
    label: str
    stem: str

    @property
    def file(self) -> str:
        return self.parts[0].path

    @property
    def size(self) -> int:
        """Bytes of all parts, as far as the Hub tells them."""
        return sum(part.size or 0 for part in self.parts)

    @property
    def title(self) -> str:
        """What to call it in a list, and after the colon of a reference."""
        return self.label or self.parts[0].name


def quantisation(name: str) -> tuple[str, str]:
    """(as QUALITY has it, as it is written) of a file's name; "" where it tells none. The last one counts."""
    matches = [*_QUANT.finditer(name.rsplit("/", 1)[-1])]
    if not matches:
        return "", ""
    found = matches[-1]
    quant = found["quant"].upper()
    made = found["made"] or ""
    return _SHORT.get(quant, quant), (made if made[:2].upper() == "UD" else "") + found["quant"]


def candidates(files: Sequence[RepoFile]) -> list[Candidate]:
    """The GGUF models of a repo by their names, those with all parts; no projectors, no importance matrices."""
    by_path = {file.path: file for file in files}
    found = []
    for file in files:
        if not _GGUF.search(file.path) or _NO_MODEL.search(file.name):
            continue
        parts = split_parts(file.path)
        if parts[0] == file.path and all(part in by_path for part in parts):
            found.append(_candidate(tuple(by_path[part] for part in parts)))
    return found


def missing_parts(file: str, files: Sequence[RepoFile]) -> list[str]:
    """Parts of a split model that its repo does not hold."""
    held = {one.path for one in files}
    return [part for part in split_parts(file) if part not in held]


def whole(file: RepoFile, files: Sequence[RepoFile]) -> Candidate:
    """The model that a file is, or is a part of. All its parts are there."""
    by_path = {one.path: one for one in files}
    return _candidate(tuple(by_path[part] for part in split_parts(file.path)))


def _candidate(parts: tuple[RepoFile, ...]) -> Candidate:
    name = _SPLIT.sub("", parts[0].name)
    quant, label = quantisation(name)
    stem = _GGUF.sub("", name)
    if label:
        at = stem.rfind(label)
        stem = stem[:at].rstrip("-_.") + stem[at + len(label) :]
        stem = re.sub(r"[-_.](UD|i1)$", "", stem, flags=re.IGNORECASE)
    return Candidate(parts, quant, label, stem.lower())


def main_model(found: Sequence[Candidate]) -> tuple[list[Candidate], list[str]]:
    """The candidates that are quantisations of one model, and the names of the repo's other models. It is the one with the
    most quantisations; of equals, that with the shortest name. Files whose names tell no quantisation count as one model's."""
    stems = Counter(_group(one) for one in found)
    main = min(stems, key=lambda stem: (-stems[stem], not stem, len(stem), stem))
    return [one for one in found if _group(one) == main], sorted({one.stem for one in found if _group(one) != main})


def _group(one: Candidate) -> str:
    return one.stem if one.quant else ""


def by_quality(found: Sequence[Candidate]) -> list[Candidate]:
    """In the order in which they are tried: from ENOUGH downwards, then those without a known name, largest first, and at
    last those that are better than anybody can tell."""
    return sorted(found, key=lambda one: (*_rank(one.quant), not one.label.upper().startswith("UD"), -one.size, one.file))


def _rank(quant: str) -> tuple[int, int]:
    if quant not in QUALITY:
        return (1, 0)
    at = QUALITY.index(quant)
    return (0, at) if at >= QUALITY.index(ENOUGH) else (2, -at)


def usual(found: Sequence[Candidate]) -> Candidate:
    """PREFERRED_QUANT, else what is next to it in quality, rather smaller than larger."""
    wanted = QUALITY.index(PREFERRED_QUANT)

    def distance(one: Candidate) -> tuple[bool, int, int, str]:
        at = QUALITY.index(one.quant) if one.quant in QUALITY else -1
        if at < 0:
            return (True, 0, one.size, one.file)
        return (False, at - wanted if at >= wanted else len(QUALITY) + wanted - at, one.size, one.file)

    return min(found, key=distance)


def asked_for(found: Sequence[Candidate], quant: str, repo: str) -> Candidate:
    """The candidate that `owner/repo:quant` means. Raises HubNotFound, whose hints are references to the nearest ones."""
    by_file = {one.file: one for one in found}
    try:
        return by_file[choose_file(list(by_file), quant)]
    except HubNotFound:
        pass
    wanted, label = quantisation(quant)
    same = [one for one in found if one.quant == wanted] if label == quant else []
    if same:
        return min(same, key=lambda one: (len(one.file), one.file))
    titles = list(dict.fromkeys(one.title for one in by_quality(found)))
    near = difflib.get_close_matches(quant.upper(), [title.upper() for title in titles], n=3, cutoff=0.5)
    first = [title for title in titles if title.upper() in near]
    hints = tuple(f"{repo}:{title}" for title in dict.fromkeys([*first, *titles]))[:_MOST_HINTS]
    advice = f"did you mean {hints[0]}? " if first else ""
    there = ", ".join(titles[:_MOST_HINTS]) + (f" and {len(titles) - _MOST_HINTS} more" if len(titles) > _MOST_HINTS else "")
    raise HubNotFound(f"{repo} has no quantisation {quant}; {advice}it has {there}", field="model", hints=hints)


def projector(files: Sequence[RepoFile], model: Candidate) -> RepoFile | None:
    """The projector (mmproj) for a model: from its folder rather than another, of its name rather than another, in F16 rather
    than BF16, F32 or Q8_0."""
    found = [file for file in files if _GGUF.search(file.path) and _PROJECTOR.search(file.name)]
    folder = _folder(model.file)

    def rank(file: RepoFile) -> tuple[bool, bool, float, int, str]:
        quant = quantisation(file.name)[0]
        order = _PROJECTOR_ORDER.index(quant) if quant in _PROJECTOR_ORDER else len(_PROJECTOR_ORDER)
        theirs = _candidate((file,)).stem
        words = set(re.split(r"[-_.]+", theirs)) - {"mmproj", "model", "projector", ""}
        alike = len(words & set(re.split(r"[-_.]+", model.stem))) / len(words) if words else 0.5
        return (_folder(file.path) != folder, bool(_folder(file.path)), -alike, order, file.path)

    return min(found, key=rank, default=None)


def _folder(path: str) -> str:
    return path.rpartition("/")[0]
