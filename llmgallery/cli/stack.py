"""The whole server below HTTP, wired together in one place: settings, folder, downloads, workers, gallery."""

from __future__ import annotations

import asyncio
import json
import logging
import os
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import msgspec

from llmgallery import paths
from llmgallery.backends.base import BackendSpec
from llmgallery.backends.loader import specs
from llmgallery.catalog.companions import absent, locate_all
from llmgallery.catalog.gallery.library import Library
from llmgallery.catalog.gallery.sources import GallerySource
from llmgallery.catalog.hub import Hub
from llmgallery.catalog.hub_cache import find_cached
from llmgallery.catalog.hub_settings import HubSettings
from llmgallery.catalog.install.installer import Installer
from llmgallery.catalog.install.plan import InstallPlan
from llmgallery.catalog.install.store import install_folder
from llmgallery.catalog.lock import LockFile
from llmgallery.catalog.registry import YAML_SUFFIXES, Entry, Registry, Snapshot, weights_name
from llmgallery.catalog.watcher import watch
from llmgallery.catalog.weights import HubReference, LocalFiles, backend_for, check_format, malformed, recognise, trained_context
from llmgallery.cli.display import counted
from llmgallery.config.load import load_model
from llmgallery.config.outside import Outside, Spec
from llmgallery.config.problems import as_error
from llmgallery.config.settings import Settings
from llmgallery.core.errors import ConfigError
from llmgallery.runtime.files import WeightFiles
from llmgallery.runtime.interpreters import Interpreters
from llmgallery.runtime.manager import Manager
from llmgallery.service.gallery import Gallery
from llmgallery.service.install.installing import Installing
from llmgallery.service.install.planning import Planner
from llmgallery.service.install.policy import check_plan
from llmgallery.service.install.preload import asked_for, preloads
from llmgallery.templates import jinja, kobold, presets
from llmgallery.templates.gotmpl import check_go
from llmgallery.templates.gotmpl.regexp import check_regexp
from llmgallery.templates.ollama import check_ollama

log = logging.getLogger(__name__)


@dataclass
class Stack:
    """Made by `build`, inside the event loop that runs it. Who serves HTTP hands `gallery` and `follow` to create_app, which
    starts and stops them; who does not calls `gallery.start`. `close` ends everything that still runs."""

    settings: Settings
    registry: Registry
    hub: Hub
    gallery: Gallery
    scratch: Scratch | None = None

    async def follow(self, stop: asyncio.Event) -> None:
        """Tells the gallery what changes in the folder, until `stop` is set."""
        if self.settings.watch != "off":
            await watch(self.registry, self.changed, stop, mode=self.settings.watch)

    async def close(self) -> None:
        """Ends workers and downloads."""
        await self.gallery.stop()
        await self.hub.aclose()
        if self.scratch is not None:
            self.scratch.cleanup()

    def changed(self, snapshot: Snapshot) -> None:
        """Says what is new, also what cannot be served, and lets go of what nobody wants."""
        broken = f", {len(snapshot.broken)} broken" if snapshot.broken else ""
        log.info("the models folder changed: %s%s", counted(len(snapshot.entries), "model"), broken)
        report_problems(snapshot)
        self.gallery.folder_changed(snapshot)


class Scratch(tempfile.TemporaryDirectory[str]):
    """A folder with one YAML, for weights that lie outside every models folder."""

    def __init__(self, weights: Path) -> None:
        super().__init__(prefix="llmgallery-")
        self.path = Path(self.name)
        self.model = weights_name(weights)
        body = {"name": self.model, "parameters": {"model": str(weights.absolute())}}
        (self.path / "model.yaml").write_text(json.dumps(body, ensure_ascii=False), encoding="utf-8")


def build(settings: Settings, path: Path | None = None) -> Stack:
    """`path`: weights, or a model's YAML with its folder, served beside the folder and as the default. Raises ConfigError."""
    scratch, first = None, []
    if path is not None:
        if not path.exists():
            raise ConfigError(f"{path}: no such file")
        if path.suffix.lower() in YAML_SUFFIXES:
            first, name = [path.absolute().parent], _name_in(path)
        else:
            scratch = Scratch(path)
            first, name = [scratch.path], scratch.model
        settings = msgspec.structs.replace(settings, default_model=name)
    hub_settings = HubSettings.from_env(os.environ)
    if settings.hub_token is not None:
        hub_settings = msgspec.structs.replace(hub_settings, token=settings.hub_token)
    hub = Hub(hub_settings)
    interpreters = interpreters_of(settings)
    manager = Manager(
        WeightFiles(hub, interpreters.specs),
        interpreters=interpreters,
        memory_budget=settings.memory_budget,
        queue_wait=settings.max_queue_wait,
        keep_alive=settings.keep_alive,
    )
    registry = folder_registry(settings, first)
    stack = Stack(settings, registry, hub, Gallery(settings, registry, manager, hub.cached), scratch)
    stack.gallery.on_change = stack.changed
    stack.gallery.install_with(_installing(stack))
    return stack


def _installing(stack: Stack) -> Installing:
    """What installs for this server, not started. Raises ConfigError for a gallery or a preload that is none."""
    settings, hub, data = stack.settings, stack.hub, paths.data_dir()
    sources = [GallerySource(gallery.name, gallery.url) for gallery in settings.gallery_settings()]
    library = Library(sources, data / "galleries", paths.builtin("gallery"), hub=hub)
    folder = install_folder(models_dir(settings), data)
    planner = Planner(library, hub, stack.gallery.manager.room, stack.gallery.manager.interpreters.specs(), folder, outside())

    async def allowed(plan: InstallPlan) -> None:
        check_plan(settings, plan)

    async def written(path: Path) -> None:
        stack.changed(await asyncio.to_thread(stack.registry.refresh, [path]))

    lock = LockFile.of(folder)
    installer = Installer(
        planner.plan,
        hub,
        models_dir=models_dir(settings),
        data_dir=data,
        on_change=written,
        lock=lock,
        checks=[allowed],
        folders=stack.registry.folders,
    )
    wanted = [*map(asked_for, settings.preload), *preloads(os.environ)]
    return Installing(settings, stack.registry, library, installer, lock, outside(), wanted)


def models_dir(settings: Settings) -> Path:
    """The user's folder."""
    return settings.models_dir or paths.default_models_dir()


def folder_registry(settings: Settings, first: Sequence[Path] = ()) -> Registry:
    """Unread: `first`, the user's folder, then what ships with us. Raises ConfigError for a folder that was named in vain."""
    chosen = models_dir(settings)
    if settings.models_dir is not None and not chosen.is_dir():
        raise ConfigError(f"there is no models folder {chosen}: create it, or name another with --models-dir")
    folders = [chosen, install_folder(chosen, paths.data_dir()), paths.builtin("models")]
    return Registry([*first, *folders], interpreters_of(settings).specs(), outside(), loud=[chosen])


def interpreters_of(settings: Settings) -> Interpreters:
    """Which Python runs the workers of each backend."""
    return Interpreters(settings.backends, paths.data_dir())


def outside() -> Outside:
    """What reading a model file needs beside the file: templates' syntax, presets' names, the formats of weights."""
    return Outside(
        jinja.check,
        presets.names(),
        recognise,
        malformed,
        trained_context,
        absent,
        check_go,
        kobold.check,
        check_ollama,
        check_regexp,
        lacks=_lacks,
    )


def _lacks(spec: Spec, format_: str | None) -> str:
    """Why the backend cannot run here: what it says itself."""
    return spec.lacks(format_) if isinstance(spec, BackendSpec) else ""


def files_here(entry: Entry) -> list[Path] | None:
    """The weights of a model, as they lie on this machine; None = they, or an adapter or the draft model that belong to them,
    are on the Hub, and not downloaded yet. Raises LoadError."""
    spec = specs().get(entry.backend) if entry.backend is not None else None
    named = (spec.keys, spec.formats) if spec is not None else (None, None)
    located = locate_all(entry.config, entry.folder, *named)
    weights, *others = [_here(place) for place in located.places]
    return None if None in others else weights


def _here(place: LocalFiles | HubReference) -> list[Path] | None:
    if isinstance(place, LocalFiles):
        return list(place.paths)
    return find_cached(HubSettings.from_env().cache_dir, place)


def loader(entry: Entry, files: Sequence[Path]) -> str:
    """The backend that loads these files, or needs none. Raises LoadError when none does."""
    if entry.backend is None:
        return backend_for(files, specs())
    if specs()[entry.backend].needs_weights:
        check_format(files, specs()[entry.backend])
    return entry.backend


def report_problems(snapshot: Snapshot) -> None:
    """Warnings about each file that cannot be served, with everything that is wrong in it, and about the others."""
    for problem in snapshot.problems:
        log.warning("%s", problem)
    for broken in snapshot.broken.values():
        log.warning("not served: %s", "\n  ".join(str(problem) for problem in broken.problems))
    for entry in snapshot.entries.values():
        for problem in snapshot.warnings(entry):
            log.warning("%s", problem)


def _name_in(path: Path) -> str:
    """The name that a model file gives itself. Raises ConfigError when it is broken."""
    model = load_model(path, specs(), outside())
    if model.problems:
        raise as_error(model.problems, str(path))
    return model.name
