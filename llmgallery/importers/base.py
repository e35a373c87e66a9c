"""What importers take and give: pure data, and how it is written to a folder. ledger.py reads sources, draft.py makes models.

An importer is a module with `IMPORTER = Importer(kind, title, recognises, read)`; recognise.py lists the modules.
"""

from __future__ import annotations

import contextlib
import errno
import json
import os
import uuid
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from llmgallery.catalog.engines import Engine
from llmgallery.config.outside import Outside
from llmgallery.config.problems import Problem
from llmgallery.core.errors import ConfigError

PUBLIC, SECRET = 0o644, 0o600
MAX_PORT = 65535


@dataclass(frozen=True)
class Around:
    """What an import needs beside its source, and may not look for itself.

    `folder`: where the files will lie. `weights`: the reference for models that name none. `name`: for a source of one model that
    names none. `user_data`: what GatoGPT's user:// means. `env`: environment variables.
    """

    specs: Mapping[str, Engine]
    folder: Path
    outside: Outside = field(default_factory=Outside)
    weights: str | None = None
    name: str | None = None
    user_data: Path | None = None
    env: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class WrittenFile:
    """A file of the models folder, not written yet. `name`: its path there. `model`: whose YAML it is, None = another file."""

    name: str
    text: str
    mode: int = PUBLIC
    model: str | None = None


@dataclass(frozen=True)
class Imported:
    """What came of a source.

    `warnings`: what has no counterpart, each with its place in the source; nothing of it is in use. `problems`: models that could
    not be made; the others are still good. `notes`: sentences that are no loss. `settings`: the server's, by their names.
    `default`: the model that requests without a name meant.
    """

    files: tuple[WrittenFile, ...] = ()
    warnings: tuple[Problem, ...] = ()
    problems: tuple[Problem, ...] = ()
    notes: tuple[str, ...] = ()
    settings: Mapping[str, Any] = field(default_factory=dict)
    default: str | None = None


@dataclass(frozen=True)
class Importer:
    """One kind of source. `kind`: its name for --from. `title`: the program and what of it is read.

    `recognises` looks into a file or folder that exists, quickly, and raises nothing. `read` raises ConfigError for a source that
    cannot be read as a whole.
    """

    kind: str
    title: str
    recognises: Callable[[Path], bool]
    read: Callable[[Path, Around], Imported]


def save(imported: Imported, folder: Path, *, force: bool = False) -> list[Path]:
    """Write the files; returns those that were written. A file that is there with the same text is left alone.

    All or nothing as far as can be told before: raises ConfigError when one is there with another text and not `force`, or when
    the folder cannot be written. Each file appears in one moment, with its mode.
    """
    wanted = [file for file in imported.files if not _same(folder / file.name, file)]
    taken = [folder / file.name for file in wanted if os.path.lexists(folder / file.name)]
    if taken and not force:
        files = ", ".join(str(path) for path in taken)
        is_are = "is" if len(taken) == 1 else "are"
        raise ConfigError(
            f"{files} {is_are} there already, with another text: nothing was written; --force replaces, --to FOLDER avoids"
        )
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for file in wanted:
            (folder / file.name).parent.mkdir(exist_ok=True)
            write(folder / file.name, file.text, file.mode, replace=force)
    except OSError as error:
        raise ConfigError(f"cannot write to {folder}: {error.strerror or error}") from error
    return [folder / file.name for file in wanted]


def write(path: Path, text: str, mode: int = PUBLIC, *, replace: bool = False) -> None:
    """One file, in one moment. Raises OSError, FileExistsError also when somebody else was quicker and not `replace`."""
    temporary = path.with_name(f".{path.name}.{uuid.uuid4().hex}.tmp")
    try:
        descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, mode)
        with os.fdopen(descriptor, "w", encoding="utf-8") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        if replace:
            temporary.replace(path)
        else:
            _name(temporary, path)
    finally:
        with contextlib.suppress(OSError):
            temporary.unlink(missing_ok=True)


def _name(temporary: Path, path: Path) -> None:
    """The finished file's name, which nobody else may have. Where the file system has no hard links, who comes in the moment
    between a look and a step is not noticed."""
    try:
        os.link(temporary, path)
    except FileExistsError:
        raise
    except OSError:
        if os.path.lexists(path):
            raise FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST), str(path)) from None
        temporary.rename(path)


def _same(path: Path, file: WrittenFile) -> bool:
    try:
        return path.read_bytes() == file.text.encode() and path.stat().st_mode & 0o077 <= file.mode & 0o077
    except OSError:
        return False


def server_settings(imported: Imported) -> dict[str, Any]:
    """What a settings file has to say so that the server is as it was."""
    return {**imported.settings, **({"default_model": imported.default} if imported.settings and imported.default else {})}


def settings_text(settings: Mapping[str, Any]) -> str:
    """A settings file."""
    return "".join(f"{name}: {json.dumps(value, ensure_ascii=False)}\n" for name, value in settings.items())
