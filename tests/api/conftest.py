"""Fixtures of the whole-stack tests."""

from __future__ import annotations

from collections.abc import Iterator

import httpx
import pytest
from live_server import LiveServer
from openai import OpenAI


@pytest.fixture(scope="session")
def live(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LiveServer]:
    """One server for all tests that need no settings of their own. Model `echo` is there; tests add others."""
    folder = tmp_path_factory.mktemp("models")
    (folder / "echo.yaml").write_text("backend: echo\naliases: [parrot, 'gpt-4o*']\nowned_by: us\nparallel: 8\n")
    (folder / "broken.yaml").write_text("backend: echo\nparameters: {temprature: 1}\n")
    with LiveServer(folder) as server:
        yield server


@pytest.fixture(scope="session")
def http(live: LiveServer) -> Iterator[httpx.Client]:
    with live.http() as client:
        yield client


@pytest.fixture(scope="session")
def client(live: LiveServer) -> Iterator[OpenAI]:
    with live.client as client:
        yield client
