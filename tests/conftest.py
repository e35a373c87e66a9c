"""Fixtures that several packages' tests share."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from loopback_hub import LoopbackHub


@pytest.fixture
def hub() -> Iterator[LoopbackHub]:
    """A Hub on loopback: see loopback_hub.LoopbackHub. Servers under test get HF_ENDPOINT=hub.url."""
    with LoopbackHub() as loopback:
        yield loopback
