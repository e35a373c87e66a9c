"""Who installs for a command: a server, by its API, or this process, by the same service."""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import AsyncIterator, Iterator, Mapping, Sequence
from typing import Any, Protocol
from urllib.parse import quote

import click
import msgspec

from llmgallery import paths
from llmgallery.catalog.install.journal import Journals
from llmgallery.cli.commands import entered, server
from llmgallery.cli.portal import Portal
from llmgallery.cli.remote import Remote
from llmgallery.cli.stack import Stack, build
from llmgallery.config.settings import Settings
from llmgallery.core.errors import GalleryError
from llmgallery.core.installs import Install
from llmgallery.service.install.jobs import Jobs, Offer, Wanted


class Found(msgspec.Struct, frozen=True):
    """An entry of a gallery as `search` shows it. `size` in bytes, None = nobody tells."""

    name: str
    gallery: str
    size: int | None
    licence: str
    tags: tuple[str, ...]
    is_installed: bool
    description: str


class Door(Protocol):
    """Where a command's asks go. Everything raises GalleryError. `place`: what a sentence says of it."""

    place: str

    async def search(self, text: str, tag: str | None) -> tuple[list[Found], list[str]]: ...
    async def apply(self, wanted: Wanted) -> Install: ...
    async def remove(self, name: str) -> Install: ...
    async def jobs(self) -> list[Install]: ...
    async def cancel(self, id: str) -> Install: ...
    def follow(self, id: str) -> AsyncIterator[Install]: ...
    def left(self, jobs: Sequence[Install]) -> str: ...  # what becomes of them when nobody watches any more


@contextlib.contextmanager
def opened(portal: Portal, settings: Settings, *, here: bool) -> Iterator[Door]:
    """The server at LLMGALLERY_URL when there is one that answers, else this process. `here`: this process in any case, as a
    models folder was named. Raises GalleryError."""
    remote = None if here else server(settings)
    if remote is not None:
        with entered(portal, remote):
            if portal.run(remote.answers()):
                yield AtServer(remote)
                return
        click.echo(f"no server answers at {remote.url} (LLMGALLERY_URL): this process does it itself", err=True)
    with entered(portal, portal.run(Here.build(settings))) as door:
        yield door


class AtServer:
    """A server, which goes on with its jobs whoever leaves."""

    def __init__(self, remote: Remote) -> None:
        self._remote = remote
        self.place = f"the server at {remote.url}"

    async def search(self, text: str, tag: str | None) -> tuple[list[Found], list[str]]:
        """Entries, and what is wrong with galleries."""
        query = f"?term={quote(text)}" + (f"&tag={quote(tag)}" if tag else "")
        offers = await self._remote.get(f"/models/available{query}")
        states = await self._remote.get("/models/galleries")
        return [_found(offer) for offer in offers], [_told(state["name"], state["error"]) for state in states if state["error"]]

    async def apply(self, wanted: Wanted) -> Install:
        fields = msgspec.to_builtins(wanted)
        body = {"id": fields.pop("reference"), **{name: value for name, value in fields.items() if value}}
        return await self._begun(await self._remote.post("/models/apply", body))

    async def remove(self, name: str) -> Install:
        return await self._begun(await self._remote.post(f"/models/delete/{quote(name)}"))

    async def jobs(self) -> list[Install]:
        return [read_job(body) for body in (await self._remote.get("/models/jobs")).values()]

    async def cancel(self, id: str) -> Install:
        return read_job(await self._remote.post(f"/models/jobs/{quote(id)}/cancel"))

    async def follow(self, id: str) -> AsyncIterator[Install]:
        """Its states, the last one of a job that is over. Raises GalleryError when the server ends before."""
        state = None
        async with contextlib.aclosing(self._remote.events(f"/models/jobs/{quote(id)}/events")) as events:
            async for body in events:
                yield (state := read_job(body))
        if state is None or not state.is_over:
            raise GalleryError(f"{self.place} stopped; the job goes on when it is started again")

    def left(self, jobs: Sequence[Install]) -> str:
        ids = " ".join(job.id for job in jobs[:1])
        return f"{self.place} goes on: `llmgallery jobs {ids}` tells how far it is, and with --cancel ends it"

    async def _begun(self, answer: Mapping[str, Any]) -> Install:
        for warning in answer.get("warnings", ()):
            click.echo(warning, err=True)
        return read_job(await self._remote.get(f"/models/jobs/{quote(answer['uuid'])}"))


class Here:
    """This process: its jobs stop with it, and are kept."""

    def __init__(self, stack: Stack) -> None:
        self._stack = stack
        self._jobs = Jobs(stack.settings, stack.gallery.installing, "operator")
        self.place = "this process"

    @classmethod
    async def build(cls, settings: Settings) -> Here:
        """Raises ConfigError."""
        return cls(build(settings))

    async def __aenter__(self) -> Here:
        """Reads the folder and the galleries. What else a server does, it does not: no preloading, no jobs of others. What a
        server logs is told by the command itself."""
        logging.getLogger("llmgallery").addHandler(logging.NullHandler())
        await asyncio.to_thread(self._stack.registry.read)
        await self._jobs.read_galleries()
        return self

    async def __aexit__(self, *exc: object) -> None:
        await self._stack.close()

    async def search(self, text: str, tag: str | None) -> tuple[list[Found], list[str]]:
        offers = await self._jobs.offers(text, tag)
        states = await self._jobs.galleries()
        return [_of_offer(offer) for offer in offers], [_told(state.name, state.error) for state in states if state.error]

    async def apply(self, wanted: Wanted) -> Install:
        return await self._jobs.apply(wanted)

    async def remove(self, name: str) -> Install:
        return await self._jobs.remove(name)

    async def jobs(self) -> list[Install]:
        return await asyncio.to_thread(noted_jobs)

    async def cancel(self, id: str) -> Install:
        if (noted := await asyncio.to_thread(_journals().read, id)) is not None:
            await self._jobs.take_up(noted.asked)
        if (job := await self._jobs.cancel(id)) is None:
            raise GalleryError(f"another process is at work on the job {id}: cancel it there, with LLMGALLERY_URL for a server")
        return job

    def follow(self, id: str) -> AsyncIterator[Install]:
        return self._jobs.follow(id)

    def left(self, jobs: Sequence[Install]) -> str:
        names = " ".join(job.asked for job in jobs)
        return f"stopped; what has come is kept: `llmgallery install {names}` goes on from there, or a server does"


def noted_jobs() -> list[Install]:
    """Those that any process has noted on this machine and not finished, and the last ones that ended. Blocks."""
    return [record.state for record in _journals().read_all()]


def _journals() -> Journals:
    return Journals(paths.data_dir() / "jobs")


def read_job(body: Mapping[str, Any]) -> Install:
    """A job as the server's API tells it. Raises GalleryError for what is none."""
    fields = {name: body.get(name) for name in Install.__struct_fields__ if name in body} | {"error": body.get("failure")}
    try:
        return msgspec.convert(fields, Install)
    except msgspec.ValidationError as exc:
        raise GalleryError(f"the server does not tell of its jobs as llmgallery does: {exc}") from exc


def _found(offer: Mapping[str, Any]) -> Found:
    return Found(
        offer["name"],
        offer["gallery"]["name"],
        offer.get("bytes"),
        offer["license"],
        tuple(offer["tags"]),
        offer["installed"],
        offer["description"],
    )


def _of_offer(offer: Offer) -> Found:
    entry = offer.entry
    return Found(entry.name, entry.gallery, offer.size, entry.licence or "", entry.tags, offer.is_installed, entry.description)


def _told(gallery: str, error: str) -> str:
    return f"the gallery {gallery} cannot be read: {error}"
