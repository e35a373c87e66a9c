"""A Hub object over the loopback hub, and where it caches."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from loopback_hub import LoopbackHub

from llmgallery.catalog.hub import Hub
from llmgallery.catalog.hub_settings import HubSettings


async def no_pause(seconds: float) -> None:
    await asyncio.sleep(0)


@pytest.fixture
def cache(tmp_path: Path) -> Path:
    return tmp_path / "cache"


@pytest.fixture
async def ours(hub: LoopbackHub, cache: Path) -> AsyncIterator[Hub]:
    mine = Hub(HubSettings(hub.url, cache), sleep=no_pause)
    yield mine
    await mine.aclose()
