"""Server-sent events out of bytes that come in any pieces. Source: the HTML standard, 9.2.6 (event stream interpretation)."""

from __future__ import annotations

from collections.abc import Iterator

from llmgallery.core.errors import UpstreamUnavailable

MOST = 48 * 1024 * 1024
"""Bytes of one event; what is made of it must fit into a frame."""


class EventReader:
    """`feed` bytes as they come; each event's data once it is whole. Names, ids and comments are passed over."""

    def __init__(self) -> None:
        self._line = bytearray()
        self._data: list[bytes] = []
        self._size = 0
        self._after_return = False
        self._begun = False

    def feed(self, chunk: bytes) -> Iterator[bytes]:
        """Raises UpstreamUnavailable for an event that is too large."""
        if self._after_return and chunk[:1] == b"\n":
            chunk, self._after_return = chunk[1:], False
        if not chunk:
            return
        self._after_return = chunk.endswith(b"\r")
        *lines, rest = chunk.replace(b"\r\n", b"\n").replace(b"\r", b"\n").split(b"\n")
        for line in lines:
            self._line += line
            whole = bytes(self._line)
            self._line.clear()
            if (data := self._end_line(whole)) is not None:
                yield data
        self._line += rest
        if len(self._line) + self._size > MOST:
            raise UpstreamUnavailable(f"the endpoint sent an event of more than {MOST} bytes")

    def _end_line(self, line: bytes) -> bytes | None:
        """The event that an empty line ends, if it has data."""
        if not self._begun:
            self._begun, line = True, line.removeprefix(b"\xef\xbb\xbf")
        if not line:
            data, self._data, self._size = self._data, [], 0
            return b"\n".join(data) if data else None
        field, _, value = line.partition(b":")
        if field == b"data":
            self._data.append(value.removeprefix(b" "))
            self._size += len(value) + 1
        return None
