"""What the routes and commands of installs ask for, in plain data: apply, remove, cancel, follow, search."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence
from typing import Any

import msgspec

from llmgallery.catalog.gallery.entry import GalleryEntry
from llmgallery.catalog.gallery.library import GalleryState as GalleryState
from llmgallery.catalog.install.job import Asked
from llmgallery.catalog.reference import parse_reference
from llmgallery.config.settings import Settings
from llmgallery.core.errors import ConfigError, InvalidField, ModelNotFound, NotAllowed
from llmgallery.core.installs import Install
from llmgallery.service.install.installing import Installing
from llmgallery.service.install.policy import Origin


class Wanted(msgspec.Struct, frozen=True, kw_only=True):
    """What somebody wants installed. `reference`: `name`, `gallery@name`, a Hub id, or the address of an entry. `name`: what
    the model shall be called. `variant`: an entry or a quantisation, to be taken in place of what would be chosen.
    `overrides`: keys of a model file. `files`: more files, each with uri and perhaps filename and sha256. `update`: what is
    installed already is brought as it is offered now, and its YAML written anew."""

    reference: str
    name: str | None = None
    variant: str | None = None
    overrides: dict[str, Any] = {}
    files: tuple[dict[str, str], ...] = ()
    update: bool = False


class Offer(msgspec.Struct, frozen=True):
    """An entry of a gallery; `is_installed`: it, or a model of its name, is here. `address`: its gallery's."""

    entry: GalleryEntry
    is_installed: bool
    address: str

    @property
    def backend(self) -> str:
        """As the entry itself says it; "" = its base file or its weights will tell."""
        return str(self.entry.overrides.get("backend") or (self.entry.config or {}).get("backend") or "")

    @property
    def size(self) -> int | None:
        """Bytes of all files, as the entry tells; None = it does not."""
        if self.entry.size is not None:
            return self.entry.size
        sizes = [file.size for file in self.entry.files]
        return sum(size for size in sizes if size is not None) if sizes and None not in sizes else None


class Jobs:
    """`installing`: None = the server was wired without. `origin`: who asks; the operator needs no `auto_install`."""

    def __init__(self, settings: Settings, installing: Installing | None, origin: Origin = "request") -> None:
        if installing is None:
            raise NotAllowed("this server installs nothing: it was started without galleries")
        self._settings = settings
        self._installing = installing
        self._origin: Origin = origin

    async def read_galleries(self) -> None:
        """For who did not start the gallery: only this, and none of the work that a start goes on with."""
        await self._installing.library.start()

    # --- what is begun --------------------------------------------------------------------------------------------------

    async def apply(self, wanted: Wanted) -> Install:
        """The job that installs it, begun or joined; one that is over where just that is installed, unless it is to be updated.
        Raises NotAllowed, ModelNotFound, InvalidField."""
        await self._installing.noted()
        await self._installing.ready()
        asked = self._asked(wanted)
        if self._origin == "operator":
            await self.take_up(asked)
        return (await self._installing.begun(asked, self._origin, update=wanted.update)).state

    async def take_up(self, asked: Asked) -> None:
        """Go on with what was broken off of the same, unless another process is at it. A server did so when it started."""
        await self._installing.installer.resume(asked)

    async def remove(self, name: str) -> Install:
        """The job that removes a model, by its name or an alias, with what only it needs. Raises ModelNotFound, NotAllowed."""
        self._check_may_change(f"the model {name!r} is not removed")
        await self._installing.noted()
        return (await self._installing.installer.remove(await self._installing.own_name(name))).state

    async def cancel(self, id: str) -> Install | None:
        """The job as it then is; None = there is none of this id. What it has fetched is deleted. Raises NotAllowed."""
        if (job := self.find(id)) is not None:
            self._check_may_change(f"the job for {job.asked!r} is not cancelled")
        return await self._installing.installer.cancel(id)

    def _check_may_change(self, refusal: str) -> None:
        """Who lets requests install nothing does not let them undo what was installed either."""
        if self._origin == "request" and self._settings.installable() == "off":
            raise NotAllowed(
                f"{refusal}: requests may not change what is installed while the setting is auto_install: off",
                hints=("auto_install: gallery",),
            )

    def _asked(self, wanted: Wanted) -> Asked:
        reference, name = wanted.reference, wanted.name
        if wanted.variant is not None:
            reference, name = self._varied(reference, wanted.variant, name)
        return Asked(reference=reference, name=name, overrides=dict(wanted.overrides), files=wanted.files)

    def _varied(self, reference: str, variant: str, name: str | None) -> tuple[str, str | None]:
        """A variant of an entry keeps the entry's name, so that asking for it finds it."""
        library = self._installing.library
        if (found := library.find(reference)) is not None:
            varied = f"{reference}:{variant.rpartition('@')[2]}"
            if library.find(varied) is None:
                near = tuple(library.near(varied))
                known = f"; there are {', '.join(near)}" if near else ""
                raise InvalidField(f"variant: {reference} has no variant {variant!r}{known}", field="variant", hints=near)
            return varied, name or found.entry.name
        try:
            parsed = parse_reference(reference)
        except ConfigError as error:
            raise ModelNotFound(f"{reference!r} names no model: {error.message}", field="model") from error
        if parsed is None:
            return reference, name  # nobody knows it, which is said where the name is looked up
        if parsed.file is not None:
            raise InvalidField(f"variant: {reference} names one file already", field="variant")
        return str(msgspec.structs.replace(parsed, quant=variant)), name

    # --- what there is --------------------------------------------------------------------------------------------------

    async def noted(self) -> None:
        """To be awaited before `all`, `find` and what follows jobs, where a server has just started."""
        await self._installing.noted()

    def all(self) -> list[Install]:
        """Those that run, and the last ones that ended."""
        return self._installing.jobs()

    def find(self, id: str) -> Install | None:
        job = self._installing.installer.find(id)
        return job.state if job is not None else None

    async def follow(self, id: str) -> AsyncIterator[Install]:
        """The state now and each change. Ends when the job is over, and when the server stops."""
        job = self._installing.installer.find(id)
        if job is not None:
            async for state in job.follow():
                yield state

    async def follow_all(self) -> AsyncIterator[Install]:
        """Each job now, then each that is new or has changed. Does not end."""
        seen: dict[str, Install] = {}
        while True:
            change = self._installing.change  # taken first: what changes from here on sets it
            states = self.all()
            for state in states:
                if seen.get(state.id) != state:
                    yield state
            seen = {state.id: state for state in states}
            await change.wait()

    async def offers(self, text: str = "", tag: str | None = None) -> list[Offer]:
        """Entries of all galleries: those that fit the words, best first; without words all of them."""
        await self._installing.library.ready()
        entries = self._installing.library.search(text, tag=tag)
        return await asyncio.to_thread(self._offered, entries)

    async def galleries(self) -> Sequence[GalleryState]:
        """The configured ones, ours among them."""
        await self._installing.ready()
        return self._installing.library.states()

    def _offered(self, entries: Sequence[GalleryEntry]) -> list[Offer]:
        sources, names = self._installing.installed()
        addresses = {state.name: state.url for state in self._installing.library.states()}
        return [Offer(entry, entry.id in sources or entry.name in names, addresses.get(entry.gallery, "")) for entry in entries]
