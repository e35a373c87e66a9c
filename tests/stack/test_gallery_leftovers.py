"""What cancelling, failing and removing leave behind, which is nothing; and two servers that share one models folder."""

from __future__ import annotations

import json
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx
import pytest
from gallery_server import GalleryServer
from installing_home import ANSWER, BIG, DEADLINE, LARGE, REPO, SMALL, until
from loopback_hub import LoopbackHub
from market import POCKET, Market, answers, apply, ask, body, ended, jobs, post, sha256, until_here, until_waiting
from server_process import ServerProcess


@pytest.fixture
def market(hub: LoopbackHub, tmp_path: Path) -> Market:
    return Market(hub, tmp_path)


def remove(server: ServerProcess, name: str) -> None:
    reply = httpx.post(f"{server.url}/models/delete/{name}", timeout=DEADLINE)
    assert reply.status_code == 200, reply.text
    job = ended(server, reply.json()["uuid"])
    assert (job["deletion"], job["message"]) == (True, "completed"), job


def cancel(server: ServerProcess, uuid: str) -> str:
    phase: str = httpx.post(f"{server.url}/models/jobs/{uuid}/cancel", timeout=DEADLINE).json()["phase"]
    return phase


def test_removed_models_take_all_their_files_along_in_any_order(market: Market) -> None:
    """Two quantisations of one repo by their Hub ids, an entry and a variant that share them, and files from elsewhere."""
    draft = POCKET + bytes(64)
    with GalleryServer({"/draft.gguf": draft}) as web:
        files = [{"filename": SMALL, "uri": f"huggingface://{REPO}/{SMALL}"}]
        files += [{"filename": "draft.gguf", "uri": f"{web.url}/draft.gguf", "sha256": sha256(draft)}]
        market.offer("paired", files=files, overrides={"parameters": {"model": SMALL}, "draft_model": "draft.gguf"})
        remove_in_any_order(market)


def remove_in_any_order(market: Market) -> None:
    with market.serve() as server:
        names = [f"{REPO}:Q8_0", f"{REPO}:Q4_K_M", "tiny", "tiny:q4_k_m", "paired"]
        for uuid in [apply(server, name) for name in names]:
            assert ended(server, uuid)["message"] == "completed"
        assert answers(server, "paired", f"{REPO}:Q8_0")
        assert len([path for path in market.left() if path.endswith(".gguf")]) == 3
        remove(server, "tiny")
        assert post(server, f"{REPO}:Q8_0").status_code == 200  # of the same file
        remove(server, f"{REPO}:Q8_0")
        assert BIG not in " ".join(market.left()) and market.sha256[BIG] not in " ".join(market.left())
        assert answers(server, f"{REPO}:Q4_K_M", "tiny:q4_k_m")
        for name in ("paired", f"{REPO}:Q4_K_M", "tiny:q4_k_m"):
            remove(server, name)
        assert market.left() == []
        listed = [model["id"] for model in httpx.get(f"{server.url}/v1/models").json()["data"]]
        assert listed == ["pocket"] and "models: {}" in market.lock.read_text()


def test_a_cancelled_job_leaves_nothing_and_tells_who_waits(market: Market) -> None:
    held = market.hub.hold(BIG, LARGE, least=LARGE, times=2)
    with market.serve("--stream-hold", "0.1") as server, ThreadPoolExecutor(2) as pool:
        waiting = pool.submit(post, server, "tiny")
        streaming = pool.submit(post, server, "tiny", stream=True)
        until_waiting(server, "tiny", 2)
        (uuid,) = jobs(server)
        until_here(server, uuid, LARGE)
        assert cancel(server, uuid) == "cancelled"
        assert (waiting.result().status_code, waiting.result().json()["error"]["code"]) == (503, "cancelled")
        assert "was cancelled" in streaming.result().text and "[DONE]" not in streaming.result().text
        assert market.left() == []
        assert cancel(server, uuid) == "cancelled"  # once more does no harm
        held.set()
        assert answers(server, "tiny")  # and anybody may ask again
        remove(server, "tiny")
        assert market.left() == []


def test_a_cancel_that_a_kill_broke_off_is_finished_and_a_running_one_survives_it(market: Market) -> None:
    market.hub.hold(BIG, LARGE, least=LARGE, times=9)
    with market.serve() as server:
        kept, gone = apply(server, "tiny"), apply(server, f"{REPO}:Q8_0")
        market.wait_for_part(LARGE)
        assert cancel(server, gone) == "cancelled"  # of a file that the other needs
        server.kill()
    with market.serve() as server:
        assert jobs(server).get(gone, {"phase": "cancelled"})["phase"] == "cancelled"
        until_here(server, kept, LARGE)
        assert cancel(server, kept) == "cancelled"
        assert market.left() == []


def test_what_fails_leaves_nothing_once_it_is_cancelled(market: Market) -> None:
    market.hub.corrupt(BIG, times=9, least=LARGE)
    with market.serve() as server:
        uuid = apply(server, "tiny")
        job = ended(server, uuid)
        assert job["message"].startswith("error: ") and BIG in job["error"] and "checksum" in job["error"]
        cancel(server, uuid)
        assert market.left() == [] and uuid not in jobs(server)


def test_a_model_that_answers_can_be_removed_and_comes_back(market: Market) -> None:
    with market.serve() as server:
        assert answers(server, "tiny")
        with httpx.stream("POST", f"{server.url}/v1/chat/completions", json=body("tiny", stream=True), timeout=DEADLINE) as reply:
            lines = reply.iter_lines()
            next(lines)
            remove(server, "tiny")
            assert [*lines][-2] == "data: [DONE]"
        assert market.left() == []
        assert answers(server, "tiny")
    assert len(market.downloads()) == 2


# --- two servers -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("apart", [False, True], ids=["one data folder", "two data folders"])
def test_two_servers_on_one_folder_install_once_and_see_each_others_models(market: Market, apart: bool) -> None:
    other = {"LLMGALLERY_DATA_DIR": str(market.folder / "other")} if apart else {}
    held = market.hub.hold(BIG, LARGE, least=LARGE)
    with market.serve() as one, market.serve(**other) as two, ThreadPoolExecutor(6) as pool:
        asked = [pool.submit(ask, server, name) for server in (one, two) for name in ("tiny", "small", f"{REPO}:Q8_0")]
        market.hub.wait_for_bytes(BIG, LARGE)
        for server in (one, two):
            until_waiting(server, "tiny", 2)
        held.set()
        assert [reply.result() for reply in asked] == [ANSWER] * 6
        assert len(market.downloads()) == 1
        assert market.yamls() == ["tiny.yaml", "tiny__pocket-GGUF-Q8_0.yaml"]
        remove(one, "tiny")
        assert answers(two, f"{REPO}:Q8_0")
        remove(two, f"{REPO}:Q8_0")
        until(lambda: [model["id"] for model in httpx.get(f"{one.url}/v1/models").json()["data"]] == ["pocket"], "the news")
        assert market.left() == []


def test_a_server_goes_on_where_another_was_killed(market: Market) -> None:
    """Both wait for one download, of which the one is killed that brings it."""
    held = market.hub.hold(BIG, LARGE, least=LARGE)
    with market.serve() as one:
        uuid = apply(one, "tiny")
        market.wait_for_part(LARGE)
        with market.serve() as two, ThreadPoolExecutor(1) as pool:
            asked = pool.submit(ask, two, "tiny")
            until_waiting(two, "tiny", 1)
            one.kill()
            held.set()
            assert asked.result() == ANSWER
            assert len(market.downloads()) == 2 and market.downloads()[1].headers["Range"] >= f"bytes={LARGE}-"
    with market.serve() as three:
        assert ended(three, uuid)["message"] == "completed"
    assert len(market.downloads()) == 2


# --- as LocalAI's clients do -----------------------------------------------------------------------------------------------


def test_a_localai_client_applies_polls_across_a_restart_and_deletes(market: Market) -> None:
    held = market.hub.hold(BIG, LARGE, least=LARGE)
    with market.serve() as server:
        offered = httpx.get(f"{server.url}/models/available").json()
        (tiny,) = [offer for offer in offered if (offer["name"], offer["gallery"]["name"]) == ("tiny", "mine")]
        assert not tiny["installed"]
        uuid = apply(server, "mine@tiny", name="chat", overrides={"context_size": 512, "system_prompt": "Be brief."})
        half = until_here(server, uuid, LARGE)
        assert 42 < half["progress"] < 44 and half["file_name"] == BIG and not half["processed"]
        assert (half["downloaded_size"], half["file_size"], half["gallery_element_name"]) == ("2.0 MiB", "4.7 MiB", "mine@tiny")
        server.kill()
    held.set()
    with market.serve(PRELOAD_MODELS=json.dumps([{"id": "tiny-q4_k_m"}])) as server:
        done = ended(server, uuid)
        assert (done["message"], done["error"], done["progress"], done["name"]) == ("completed", None, 100, "chat")
        until(lambda: "tiny-q4_k_m.yaml" in market.yamls(), "the preload")
        assert answers(server, "chat", "tiny-q4_k_m")
        text = (market.models / "chat.yaml").read_text()
        assert "context_size: 512" in text and "Be brief." in text
        (tiny,) = [offer for offer in httpx.get(f"{server.url}/models/available?term=tiny").json() if offer["name"] == "tiny"]
        assert tiny["installed"]
        wrong = httpx.post(f"{server.url}/models/apply", json={"id": "mine@tinny"})
        assert wrong.status_code == 404 and "tiny" in wrong.json()["error"]["message"]
        for name in ("chat", "tiny-q4_k_m"):
            remove(server, name)
        assert market.left() == []
