"""An address in a gallery's entry becomes a file of a plan: at a commit, with size and checksum, before it is fetched."""

from __future__ import annotations

import asyncio
import ipaddress
import re
from collections.abc import Awaitable
from pathlib import Path
from typing import Protocol
from urllib.parse import unquote, urlsplit

from llmgallery.catalog.hub import Hub
from llmgallery.catalog.install.plan import PlannedFile, store_path
from llmgallery.catalog.reference import HubReference, choose_file, parse_reference
from llmgallery.core.errors import ConfigError, HubNotFound, HubUnavailable


class Pin(Protocol):
    """`pin` with its Hub given."""

    def __call__(self, uri: str, *, inside: bool = ...) -> Awaitable[PlannedFile]: ...


PIN_SECONDS = 120.0
"""The longest that one address may take."""

_SHA256 = re.compile(r"[0-9a-f]{64}")


async def pin(hub: Hub, uri: str, *, local: bool = False, inside: bool = False) -> PlannedFile:
    """What `uri` is now. Of the Hub (hf://, huggingface://, the address of a file at huggingface.co or HF_ENDPOINT): the file
    at its commit, with size and sha256. Other https addresses stay as they are, with the size that their host tells, and a
    place in the store; so does http on this machine, and with `local` a file://. `inside`: as of PlannedFile.

    Raises ConfigError for what is no address that may be fetched, HubError.
    """
    try:
        async with asyncio.timeout(PIN_SECONDS):
            reference = _reference(uri, hub.settings.endpoint)
            if reference is not None:
                return await _of_hub(hub, reference)
            return await _elsewhere(hub, uri, local, inside)
    except TimeoutError:
        raise HubUnavailable(f"{uri} could not be looked at within {PIN_SECONDS:.0f} s: ask again") from None


def _reference(uri: str, endpoint: str) -> HubReference | None:
    """Of the Hub; an address at HF_ENDPOINT is one of huggingface.co."""
    if uri.startswith(f"{endpoint}/"):
        uri = f"https://huggingface.co/{uri.removeprefix(f'{endpoint}/')}"
    return parse_reference(uri.partition("?")[0] if "://" in uri else uri)


async def _of_hub(hub: Hub, ref: HubReference) -> PlannedFile:
    file, revision = ref.file, ref.revision
    if file is None:
        revision, files = await hub.list_files(ref.repo, ref.revision)
        try:
            file = choose_file(files, ref.quant)
        except HubNotFound as error:
            raise HubNotFound(f"{ref}: {error.message}", field="file", hints=error.hints[:20]) from error
    meta = await hub.metadata(ref.repo, revision, file)
    return PlannedFile(
        uri=f"hf://{HubReference(ref.repo, file, revision=meta.commit)}",
        name=file,
        sha256=meta.etag if _SHA256.fullmatch(meta.etag) else None,
        size=meta.size,
    )


async def _elsewhere(hub: Hub, uri: str, local: bool, inside: bool) -> PlannedFile:
    try:
        url = urlsplit(uri)
        host = url.hostname or ""
    except ValueError as error:
        raise ConfigError(f"{uri!r} is no address: {error}") from error
    name = unquote(url.path).rsplit("/", 1)[-1]
    size: int | None
    if url.scheme == "file" and local:
        size = await asyncio.to_thread(_size_here, Path(unquote(url.path)), uri)
    elif url.scheme == "https" or (url.scheme == "http" and _is_here(host)):
        size = await hub.size_of(uri, inside)
    else:
        raise ConfigError(f"{uri!r} may not be fetched: write https://, or hf://owner/repo/file for a file of the Hub")
    return PlannedFile(uri=uri, name=name, path=store_path(uri, name, None), size=size, inside=inside)


def _size_here(path: Path, uri: str) -> int:
    try:
        return path.stat().st_size
    except OSError as error:
        raise ConfigError(f"{uri} cannot be read: {error.strerror or error}") from error


def _is_here(host: str) -> bool:
    """This machine, by its name or its loopback address."""
    try:
        return host == "localhost" or ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False
