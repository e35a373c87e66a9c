"""An installer over the loopback hub, whose planner hands out plans that a test has made."""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

from loopback_hub import LoopbackHub

from llmgallery.catalog.hub import Hub
from llmgallery.catalog.hub_settings import HubSettings
from llmgallery.catalog.install.installer import Installer
from llmgallery.catalog.install.job import Asked, Job
from llmgallery.catalog.install.plan import InstallPlan, PlannedFile, store_path
from llmgallery.core.errors import GalleryError, ModelNotFound
from llmgallery.core.installs import Install

REPO = "someone/model-GGUF"
WEIGHTS = b"".join(number.to_bytes(4, "big") for number in range(50_000))
SIZE = len(WEIGHTS)
DEADLINE = 20.0


async def no_pause(seconds: float) -> None:
    await asyncio.sleep(0)


def sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


class Scene:
    """`plans` by what is asked for; an error in the place of a plan is raised. `planned`: what the planner was asked.
    `refreshed`: what on_change was told. `start` makes an installer as a server that starts would."""

    def __init__(self, hub: LoopbackHub, folder: Path) -> None:
        self.hub = hub
        self.models, self.data, self.cache = folder / "models", folder / "data", folder / "cache"
        self.plans: dict[str, InstallPlan | GalleryError] = {}
        self.planned: list[str] = []
        self.refreshed: list[str] = []
        self.free = 1 << 40
        self._started: list[tuple[Installer, Hub]] = []

    async def plan(self, asked: Asked) -> InstallPlan:
        self.planned.append(asked.reference)
        await asyncio.sleep(0)
        plan = self.plans.get(asked.reference) or ModelNotFound(f"nobody knows {asked.reference}")
        if isinstance(plan, GalleryError):
            raise plan
        return plan

    async def changed(self, path: Path) -> None:
        self.refreshed.append(path.name)

    def start(self, **options: Any) -> Installer:
        settings = HubSettings(self.hub.url, self.cache, **options.pop("hub", {}))
        mine = Hub(settings, free_bytes=lambda folder: self.free, sleep=no_pause)
        options = {"models_dir": self.models, "data_dir": self.data, "on_change": self.changed} | options
        installer = Installer(self.plan, mine, **options)
        self._started.append((installer, mine))
        return installer

    async def stop(self) -> None:
        for installer, hub in self._started:
            await installer.aclose()
            await hub.aclose()
        self._started.clear()

    # What can be installed

    def on_hub(self, file: str, data: bytes = WEIGHTS, *, said: bool = True, lfs: bool = True, repo: str = REPO) -> PlannedFile:
        """A file of the Hub. `said`: its size and sha256 are known beforehand."""
        commit = self.hub.add(repo, file, data, lfs=lfs)
        digest, size = (sha256(data), len(data)) if said else (None, None)
        return PlannedFile(uri=f"hf://{repo}/{file}@{commit}", name=file.rsplit("/", 1)[-1], sha256=digest, size=size)

    def on_web(self, file: str, data: bytes = WEIGHTS, *, said: bool = True, repo: str = "web/files") -> PlannedFile:
        """A file at an address, which the hub's server serves too."""
        commit = self.hub.add(repo, file, data)
        uri = f"{self.hub.url}/{repo}/resolve/{commit}/{file}"
        digest, size = (sha256(data), len(data)) if said else (None, None)
        return PlannedFile(uri=uri, name=file, path=store_path(uri, file, digest), sha256=digest, size=size)

    def offer(self, asked: str, *files: PlannedFile, name: str | None = None) -> InstallPlan:
        name = name or asked
        first = files[0]
        weights = first.path or first.uri.removeprefix("hf://")
        yaml = f"# installed by a test\nname: {name}\nbackend: llama-cpp\nparameters:\n  model: {weights}\n"
        source = f"test@{name}"
        self.plans[asked] = plan = InstallPlan(name=name, source=source, yaml=yaml, files=files, backend="llama-cpp")
        return plan

    # What is there

    def left(self) -> list[str]:
        """Every file that is anywhere, but for huggingface_hub's own empty locks and the lock file of the folder."""
        found = []
        for folder in (self.models, self.data, self.cache):
            for path in folder.rglob("*"):
                relative = path.relative_to(folder)
                if not path.is_dir() and relative.parts[0] != ".locks" and "gallery.lock" not in path.name:
                    found.append(f"{folder.name}/{relative.as_posix()}")
        return sorted(found)

    def yaml(self, name: str) -> Path:
        return self.models / f"{name}.yaml"


async def until(job: Job, true: Callable[[Install], bool]) -> Install:
    """The first state for which it is true."""
    async with asyncio.timeout(DEADLINE):
        async for state in job.follow():
            if true(state):
                return state
    raise AssertionError(f"never: {job.state}")


def downloading(state: Install) -> bool:
    return state.phase == "downloading" and state.done_bytes > 0
