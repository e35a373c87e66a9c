"""The files that a gallery's entry is loaded from, pinned, and the references that its YAML names them by."""

from __future__ import annotations

import asyncio
import re
from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import Any
from urllib.parse import urlsplit

import msgspec

from llmgallery.catalog.gallery.entry import EntryFile, GalleryEntry
from llmgallery.catalog.gallery.sources import may_lead_inside
from llmgallery.catalog.install.addresses import address
from llmgallery.catalog.install.pin import Pin
from llmgallery.catalog.install.plan import PlannedFile, store_path
from llmgallery.catalog.reach import is_inside
from llmgallery.catalog.reference import HubReference, parse_reference, split_parts
from llmgallery.catalog.together import together
from llmgallery.config.suggest import did_you_mean
from llmgallery.core.errors import ConfigError, GalleryError, HubGated, HubOffline, HubUnavailable, NoSpace

Expand = Callable[[HubReference], Awaitable[Sequence[PlannedFile]]]
"""(a reference that names no file) -> the files that it means, pinned, the weights' first part first. Raises HubError."""
NOT_THE_ENTRY = (HubUnavailable, HubOffline, HubGated, NoSpace)

MOST_FILES = 500
AT_ONCE = 8
"""Files that the Hub is asked about at the same time."""

_PROJECTOR = re.compile(r"(^|[-_./])mmproj([-_.]|$)", re.IGNORECASE)
_SHA256 = re.compile(r"[0-9a-f]{64}")
_ODD = re.compile(r"[^\w.+-]+", re.ASCII)


class EntryFiles:
    """The files of one entry on their way to be planned. `planned`: those that its model is loaded from, the weights first.
    `warnings`: what was guessed, and which files are not needed."""

    def __init__(
        self, entry: GalleryEntry, files: Sequence[EntryFile], pin: Pin, expand: Expand | None, *, local: bool = False
    ) -> None:
        self._entry, self._pin, self._expand, self._local = entry, pin, expand, local
        self._files = {file.filename: self._in_small_letters(file) for file in files}
        self._places = asyncio.Semaphore(AT_ONCE)
        self._own = {file.uri for file in entry.files} if may_lead_inside(entry.source) else set()
        self._repo: str | None = None
        self.planned: list[PlannedFile] = []
        self.warnings: list[str] = []
        if len(files) > MOST_FILES:
            raise self._error("files", f"{len(files)} files; at most {MOST_FILES} are read")
        for file in files:
            self._refuse_ways_out(file.filename, "files")

    def _in_small_letters(self, file: EntryFile) -> EntryFile:
        """Requests may bring files too: nobody has looked at their checksums yet."""
        if file.sha256 is None:
            return file
        digest = file.sha256.strip().lower().removeprefix("sha256:")
        if not _SHA256.fullmatch(digest):
            raise self._error(
                "files", f"the sha256 of {file.filename} is {file.sha256!r}: write 64 hexadecimal digits, or leave it out"
            )
        return msgspec.structs.replace(file, sha256=digest)

    async def settled(self, config: Mapping[str, Any]) -> dict[str, Any]:
        """The config with pinned references in place of the entry's names. Raises ConfigError, HubError."""
        config = self._with_projector(self._with_model(dict(config)))
        meant = {key: self._meant(key, value) for key, value in references(config).items()}
        self._repo = self._first_repo(meant.values())
        found = await together([self._plan(key, parts) for key, parts in meant.items()])
        for key, (reference, files) in zip(meant, found, strict=True):
            config = _put(config, key, reference)
            self.planned += [file for file in files if file not in self.planned]
        used = {file.filename for parts in meant.values() for file in parts}
        idle = [name for name in self._files if name not in used]
        self.warnings += [f"files: {name} is not downloaded, as no key of the model names it" for name in idle]
        return config

    # --- which files ---------------------------------------------------------------------------------------------------------

    def _with_model(self, config: dict[str, Any]) -> dict[str, Any]:
        """With weights: where none are named, the only file that can be meant."""
        named = {"model", "parameters.model"} & references(config).keys()
        if named or not isinstance(config.get("parameters", {}), Mapping):
            return config
        weights = [name for name in self._files if name.lower().endswith(".gguf") and not _PROJECTOR.search(name)]
        firsts = [name for name in weights if split_parts(name)[0] == name]
        if len(firsts) != 1:
            return config
        self.warnings.append(f"parameters.model is not set; taken to be {firsts[0]}, the only weights among the files")
        return _put(config, "parameters.model", firsts[0])

    def _with_projector(self, config: dict[str, Any]) -> dict[str, Any]:
        """With the projector that comes along, where no key names it."""
        named = references(config).values()
        found = [name for name in self._files if _PROJECTOR.search(name) and name.lower().endswith(".gguf")]
        if "mmproj" in config or len(found) != 1 or found[0] in named:
            return config
        self.warnings.append(f"mmproj is not set; taken to be {found[0]}, the only projector among the files")
        return {**config, "mmproj": found[0]}

    def _meant(self, key: str, value: str) -> list[EntryFile]:
        """The file that a key's value is, with all its parts, the first first."""
        file = self._files.get(value) or next((file for file in self._files.values() if file.uri == value), None)
        if file is not None:
            return self._parts(file)
        self._refuse_ways_out(value, key)
        if "://" in value:
            return self._parts(EntryFile(value, value))
        last = value.rpartition("/")[2]
        alike = [file for name, file in self._files.items() if name.rpartition("/")[2] == last]
        if len(alike) == 1:
            self.warnings.append(f"{key}: {value} is none of the files; taken to be {alike[0].filename}")
            return self._parts(alike[0])
        try:
            if parse_reference(value) is not None:
                return self._parts(EntryFile(value, value))
        except ConfigError as error:
            raise self._error(key, error.message) from error
        near = did_you_mean(value, self._files) or f"they are: {', '.join(self._files) or 'none'}"
        raise self._error(key, f"{value} is none of the entry's files, and no Hub reference; {near}")

    def _parts(self, file: EntryFile) -> list[EntryFile]:
        """All parts of a split model, also those that the entry does not list: they lie beside the one that it does."""
        source = self._address("files", file)
        own = source.file or "" if isinstance(source, HubReference) else file.uri
        theirs = split_parts(own)
        if len(theirs) == 1:
            return [file]
        names = split_parts(file.filename) if len(split_parts(file.filename)) == len(theirs) else theirs
        uris = [_of_hub(source, part) for part in theirs] if isinstance(source, HubReference) else theirs
        listed = {**self._files, names[theirs.index(own)]: file}
        return [listed.get(name) or EntryFile(name, uri) for name, uri in zip(names, uris, strict=True)]

    def _refuse_ways_out(self, name: str, key: str) -> None:
        plain = name.removeprefix("file://")
        if not name.isprintable():
            raise self._error(key, f"{name!r} is no name: it holds control characters")
        odd = plain.startswith(("/", "~")) or "\\" in plain or ".." in plain.split("/") or re.match(r"[A-Za-z]:", plain)
        if odd and not (name.startswith("file://") and self._local):
            advice = "an entry names files by where they would lie below it"
            raise self._error(key, f"{name!r} leads out of the models folder: {advice}")

    # --- from where ----------------------------------------------------------------------------------------------------------

    def _address(self, key: str, file: EntryFile) -> HubReference | str:
        """With the entry's own revision, for files of the repo that its weights are in."""
        try:
            found = address(file.uri, local=self._local)
            if isinstance(found, str):
                check_uri(self._entry, found)
        except ConfigError as error:
            raise self._error(key, error.message) from error
        if not isinstance(found, HubReference) or found.revision != "main" or self._entry.revision is None:
            return found
        try:
            return msgspec.structs.replace(found, revision=self._entry.revision) if found.repo == self._repo else found
        except ConfigError as error:
            raise self._error("revision", error.message) from error

    def _first_repo(self, meant: Any) -> str | None:
        for parts in meant:
            if isinstance(found := self._address("files", parts[0]), HubReference):
                return found.repo
        return None

    async def _plan(self, key: str, parts: Sequence[EntryFile]) -> tuple[str, list[PlannedFile]]:
        """The reference that takes the place of a key's value, and its files."""
        first = self._address(key, parts[0])
        if isinstance(first, HubReference) and first.file is None:
            return await self._whole(key, first)
        if isinstance(first, HubReference):
            files = await together([self._pinned(key, part) for part in parts])
            return files[0].uri.removeprefix("hf://"), files
        path = self._stored(key, parts[0])
        folder = path.rpartition("/")[0]  # llama.cpp looks for the parts beside the first
        files = await together([self._fetched(part, f"{folder}/{_plain_name(part)}") for part in parts])
        return path, files

    async def _pinned(self, key: str, file: EntryFile) -> PlannedFile:
        """A file of the Hub, with the entry's checksum: that counts, as somebody has tried those bytes."""
        source = self._address(key, file)
        found = await self._asked(f"hf://{source}")
        if file.sha256 is not None and found.sha256 is not None and file.sha256 != found.sha256:
            commit = found.uri.rpartition("@")[2]
            advice = "the gallery must be brought up to date, or name the revision that it means: revision: COMMIT"
            message = (
                f"the sha256 of {file.filename} is {file.sha256} in the gallery, {found.sha256} on the Hub (commit {commit})"
            )
            raise self._error("files", f"{message}; {advice}")
        return msgspec.structs.replace(found, sha256=file.sha256 or found.sha256, size=found.size or file.size)

    async def _asked(self, uri: str, inside: bool = False) -> PlannedFile:
        async with self._places:
            try:
                return await self._pin(uri, inside=inside)
            except GalleryError as error:
                # Whose fault it is: the line of an entry that is right helps nobody to mend a network.
                subject = self._entry.id if isinstance(error, NOT_THE_ENTRY) else self._subject
                text = f"{subject}: {error.message}"
                raise type(error)(text, field=error.field, hints=error.hints, retry_after=error.retry_after) from error

    async def _fetched(self, file: EntryFile, path: str) -> PlannedFile:
        uri = str(self._address("files", file))
        inside = file.uri in self._own
        found = PlannedFile(uri=uri, name=_plain_name(file), path=path, sha256=file.sha256, size=file.size, inside=inside)
        if file.size is not None or uri.startswith("file:"):
            return found
        asked = await self._asked(uri, inside)
        return msgspec.structs.replace(found, size=asked.size, sha256=file.sha256 or asked.sha256)

    async def _whole(self, key: str, repo: HubReference) -> tuple[str, list[PlannedFile]]:
        if self._expand is None:
            raise self._error(key, f"{repo} names no file: write {repo.repo}/FILE")
        files = list(await self._expand(repo))
        first = files[0].uri.removeprefix("hf://")
        return (first if first.partition("@")[0].lower().endswith(".gguf") else f"{repo.repo}@{first.rpartition('@')[2]}"), files

    def _stored(self, key: str, file: EntryFile) -> str:
        try:
            return store_path(file.uri, _plain_name(file), file.sha256)
        except ConfigError as error:
            raise self._error(key, error.message) from error

    @property
    def _subject(self) -> str:
        return f"{self._entry.where}: {self._entry.id}"

    def _error(self, key: str, message: str) -> ConfigError:
        return ConfigError(f"{self._subject}: {key}: {message}", field=key)


def check_uri(entry: GalleryEntry, uri: str) -> None:
    """Raise ConfigError for an address inside this network, unless all that may have named it is of this machine, or lies there
    itself: the entry, and its base file."""
    host = urlsplit(uri).hostname or ""
    for source in (entry.source, entry.url or ""):
        if is_inside(host) and not may_lead_inside(source):
            raise ConfigError(f"{uri} is inside this network, and {source}, which names it, is not: that is not fetched")


def references(config: Mapping[str, Any]) -> dict[str, str]:
    """Dotted key -> what it names, of all keys that name files; the weights first."""
    found: dict[str, Any] = {"model": config.get("model")}
    if isinstance(parameters := config.get("parameters"), Mapping):
        found["parameters.model"] = parameters.get("model")
    found |= {key: config.get(key) for key in ("mmproj", "draft_model", "lora_adapter", "lora_base")}
    if isinstance(adapters := config.get("lora_adapters"), list):
        found |= {f"lora_adapters.{index}": adapter for index, adapter in enumerate(adapters)}
    return {key: value for key, value in found.items() if isinstance(value, str) and value}


def _put(config: dict[str, Any], key: str, value: str) -> dict[str, Any]:
    """A copy with one value changed."""
    first, _, last = key.partition(".")
    inner = config.get(first)
    if not last:
        return {**config, first: value}
    if isinstance(inner, list):
        return {**config, first: [value if str(index) == last else item for index, item in enumerate(inner)]}
    return {**config, first: {**(inner or {}), last: value}}


def _of_hub(source: HubReference, file: str) -> str:
    return f"hf://{msgspec.structs.replace(source, file=file)}"


def _plain_name(file: EntryFile) -> str:
    """The file's own name, as every file system takes it."""
    last = file.filename.partition("?")[0].rstrip("/").rpartition("/")[2]
    return _ODD.sub("_", last).lstrip("_.+-") or "file"
