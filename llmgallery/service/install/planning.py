"""From what is asked for to what will be installed: gallery or Hub, which variant, whether it may be and whether it fits."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path, PurePosixPath
from typing import Any

import msgspec

from llmgallery.backends.base import BackendSpec, Files
from llmgallery.catalog.companions import ADAPTER_CONFIG
from llmgallery.catalog.folder import MOST
from llmgallery.catalog.gallery.choose_variant import Host
from llmgallery.catalog.gallery.entry import Composed, EntryFile, GalleryEntry
from llmgallery.catalog.gallery.library import Library
from llmgallery.catalog.gallery.search import Found
from llmgallery.catalog.gallery.sources import base_place
from llmgallery.catalog.hub import Hub
from llmgallery.catalog.install.choose import quantisation
from llmgallery.catalog.install.entry_files import check_uri
from llmgallery.catalog.install.from_entry import Surroundings, plan_entry
from llmgallery.catalog.install.header import Judged, judged, remote_header
from llmgallery.catalog.install.hub_plan import plan_hub
from llmgallery.catalog.install.job import Asked
from llmgallery.catalog.install.pin import pin
from llmgallery.catalog.install.plan import InstallPlan, PlannedFile
from llmgallery.catalog.install.write import checked
from llmgallery.catalog.reference import HubReference, parse_reference, split_parts
from llmgallery.catalog.repo_folder import chosen
from llmgallery.config.model import ModelConfig
from llmgallery.config.outside import Outside
from llmgallery.core.errors import BadWeights, InvalidField, LoadError, ModelNotFound
from llmgallery.runtime import memory
from llmgallery.service.install.aliases import with_alias
from llmgallery.service.install.brought import ANYWHERE

Room = Callable[[], tuple[int, int]]
"""Bytes that are free now, and those that one model could have if it were alone with the pinned ones."""


class Planner:
    """Plans for an Installer. `folder`: where the YAML will lie."""

    def __init__(
        self,
        library: Library,
        hub: Hub,
        room: Room,
        specs: Mapping[str, BackendSpec],
        folder: Path,
        outside: Outside,
    ) -> None:
        self._library = library
        self._hub = hub
        self._room = room
        self._specs = specs
        self._folder = folder
        self._outside = outside
        self._pin = partial(pin, hub)
        self._around = Surroundings(specs, self._pin, self._expand, outside, folder)

    async def plan(self, asked: Asked) -> InstallPlan:
        """Asks the Hub, and fetches no more of a file than its header. Raises ModelNotFound, HubError, BackendMissing,
        ConfigError, and LoadError for what is too large for this machine."""
        await self._library.ready()
        found = self._library.find(asked.reference)
        plan = await (self._from_hub(asked) if found is None else self._from_gallery(asked, found))
        return await asyncio.to_thread(with_alias, plan, asked, self._folder)

    # --- from the Hub ----------------------------------------------------------------------------------------------------

    async def _from_hub(self, asked: Asked) -> InstallPlan:
        reference = parse_reference(asked.reference)
        if reference is None and is_address(asked.reference):
            return await self._from_address(asked)
        if reference is None:
            raise ModelNotFound(f"no gallery has {asked.reference!r} any more, and it is no Hub id", field="model")
        for key, given in (("files", asked.files), ("overrides", asked.overrides)):
            if given:
                raise InvalidField(f"{key}: a Hub id has none; change the model's YAML once it is installed", field=key)
        room = self._room()
        plan = await self._hub_plan(reference, asked.name or _written(reference), room)
        if plan.memory_bytes is not None and plan.memory_bytes > room[1]:
            fitting = await self._fitting(reference, plan, room)
            raise _too_large(plan.name, plan.memory_bytes, room[1], fitting)
        return plan

    async def _hub_plan(self, reference: HubReference, name: str, room: tuple[int, int]) -> InstallPlan:
        return await plan_hub(
            self._hub,
            reference,
            name=name,
            specs=self._specs,
            judge=partial(judge, room),
            outside=self._outside,
            folder=self._folder,
        )

    async def _fitting(self, reference: HubReference, plan: InstallPlan, room: tuple[int, int]) -> str | None:
        """The quantisation of the same repo that this machine could load."""
        whole = msgspec.structs.replace(reference, file=None, quant=None)
        best = await self._hub_plan(whole, plan.name, room)
        if best.memory_bytes is None or best.memory_bytes > room[1] or not best.files:
            return None
        quant = quantisation(best.files[0].name)[1]
        return str(msgspec.structs.replace(whole, quant=quant)) if quant else best.files[0].uri.removeprefix("hf://")

    async def _expand(self, reference: HubReference) -> list[PlannedFile]:
        """What an entry means that names a repo, perhaps with a quantisation: the files of the weights, or of an adapter."""
        if reference.whole is not None and (adapter := await self._adapter(reference)):
            return adapter
        plan = await self._hub_plan(reference, str(reference), self._room())
        if _is_folder(plan):
            return list(plan.files)
        parts = split_parts(plan.files[0].name)
        return [file for file in plan.files if file.name in parts] if len(parts) > 1 else [plan.files[0]]

    async def _adapter(self, reference: HubReference) -> list[PlannedFile]:
        """The files of a repo that is a LoRA adapter; [] = it is none."""
        repo = await self._hub.describe(reference.repo, reference.revision)
        if repo.file(ADAPTER_CONFIG) is None or repo.file("config.json") is not None:
            return []
        pinned = [(HubReference(repo.name, file.path, revision=repo.commit), file) for file in chosen(reference, repo.files)]
        return [PlannedFile(uri=f"hf://{ref}", name=file.path, sha256=file.sha256, size=file.size) for ref, file in pinned]

    # --- from a gallery ---------------------------------------------------------------------------------------------------

    async def _from_gallery(self, asked: Asked, found: Found) -> InstallPlan:
        entry = found.entry if found.chosen else await self._variant(found.entry)
        plan = await self._of_entry(entry, asked, asked.name or self._name(asked.reference, found))
        return await self._weighed(plan, found.entry)

    async def _from_address(self, asked: Asked) -> InstallPlan:
        """An entry that no gallery has: its base file's address, with what the request lays over it. Raises ConfigError for an
        address inside this machine or its network."""
        base_place(asked.reference, ANYWHERE)
        name = asked.name or PurePosixPath(asked.reference.partition("@")[0]).stem
        entry = GalleryEntry(name=name, gallery="", url=asked.reference, source=asked.reference)
        plan = await self._of_entry(entry, asked, name)
        return msgspec.structs.replace(await self._weighed(plan, entry), source=asked.reference)

    async def _of_entry(self, entry: GalleryEntry, asked: Asked, name: str) -> InstallPlan:
        composed = await self._library.composed(entry, asked.overrides)
        if asked.files:
            composed = msgspec.structs.replace(composed, files=(*composed.files, *map(_file, asked.files)))
        return await plan_entry(entry, composed, self._around, name=name)

    def _name(self, reference: str, found: Found) -> str:
        """What the model will be called: as its entry, with the gallery where another has an entry of this name before it. What
        an entry leaves open, or chooses by the machine, is told by a quantisation: then as it was asked for."""
        name, head = found.entry.name, self._library.find(reference.rpartition(":")[0])
        if found.chosen and (found.quant or (head is not None and head.entry.id == found.entry.id)):
            name = reference.removeprefix(f"{found.entry.gallery}@")
        first = self._library.find(found.entry.name)
        is_first = first is not None and first.entry.gallery == found.entry.gallery
        return name if is_first else f"{found.entry.gallery}@{name}"

    async def _variant(self, entry: GalleryEntry) -> GalleryEntry:
        """The one that this machine takes. Raises LoadError when there are several and none fits."""
        choice = await self._library.choose(entry, self._host(), self._size)
        if not choice.fits:
            raise LoadError(
                f"no variant of {entry.id} can be loaded here: {'; '.join(choice.dropped)}", field="model", hints=choice.dropped
            )
        return choice.entry

    def _host(self) -> Host:
        names = {name for spec in self._specs.values() for name in (spec.name, *spec.aliases)}
        return Host(names.__contains__, self._room()[1])

    async def _size(self, entry: GalleryEntry, composed: Composed | None) -> int | None:
        """Bytes of all files, by asking for each."""
        if composed is None or not composed.files:
            return None
        for file in composed.files:
            if "://" in file.uri:
                check_uri(entry, file.uri)
        files = await asyncio.gather(*(self._pin(file.uri) for file in composed.files))
        sizes = [file.size for file in files]
        return None if None in sizes else sum(size for size in sizes if size is not None)

    async def _weighed(self, plan: InstallPlan, entry: GalleryEntry) -> InstallPlan:
        """With the memory that it takes. Raises LoadError when this machine will never have that."""
        if plan.memory_bytes is not None or not plan.files or plan.size is None:
            return plan
        room = self._room()
        loaded = await asyncio.to_thread(checked, plan.yaml, plan.name, self._folder, self._specs, self._outside)
        assert loaded.config is not None
        whole = _is_folder(plan)
        first = next((file for file in plan.files if file.name == "config.json"), plan.files[0])
        head = await self._head(first, whole)
        files = [(file.name, file.size or 0, head if file is first else b"") for file in plan.files]
        takes = await judged(partial(judge, room), loaded.config, files, whole=whole)
        if not takes.fits:
            choice = await self._library.choose(entry, self._host(), self._size)
            fitting = choice.entry.name if choice.fits and choice.entry.id != plan.source else None
            raise _too_large(plan.name, takes.bytes, room[1], fitting)
        return msgspec.structs.replace(plan, memory_bytes=takes.bytes)

    async def _head(self, file: PlannedFile, whole: bool) -> bytes:
        """The beginning of the weights, where they are a GGUF on the Hub; of a folder its config.json."""
        reference = parse_reference(file.uri)
        if reference is None or reference.file is None:
            return b""
        meta = await self._hub.metadata(reference.repo, reference.revision, reference.file)
        if whole:
            return await self._hub.read(meta, 0, MOST)
        try:
            return (await remote_header(self._hub, meta)).data
        except BadWeights:
            return b""  # no GGUF; then the size counts


def _is_folder(plan: InstallPlan) -> bool:
    """The model is a folder of weights."""
    return any(file.name == "config.json" for file in plan.files)


def is_address(reference: str) -> bool:
    """Of an entry's base file, which is no name and no Hub id."""
    return "://" in reference or reference.startswith("github:")


def judge(room: tuple[int, int], config: ModelConfig, files: tuple[Path, ...]) -> Judged:
    """What loading takes, and whether there can be so much. Blocks."""
    free, most = room
    takes = memory.plan(config, Files(files), free, most).bytes
    return Judged(takes, takes <= most)


def _written(reference: HubReference) -> str:
    """With a quantisation in capitals, as repos write them: two who ask at the same time for q8_0 and Q8_0 get one model, and
    one file, whatever the file system says of small letters."""
    quant = reference.quant or ""
    known = quantisation(f"{quant}.gguf")[1].upper()
    return str(msgspec.structs.replace(reference, quant=known) if known and known == quant.upper() else reference)


def _too_large(name: str, needs: int, most: int, fitting: str | None) -> LoadError:
    advice = f"{fitting} would fit" if fitting else "no smaller version of it is known; take a smaller model"
    return LoadError(
        f"model {name} is not installed: it needs about {_gib(needs)} of memory, but at most {_gib(most)} can be had: {advice}",
        field="model",
        hints=(fitting,) if fitting else (),
    )


def _file(said: Mapping[str, Any]) -> EntryFile:
    """As LocalAI's requests write it; the API has checked its fields."""
    uri = str(said.get("uri") or "")
    return EntryFile(str(said.get("filename") or uri.rpartition("/")[2]), uri, said.get("sha256") or None)


def _gib(size: int) -> str:
    return f"{size / 2**30:.2f} GiB"
