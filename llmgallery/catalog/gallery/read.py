"""An index file to its entries: LocalAI's format and ours. Knows no network; what is wrong is noted with its place."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from typing import Any

import msgspec
from yaml.nodes import MappingNode, Node, ScalarNode, SequenceNode

from llmgallery.catalog.gallery.documents import LEFT_OUT, documents, is_left_out
from llmgallery.catalog.gallery.entry import EntryFile, GalleryEntry, Index
from llmgallery.config import nodes
from llmgallery.config.checks import name_fault
from llmgallery.config.nodes import Unreadable, kind, place
from llmgallery.config.problems import Problem, as_error
from llmgallery.config.readers import FAILED, AnyReader, Reading, entries, is_null
from llmgallery.config.suggest import did_you_mean
from llmgallery.config.units import SIZE, parse_size

MAX_INDEX = 32 * 1024 * 1024
MAX_VALUES = 4_000_000
"""Values of a whole index, aliases counted in full: LocalAI's has 120,000."""
MAX_PROBLEMS = 1000
MAX_ABOVE = 20_000

_SHA256 = re.compile(r"[0-9a-f]{64}")
_ANY = AnyReader()


class Base(msgspec.Struct, frozen=True):
    """What a base file says of itself, beside the model file's keys in `config`."""

    config: Mapping[str, Any] = {}
    files: tuple[EntryFile, ...] = ()
    licence: str | None = None
    description: str = ""
    urls: tuple[str, ...] = ()
    warnings: tuple[str, ...] = ()


def read_index(data: bytes, source: str, gallery: str) -> Index:
    """All entries of an index: a list of them, or one in each document. `source` is the file's name in messages.

    Never raises for what the file says. An entry that cannot be read is among the problems and costs no other entry, also
    when it is no YAML at all; of two entries of one name the first counts.
    """
    found: dict[str, GalleryEntry] = {}
    try:
        text = nodes.decode(data, source, MAX_INDEX)
    except Unreadable as error:
        return Index(problems=(error.problem,))
    roots, problems = documents(text, source)
    visits = 0
    for node in _items(roots, source, problems):
        reading = _Reading(source, text)
        entry = _entry(node, gallery, reading)
        visits += reading.visits
        if entry is not None and (first := found.setdefault(entry.name, entry)) is not entry:
            reading.fail(node, "name", f"the name {entry.name!r} is already that of the entry in line {first.place[0]}")
        problems += reading.problems
        if visits > MAX_VALUES or len(problems) > MAX_PROBLEMS:
            what = f"more than {MAX_VALUES:,} values" if visits > MAX_VALUES else f"more than {MAX_PROBLEMS:,} problems"
            problems.append(Problem(source, *place(node), "", f"{what}: the entries from here on are not read"))
            break
    return Index(found, tuple(problems))


def read_base(data: bytes, source: str) -> Base:
    """A base file. Raises ConfigError with all problems."""
    try:
        text = nodes.decode(data, source)
        root = nodes.compose(data, source)
    except Unreadable as error:
        raise as_error([error.problem], source) from error
    reading = _Reading(source, text)
    base = _base(root, reading)
    if reading.problems:
        raise as_error(reading.problems, source)
    return base


class _Reading(Reading):
    """Beside what fails: what is passed over, which loses nothing that an install needs."""

    def __init__(self, source: str, text: str) -> None:
        super().__init__(source, lambda key, parent: "")
        self.text = text

    def told(self) -> tuple[str, ...]:
        return tuple(map(str, self.warnings))


# --- text to entries' nodes --------------------------------------------------------------------------------------------------


def _items(roots: list[Node], source: str, problems: list[Problem]) -> Iterator[Node]:
    for root in roots:
        if isinstance(root, SequenceNode):
            yield from root.value
        elif isinstance(root, MappingNode):
            yield root
        elif not is_null(root):
            message = f"expected a list of entries (`- name: ...`), or one entry (`name: ...`), found {kind(root)}"
            problems.append(Problem(source, *place(root), "", message))


# --- entries -----------------------------------------------------------------------------------------------------------------


def _entry(node: Node, gallery: str, reading: _Reading) -> GalleryEntry | None:
    """None with problems noted."""
    if not isinstance(node, MappingNode):
        reading.fail(node, "", f"expected an entry (`name: ...`), found {kind(node)}")
        return None
    if is_left_out(node):
        return None  # a problem has been noted where it was
    values = _values(node, _ENTRY_KEYS, reading)
    if "name" not in values:
        reading.fail(node, "name", "the key is missing", "an entry is asked for by its name")
    elif fault := name_fault(values["name"]):
        reading.fail(node, "name", fault)
    if reading.problems:
        return None
    values["aliases"] = _aliases(values)
    return GalleryEntry(**values, gallery=gallery, source=str(reading.path), place=place(node), warnings=reading.told())


def _aliases(values: Mapping[str, Any]) -> tuple[str, ...]:
    """The entry's, and those that its model file will have."""
    found = list(values.get("aliases", ()))
    for keys in (values.get("config") or {}, values.get("overrides", {})):
        inner = keys.get("aliases")
        found += [alias for alias in inner if isinstance(alias, str)] if isinstance(inner, list) else []
    return tuple(dict.fromkeys(found))


def _base(root: Node | None, reading: _Reading) -> Base:
    if root is None or is_null(root):
        return Base()
    if not isinstance(root, MappingNode):
        reading.fail(root, "", f"expected a base file (`config_file: ...`), found {kind(root)}")
        return Base()
    values = _values(root, _BASE_KEYS, reading)
    return Base(
        values.get("config") or {},
        values.get("files", ()),
        values.get("licence"),
        values.get("description", ""),
        values.get("urls", ()),
        reading.told(),
    )


_Read = Callable[[Node, str, _Reading], Any]


def _values(node: MappingNode, known: Mapping[str, tuple[str, _Read]], reading: _Reading) -> dict[str, Any]:
    """Field -> value of the known keys that are written and can be read."""
    values: dict[str, Any] = {}
    for name, key_node, value_node in entries(node, "", reading):
        if name == LEFT_OUT or is_left_out(value_node):
            line = value_node.start_mark.line + 1
            reading.fail(node, "", f"it builds on the entry in line {line}, which cannot be read")
        elif name not in known:
            reading.warn(key_node, name, "unknown key, not read", did_you_mean(name, known))
        elif not is_null(value_node):
            field, read = known[name]
            value = read(value_node, name, reading)
            if field in values:
                reading.warn(key_node, name, "means the same as another key of this entry, which counts", "keep one of them")
            elif value is not FAILED:
                values[field] = value
    return values


# --- values ------------------------------------------------------------------------------------------------------------------


def _text(node: Node, key: str, reading: _Reading) -> Any:
    """Any scalar as it is written: go-yaml too reads numbers where it expects text."""
    if isinstance(node, ScalarNode):
        return node.value
    return reading.fail(node, key, f"expected text, found {kind(node)}")


def _shown(node: Node, key: str, reading: _Reading) -> Any:
    """A text that is only shown."""
    if isinstance(node, ScalarNode):
        return node.value
    reading.warn(node, key, f"expected text, found {kind(node)}; not read")
    return FAILED


def _texts(node: Node, key: str, reading: _Reading) -> Any:
    """A list of texts that are only shown or searched; a single one too."""
    items = node.value if isinstance(node, SequenceNode) else [node]
    found = (_shown(item, f"{key}[{index}]", reading) for index, item in enumerate(items) if not is_null(item))
    return tuple(dict.fromkeys(text for text in found if text is not FAILED))


def _size(node: Node, key: str, reading: _Reading) -> Any:
    try:
        value = node.value if isinstance(node, ScalarNode) else ""
        return parse_size(int(value) if value.isdecimal() else value)
    except ValueError:
        reading.warn(node, key, f"expected {SIZE}, found {kind(node)}; not read")
        return FAILED


def _mapping(node: Node, key: str, reading: _Reading) -> Any:
    """A model file's keys."""
    if not isinstance(node, MappingNode):
        return reading.fail(node, key, f"expected a model file's keys, found {kind(node)}")
    return _ANY.read(node, key, reading)


def _config(node: Node, key: str, reading: _Reading) -> Any:
    """A model file's keys as a mapping, or as the YAML text of one."""
    return _mapping(node, key, reading) if not isinstance(node, ScalarNode) else _config_text(node, key, reading)


def _config_text(node: ScalarNode, key: str, reading: _Reading) -> Any:
    above, indent = _origin(node, reading.text)
    value, inner = _inner(node.value, reading)
    if inner.problems and above <= MAX_ABOVE:
        value, inner = _inner("\n" * above + node.value, reading)  # once more, as the words name lines too
        above = 0
    for problem in inner.problems:
        key_ = f"{key}: {problem.key}" if problem.key else key
        at = (problem.line + above, problem.column + indent) if indent is not None else place(node)
        reading.problems.append(replace(problem, key=key_, line=at[0], column=at[1]))
    return value


def _inner(text: str, reading: _Reading) -> tuple[Any, _Reading]:
    """The value of a text that is YAML itself, and what is wrong in it by its own lines."""
    inner = _Reading(str(reading.path), text)
    value: Any = FAILED
    try:
        root = nodes.compose(text.encode(), str(reading.path))
        value = {} if root is None or is_null(root) else _mapping(root, "", inner)
    except Unreadable as error:
        inner.problems.append(error.problem)
    reading.visits += inner.visits
    return value, inner


def _origin(node: ScalarNode, text: str) -> tuple[int, int | None]:
    """Lines and columns before the text of a block scalar; None = it is in quotes, and no column can be told."""
    if node.style not in ("|", ">"):
        return 0, None
    above = node.start_mark.line + 1
    first = next((line for line in text.split("\n")[above:] if line.strip()), "")
    return above, len(first) - len(first.lstrip(" "))


def _files(node: Node, key: str, reading: _Reading) -> Any:
    if not isinstance(node, SequenceNode):
        return reading.fail(node, key, f"expected a list of files (`- uri: ...`), found {kind(node)}")
    found = [_file(item, f"{key}[{index}]", reading) for index, item in enumerate(node.value)]
    return tuple(file for file in found if file is not None)


def _file(node: Node, key: str, reading: _Reading) -> EntryFile | None:
    if not isinstance(node, MappingNode):
        reading.fail(node, key, f"expected a file (`uri: ...`), found {kind(node)}")
        return None
    known = {name: (name, read) for name, read in _FILE_KEYS.items()}
    values = {}
    for name, key_node, value_node in entries(node, key, reading):
        if name not in known:
            reading.warn(key_node, f"{key}.{name}", "unknown key, not read", did_you_mean(name, known))
        elif not is_null(value_node) and (value := _FILE_KEYS[name](value_node, f"{key}.{name}", reading)) is not FAILED:
            values[name] = value
    uri = values.get("uri", "").strip()
    if not uri:
        reading.fail(node, key, "the key uri is missing", "write where the file comes from")
        return None
    filename = values.get("filename", "").strip() or _last_part(uri)
    return EntryFile(filename, uri, values.get("sha256"), values.get("size"))


def _last_part(uri: str) -> str:
    """The file's own name in an address."""
    return uri.partition("?")[0].partition("#")[0].rstrip("/").rpartition("/")[2].partition("@")[0]


def _digest(node: Node, key: str, reading: _Reading) -> Any:
    text = node.value.strip().lower().removeprefix("sha256:") if isinstance(node, ScalarNode) else None
    if text == "":
        return FAILED
    if text is None or not _SHA256.fullmatch(text):
        return reading.fail(node, key, f"expected 64 hexadecimal digits, found {kind(node)}", "leave out what you do not know")
    return text


def _variants(node: Node, key: str, reading: _Reading) -> Any:
    """[{model: name}], or names."""
    if not isinstance(node, SequenceNode):
        return reading.fail(node, key, f"expected a list of `model: name`, found {kind(node)}")
    found = []
    for index, item in enumerate(node.value):
        at = f"{key}[{index}]"
        if isinstance(item, ScalarNode) and not is_null(item):
            found.append(item.value)
            continue
        named = {name: value for name, _, value in entries(item, at, reading)} if isinstance(item, MappingNode) else {}
        model = named.get("model")
        if not isinstance(model, ScalarNode) or is_null(model):
            return reading.fail(item, at, f"expected `model: name`, found {kind(item)}")
        found.append(model.value)
    return tuple(dict.fromkeys(found))


_FILE_KEYS: dict[str, _Read] = {"filename": _text, "uri": _text, "sha256": _digest, "size": _size}

_SHARED: dict[str, tuple[str, _Read]] = {
    "description": ("description", _shown),
    "license": ("licence", _shown),
    "licence": ("licence", _shown),
    "urls": ("urls", _texts),
    "icon": ("icon", _shown),
    "files": ("files", _files),
    "config": ("config", _config),
    "config_file": ("config", _config),
}

_ENTRY_KEYS: dict[str, tuple[str, _Read]] = {
    **_SHARED,
    "name": ("name", _text),
    "url": ("url", _text),
    "tags": ("tags", _texts),
    "aliases": ("aliases", _texts),
    "overrides": ("overrides", _mapping),
    "variants": ("variants", _variants),
    "size": ("size", _size),
    "revision": ("revision", _text),
    "last_checked": ("last_checked", _shown),
}

_BASE_KEYS: dict[str, tuple[str, _Read]] = {**_SHARED, "name": ("name", _shown), "variants": ("variants", _variants)}
