"""What a name in a request means: one pure function over a snapshot of the folder and the names that galleries know."""

from __future__ import annotations

import difflib
from collections.abc import Callable
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import PurePath, PurePosixPath
from typing import Literal, overload

from llmgallery.catalog.index import Broken, Entry, Snapshot, file_stem
from llmgallery.catalog.reference import HubReference, parse_reference
from llmgallery.catalog.registry import YAML_SUFFIXES, weights_name
from llmgallery.config.checks import name_fault
from llmgallery.config.problems import shown
from llmgallery.core.errors import ConfigError, InvalidField, ModelBroken, ModelNotFound

MAX_NAME = 512
"""Longer names are not searched for near ones."""

MAX_COMPARED = 2000
"""Near names are looked for among this many; comparing 10,000 takes a third of a second."""


@dataclass(frozen=True)
class Absent:
    """A model that is not here and could be installed. `name`: what it will answer to; `reference`: on the Hub, else it is an
    entry of a gallery."""

    name: str
    reference: HubReference | None = None


@overload
def resolve(
    name: str | None,
    snapshot: Snapshot,
    *,
    default: str | None = None,
    token: str | None = None,
    unknown: Literal["error", "default"] = "error",
) -> Entry: ...
@overload
def resolve(
    name: str | None,
    snapshot: Snapshot,
    *,
    known: Callable[[str], bool] | None,
    default: str | None = None,
    token: str | None = None,
    unknown: Literal["error", "default"] = "error",
) -> Entry | Absent: ...
def resolve(
    name: str | None,
    snapshot: Snapshot,
    *,
    known: Callable[[str], bool] | None = None,
    default: str | None = None,
    token: str | None = None,
    unknown: Literal["error", "default"] = "error",
) -> Entry | Absent:
    """The model that a request means. `default`: the configured one. `token`: the bearer token, given only when no key is set.
    `known`: whether a gallery has an entry of a name; None = nothing may be installed.

    Order: name, alias, glob alias, then the same in any case of letters where only one model fits; what could be installed, an
    entry of a gallery before a Hub id; with `unknown` the default. Without a name: the token when it is one, the default, the
    only model. Raises ModelNotFound (hints = near names), ModelBroken (hints = its problems), InvalidField when there is no
    name and nothing to choose by.
    """
    if name is None or not name.strip():
        return _unnamed(snapshot, default, token, known)
    if (found := _found(name, snapshot, known)) is not None:
        return found
    if unknown == "default" and default and (found := _found(default, snapshot, known)) is not None:
        return found
    raise _not_found(name, snapshot)


def _found(name: str, snapshot: Snapshot, known: Callable[[str], bool] | None) -> Entry | Absent | None:
    if (entry := lookup(name, snapshot)) is not None or known is None:
        return entry
    if (obstacle := _obstacle(name, snapshot)) is not None:
        raise obstacle
    return _absent(name, snapshot, known)


def _absent(name: str, snapshot: Snapshot, known: Callable[[str], bool]) -> Entry | Absent | None:
    """What could be installed under this name; or, when the name is a Hub id in one of its other spellings, who is here."""
    if name_fault(name):
        return None
    if known(name):
        return Absent(name)
    try:
        reference = parse_reference(name)
    except ConfigError as error:
        raise ModelNotFound(f"The model {_short(name)!r} does not exist; {error.message}", field="model") from error
    if reference is None:
        return None
    return lookup(str(reference), snapshot) or Absent(str(reference), reference)


def lookup(name: str, snapshot: Snapshot) -> Entry | None:
    """The model called `name`, or None. Raises ModelBroken or ModelNotFound for one that is there and cannot be served."""
    if (entry := _exact(name, snapshot)) is not None:
        return entry
    if (broken := snapshot.broken.get(name)) is not None:
        raise _is_broken(name, broken)
    if (entry := snapshot.disabled.get(name)) is not None:
        raise ModelNotFound(f"the model {name!r} is disabled in {shown(entry.path)}", field="model")
    for pattern, entry in snapshot.globs:
        if fnmatchcase(name, pattern):
            return entry
    alike = snapshot.folded.get(name.lower(), ())
    return alike[0] if len(alike) == 1 else None


def near_names(name: str, snapshot: Snapshot, count: int = 3) -> tuple[str, ...]:
    """Names and aliases most like `name`: first those of which it begins a word, or that begin one of its words."""
    written: dict[str, str] = {}
    for other in (*snapshot.entries, *snapshot.aliases):
        written.setdefault(_plain(other), other)
    wanted = _plain(name[:MAX_NAME])
    held = [other for other in written if _begins_a_word(wanted, other) or _begins_a_word(other, wanted)]
    held.sort(key=lambda other: (abs(len(other) - len(wanted)), other))
    # Of four letters, one that differs is a quarter: short words must be more alike than long ones.
    cutoff = 0.6 if len(wanted) > 4 else 0.7
    alike = difflib.get_close_matches(wanted, list(written)[:MAX_COMPARED], n=count, cutoff=cutoff)
    return tuple(written[other] for other in dict.fromkeys([*held, *alike]))[:count]


def _plain(name: str) -> str:
    """In small letters, and without the suffix of a weights file, which says nothing of what is meant."""
    lower = name.lower()
    return lower.removesuffix(".bin").removesuffix(".gguf") or lower


def _begins_a_word(part: str, text: str) -> bool:
    at = text.find(part) if len(part) >= 3 else -1
    while at > 0 and text[at - 1].isalnum():
        at = text.find(part, at + 1)
    return at >= 0


def _exact(name: str, snapshot: Snapshot) -> Entry | None:
    return snapshot.entries.get(name) or snapshot.aliases.get(name)


def _unnamed(snapshot: Snapshot, default: str | None, token: str | None, known: Callable[[str], bool] | None) -> Entry | Absent:
    if token and (entry := _exact(token, snapshot)) is not None:
        return entry
    if default:
        if (found := _found(default, snapshot, known)) is not None:
            return found
        raise _not_found(default, snapshot)
    if len(snapshot.entries) == 1:
        return next(iter(snapshot.entries.values()))
    names = tuple(list(snapshot.entries)[:10])
    if not names:
        raise ModelNotFound("there is no model here: put a YAML file into the models folder", field="model")
    raise InvalidField(f"you must provide a model parameter, such as {names[0]!r}", field="model", hints=names)


def _not_found(name: str, snapshot: Snapshot) -> ModelNotFound | ModelBroken:
    """What keeps the file of this name from being served under it; else near names, and how to add the model."""
    if (obstacle := _obstacle(name, snapshot)) is not None:
        return obstacle
    if (served := _weights_of(name, snapshot)) is not None:
        return served
    near = near_names(name, snapshot)
    advice = f"did you mean {' or '.join(map(repr, near))}?" if near else "GET /v1/models lists the models."
    file = f"{file_stem(name)}.yaml" if name_fault(name) == "" else "a YAML file"
    return ModelNotFound(
        f"The model {_short(name)!r} does not exist; {advice} To add it, put {file} into the models folder.",
        field="model",
        hints=near,
    )


def _obstacle(name: str, snapshot: Snapshot) -> ModelNotFound | ModelBroken | None:
    """What is wrong with the YAML of this name, or what it serves instead."""
    for broken in snapshot.broken.values():
        if _is_file_of(name, broken.path):
            return _is_broken(name, broken)
    if (off := next((entry for entry in snapshot.disabled.values() if _is_file_of(name, entry.path)), None)) is not None:
        return ModelNotFound(f"the model {off.name!r} is disabled in {shown(off.path)}", field="model")
    entry = next((entry for entry in snapshot.entries.values() if _is_file_of(name, entry.path)), None)
    if entry is None:
        return None
    return _elsewhere(name, f"{shown(entry.path)} names its model {entry.name!r}.", (entry.name,))


def _short(name: str) -> str:
    return name if len(name) <= 100 else name[:97] + "..."


def _is_broken(name: str, broken: Broken) -> ModelBroken:
    problems = tuple(map(str, broken.problems))
    if broken.path.suffix.lower() in YAML_SUFFIXES:
        return ModelBroken(f"the model {name!r} has errors in {shown(broken.path)}: {'; '.join(problems)}", hints=problems)
    if any(problem.path != broken.path for problem in broken.problems):  # the template beside the weights
        return ModelBroken(f"the model {name!r} cannot be served: {'; '.join(problems)}", hints=problems)
    faults = "; ".join(f"{problem.message}; {problem.suggestion}".rstrip("; ") for problem in broken.problems)
    return ModelBroken(f"the model {name!r} cannot be served: {shown(broken.path)} {faults}", hints=problems)


def _weights_of(name: str, snapshot: Snapshot) -> ModelNotFound | None:
    """For weights of this name that another name serves."""
    users = [entry for entry in snapshot.entries.values() if _is_file_of(name, PurePosixPath(entry.config.weights or ""))]
    if not users:
        return None
    by = " and ".join(f"{entry.name!r} ({shown(entry.path)})" for entry in users[:3])
    said = f"{PurePosixPath(users[0].config.weights or '').name} is served as {by}."
    return _elsewhere(name, said, tuple(entry.name for entry in users[:3]))


def _elsewhere(name: str, said: str, names: tuple[str, ...]) -> ModelNotFound:
    return ModelNotFound(f"The model {_short(name)!r} does not exist; {said}", field="model", hints=names)


def _is_file_of(name: str, path: PurePath) -> bool:
    """The file's name, with or without its suffix, is `name`, or what `name` would be as a file's."""
    wanted = (name, file_stem(name))
    return path.name.startswith(wanted) and any(word in wanted for word in (path.name, path.stem, weights_name(path)))
