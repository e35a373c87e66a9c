"""From LocalAI's wire to what the service installs, and from jobs and entries back. Pure functions."""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import Any

import msgspec

from llmgallery.api.dialects.localai.schema import ApplyBody, AskedFile, ImportBody
from llmgallery.core.errors import ErrorInfo, InvalidField
from llmgallery.core.installs import FileProgress, Install
from llmgallery.service.install.jobs import GalleryState, Offer, Wanted

SCHEMES = ("https", "http", "huggingface", "hf", "github")
"""Of what requests may name. http is for loopback only, which the service sees to: it follows redirects, too."""

_SCHEME = re.compile(r"([A-Za-z][A-Za-z0-9+.-]*):")
_LOCAL_STARTS = ("/", "./", "../", "~", "\\")


class JobBody(msgspec.Struct, frozen=True, kw_only=True):
    """A job as LocalAI's clients read it: up to `nodes` its fields, `progress` in percent, sizes as text and in bytes. Then
    ours: the job as we have it, with `failure` for what `error` tells as one line."""

    deletion: bool
    file_name: str
    error: str | None
    processed: bool
    message: str
    progress: float
    phase: str
    current_bytes: int
    total_bytes: int
    file_size: str
    downloaded_size: str
    gallery_element_name: str
    cancelled: bool
    cancellable: bool
    nodes: tuple[()] = ()
    id: str
    asked: str
    name: str | None
    source: str | None
    files: tuple[FileProgress, ...]
    failure: ErrorInfo | None
    created: float
    updated: float


class GalleryName(msgspec.Struct, frozen=True):
    url: str
    name: str


class OfferBody(msgspec.Struct, frozen=True, kw_only=True):
    """An entry as LocalAI's clients read it: up to `backend` its fields. `bytes`: `size` as a number; None = not known."""

    url: str
    name: str
    description: str
    license: str
    urls: tuple[str, ...]
    icon: str
    tags: tuple[str, ...]
    files: tuple[dict[str, str], ...]
    size: str
    gallery: GalleryName
    installed: bool
    backend: str
    bytes: int | None
    aliases: tuple[str, ...]
    variants: tuple[str, ...]


# --- what is asked for -------------------------------------------------------------------------------------------------------


def wanted(body: ApplyBody) -> Wanted:
    """Raises InvalidField for what the schema alone cannot refuse: nothing to install, and names of local files."""
    url = body.url or body.config_url
    if body.url and body.config_url and body.url != body.config_url:
        raise InvalidField("url and config_url mean the same; send one of them", field="config_url")
    if body.id and url:
        raise InvalidField("id names an entry of a gallery, and url is another one; send one of them", field="url")
    if not (reference := body.id or url):
        raise InvalidField("id is missing: expected the name of a gallery's entry, or a Hub id such as owner/repo", field="id")
    check_remote("id" if body.id else "url", reference, plain=bool(body.id))
    for index, file in enumerate(body.files or ()):
        check_remote(f"files[{index}].uri", file.uri)
    return Wanted(
        reference=reference,
        name=body.name or None,
        variant=body.variant or None,
        overrides=body.overrides or {},
        files=tuple(map(_file, body.files or ())),
        update=body.update or False,
    )


def unread(extra: dict[str, Any]) -> tuple[str, ...]:
    """A warning for each field that nothing here knows."""
    return tuple(f"{name} was not read: POST /models/apply knows no such field" for name in extra if name not in _ENTRY_FIELDS)


_ENTRY_FIELDS = frozenset(
    {"description", "license", "urls", "icon", "tags", "size", "gallery", "installed", "backend", "variants"}
)
"""Of an entry as /models/available tells it. Clients send the whole of it back."""


def imported(body: ImportBody) -> Wanted:
    """Raises InvalidField as `wanted` does."""
    check_remote("uri", body.uri, plain=True)
    asked = body.preferences
    quants = [word.strip() for word in (asked.quantizations or "").split(",")] if asked is not None else []
    name = asked.name if asked is not None else None
    return Wanted(reference=body.uri, name=name or None, variant=next(filter(None, quants), None))


def check_remote(field: str, text: str, *, plain: bool = False) -> None:
    """`plain`: names without a scheme are meant as well, of entries and on the Hub. Raises InvalidField where it can only be a
    file of this machine, or nothing that could be fetched."""
    if text.startswith(_LOCAL_STARTS) or "\0" in text or text.lower().startswith("file:"):
        raise InvalidField(f"{field}: requests cannot name files of the server's machine: {text!r}", field=field)
    scheme = _SCHEME.match(text)
    is_url = scheme is not None and ("://" in text or scheme[1].lower() == "github")
    if is_url and scheme is not None and scheme[1].lower() not in SCHEMES:
        raise InvalidField(f"{field}: {text!r} is nothing that can be fetched; write {_SCHEMES_SAID}", field=field)
    if not is_url and not plain:
        raise InvalidField(f"{field}: expected an address, got {text!r}; write {_SCHEMES_SAID}", field=field)


_SCHEMES_SAID = "https://..., huggingface://owner/repo/file or github:owner/repo/path@branch"


def _file(file: AskedFile) -> dict[str, str]:
    fields = {"uri": file.uri, "filename": file.filename, "sha256": file.sha256}
    return {name: value for name, value in fields.items() if value}


# --- jobs --------------------------------------------------------------------------------------------------------------------


def job_body(job: Install) -> JobBody:
    current = next((file.name for file in job.files if file.total is None or file.done < file.total), "")
    return JobBody(
        deletion=job.deletion,
        file_name=current if job.phase == "downloading" else "",
        error=job.error.message if job.error is not None else None,
        processed=job.is_over,
        message=_message(job, current),
        progress=round(100 * (job.fraction or 0.0), 2),
        phase=job.phase,
        current_bytes=job.done_bytes,
        total_bytes=job.total_bytes or 0,
        file_size=_size(job.total_bytes),
        downloaded_size=_size(job.done_bytes),
        gallery_element_name=job.asked,
        cancelled=job.phase == "cancelled",
        cancellable=not job.is_over and not job.deletion,
        id=job.id,
        asked=job.asked,
        name=job.name,
        source=job.source,
        files=job.files,
        failure=job.error,
        created=job.created,
        updated=job.updated,
    )


def _message(job: Install, current: str) -> str:
    """`completed` and `error: ...` are LocalAI's: its clients compare them."""
    match job.phase:
        case "done":
            return "completed"
        case "failed":
            return f"error: {job.error.message if job.error is not None else 'unknown'}"
        case "downloading" if current:
            return f"downloading {current}"
        case phase:
            return phase


def _size(count: int | None) -> str:
    """As LocalAI writes it: 4.7 GiB; empty where it is not known."""
    if count is None:
        return ""
    value = float(count)
    for unit in ("B", "KiB", "MiB", "GiB"):
        if value < 1024:
            return f"{value:.0f} {unit}" if unit == "B" else f"{value:.1f} {unit}"
        value /= 1024
    return f"{value:.1f} TiB"


# --- galleries ---------------------------------------------------------------------------------------------------------------


def offers_body(offers: Iterable[Offer]) -> bytes:
    """A JSON list. Takes its time: LocalAI's own index alone has 1,700 entries."""
    return msgspec.json.encode([_offer(offer) for offer in offers])


def _offer(offer: Offer) -> OfferBody:
    entry = offer.entry
    return OfferBody(
        url=entry.url or "",
        name=entry.name,
        description=entry.description,
        license=entry.licence or "",
        urls=entry.urls,
        icon=entry.icon or "",
        tags=entry.tags,
        files=tuple({"filename": file.filename, "uri": file.uri, "sha256": file.sha256 or ""} for file in entry.files),
        size=_size(offer.size),
        gallery=GalleryName(offer.address, entry.gallery),
        installed=offer.is_installed,
        backend=offer.backend,
        bytes=offer.size,
        aliases=entry.aliases,
        variants=entry.variants,
    )


def galleries_body(states: Iterable[GalleryState]) -> list[dict[str, Any]]:
    """LocalAI's fields first, which has no mirrors and no signatures here; then ours: how many entries, when they were last
    seen to be so (Unix time), and why the last try failed."""
    return [
        {
            "url": state.url,
            "mirrors": [],
            "name": state.name,
            "verification": None,
            "entries": state.entries,
            "refreshed": state.refreshed,
            "error": state.error,
        }
        for state in states
    ]
