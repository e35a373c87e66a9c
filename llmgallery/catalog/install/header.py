"""The header of a GGUF file that is still on the Hub, and what loading such a file will take: read from its first MiBs."""

from __future__ import annotations

import asyncio
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from llmgallery.catalog import gguf
from llmgallery.catalog.hub import Hub
from llmgallery.catalog.hub_client import FileMeta
from llmgallery.config.model import ModelConfig
from llmgallery.core.errors import BadWeights, NoSpace

FIRST = 1 << 20
"""Bytes of the first read; each next one reads up to four times as far. Vocabularies make headers of 1 to 16 MiB."""

MOST = 64 << 20
"""Bytes after which a header is given up."""


class Judged(NamedTuple):
    """What loading takes in bytes, and whether this machine can give that, idle models put aside."""

    bytes: int
    fits: bool


Judge = Callable[[ModelConfig, tuple[Path, ...]], Judged]
"""(configuration, all files that it loads, of their full sizes, the weights first) -> what it will take. The first file may
be sparse, with a header and no tensors. Blocks; called in a thread."""


@dataclass(frozen=True)
class RemoteHeader:
    """`data`: the file's beginning, as far as the header goes at least."""

    header: gguf.Header
    data: bytes


async def remote_header(hub: Hub, meta: FileMeta) -> RemoteHeader:
    """Read as much of a file as its header is long, MOST at most. Raises BadWeights for what is no GGUF, HubError."""
    data, said, end = b"", "", FIRST
    while True:
        data += await hub.read(meta, len(data), end - len(data))
        try:
            return RemoteHeader(await asyncio.to_thread(gguf.read_header, data), data)
        except BadWeights as error:
            where = f"{meta.repo}/{meta.file}"
            message = error.message.replace("these bytes", where)
            # The same complaint over more bytes is not for want of them.
            if not data.startswith(b"GGUF") or error.message == said or len(data) >= meta.size:
                raise BadWeights(message) from error
            if end >= MOST:
                raise BadWeights(f"{where}: no GGUF header within the first {MOST >> 20} MiB ({message})") from error
            said, end = error.message, end * 4


async def judged(judge: Judge, config: ModelConfig, files: Sequence[tuple[str, int, bytes]], *, whole: bool = False) -> Judged:
    """What `judge` says of files that are not here: (name, size in bytes, its beginning) each, the weights first; `whole`: of
    the folder that they make."""
    return await asyncio.to_thread(_judged, judge, config, files, whole)


def _judged(judge: Judge, config: ModelConfig, files: Sequence[tuple[str, int, bytes]], whole: bool) -> Judged:
    with sparse_files(files, whole=whole) as paths:
        return judge(config, paths)


@contextmanager
def sparse_files(files: Sequence[tuple[str, int, bytes]], *, whole: bool = False) -> Iterator[tuple[Path, ...]]:
    """Files of these names and sizes that begin with these bytes and take hardly more room than those, for as long as the
    block runs; `whole`: the one folder that holds them all. Raises NoSpace."""
    with tempfile.TemporaryDirectory(prefix="llmgallery-plan-") as folder:
        paths = []
        for index, (name, size, head) in enumerate(files):
            path = Path(folder, "whole", name) if whole else Path(folder, str(index), name.rsplit("/", 1)[-1])
            try:
                path.parent.mkdir(parents=True, exist_ok=whole)
                with path.open("wb") as file:
                    file.write(head[:size])
                    file.truncate(size)
            except OSError as exc:
                raise NoSpace(
                    f"memory cannot be planned in {folder}: {exc.strerror or exc}; set TMPDIR to a folder on another disk"
                ) from exc
            paths.append(path)
        yield (Path(folder, "whole"),) if whole else tuple(paths)
