"""From files to names: who serves a name, who is listed broken, which aliases count. Pure."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from llmgallery.config.load import LoadedModel
from llmgallery.config.model import ModelConfig
from llmgallery.config.problems import Problem, shown


@dataclass(frozen=True)
class Entry:
    """A model that can be served. `path`: its YAML, or its weights when it has none; `folder`: where relative paths start.

    `backend` None = told by the weights once they are here. `created`: Unix seconds. `aliases` may be globs.
    `places`: dotted key -> (line, column) of what the YAML sets.
    """

    name: str
    path: Path
    folder: Path
    config: ModelConfig
    backend: str | None
    aliases: tuple[str, ...] = ()
    warnings: tuple[Problem, ...] = ()
    created: int = 0
    places: Mapping[str, tuple[int, int]] = field(default_factory=dict)


@dataclass(frozen=True)
class Broken:
    """A model file that is not served, and why. `warnings`: what else could be better in it."""

    name: str
    path: Path
    problems: tuple[Problem, ...]
    warnings: tuple[Problem, ...] = ()


@dataclass(frozen=True)
class Source:
    """One file as read. `by_file`: there is no YAML; the same entry under the file's full name, for when the short is taken."""

    loaded: LoadedModel
    item: Entry | Broken
    by_file: Entry | None = None


@dataclass(frozen=True)
class Snapshot:
    """All models at one moment; nothing in it changes. Names are unique over `entries`.

    `broken` is by model name, by file name where the model's name is taken. `disabled`: entries that are not served.
    `aliases`: exact ones; `globs`: in order. `folded`: names and aliases in lower case -> the entries they mean.
    `notes`: path -> warnings that come of other files, beside Entry.warnings. `problems`: of the folders themselves.
    """

    entries: Mapping[str, Entry] = field(default_factory=dict)
    broken: Mapping[str, Broken] = field(default_factory=dict)
    disabled: Mapping[str, Entry] = field(default_factory=dict)
    aliases: Mapping[str, Entry] = field(default_factory=dict)
    globs: tuple[tuple[str, Entry], ...] = ()
    folded: Mapping[str, tuple[Entry, ...]] = field(default_factory=dict)
    notes: Mapping[Path, tuple[Problem, ...]] = field(default_factory=dict)
    problems: tuple[Problem, ...] = ()

    def warnings(self, entry: Entry) -> tuple[Problem, ...]:
        """All warnings of a model: its file's own, and those that come of other files."""
        return entry.warnings + self.notes.get(entry.path, ())


def is_glob(alias: str) -> bool:
    """The alias is a pattern."""
    return any(sign in alias for sign in "*?[")


def file_stem(name: str) -> str:
    """A model's name as its file is called, which holds no / and no colon."""
    return name.replace("/", "__").replace(":", "-")


def build(sources: Sequence[Source], loud: Collection[Path] = (), problems: tuple[Problem, ...] = ()) -> Snapshot:
    """The snapshot of these files, given in the order in which names are given away. `loud`: folders whose models
    are listed as broken where one of an earlier folder has their name.
    """
    builder = _Builder(loud)
    for source in sources:
        builder.add(source)
    aliases, globs = builder.aliases()
    notes = {path: tuple(found) for path, found in builder.notes.items()}
    folded = _folded([*((name, entry) for name, entry in builder.entries.items()), *aliases.items()])
    entries = dict(sorted(builder.entries.items()))
    return Snapshot(entries, builder.broken, builder.disabled, aliases, tuple(globs), folded, notes, problems)


class _Builder:
    def __init__(self, loud: Collection[Path]) -> None:
        self.loud = loud
        self.entries: dict[str, Entry] = {}
        self.disabled: dict[str, Entry] = {}
        self.broken: dict[str, Broken] = {}
        self.notes: dict[Path, list[Problem]] = {}
        self.taken: set[str] = set()
        self.places: dict[Path, Mapping[str, tuple[int, int]]] = {}

    def add(self, source: Source) -> None:
        item = source.item
        self.places[item.path] = source.loaded.places
        if isinstance(item, Broken):
            self.list_broken(item)
            return
        first = self.entries.get(item.name) or self.disabled.get(item.name)
        hiding = self.broken.get(item.name)
        if source.by_file is not None:
            self.add_weights(item, source.by_file)
        elif first is None and hiding is not None and hiding.path.parent != item.folder:
            return  # a file of an earlier folder that is broken has this name, and is not to be answered for
        elif first is None:
            (self.disabled if item.config.disabled else self.entries)[item.name] = item
            self.taken.update(item.aliases)
        elif item.folder == first.folder or item.folder in self.loud:
            line, column = source.loaded.places.get("name", (1, 1))
            weights = Path(first.config.weights or "")
            taken = weights if first.folder != item.folder and weights.is_absolute() else first.path
            message = f"the name {item.name!r} is already taken by {shown(taken)}"
            problem = Problem(item.path, line, column, "name", message, "give one of them another name")
            self.list_broken(Broken(item.name, item.path, (problem,)))

    def add_weights(self, short: Entry, full: Entry) -> None:
        """Weights without a YAML, under the first of their two names that has no meaning yet. The name of a broken file has
        one: its model must not answer with all that the file says left out."""
        for entry in (short, full):
            if not any(entry.name in names for names in (self.entries, self.disabled, self.taken, self.broken)):
                self.entries[entry.name] = entry
                return

    def list_broken(self, item: Broken) -> None:
        for key in (item.name, item.path.name, str(item.path)):
            if key not in self.broken and (key != item.name or key not in self.entries):
                self.broken[key] = item
                return

    def aliases(self) -> tuple[dict[str, Entry], list[tuple[str, Entry]]]:
        exact: dict[str, Entry] = {}
        globs: dict[str, Entry] = {}
        for entry in self.entries.values():
            for index, alias in enumerate(entry.aliases):
                table = globs if is_glob(alias) else exact
                first = self.entries.get(alias) or table.setdefault(alias, entry)
                if first is not entry and first.folder == entry.folder:
                    self.note(entry, index, alias, first)
        return exact, list(globs.items())

    def note(self, entry: Entry, index: int, alias: str, first: Entry) -> None:
        line, column = self.places[entry.path].get("aliases", (0, 0))
        message = f"{alias!r} already means {first.name} ({shown(first.path)})"
        problem = Problem(entry.path, line, column, f"aliases[{index}]", message, "this alias is not used")
        self.notes.setdefault(entry.path, []).append(problem)


def _folded(names: Iterable[tuple[str, Entry]]) -> dict[str, tuple[Entry, ...]]:
    found: dict[str, tuple[Entry, ...]] = {}
    for name, entry in names:
        before = found.get(name.lower(), ())
        if entry not in before:
            found[name.lower()] = (*before, entry)
    return found
