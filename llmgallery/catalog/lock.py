"""gallery.lock: what lies behind each installed model - commits, digests, sizes, licences. One writer at a time."""

from __future__ import annotations

import os
import uuid
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

import msgspec

from llmgallery.catalog.lock_text import MAX_BYTES, VERSION, lock_text, parse_lock
from llmgallery.catalog.locked import Commit, Locked, LockedFile, LockedModel, Sha256, check_locked, check_relative, hub_reference
from llmgallery.catalog.locks import FileLock
from llmgallery.core.errors import ConfigError

__all__ = [
    "LOCK_NAME",
    "Commit",
    "LockFile",
    "Locked",
    "LockedFile",
    "LockedModel",
    "Sha256",
    "changed",
    "check_locked",
    "check_relative",
    "hub_reference",
    "lock_text",
    "parse_lock",
]

LOCK_NAME = "gallery.lock"
GUARD_WAIT = 30.0
"""Seconds; a write takes milliseconds."""


class LockFile:
    """The file `path`, which need not exist. Everything here blocks; any thread and process may write, one after another."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._known: tuple[tuple[int, ...], Locked] | None = None

    @staticmethod
    def of(models_dir: Path) -> LockFile:
        """The one of a models folder."""
        return LockFile(models_dir / LOCK_NAME)

    def read(self) -> Locked:
        """What it says; empty when it is not there. A stat where it has not changed since it was read here last. Raises
        ConfigError with every problem's line and column."""
        known = self._known
        if known is not None and known[0] == _signature(self.path):
            return known[1]
        return self._read()

    def _read(self) -> Locked:
        try:
            with self.path.open("rb") as file:
                before = os.fstat(file.fileno())
                data = file.read(MAX_BYTES + 1)
        except FileNotFoundError:
            return Locked()
        except OSError as error:
            raise ConfigError(f"{self.path} cannot be read: {error.strerror or error}") from error
        locked = parse_lock(data, self.path)
        self._known = (_look(before), locked)
        return locked

    def update(self, name: str, model: LockedModel | None) -> Locked:
        """Enter a model in the place of what was there under its name, or take it out (None)."""
        return self.update_all({name: model})

    def update_all(self, changes: Mapping[str, LockedModel | None]) -> Locked:
        """Several models at once; the others, and keys that we do not know, stay as they are. Returns what it says now.

        Raises ConfigError for a file that is broken, which stays as it is, and for a folder that cannot be written.
        """
        guard = FileLock(self.path.with_name(f".{self.path.name}.guard"), GUARD_WAIT)
        try:
            if not guard.acquire():
                raise ConfigError(f"{self.path} has been held by another process for {GUARD_WAIT:.0f} s: end that one")
            try:
                before = self._read()
                data = changed(before.data, changes)
                after = {name: _checked(name, data["models"][name]) for name, model in changes.items() if model is not None}
                if data != before.data:
                    self._write(lock_text(data).encode())
            finally:
                guard.release()
        except OSError as error:
            raise ConfigError(f"{self.path} cannot be written: {error.strerror or error}") from error
        kept = {name: model for name, model in before.models.items() if name not in changes}
        return Locked({**kept, **after}, data)

    def _write(self, data: bytes) -> None:
        target = Path(os.path.realpath(self.path))  # a link, as some keep their dotfiles, stays one
        temporary = target.with_name(f".{target.name}.{uuid.uuid4().hex[:8]}.tmp")
        try:
            with temporary.open("wb") as file:
                file.write(data)
                file.flush()
                os.fsync(file.fileno())
            temporary.replace(target)
        except BaseException:
            with suppress(OSError):
                temporary.unlink(missing_ok=True)
            raise


def _signature(path: Path) -> tuple[int, ...]:
    """What changes when the file does; () = not there. Every write of ours is another inode."""
    try:
        return _look(path.stat())
    except OSError:
        return ()


def _look(found: os.stat_result) -> tuple[int, ...]:
    return (found.st_mtime_ns, found.st_size, found.st_ino, found.st_ctime_ns)


# --- changing it, as plain data ----------------------------------------------------------------------------------------------


def changed(data: Mapping[str, Any], changes: Mapping[str, LockedModel | None]) -> dict[str, Any]:
    """The data with models entered or taken out. Keys that we do not know stay; of a file while it is the same bytes."""
    models = dict(data.get("models") or {})
    for name, model in changes.items():
        if model is None:
            models.pop(name, None)
        else:
            models[name] = _merged(models.get(name, {}), model)
    return {**data, "version": VERSION, "models": models}


def _merged(before: Mapping[str, Any], model: LockedModel) -> dict[str, Any]:
    others = {(file["uri"], file["sha256"]): _unknown(file, LockedFile) for file in before.get("files", ())}
    files = [
        {**others.get((file.uri, file.sha256), {}), **_plain(file)}
        for file in sorted(set(model.files), key=lambda file: (file.uri, file.path or ""))
    ]
    return {**_unknown(before, LockedModel), **_plain(model), "files": files}


def _unknown(data: Mapping[str, Any], known: type[msgspec.Struct]) -> dict[str, Any]:
    return {key: value for key, value in data.items() if key not in known.__struct_fields__}


def _plain(struct: msgspec.Struct) -> dict[str, Any]:
    found: dict[str, Any] = msgspec.to_builtins(struct)
    return {key: value for key, value in found.items() if value is not None}


def _checked(name: str, data: Any) -> LockedModel:
    """The model as it would be read again. Raises ConfigError when it would not."""
    try:
        model = msgspec.convert(data, LockedModel)
        for file in model.files:
            check_locked(file)
    except (msgspec.ValidationError, ConfigError) as error:
        raise ConfigError(f"{name} cannot be locked: {error}") from error
    return model
