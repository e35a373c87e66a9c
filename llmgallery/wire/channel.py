"""Frames over a socket: u32 little-endian length, then msgpack. Blocking for the child, asyncio for the parent."""

from __future__ import annotations

import asyncio
import socket
import struct
import threading
from collections.abc import Iterator
from typing import Any

import msgspec

from llmgallery.wire.frames import MAX_FRAME, Command, Report

LENGTH = struct.Struct("<I")
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
    """The child's end: one thread reads, any thread writes."""

    def __init__(self, sock: socket.socket) -> None:
        self._reader = sock.makefile("rb")
        self._sock = sock
        self._lock = threading.Lock()

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

    def send(self, frame: Report) -> None:
        """Blocks until the frame is handed to the kernel. Raises OSError when the parent is gone."""
        data = encode(frame)
        with self._lock:
            self._sock.sendall(data)


class ParentChannel:
    """The parent's end, on its event loop."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._reader = reader
        self._writer = writer

    @classmethod
    async def open(cls, sock: socket.socket) -> ParentChannel:
        sock.setblocking(False)
        reader, writer = await asyncio.open_connection(sock=sock)
        return cls(reader, writer)

    async def receive(self) -> Report | None:
        """The next report, or None when the child is gone. Raises FrameError."""
        try:
            length = _checked(LENGTH.unpack(await self._reader.readexactly(LENGTH.size))[0])
            return decode_report(await self._reader.readexactly(length))
        except (asyncio.IncompleteReadError, ConnectionError):
            return None

    def send(self, frame: Command) -> None:
        """Queues the frame; never waits for the child to read it. To a child that is gone (see `receive`) nothing goes."""
        if not self._writer.is_closing():  # asyncio passes over a write then, uvloop raises RuntimeError
            self._writer.write(encode(frame))

    def close(self) -> None:
        self._writer.close()
