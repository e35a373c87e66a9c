"""An edit of a preset file is an edit of every model that names it: for the registry, and for the watcher."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Literal

import pytest

from llmgallery.backends.loader import specs
from llmgallery.catalog import registry as registry_module
from llmgallery.catalog import watcher
from llmgallery.catalog.index import Snapshot
from llmgallery.catalog.registry import Registry
from llmgallery.cli.stack import outside

DEADLINE = 20


def write(folder: Path, name: str = "m", preset: str = "mine") -> None:
    (folder / f"{name}.yaml").write_text(f"backend: echo\ntemplate: {{preset: {preset}}}\n")


def put(folder: Path, text: str, name: str = "mine") -> None:
    """As editors do, by a rename, so that no file is ever half written."""
    (folder / "presets").mkdir(exist_ok=True)
    new = folder / "presets" / f".{name}.new"
    new.write_text(text)
    new.replace(folder / "presets" / f"{name}.yaml")


def registry_of(folder: Path) -> Registry:
    registry = Registry([folder], specs(), outside())
    registry.read()
    return registry


def top_k(snapshot: Snapshot, name: str = "m") -> int | None:
    entry = snapshot.entries.get(name)
    return entry.config.parameters.top_k if entry is not None else None


def test_a_file_that_is_half_written_when_it_is_read_is_read_once_more(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    put(tmp_path, "")
    write(tmp_path)
    load, preset = registry_module.load_model, tmp_path / "presets" / "mine.yaml"

    def meanwhile(*given: object) -> object:
        loaded = load(*given)  # type: ignore[arg-type]
        if not preset.read_text():
            preset.write_text("parameters: {top_k: 1}\n")
        return loaded

    monkeypatch.setattr(registry_module, "load_model", meanwhile)
    registry = registry_of(tmp_path)
    assert top_k(registry.snapshot) == 1 and registry.is_current(registry.snapshot.entries["m"])


def test_an_edit_makes_the_models_that_name_it_be_read_again(tmp_path: Path) -> None:
    put(tmp_path, "parameters: {top_k: 1}\n")
    write(tmp_path)
    write(tmp_path, "other", "chatml")
    registry = registry_of(tmp_path)
    before = registry.snapshot
    assert top_k(before) == 1 and registry.is_current(before.entries["m"])
    put(tmp_path, "parameters: {top_k: 22}\n")
    assert not registry.is_current(before.entries["m"]) and registry.is_current(before.entries["other"])
    after = registry.refresh()
    assert top_k(after) == 22
    assert after.entries["other"] is before.entries["other"]


def test_a_preset_file_that_comes_late_takes_the_place_of_the_built_in_one(tmp_path: Path) -> None:
    write(tmp_path, preset="chatml")
    registry = registry_of(tmp_path)
    entry = registry.snapshot.entries["m"]
    assert entry.config.template.preset == "chatml"
    put(tmp_path, "parameters: {top_k: 1}\n", "chatml")
    assert not registry.is_current(entry)
    assert top_k(registry.refresh()) == 1
    (tmp_path / "presets" / "chatml.yaml").unlink()
    assert registry.refresh().entries["m"].config.template.preset == "chatml"


def test_a_broken_model_is_whole_again_when_its_preset_is(tmp_path: Path) -> None:
    put(tmp_path, "parameters: {top_k: many}\n")
    write(tmp_path)
    registry = registry_of(tmp_path)
    (problem,) = registry.snapshot.broken["m"].problems
    assert problem.path == tmp_path / "presets" / "mine.yaml"
    put(tmp_path, "parameters: {top_k: 3}\n")
    assert registry.may_have_news()
    assert top_k(registry.refresh()) == 3


def test_the_folder_of_presets_is_no_model(tmp_path: Path) -> None:
    put(tmp_path, "parameters: {top_k: 3}\n")
    snapshot = registry_of(tmp_path).snapshot
    assert not snapshot.entries and not snapshot.broken and not snapshot.problems


@pytest.mark.parametrize("mode", ["auto", "poll"])
async def test_the_watcher_sees_presets_come_change_and_go(
    tmp_path: Path, mode: Literal["auto", "poll"], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(watcher, "HEARTBEAT_MS", 50)
    write(tmp_path)
    registry, stop = registry_of(tmp_path), asyncio.Event()
    news: asyncio.Queue[Snapshot] = asyncio.Queue()
    task = asyncio.create_task(watcher.watch(registry, news.put_nowait, stop, mode=mode, debounce_ms=20, poll_ms=20))

    async def until(wanted: int | None) -> None:
        async with asyncio.timeout(DEADLINE):
            while top_k(registry.snapshot) != wanted:
                await news.get()

    assert "m" in registry.snapshot.broken
    for wanted in (1, 22):
        put(tmp_path, f"parameters: {{top_k: {wanted}}}\n")
        await until(wanted)
    (tmp_path / "presets" / "mine.yaml").unlink()
    await until(None)
    stop.set()
    async with asyncio.timeout(DEADLINE):
        await task
    assert "m" in registry.snapshot.broken


def test_of_very_many_folders_that_of_presets_is_watched(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(watcher, "MAX_FOLDERS", 1)
    for name in ("a", "presets", "z"):
        (tmp_path / name).mkdir()
    assert set(watcher._watched([tmp_path])) == {tmp_path, tmp_path / "presets"}
