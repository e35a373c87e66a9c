"""The commands that look after installed files: verify, gc, bundle, unbundle. What they need is imported when they run."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import click

from llmgallery.cli.group import models_dir_option, settings_of

if TYPE_CHECKING:
    from llmgallery.catalog.index import Snapshot
    from llmgallery.catalog.keep.gc import Garbage
    from llmgallery.catalog.lock import Locked
    from llmgallery.config.settings import Settings


@click.command()
@click.argument("names", nargs=-1)
@models_dir_option
def verify(names: tuple[str, ...], config: Path | None, models_dir: str | None) -> None:
    """Check the files of installed models against gallery.lock, byte by byte.

    Without NAMES all models are checked. Prints every difference. Exit code 1 when there is one; notes do not count.
    """
    from llmgallery.catalog.keep.places import Folders
    from llmgallery.catalog.keep.verify import Verified
    from llmgallery.catalog.keep.verify import verify as compare
    from llmgallery.catalog.lock import LockFile
    from llmgallery.cli.display import counted, size

    served = _homes(settings_of(config, models_dir=models_dir))
    locks = {home: LockFile.of(home).read() for home in served}
    _check_locked(names, locks)
    found: list[Verified] = []
    for home, locked in locks.items():
        mine = [name for name in names if name in locked.models]
        if names and not mine:
            continue
        with _bar("verifying", _bytes_of(locked, mine)) as on_bytes:
            found.append(compare(locked, Folders(home, _cache()), _names(served[home]), mine, on_bytes))
    differences = [difference for one in found for difference in one.differences]
    for difference in differences:
        click.echo(str(difference))
    for note in (note for one in found for note in one.notes):
        click.echo(f"note: {note}", err=True)
    files, count = sum(one.files for one in found), size(sum(one.size for one in found))
    outcome = counted(len(differences), "difference") if differences else "as locked"
    click.echo(f"{counted(files, 'file')}, {count}: {outcome}" if files else "no file is locked here", err=True)
    if differences:
        sys.exit(1)


@click.command()
@click.option("--delete", is_flag=True, help="delete what was found; without it nothing is touched")
@models_dir_option
def gc(delete: bool, config: Path | None, models_dir: str | None) -> None:
    """Find files that llmgallery downloaded and that no YAML needs any more.

    Lists them, with what is left of downloads that nobody went on with for a day. Only --delete deletes.
    """
    from llmgallery.catalog.keep.gc import collect, sweep
    from llmgallery.cli.display import counted, size
    from llmgallery.paths import data_dir

    served = _homes(settings_of(config, models_dir=models_dir))
    with _installs_held(data_dir()) if delete else contextlib.nullcontext():
        found = collect(list(served), {**_others(served), **served}, _cache(), data_dir())
        for item in found:
            click.echo("\t".join((_shown(item), size(item.size) if item.path else "", item.reason)))
        failed = sweep(found) if delete else []
    for item, reason in failed:
        click.echo(f"{_shown(item)} is still there: {reason}", err=True)
    kept = {item for item, _ in failed}
    total = size(sum(item.size for item in found if item not in kept))
    if not found:
        click.echo("nothing to delete", err=True)
    elif delete:
        click.echo(f"deleted {counted(len(found) - len(kept), 'item')}, {total}", err=True)
    else:
        click.echo(f"{counted(len(found), 'item')}, {total}: `llmgallery gc --delete` deletes them", err=True)
    if failed:
        sys.exit(1)


@click.command()
@click.argument("names", nargs=-1, required=True)
@click.option("-o", "--output", required=True, type=click.Path(dir_okay=False, path_type=Path), help="the file to write (tar)")
@models_dir_option
def bundle(names: tuple[str, ...], output: Path, config: Path | None, models_dir: str | None) -> None:
    """Pack models, with all their files, for a machine without a network.

    `llmgallery unbundle` unpacks them there.
    """
    from llmgallery.backends.loader import specs
    from llmgallery.catalog.keep.bundle import bundle as pack
    from llmgallery.cli.display import counted, size
    from llmgallery.cli.stack import folder_registry
    from llmgallery.service.names import resolve

    snapshot = folder_registry(settings_of(config, models_dir=models_dir)).read()
    entries = {entry.name: entry for entry in (resolve(name, snapshot) for name in names)}
    with _bar("packing", None) as on_bytes:
        packed = pack(list(entries.values()), _cache(), specs(), output, on_bytes)
    total = size(sum(packed.sizes.values()))
    click.echo(f"{output}: {counted(len(packed.models), 'model')}, {counted(len(packed.sizes), 'file')}, {total}", err=True)


@click.command()
@click.argument("file", type=click.Path(exists=True, dir_okay=False, path_type=Path))
@models_dir_option
def unbundle(file: Path, config: Path | None, models_dir: str | None) -> None:
    """Unpack what `llmgallery bundle` packed, into the models folder and the Hugging Face cache.

    Every file is checked against its digest. What is there already stays: the same is passed over, and anything else ends the
    command before it writes.
    """
    from llmgallery.backends.loader import specs
    from llmgallery.catalog.install.store import install_folder
    from llmgallery.catalog.keep.places import Folders
    from llmgallery.catalog.keep.unbundle import Target
    from llmgallery.catalog.keep.unbundle import unbundle as unpack
    from llmgallery.cli.display import counted, size
    from llmgallery.cli.stack import models_dir as models_of
    from llmgallery.cli.stack import outside
    from llmgallery.paths import data_dir

    settings = settings_of(config, models_dir=models_dir)
    _homes(settings)  # refuses a folder that was named in vain
    home = install_folder(models_of(settings), data_dir()).absolute()
    snapshot = _snapshot(home)
    taken = {broken.name: broken.path for broken in snapshot.broken.values()}
    for entries in (snapshot.disabled, snapshot.entries):
        taken |= {entry.name: entry.path for entry in entries.values()}
    target = Target(Folders(home, _cache()), specs(), outside(), taken)
    with _bar("unpacking", file.stat().st_size) as on_bytes:
        done = unpack(file, target, on_bytes)
    written = f"{counted(len(done.written), 'new file')}, {size(done.size)}" if done.written else "all files were here"
    for name in done.models:
        click.echo(name)
    click.echo(f"{counted(len(done.models), 'model')} in {home}; {written}", err=True)


@contextlib.contextmanager
def _installs_held(data_dir: Path) -> Iterator[None]:
    """Meanwhile no install says which files it needs."""
    from llmgallery.catalog.install.journal import Journals

    lock = Journals(data_dir / "jobs").lock_files()
    while not lock.acquire():
        pass
    try:
        yield
    finally:
        lock.release()


# --- folders -----------------------------------------------------------------------------------------------------------------


def _homes(settings: Settings) -> dict[Path, Snapshot]:
    """The models folders that installs go to, the first one first, with what each of them holds by itself."""
    from llmgallery.cli.stack import folder_registry, models_dir
    from llmgallery.paths import data_dir

    first, second = models_dir(settings).absolute(), (data_dir() / "models").absolute()
    known = {folder.resolve() for folder in folder_registry(settings).folders}
    homes = [first, second] if second.is_dir() and second.resolve() in known - {first.resolve()} else [first]
    return {home: _snapshot(home) for home in homes}


def _others(served: dict[Path, Snapshot]) -> dict[Path, Snapshot]:
    """Models folders that may be used at other times, and that share the cache."""
    from llmgallery.paths import builtin, data_dir, default_models_dir

    known = {home.resolve() for home in served}
    folders = [folder.absolute() for folder in (data_dir() / "models", default_models_dir(), builtin("models"))]
    return {folder: _snapshot(folder) for folder in folders if folder.is_dir() and folder.resolve() not in known}


def _snapshot(folder: Path) -> Snapshot:
    from llmgallery.backends.loader import specs
    from llmgallery.catalog.registry import Registry
    from llmgallery.cli.stack import outside

    return Registry([folder], specs(), outside()).read()


def _names(snapshot: Snapshot) -> set[str]:
    return {*snapshot.entries, *snapshot.disabled, *(broken.name for broken in snapshot.broken.values())}


def _cache() -> Path:
    from llmgallery.catalog.hub_settings import HubSettings

    return HubSettings.from_env().cache_dir


# --- what is shown -----------------------------------------------------------------------------------------------------------


def _check_locked(names: tuple[str, ...], locks: dict[Path, Locked]) -> None:
    from llmgallery.core.errors import ModelNotFound

    known = {name for locked in locks.values() for name in locked.models}
    if unknown := [name for name in names if name not in known]:
        where = " or ".join(map(str, locks))
        raise ModelNotFound(f"{unknown[0]} is not in the gallery.lock of {where}", hints=tuple(sorted(known)))


def _bytes_of(locked: Locked, names: list[str]) -> int:
    files = {file for name, model in locked.models.items() if not names or name in names for file in model.files}
    return sum(file.size for file in files)


def _shown(item: Garbage) -> str:
    return str(item.path) if item.path else f"{item.home}/gallery.lock: {item.name}"


@contextlib.contextmanager
def _bar(what: str, total: int | None) -> Iterator[Callable[[int], None]]:
    """A bar on stderr, where somebody watches. Yields what is told of bytes that were read."""
    if not sys.stderr.isatty():
        yield lambda count: None
        return
    from rich.console import Console
    from rich.progress import Progress

    columns = Progress.get_default_columns()
    with Progress(*columns, console=Console(stderr=True), transient=True) as bars:
        task = bars.add_task(what, total=total)
        yield lambda count: bars.advance(task, count)
