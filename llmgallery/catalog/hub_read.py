"""Reads a part of a file that is on the Hub. Keeps nothing; what is to be kept is download.py's."""

from __future__ import annotations

import httpx

from llmgallery.catalog.hub_client import Again, FileMeta, HubClient
from llmgallery.core.errors import HubUnavailable


async def read_part(client: HubClient, meta: FileMeta, start: int, count: int) -> bytes:
    """`count` bytes of a file from `start`, fewer only at its end; the connection is closed after them. Raises HubError."""
    if start >= meta.size:
        return b""
    failures = 0
    while True:
        try:
            return await _attempt(client, meta, start, min(count, meta.size - start))
        except Again as again:
            failures += 1
            if failures >= client.settings.attempts:
                raise again.error from again
            await client.pause(failures, again.pause)
        meta = await client.metadata(meta.repo, meta.commit, meta.file)  # links expire


async def _attempt(client: HubClient, meta: FileMeta, start: int, count: int) -> bytes:
    data = bytearray()
    async with client.open(meta, {"Range": f"bytes={start}-{start + count - 1}"}) as response:
        host = response.request.url.host
        skip = start if response.status_code == 200 else 0  # it heeds no Range: from the beginning, then
        if response.status_code == 206 and not response.headers.get("content-range", "").startswith(f"bytes {start}-"):
            raise Again(HubUnavailable(f"{host} sent another part of {meta.file} than was asked for"))
        try:
            async for piece in response.aiter_raw():
                data += piece
                if len(data) >= skip + count:
                    break
        except httpx.RequestError as exc:
            raise Again(HubUnavailable(f"the connection to {host} broke: {exc or type(exc).__name__}")) from exc
    if len(data) < skip + count:
        raise Again(HubUnavailable(f"{host} ended {meta.file} too early"))
    return bytes(data[skip : skip + count])
