"""Frames over a socket: u32 little-endian length, then msgpack. Blocking for the child, asyncio for the parent."""

from __future__ import annotations

import asyncio
import socket
import struct
from collections.abc import Iterator
from typing import Any

import msgspec

from llmgallery.wire.frames import MAX_FRAME, Command, Report

LENGTH = struct.Struct("<I")
READ_BYTES = 256 * 1024
_encoder = msgspec.msgpack.Encoder()
_commands = msgspec.msgpack.Decoder(Command)
_reports = msgspec.msgpack.Decoder(Report)


class FrameError(Exception):
    """The other side sent something that is no frame of ours."""


def encode(frame: Command | Report) -> bytes:
    """The bytes of one frame, length included. Raises FrameError above MAX_FRAME."""
    body = _encoder.encode(frame)
    if len(body) > MAX_FRAME:
        raise FrameError(f"a {type(frame).__name__} frame of {len(body)} bytes exceeds {MAX_FRAME}")
    return LENGTH.pack(len(body)) + body


def decode_command(body: bytes) -> Command:
    """The command in `body` (without its length). Raises FrameError."""
    command: Command = _decode(_commands, body)
    return command


def decode_report(body: bytes) -> Report:
    """The report in `body` (without its length). Raises FrameError."""
    report: Report = _decode(_reports, body)
    return report


def _decode(decoder: msgspec.msgpack.Decoder[Any], body: bytes) -> Any:
    try:
        return decoder.decode(body)
    except (msgspec.DecodeError, msgspec.ValidationError) as exc:
        raise FrameError(f"no frame: {exc}") from exc


def _checked(length: int) -> int:
    if length > MAX_FRAME:
        raise FrameError(f"a frame of {length} bytes exceeds {MAX_FRAME}")
    return length


class ChildChannel:
    """The child's end: one thread reads, one at a time writes."""

    def __init__(self, sock: socket.socket) -> None:
        self._reader = sock.makefile("rb")
        self._sock = sock

    def commands(self) -> Iterator[Command]:
        """Blocks for each next command; ends when the parent is gone. Raises FrameError."""
        while head := self._reader.read(LENGTH.size):
            if len(head) < LENGTH.size:
                return
            length = _checked(LENGTH.unpack(head)[0])
            body = self._reader.read(length)
            if len(body) < length:
                return
            yield decode_command(body)

    def send(self, data: bytes) -> None:
        """Blocks until a frame, encoded, or the rest of one is handed to the kernel. Raises OSError when the parent is gone."""
        self._sock.sendall(data)

    def send_some(self, data: bytes) -> bytes:
        """Never blocks; gives back what the kernel has no room for. Raises OSError when the parent is gone."""
        try:
            return data[self._sock.send(data, socket.MSG_DONTWAIT) :]
        except BlockingIOError:
            return data


class ParentChannel:
    """The parent's end, on its event loop."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._reader = reader
        self._writer = writer
        self._read = bytearray()

    @classmethod
    async def open(cls, sock: socket.socket) -> ParentChannel:
        sock.setblocking(False)
        reader, writer = await asyncio.open_connection(sock=sock)
        return cls(reader, writer)

    async def receive(self) -> Report | None:
        """The next report, or None when the child is gone. Raises FrameError."""
        while (body := self._body()) is None:
            # As much as there is: one wait brings whole frames, most often.
            try:
                data = await self._reader.read(READ_BYTES)
            except ConnectionError:
                return None
            if not data:
                return None
            self._read += data
        return decode_report(body)

    def _body(self) -> bytes | None:
        """That of the first frame, once all of it has been read."""
        read = self._read
        if len(read) < LENGTH.size:
            return None
        end = LENGTH.size + _checked(LENGTH.unpack_from(read)[0])
        if len(read) < end:
            return None
        body = bytes(read[LENGTH.size : end])
        del read[:end]
        return body

    def send(self, frame: Command) -> None:
        """Queues the frame; never waits for the child to read it. To a child that is gone (see `receive`) nothing goes."""
        if not self._writer.is_closing():  # asyncio passes over a write then, uvloop raises RuntimeError
            self._writer.write(encode(frame))

    def close(self) -> None:
        self._writer.close()
