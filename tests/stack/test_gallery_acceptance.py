"""The first request for a model that is not here, as a demanding user sends it: many at once, over a bad line, through kills."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx
import openai
import pytest
from gallery_server import GalleryServer
from installing_home import ANSWER, BIG, DEADLINE, LARGE, QUESTION, REPO, SMALL, until
from loopback_hub import LoopbackHub
from market import (
    POCKET,
    Market,
    answers,
    apply,
    ask,
    ask_streamed,
    begins,
    body,
    ended,
    jobs,
    post,
    sha256,
    until_here,
    until_waiting,
)
from server_process import ServerProcess


@pytest.fixture
def market(hub: LoopbackHub, tmp_path: Path) -> Market:
    return Market(hub, tmp_path)


def comments_and_text(server: ServerProcess, model: str) -> tuple[list[str], str]:
    """A raw stream: the comments that came before the first data, and everything after them."""
    with server.http() as client, client.stream("POST", "/v1/chat/completions", json=body(model, stream=True)) as reply:
        assert reply.status_code == 200
        text = "".join(reply.iter_text())
    before, _, after = text.partition("data: ")
    return before.split("\n\n")[:-1], after


# --- many at once ----------------------------------------------------------------------------------------------------------


def test_twenty_official_clients_get_twenty_answers_of_one_download(market: Market) -> None:
    """Nine stream, nine do not, one looks at the raw stream and one leaves; all ask at the same time, by several names."""
    held = market.hub.hold(BIG, LARGE, least=LARGE)
    names = ["tiny", "small", "mine@tiny"] * 3
    with market.serve("--stream-hold", "0.1") as server, ThreadPoolExecutor(21) as pool:
        whole = [pool.submit(ask, server, name) for name in names]
        streamed = [pool.submit(ask_streamed, server, name) for name in names]
        raw = pool.submit(comments_and_text, server, "tiny")
        with server.http() as client, client.stream("POST", "/v1/chat/completions", json=body("tiny", stream=True)) as leaver:
            lines = leaver.iter_lines()
            assert next(lines).startswith(":")  # its headers came while the file stood still
            until_waiting(server, "tiny", 20)
        late = pool.submit(post, server, "tiny", {"Prefer": "wait=1"})
        error = late.result().json()["error"]
        assert (late.result().status_code, late.result().headers["Retry-After"].isdigit()) == (503, True)
        job = httpx.get(server.url + error["job"]).json()
        assert (job["phase"], job["name"], job["id"] in jobs(server)) == ("downloading", "tiny", True)
        held.set()
        assert [reply.result() for reply in whole + streamed] == [ANSWER] * 18
        comments, after = raw.result()
        assert any(comment.startswith(": downloading tiny") or ": downloading 4" in comment for comment in comments), comments
        assert after.endswith("data: [DONE]\n\n") and ": " not in after.replace('": ', "").replace("data: ", "")
        assert httpx.get(server.url + error["job"]).json()["message"] == "completed"
    assert len(market.downloads()) == 1 and not market.downloads(SMALL)


def test_the_official_client_is_told_of_the_job_and_finds_the_model_later(market: Market) -> None:
    held = market.hub.hold(BIG, LARGE, least=LARGE)
    with market.serve() as server:
        with server.client as client, pytest.raises(openai.InternalServerError) as caught:
            client.chat.completions.create(model="tiny", messages=QUESTION, extra_headers={"Prefer": "wait=1"})
        assert caught.value.status_code == 503 and 1 <= int(caught.value.response.headers["Retry-After"]) <= 60
        assert isinstance(caught.value.body, dict)
        where = server.url + caught.value.body["job"]
        with httpx.stream("GET", f"{where}/events", timeout=DEADLINE) as events:
            held.set()
            told = [line for line in events.iter_lines() if line.startswith("data: ")]
        assert '"message":"completed"' in told[-1] and httpx.get(where).json()["progress"] == 100
        assert answers(server, "tiny")
    assert len(market.downloads()) == 1


def test_different_models_of_the_same_files_come_at_once_and_each_file_once(market: Market) -> None:
    drafting = {"parameters": {"model": SMALL, "temperature": 0}, "draft_model": BIG}
    market.offer("both", f"huggingface://{REPO}/{SMALL}", f"huggingface://{REPO}/{BIG}", overrides=drafting)
    names = ["tiny", "tiny:q4_k_m", "both", f"{REPO}:Q8_0", f"{REPO}/{SMALL}"]
    with market.serve() as server, ThreadPoolExecutor(5) as pool:
        assert [reply.json()["phase"] for reply in pool.map(lambda name: ended_ok(server, name), names)] == ["done"] * 5
        assert answers(server, "both", f"{REPO}:Q8_0")
    assert len(market.downloads(BIG)) == len(market.downloads(SMALL)) == 1
    assert len(market.yamls()) == 5


def ended_ok(server: ServerProcess, name: str) -> httpx.Response:
    uuid = apply(server, name)
    ended(server, uuid)
    return httpx.get(f"{server.url}/models/jobs/{uuid}")


def test_twenty_who_spell_a_hub_id_in_several_ways_get_one_model(market: Market) -> None:
    names = [f"{REPO}:Q4_K_M", f"hf://{REPO}:q4_k_m", f"huggingface://{REPO}:Q4_K_M", f"hf.co/{REPO}:Q4_k_m"] * 5
    with market.serve() as server, ThreadPoolExecutor(20) as pool:
        assert list(pool.map(lambda name: ask(server, name), names)) == [ANSWER] * 20
        assert market.yamls() == ["tiny__pocket-GGUF-Q4_K_M.yaml"] and len(market.downloads(SMALL)) == 1
        before = len(market.hub.requests)
        assert answers(server, *names[:4])
    assert len(market.hub.requests) == before


# --- a bad line ------------------------------------------------------------------------------------------------------------


def test_what_stalls_breaks_or_is_refused_for_a_while_arrives(market: Market) -> None:
    """Three models over three bad lines, in parallel: one stands still without an end, one is cut three times, of one the
    storage is out of order at first and then knows no Range."""
    cut, refused = market.put("tiny/cut", "cut-Q8_0.gguf", 8), market.put("tiny/refused", "refused-Q8_0.gguf", 16)
    market.hub.hold(BIG, LARGE, least=LARGE, times=2)
    for after in (1_000_000, 900_000, 800_000):
        market.hub.cut("cut-Q8_0.gguf", after, least=LARGE)
    market.hub.cut("refused-Q8_0.gguf", 500_000, least=LARGE)
    market.hub.fail(503, times=2, name="refused-Q8_0.gguf", method="GET", host="storage", after=2, headers={"Retry-After": "0"})
    market.hub.ignore_range("refused-Q8_0.gguf", times=3)
    names = ["tiny", "tiny/cut:Q8_0", "tiny/refused:Q8_0"]
    with market.serve(HF_HUB_DOWNLOAD_TIMEOUT="1") as server, ThreadPoolExecutor(3) as pool:
        assert list(pool.map(lambda name: ask(server, name), names)) == [ANSWER] * 3
    stalled = [begins(seen.headers["Range"]) for seen in market.downloads(BIG)]
    assert stalled == [0, LARGE, 2 * LARGE] or (stalled[0] == 0 and len(stalled) == 3 and 0 < stalled[1] < stalled[2]), stalled
    assert market.hub.sent("cut-Q8_0.gguf") < len(cut) + LARGE  # the header, and each byte once
    starts = [begins(seen.headers["Range"]) for seen in market.downloads("cut-Q8_0.gguf")]
    assert starts == sorted(starts) and len({*starts}) == len(starts) == 4
    assert 503 in {seen.status for seen in market.hub.seen("GET", "refused-Q8_0.gguf", "storage")}
    assert sha256(refused) in {path.name for path in (market.folder / "hf").rglob("blobs/*")}


def test_an_entry_that_is_out_of_date_is_named_and_mended_without_a_restart(market: Market) -> None:
    wrong = market.gallery / "index.yaml"
    right = wrong.read_text()
    wrong.write_text(right.replace(market.sha256[BIG], "ab" * 32))
    with market.serve() as server:
        reply = post(server, "tiny")
        message = reply.json()["error"]["message"]
        assert reply.status_code == 503 and "ab" * 32 in message and market.sha256[BIG] in message, message
        assert not market.downloads() and not market.yamls()
        wrong.write_text(right)
        until(lambda: post(server, "tiny").status_code == 200, "an answer")
    assert len(market.downloads()) == 1


# --- kills -----------------------------------------------------------------------------------------------------------------


def test_a_job_outlives_two_kills_and_a_stop_and_ends_by_itself(market: Market) -> None:
    """A model of one file of the hub and one from elsewhere: what was whole stays, what was half there goes on."""
    draft = POCKET + bytes(64)
    with GalleryServer({"/files/draft.gguf": draft}) as web:
        files = [{"filename": BIG, "uri": f"huggingface://{REPO}/{BIG}"}]
        files += [{"filename": "draft.gguf", "uri": f"{web.url}/files/draft.gguf", "sha256": sha256(draft)}]
        drafting = {"parameters": {"model": BIG, "temperature": 0}, "draft_model": "draft.gguf"}
        market.offer("paired", files=files, overrides=drafting)
        uuid = ""
        for end in (1, 2, 3):
            held = market.hub.hold(BIG, LARGE // 2, least=LARGE)
            with market.serve() as server:
                uuid = uuid or apply(server, "paired")
                assert [*jobs(server)] == [uuid]  # known as soon as the server answers
                until_here(server, uuid, len(draft) + end * LARGE // 2)
                server.stop() if end == 2 else server.kill()
            held.set()
            assert not market.yamls()
        with market.serve("--auto-install", "off") as server:
            assert ended(server, uuid)["message"] == "completed"  # nobody asked for it again
            assert answers(server, "paired")
        with market.serve() as server:
            assert jobs(server)[uuid]["phase"] == "done" and answers(server, "paired")
        assert [asked.status for asked in web.asked if asked.path == "/files/draft.gguf"].count(200) <= 2  # the size, the file
    starts = [begins(seen.headers["Range"]) for seen in market.downloads(BIG)]
    assert starts == [0, LARGE // 2, LARGE, LARGE // 2 * 3]
    assert market.hub.sent(BIG) < len(market.data) + 2 * LARGE  # and the header


def test_a_kill_while_it_is_planned_loses_no_job(market: Market) -> None:
    held = market.hub.hold(BIG, 100)  # of the header
    with market.serve() as server:
        uuid = apply(server, f"{REPO}:Q8_0")
        market.hub.wait_for_bytes(BIG, 100)
        assert jobs(server)[uuid]["phase"] == "planning"
        server.kill()
    held.set()
    with market.serve() as server:
        assert ended(server, uuid)["name"] == f"{REPO}:Q8_0"
        assert answers(server, f"{REPO}:Q8_0")


# --- without the hub -------------------------------------------------------------------------------------------------------


def test_what_is_here_answers_while_hub_and_galleries_are_down(market: Market) -> None:
    """Installed from a gallery of the web, one on the hub, and by Hub ids; then all of it is gone, and the server with it."""
    market.offer("webbed", f"huggingface://{REPO}/{BIG}", gallery="web.yaml")
    market.offer("unseen", f"huggingface://{REPO}/{SMALL}", gallery="web.yaml")
    market.offer("hubbed", f"huggingface://{REPO}/{SMALL}", gallery="hub.yaml", aliases=["hubby"])
    web_index, hub_index = ((market.gallery / name).read_bytes() for name in ("web.yaml", "hub.yaml"))
    (market.gallery / "web.yaml").unlink()
    (market.gallery / "hub.yaml").unlink()
    market.hub.add("tiny/shelf", "index.yaml", hub_index, lfs=False)
    names = ["webbed", "web@webbed", "hubbed", "hubby", REPO, f"{REPO}:Q8_0", f"hf://{REPO}/{SMALL}@{market.commit}"]
    with GalleryServer({"/index.yaml": web_index}) as web:
        galleries = {"LLMGALLERY_GALLERIES": f"web={web.url}/index.yaml,shelf=hf://tiny/shelf/index.yaml"}
        with market.serve(**galleries) as server:
            assert answers(server, *names)
            market.hub.stop()
            web.stop()
            assert answers(server, *names)
        with market.serve(**galleries) as server:
            assert answers(server, *names)
            known = {offer["name"]: offer for offer in httpx.get(f"{server.url}/models/available?term=webbed").json()}
            assert known["webbed"]["installed"]
            refused = post(server, "unseen")  # known from the copy, and not to be had
            assert (refused.status_code, refused.json()["error"]["code"]) == (503, "hub_unavailable"), refused.text
            assert post(server, "no-such-model").status_code == 404
            states = {state["name"]: state for state in httpx.get(f"{server.url}/models/galleries").json()}
            assert states["web"]["entries"] == 2 and states["shelf"]["entries"] == 1
        with market.serve(HF_HUB_OFFLINE="1", **galleries) as server:
            assert answers(server, *names)
            assert post(server, "unseen").json()["error"]["code"] == "hub_offline"
