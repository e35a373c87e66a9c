"""Bodies that come packed, in pieces of bounded size: a few bytes of gzip may be gigabytes, and httpx unpacks them at once."""

from __future__ import annotations

import zlib
from collections.abc import Iterator

from llmgallery.core.errors import UpstreamUnavailable

PIECE = 64 * 1024
"""Bytes that are unpacked at once."""
_GZIP = zlib.MAX_WBITS | 16


class Unpacker:
    """Of one body. `encoding`: its Content-Encoding. Raises UpstreamUnavailable for one that nobody asked for."""

    def __init__(self, encoding: str) -> None:
        kind = encoding.strip().lower()
        if kind not in ("", "identity", "gzip", "x-gzip"):
            raise UpstreamUnavailable(f"the endpoint answered in the encoding {encoding[:40]!r}, which was not asked for")
        self._gzip = zlib.decompressobj(_GZIP) if kind.endswith("gzip") else None

    def feed(self, data: bytes) -> Iterator[bytes]:
        """Raises UpstreamUnavailable for what is no gzip."""
        if self._gzip is None:
            yield data
            return
        try:
            while data and not self._gzip.eof:
                if piece := self._gzip.decompress(data, PIECE):
                    yield piece
                data = self._gzip.unconsumed_tail
        except zlib.error as exc:
            raise UpstreamUnavailable(f"the endpoint answered with what is no gzip: {exc}") from exc
