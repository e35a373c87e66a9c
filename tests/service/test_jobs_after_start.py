"""Jobs of the server before are known to whoever asks first."""

from __future__ import annotations

import time
from pathlib import Path

import pytest

from llmgallery.catalog.install.job import Asked
from llmgallery.catalog.install.journal import Journals, Record
from llmgallery.cli.stack import build
from llmgallery.config.settings import Settings
from llmgallery.core.installs import Install
from llmgallery.service.install.jobs import Jobs

ID = "c" * 32


async def test_a_job_of_the_server_before_is_known_before_anything_else(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LLMGALLERY_DATA_DIR", str(tmp_path / "data"))
    (tmp_path / "models").mkdir()
    state = Install(ID, "tiny", "done", "tiny", created=time.time(), updated=time.time())
    Journals(tmp_path / "data" / "jobs").write(Record(state=state, asked=Asked(reference="tiny")))
    stack = build(Settings(models_dir=tmp_path / "models"))
    try:
        await stack.gallery.start()
        jobs = Jobs(stack.settings, stack.gallery.installing)
        assert jobs.find(ID) is None  # nothing has been read yet
        await jobs.noted()
        assert jobs.find(ID) == state and jobs.all() == [state]
    finally:
        await stack.close()
