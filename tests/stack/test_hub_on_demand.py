"""A YAML that names weights on a Hub: the first request fetches them, once, and a killed server resumes."""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx
import openai
import pytest
from loopback_hub import LoopbackHub
from server_process import ServerProcess

from llmgallery import paths

REPO = "tiny/pocket-GGUF"
FILE = "pocket-f16.gguf"
QUESTION = [{"role": "user", "content": "What is the capital of France?"}]
ANSWER = "The capital of France is Paris."


@pytest.fixture
def weights(hub: LoopbackHub) -> bytes:
    data = (paths.builtin("models") / FILE).read_bytes()
    hub.add(REPO, FILE, data)
    return data


@pytest.fixture
def models(tmp_path: Path) -> Path:
    folder = tmp_path / "models"
    folder.mkdir()
    (folder / "remote.yaml").write_text(f"name: remote\nparameters:\n  model: {REPO}/{FILE}\n  temperature: 0\n")
    return folder


def environment(hub: LoopbackHub, tmp_path: Path) -> dict[str, str]:
    return {"HF_ENDPOINT": hub.url, "HF_HOME": str(tmp_path / "hf"), "LLMGALLERY_DATA_DIR": str(tmp_path / "data")}


def ask(server: ServerProcess) -> str:
    reply = server.client.chat.completions.create(model="remote", messages=QUESTION)
    return reply.choices[0].message.content or ""


def test_the_first_request_downloads_and_the_next_does_not(hub, weights, models, tmp_path) -> None:
    with ServerProcess(models, environment=environment(hub, tmp_path)) as server:
        assert ask(server) == ANSWER
        sent = hub.sent(FILE)
        assert ask(server) == ANSWER
    assert sent == len(weights) == hub.sent(FILE)
    with ServerProcess(models, environment=environment(hub, tmp_path)) as server:
        assert ask(server) == ANSWER
    assert hub.sent(FILE) == sent


def test_ten_first_requests_download_once_and_the_first_may_leave(hub, weights, models, tmp_path) -> None:
    hold = hub.hold(FILE, len(weights) // 3)
    with ServerProcess(models, environment=environment(hub, tmp_path)) as server:
        leaver = threading.Thread(target=leave_early, args=(server, hub, len(weights) // 3))
        leaver.start()
        hub.wait_for_bytes(FILE, 1)
        with ThreadPoolExecutor(9) as pool:
            waiting = [pool.submit(ask, server) for _ in range(9)]
            leaver.join()
            hold.set()
            assert [answer.result() for answer in waiting] == [ANSWER] * 9
    assert hub.sent(FILE) == len(weights)


def leave_early(server: ServerProcess, hub: LoopbackHub, when: int) -> None:
    """Opens a stream, and closes it while the download stands still."""
    body = {"model": "remote", "messages": QUESTION, "stream": True}
    with server.http() as client, client.stream("POST", "/v1/chat/completions", json=body) as reply:
        hub.wait_for_bytes(FILE, when)
        for line in reply.iter_lines():
            if line.startswith(":"):  # headers came, and a keep-alive that tells the progress
                assert "downloading" in line
                return


def test_a_killed_server_resumes_where_it_was(hub, weights, models, tmp_path) -> None:
    half = len(weights) // 2
    hold = hub.hold(FILE, half)
    with ServerProcess(models, environment=environment(hub, tmp_path)) as server:
        with ThreadPoolExecutor(1) as pool:
            lost = pool.submit(ask, server)
            hub.wait_for_bytes(FILE, half)
            wait_for_partial(tmp_path / "hf", half // 2)
            server.kill()
            with pytest.raises(openai.APIConnectionError):
                lost.result()
        hold.set()
        before = hub.sent(FILE)
    with ServerProcess(models, environment=environment(hub, tmp_path)) as server:
        assert ask(server) == ANSWER
    again = hub.sent(FILE) - before
    assert again < len(weights) - half // 2
    assert any("range" in {name.lower() for name in seen.headers} for seen in hub.requests)


def test_a_server_that_stops_in_a_download_says_so_and_resumes(hub, weights, models, tmp_path) -> None:
    half = len(weights) // 2
    hold = hub.hold(FILE, half)
    with ServerProcess(models, "--drain", "0", environment=environment(hub, tmp_path)) as server, ThreadPoolExecutor(1) as pool:
        told = pool.submit(ask, server)
        hub.wait_for_bytes(FILE, half)
        wait_for_partial(tmp_path / "hf", half // 2)
        assert server.stop() == 0
        with pytest.raises(openai.InternalServerError, match="download was stopped") as caught:
            told.result()
        assert caught.value.status_code == 503
        assert "Traceback" not in server.output
    hold.set()
    before = hub.sent(FILE)
    with ServerProcess(models, environment=environment(hub, tmp_path)) as server:
        assert ask(server) == ANSWER
    assert hub.sent(FILE) - before < len(weights) - half // 2


def wait_for_partial(folder: Path, size: int) -> None:
    """Until that much of a file is on the disk: what the kernel has survives the kill."""
    done = threading.Event()
    for _ in range(10_000):
        if any(file.stat().st_size >= size for file in folder.rglob("*.part")):
            return
        done.wait(0.005)
    raise AssertionError("nothing arrived on the disk")


def test_a_missing_file_names_its_neighbours(hub, weights, models, tmp_path) -> None:
    (models / "wrong.yaml").write_text(f"name: wrong\nparameters:\n  model: {REPO}/pocket-f61.gguf\n")
    with ServerProcess(models, environment=environment(hub, tmp_path)) as server:
        reply = httpx.post(f"{server.url}/v1/chat/completions", json={"model": "wrong", "messages": QUESTION})
    assert reply.status_code == 404, reply.text
    assert FILE in reply.json()["error"]["message"]
