"""Fixtures that several packages' tests share."""

from __future__ import annotations

import signal
from collections.abc import Iterator

import pytest
from loopback_hub import LoopbackHub


@pytest.fixture(scope="session", autouse=True)
def data_folder(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Journals of installs and copies of galleries are never the ones of whoever runs the tests."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("LLMGALLERY_DATA_DIR", str(tmp_path_factory.mktemp("data")))
        yield


@pytest.fixture
def hub() -> Iterator[LoopbackHub]:
    """A Hub on loopback: see loopback_hub.LoopbackHub. Servers under test get HF_ENDPOINT=hub.url."""
    with LoopbackHub() as loopback:
        yield loopback


# A shell starts its background jobs with SIGINT ignored, and who inherits that waits for a Ctrl-C for ever.
signal.signal(signal.SIGINT, signal.default_int_handler)
