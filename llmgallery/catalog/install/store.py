"""Where the files of an install lie: its YAML and STORE in a models folder, files of the Hub in the Hugging Face cache."""

from __future__ import annotations

import os
import uuid
from contextlib import suppress
from pathlib import Path

from llmgallery.catalog.hub import blob_place
from llmgallery.catalog.hub_cache import RepoCache
from llmgallery.catalog.index import file_stem
from llmgallery.catalog.install.plan import STORE, InstallPlan, PlannedFile
from llmgallery.catalog.lock import Locked, LockedFile, check_relative
from llmgallery.catalog.partial import Expected, Place, partial_size, read_journal
from llmgallery.catalog.reference import HubReference, parse_reference
from llmgallery.config.checks import name_fault
from llmgallery.core.errors import ConfigError

MEND_MODELS = "set models_dir to another folder"


def install_folder(models_dir: Path, data_dir: Path) -> Path:
    """Where installs go: the user's folder, or ours where that cannot be written."""
    existing = models_dir
    while not existing.exists() and existing != existing.parent:
        existing = existing.parent
    return models_dir if existing.is_dir() and os.access(existing, os.W_OK | os.X_OK) else data_dir / "models"


class Store:
    """`folder`: where installs go; `cache`: the Hugging Face cache. Everything here blocks, but for `final` and `hub`."""

    def __init__(self, folder: Path, cache: Path) -> None:
        self.folder = folder
        self.cache = cache

    def hub(self, file: PlannedFile) -> HubReference | None:
        """What a file is on the Hub; None for others. Raises ConfigError for an address that no plan may hold."""
        if not file.uri.startswith("hf://"):
            if not file.uri.startswith(("https://", "http://", "file://")):
                raise ConfigError(f"{file.uri!r}: files come from hf://, https:// and file:// addresses")
            return None
        found = parse_reference(file.uri)
        if found is None or found.file is None or not found.pinned:
            raise ConfigError(f"{file.uri!r} names no file at its commit: hf://owner/repo/FILE@COMMIT")
        return found

    def final(self, file: PlannedFile) -> Path:
        """Where the model finds it. Raises ConfigError for a path that leaves the store."""
        if file.path is not None:
            check_relative(file.path)
            if not file.path.startswith(f"{STORE}/"):
                raise ConfigError(f"{file.path!r}: installed files lie below {STORE}/")
            return self.folder / file.path
        found = self.hub(file)
        if found is None or found.file is None:
            raise ConfigError(f"{file.uri!r} has no path: only files of the Hub have their place in its cache")
        return RepoCache(self.cache, found.repo).pointer(found.revision, found.file)

    def present(self, file: PlannedFile) -> bool:
        return self.final(file).is_file()

    def place(self, file: PlannedFile, etag: str) -> Place:
        """Where it is put together. `etag`: as of Expected."""
        found = self.hub(file)
        if file.path is None and found is not None:
            return blob_place(RepoCache(self.cache, found.repo), etag)
        final = self.final(file)
        part, journal, lock = (
            final.with_name(final.name + suffix) for suffix in (".llmgallery.part", ".llmgallery.json", ".lock")
        )
        return Place(final, part, journal, lock, self.folder, MEND_MODELS)

    def begun(self, file: PlannedFile) -> Place | None:
        """The place of an earlier attempt that is not whole."""
        found = self.hub(file)
        if file.path is not None or found is None:
            place = self.place(file, "")
            return place if place.part.exists() or place.journal.exists() else None
        cache = RepoCache(self.cache, found.repo)
        if file.sha256 and cache.journal(file.sha256).exists():
            return self.place(file, file.sha256)
        for path in (cache.folder / "blobs").glob("*.llmgallery.json"):
            journal = read_journal(path)
            if journal is not None and journal.source == f"{found.repo}/{found.file}@{found.revision}":
                return self.place(file, journal.etag)
        return None

    def held(self, file: PlannedFile) -> int:
        """How many of its bytes are here."""
        final = self.final(file)
        with suppress(FileNotFoundError):
            return final.stat().st_size
        place = self.begun(file)
        journal = read_journal(place.journal) if place is not None else None
        if place is None or journal is None:
            return 0
        return partial_size(place, Expected(journal.source, journal.etag, None, lasting=True))

    # The YAML

    def yaml(self, name: str) -> Path:
        """The file of an installed model. Raises ConfigError for a name that can be no file's."""
        stem = file_stem(name)
        fault = name_fault(name) or ("it cannot begin with a dot, or be so long" if stem[0] in ".#" or _is_long(stem) else "")
        if fault or "\\" in name:
            raise ConfigError(f"{name!r} cannot name an installed model: {fault or 'it holds a backslash'}; give another name")
        return self.folder / f"{stem}.yaml"

    def check_yaml(self, plan: InstallPlan, locked: Locked) -> None:
        """Raises ConfigError where a file that no install has written has the plan's name."""
        path = self.yaml(plan.name)
        if os.path.lexists(path) and plan.name not in locked.models and _text(path) != plan.yaml:
            other = next((name for name in locked.models if file_stem(name) == file_stem(plan.name)), None)
            whose = f"is of the model {other}" if other is not None else "was not written by an install"
            raise ConfigError(
                f"{path} is there already and {whose}, so it stays as it is: "
                "rename or delete it, or install the model under another name",
                field="name",
            )

    def write_yaml(self, plan: InstallPlan, locked: Locked) -> Path:
        """Write it in one moment. What an earlier install wrote is kept as NAME.yaml.bak where it differs: the user may have
        edited it. Raises ConfigError as `check_yaml`, and the disk's OSError."""
        path = self.yaml(plan.name)
        self.check_yaml(plan, locked)
        if _text(path) == plan.yaml:
            return path
        self.folder.mkdir(parents=True, exist_ok=True)
        temporary = path.with_name(f".{uuid.uuid4().hex}.tmp")  # another server with this folder may write the same model
        try:
            with temporary.open("w", encoding="utf-8") as file:
                file.write(plan.yaml)
                file.flush()
                os.fsync(file.fileno())
            if path.exists() and _text(path) != plan.yaml:
                with suppress(FileNotFoundError):
                    path.replace(path.with_name(f"{path.name}.bak"))
            temporary.replace(path)
        except OSError:
            with suppress(OSError):
                temporary.unlink(missing_ok=True)
            raise
        return path


def planned(file: LockedFile) -> PlannedFile:
    """A locked file as a plan names it."""
    return PlannedFile(uri=file.uri, name=file.uri.rsplit("/", 1)[-1], path=file.path, sha256=file.sha256, size=file.size)


def _is_long(stem: str) -> bool:
    return len(stem.encode()) > 240


def _text(path: Path) -> str | None:
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError):
        return None
