"""Prompt formats by name. They are data: presets.toml (Jinja), gatogpt.toml and kobold.toml (their adapters)."""

from __future__ import annotations

import difflib
import functools
import tomllib
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from importlib import resources
from typing import Any, Literal

from llmgallery.core.errors import ConfigError

FALLBACK = "alpaca"
"""What a model gets for which nobody names a format."""

Kind = Literal["jinja", "gatogpt", "kobold"]


@dataclass(frozen=True)
class Preset:
    """A prompt format, and the strings that end an answer in it.

    `name`: as lists show it; `gatogpt/` and `kobold/` begin those that these two systems brought. `data`: of kind jinja the
    `chat_template`; of gatogpt a profile's `InferenceParams` and `LoadParams`, complete as far as they make a prompt; of kobold
    an adapter's keys as KoboldCpp writes them, which tell the stop strings.
    """

    name: str
    kind: Kind
    data: Mapping[str, Any]
    stopwords: tuple[str, ...] = ()

    @property
    def chat_template(self) -> str:
        """The Jinja text. Of kind jinja only."""
        text: str = self.data["chat_template"]
        return text


def names(kind: Kind | None = None) -> tuple[str, ...]:
    """The presets of one kind, sorted; of None all that `get` takes, short names included."""
    if kind is None:
        return tuple(sorted(_presets()))
    return tuple(sorted({preset.name for preset in _presets().values() if preset.kind == kind}))


def get(name: str, kind: Kind | None = None) -> Preset:
    """The preset of this name. `gatogpt/` and `kobold/` may be left out where `kind` says it, and where the rest is like no other
    preset's name. Raises ConfigError, with the nearest name."""
    preset = (_presets().get(f"{kind}/{name}") if kind is not None else None) or _presets().get(name)
    if preset is None or kind not in (None, preset.kind):
        folded = {one.casefold(): one for one in reversed(names(kind))}
        near = [folded[one] for one in difflib.get_close_matches(name.casefold(), folded, n=1)]
        meant = f"did you mean {near[0]}?" if near else f"known: {', '.join(names(kind or 'jinja'))}{_more(kind)}"
        raise ConfigError(f"no template preset is called {name!r}; {meant}", field="template.preset", hints=tuple(near))
    return preset


def gatogpt_defaults() -> Preset:
    """What GatoGPT takes for what no profile says."""
    return Preset("gatogpt", "gatogpt", {"InferenceParams": _gatogpt_data()["defaults"]})


def gatogpt_profile_for(path: str) -> str | None:
    """The name of the profile that GatoGPT takes for a file, by its ordered patterns: `*` stands for anything, slashes too, and
    case matters. None = it takes its defaults."""
    fitting: Iterator[str] = (file["profile"] for file in _gatogpt_data()["files"] if fits(file["glob"], path))
    return next(fitting, None)


def fits(glob: str, path: str) -> bool:
    """Whether the whole path fits a pattern in which only `*` is special, in time that grows with the path alone, as no regular
    expression of as many `.*` does."""
    if "*" not in glob:
        return glob == path
    first, *others, last = glob.split("*")
    at, end = len(first), len(path) - len(last)
    if not path.startswith(first) or not path.endswith(last):
        return False
    for part in others:
        found = path.find(part, at, end)
        if found < 0:
            return False
        at = found + len(part)
    return at <= end


def _more(kind: Kind | None) -> str:
    return "" if kind else ", and those of gatogpt/ and kobold/, which the documentation lists"


@functools.cache
def _presets() -> Mapping[str, Preset]:
    """By full name, by other names, and by short name where that is nobody else's."""
    full = {preset.name: preset for preset in (*_jinja(), *_gatogpt(), *_kobold())}
    short = {name: name.rpartition("/")[2] for name in full}
    count = Counter(name.casefold() for name in short.values())
    alone = {short[name]: preset for name, preset in full.items() if count[short[name].casefold()] == 1}
    others = {alias: full[name] for name, body in _read("presets.toml").items() for alias in body.get("aliases", ())}
    return alone | others | full


def _jinja() -> Iterator[Preset]:
    for name, body in _read("presets.toml").items():
        yield Preset(name, "jinja", {"chat_template": body["chat_template"]}, tuple(body["stopwords"]))


def _gatogpt() -> Iterator[Preset]:
    data = _gatogpt_data()
    for name, body in data["profiles"].items():
        inference = {**data["defaults"], **body.get("InferenceParams", {})}
        stops = tuple(stop for stop in inference["Antiprompts"] if stop)
        yield Preset(f"gatogpt/{name}", "gatogpt", {**body, "InferenceParams": inference}, stops)


@functools.cache
def _gatogpt_data() -> Mapping[str, Any]:
    return _read("gatogpt.toml")


def _kobold() -> Iterator[Preset]:
    for name, adapter in _read("kobold.toml")["adapters"].items():
        yield Preset(f"kobold/{name}", "kobold", adapter)


def _read(file: str) -> dict[str, Any]:
    return tomllib.loads((resources.files("llmgallery.templates") / file).read_text("utf-8"))
