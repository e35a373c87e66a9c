"""Jobs on the disk, so that they outlive the server: one file each, written whole. What is not async blocks."""

from __future__ import annotations

import asyncio
import logging
import re
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, suppress
from pathlib import Path

import msgspec

from llmgallery.catalog.install.job import Asked
from llmgallery.catalog.install.plan import InstallPlan
from llmgallery.catalog.locks import FileLock, holding
from llmgallery.core.errors import ConfigError
from llmgallery.core.installs import Install

log = logging.getLogger(__name__)
_ID = re.compile(r"[0-9a-f]{32}")


class Record(msgspec.Struct, frozen=True, kw_only=True):
    """A job as a later server needs it. `here`: uris of the plan's files that others had brought before it began, which no
    cancel of it takes away. `cancelled`: somebody has, and what it left is being deleted."""

    state: Install
    asked: Asked
    plan: InstallPlan | None = None
    here: tuple[str, ...] = ()
    cancelled: bool = False

    @property
    def is_open(self) -> bool:
        return not self.state.is_over

    @property
    def brought(self) -> frozenset[str]:
        """Uris of files that are here, wholly or in part, because of this job."""
        return frozenset(file.uri for file in self.plan.files if file.uri not in self.here) if self.plan else frozenset()


class Journals:
    """`data_dir`/jobs: ID.json, and the locks that say which process is at work on what. Belongs to one event loop."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._files = asyncio.Lock()

    def prepare(self) -> None:
        """Raises ConfigError where the folder cannot be made."""
        try:
            self._folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise self._unwritable(error) from error

    def write(self, record: Record) -> None:
        """Raises ConfigError where the folder cannot be written."""
        self.prepare()
        path = self._folder / f"{record.state.id}.json"
        temporary = path.with_name(f".{path.name}.tmp")
        try:
            temporary.write_bytes(msgspec.json.encode(record))
            temporary.replace(path)
        except OSError as error:
            with suppress(OSError):
                temporary.unlink(missing_ok=True)
            raise self._unwritable(error) from error

    def _unwritable(self, error: OSError) -> ConfigError:
        return ConfigError(
            f"{self._folder} cannot be written ({error.strerror or error}), where running installs are noted: "
            "set LLMGALLERY_DATA_DIR to a folder that can"
        )

    def read(self, id: str) -> Record | None:
        """None = there is none, or it cannot be read."""
        path = self._folder / f"{id}.json"
        try:
            return msgspec.json.decode(path.read_bytes(), type=Record)
        except FileNotFoundError:
            return None
        except (OSError, ValueError, RecursionError) as error:
            log.warning("the journal %s is left out: %s", path, error)
            return None

    def read_all(self) -> Iterator[Record]:
        """All that can be read, the oldest job first."""
        ids = [path.stem for path in self._folder.glob("*.json") if _ID.fullmatch(path.stem)]
        records = [record for id in ids if (record := self.read(id)) is not None and record.state.id == id]
        yield from sorted(records, key=lambda record: (record.state.created, record.state.id))

    def delete(self, id: str) -> None:
        with suppress(OSError):  # where none could be written, there is none
            (self._folder / f"{id}.json").unlink()

    def lock_job(self, id: str) -> FileLock:
        """Held by the process that works on this job."""
        return FileLock(self._folder / f"{id}.lock", wait=0.0)

    def lock_model(self, stem: str) -> FileLock:
        """Held by whoever installs or removes the model of this file."""
        return FileLock(self._folder / f"{stem}.model.lock", wait=0.0)

    @asynccontextmanager
    async def holding_files(self) -> AsyncIterator[None]:
        """For moments: while somebody says which files it needs, and while files that nobody needs are deleted. Of one process
        one at a time tries."""
        async with self._files, holding(self.lock_files(wait=0.0)):
            yield

    def lock_files(self, wait: float = 1.0) -> FileLock:
        """The same for who is no server, and has no event loop."""
        return FileLock(self._folder / "files.lock", wait=wait)
