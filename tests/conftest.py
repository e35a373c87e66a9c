"""Fixtures that several packages' tests share."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from typing import Any

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


LONG = ("tests/stack/", "tests/backends/", "tests/cli/")
"""Folders whose files take longest: with several workers they begin, so that nothing long is left for one worker at the end."""


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> object | None:
    """A file's tests stay in one worker, which starts their servers once; those of tests/backends do together, as their last
    test looks at what all of them called. `optionalhook`: tests also run where pytest-xdist is not installed."""
    if config.getvalue("dist") != "loadfile":
        return None
    from xdist.scheduler import LoadScopeScheduling

    class ByFile(LoadScopeScheduling):
        def _split_scope(self, nodeid: str) -> str:
            return "tests/backends" if nodeid.startswith("tests/backends/") else nodeid.partition("::")[0]

    config.option.loadscopereorder = False
    return ByFile(config, log)


@pytest.hookimpl(trylast=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    items.sort(key=lambda item: not item.nodeid.startswith(LONG))


# A shell starts its background jobs with SIGINT ignored, and who inherits that waits for a Ctrl-C for ever.
signal.signal(signal.SIGINT, signal.default_int_handler)
