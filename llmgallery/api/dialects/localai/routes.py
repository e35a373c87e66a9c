"""LocalAI's routes for galleries, installs and their jobs, and the streams of jobs, which are ours."""

from __future__ import annotations

import asyncio
from typing import Any

import msgspec
from litestar import Request, Response, Router, get, post, route
from litestar.di import NamedDependency
from litestar.params import FromPath, FromQuery
from litestar.types import ASGIApp

from llmgallery.api import respond
from llmgallery.api.dialects.localai import convert, schema
from llmgallery.api.dialects.localai.convert import JobBody, job_body
from llmgallery.api.dialects.localai.events import OVER, JobEvents
from llmgallery.api.errors import JOB, JSON, JobNotFound
from llmgallery.core.installs import Install
from llmgallery.service.gallery import Gallery
from llmgallery.service.install.brought import unread_keys
from llmgallery.service.install.jobs import Jobs, Wanted

AnyRequest = Request[Any, Any, Any]


@post("/apply", status_code=200)
async def apply(request: AnyRequest, gallery: NamedDependency[Gallery]) -> Response[bytes]:
    """Install a model: an entry of a gallery, or of the Hub. Answers with its job."""
    body, extra = schema.read_apply(await respond.read_body(request.receive))
    wanted = convert.wanted(body)
    return await _applied(request, gallery, wanted, (*convert.unread(extra), *unread_keys(wanted.overrides)))


@post("/import-uri", status_code=200)
async def import_uri(request: AnyRequest, gallery: NamedDependency[Gallery]) -> Response[bytes]:
    """Install a model by its address on the Hub. Answers with its job."""
    body = schema.read_import(await respond.read_body(request.receive))
    return await _applied(request, gallery, convert.imported(body), ())


@post("/delete/{name:path}", status_code=200)
async def delete(request: AnyRequest, gallery: NamedDependency[Gallery], name: FromPath[str]) -> dict[str, Any]:
    """Remove a model with what only it needs. Answers with the job that does it."""
    return _begun(request, await _jobs(gallery).remove(name.removeprefix("/")))


@route("/available", http_method=respond.READS)
async def available(
    gallery: NamedDependency[Gallery], term: FromQuery[str] = "", tag: FromQuery[str | None] = None
) -> Response[bytes]:
    """What the galleries have: all of it, or what fits `?term=` and `?tag=`, best first."""
    offers = await _jobs(gallery).offers(term, tag)
    return Response(await asyncio.to_thread(convert.offers_body, offers), media_type=JSON)


@route("/galleries", http_method=respond.READS)
async def galleries(gallery: NamedDependency[Gallery]) -> list[dict[str, Any]]:
    """The configured galleries."""
    return convert.galleries_body(await _jobs(gallery).galleries())


@route("/jobs", http_method=respond.READS)
async def jobs(gallery: NamedDependency[Gallery]) -> dict[str, JobBody]:
    """All installs and removals that run or ended lately, by id."""
    return {job.id: job_body(job) for job in (await _noted(gallery)).all()}


@route("/jobs/{id:str}", http_method=respond.READS)
async def job(gallery: NamedDependency[Gallery], id: FromPath[str]) -> JobBody:
    """One install or removal: how far it is."""
    return job_body(_found((await _noted(gallery)).find(id)))


@post("/jobs/{id:str}/cancel", status_code=200)
async def cancel(gallery: NamedDependency[Gallery], id: FromPath[str]) -> JobBody:
    """End a job; what it has fetched is deleted."""
    return job_body(_found(await (await _noted(gallery)).cancel(id)))


@get("/jobs/events")
async def all_events(request: AnyRequest, gallery: NamedDependency[Gallery]) -> ASGIApp:
    """The states of all jobs as they change, as server-sent events."""
    return JobEvents((await _noted(gallery)).follow_all(), request.app.state.leaving)


@get("/jobs/{id:str}/events")
async def events(request: AnyRequest, gallery: NamedDependency[Gallery], id: FromPath[str]) -> ASGIApp:
    """The states of a job as they change, as server-sent events; the stream ends with the job."""
    state = _found((await _noted(gallery)).find(id))
    if state.is_over and request.headers.get("last-event-id") == OVER:
        # So a browser's EventSource is told not to connect once more.
        return Response(b"", status_code=204).to_asgi_response(app=None, request=request)
    return JobEvents(_jobs(gallery).follow(id), request.app.state.leaving)


@post("/reload", status_code=200)
async def reload(gallery: NamedDependency[Gallery]) -> dict[str, str]:
    """Read the models folder again."""
    await gallery.reload()
    return {"message": "models reloaded"}


router = Router(
    "/models",
    route_handlers=[apply, import_uri, delete, available, galleries, jobs, job, cancel, all_events, events, reload],
)


def _jobs(gallery: Gallery) -> Jobs:
    return Jobs(gallery.settings, gallery.installing)


async def _noted(gallery: Gallery) -> Jobs:
    """Whoever asks right after a restart finds the job that was begun before it."""
    jobs = _jobs(gallery)
    await jobs.noted()
    return jobs


async def _applied(request: AnyRequest, gallery: Gallery, wanted: Wanted, unread: tuple[str, ...]) -> Response[bytes]:
    begun = _begun(request, await _jobs(gallery).apply(wanted))
    data = msgspec.json.encode({**begun, "warnings": unread} if unread else begun)
    return Response(data, headers=respond.warned(unread), media_type=JSON)


def _begun(request: AnyRequest, job: Install) -> dict[str, Any]:
    base = str(request.base_url).rstrip("/")
    return {"uuid": job.id, "status": base + JOB.format(job.id)}


def _found(job: Install | None) -> Install:
    if job is None:
        raise JobNotFound("could not find any status for ID: there is no such job, or it ended long ago; see GET /models/jobs")
    return job
