"""What a worker's process inherits."""

import pytest
from test_manager import ask, entry, running

from llmgallery.runtime.process import worker_environment


async def test_files_of_the_folder_that_the_server_was_started_in_are_no_modules_of_a_worker(tmp_path, monkeypatch) -> None:
    (tmp_path / "queue.py").write_text("raise SystemExit('not a part of the program')")
    monkeypatch.chdir(tmp_path)
    async with running(tmp_path) as manager:
        assert (await ask(manager, entry(), "hi"))[0] == "hi"


@pytest.mark.parametrize(
    "name",
    [
        "HF_TOKEN",
        "HUGGING_FACE_HUB_TOKEN",
        "LLMGALLERY_HUB_TOKEN",
        "LLMGALLERY_API_KEYS",
        "OPENAI_API_KEY",
        "AWS_SECRET_ACCESS_KEY",
        "PGPASSWORD",
    ],
)
def test_no_secret_reaches_a_worker(name) -> None:
    assert worker_environment({name: "secret", "PATH": "/bin"}) == {
        "PATH": "/bin",
        "HF_HUB_OFFLINE": "1",
        "PYTHONUNBUFFERED": "1",
    }
