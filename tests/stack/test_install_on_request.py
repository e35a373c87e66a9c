"""A name that is not here, asked for over HTTP: installed once for everybody, by what the settings allow, through kills."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import pytest
from installing_home import BIG, DEADLINE, LARGE, REPO, SMALL, Home, until
from live_server import error_of
from loopback_hub import LoopbackHub
from server_process import ServerProcess

QUESTION = [{"role": "user", "content": "What is the capital of France?"}]
ANSWER = "The capital of France is Paris."


OPEN = 'llmgallery_generations_in_progress{model="tiny"}'


def gauge(server: ServerProcess, sample: str) -> float | None:
    lines = httpx.get(f"{server.url}/metrics").text.splitlines()
    return next((float(line.rpartition(" ")[2]) for line in lines if line.startswith(f"{sample} ")), None)


@pytest.fixture
def home(hub: LoopbackHub, tmp_path: Path) -> Home:
    return Home(hub, tmp_path)


def post(server: ServerProcess, model: str, headers: dict[str, str] | None = None, **more: Any) -> httpx.Response:
    body = {"model": model, "messages": QUESTION, "temperature": 0, **more}
    return httpx.post(f"{server.url}/v1/chat/completions", json=body, headers=headers, timeout=DEADLINE)


def answer(reply: httpx.Response) -> str:
    assert reply.status_code == 200, reply.text
    content: str = reply.json()["choices"][0]["message"]["content"]
    return content


def test_names_are_installed_once_and_then_ask_nobody(home: Home) -> None:
    """Each on first request; each in other spellings, and after a restart, without a request to the hub."""
    spellings = {
        "small": ["tiny", "mine@tiny", "TINY"],  # an alias of tiny
        "tiny:q4_k_m": ["tiny:Q4_K_M", "tiny-q4_k_m", "mine@tiny:q4_k_m"],
        f"{REPO}:Q8_0": [f"hf://{REPO}:Q8_0", f"huggingface://{REPO}:q8_0"],
        f"{REPO}/{SMALL}@{home.commit}": [f"hf://{REPO}/{SMALL}@{home.commit}"],
        REPO: [f"https://huggingface.co/{REPO}", f"{REPO}@main"],
    }
    with home.serve() as server:
        for asked, others in spellings.items():
            before = len(home.hub.requests)
            assert answer(post(server, asked)) == ANSWER
            assert len(home.hub.requests) > before, asked
            before = len(home.hub.requests)
            assert [answer(post(server, name)) for name in [asked, *others]] == [ANSWER] * (1 + len(others))
            assert len(home.hub.requests) == before, asked
        listed = [model["id"] for model in httpx.get(f"{server.url}/v1/models").json()["data"]]
    assert len(listed) == len(spellings) + 1
    assert {"tiny", "tiny-q4_k_m", REPO} < set(listed)
    assert len(home.downloads(BIG)) == len(home.downloads(SMALL)) == 1  # five models share two files
    before = len(home.hub.requests)
    with home.serve() as server:
        for name in (asked for names in spellings.items() for asked in (names[0], *names[1])):
            assert answer(post(server, name)) == ANSWER
    assert len(home.hub.requests) == before


def test_twenty_first_requests_are_one_install(home: Home) -> None:
    held = home.hub.hold(BIG, LARGE, least=LARGE)
    with home.serve() as server, ThreadPoolExecutor(20) as pool:
        asked = [pool.submit(post, server, "tiny") for _ in range(20)]
        home.hub.wait_for_bytes(BIG, LARGE)
        until(lambda: gauge(server, OPEN) == 20, "twenty requests that wait")
        assert [job["phase"] for job in httpx.get(f"{server.url}/models/jobs").json().values()] == ["downloading"]
        held.set()
        assert [answer(reply.result()) for reply in asked] == [ANSWER] * 20
    assert len(home.downloads()) == 1


def test_a_stream_is_told_how_far_it_is(home: Home) -> None:
    held = home.hub.hold(BIG, LARGE, least=LARGE)
    body = {"model": "tiny", "messages": QUESTION, "stream": True}
    with home.serve("--stream-hold", "0.05") as server, server.http() as client:
        with client.stream("POST", "/v1/chat/completions", json=body) as reply:
            lines: list[str] = []
            for line in reply.iter_lines():
                lines.append(line)
                if line.startswith(": downloading ") and "%" in line:
                    held.set()
        assert reply.status_code == 200
        assert held.is_set() and lines[-2] == "data: [DONE]"


def test_what_cannot_be_is_told_before_the_first_byte(home: Home) -> None:
    with home.serve() as server:
        unknown = post(server, f"{REPO}:IQ1_S")
        nobody = post(server, "tiny/nothing", stream=True)
    assert (unknown.status_code, nobody.status_code) == (404, 404)
    assert f"{REPO}:Q8_0" in error_of(unknown)["hints"]
    assert "there is no repo tiny/nothing" in error_of(nobody)["message"]
    assert not home.downloads(BIG) + home.downloads(SMALL)


def test_who_prefers_not_to_wait_is_told_where_the_job_is(home: Home) -> None:
    held = home.hub.hold(BIG, LARGE, least=LARGE)
    with home.serve() as server:
        reply = post(server, "tiny", {"Prefer": "wait=1"})
        error = error_of(reply)
        assert (reply.status_code, error["code"]) == (503, "overloaded")
        assert 1 <= int(reply.headers["Retry-After"]) <= 60
        assert reply.links["status"]["url"] == error["job"]
        assert "downloading" in error["message"]
        job = httpx.get(server.url + error["job"]).json()
        assert (job["phase"], job["name"], job["processed"]) == ("downloading", "tiny", False)
        assert gauge(server, 'llmgallery_install_total_bytes{model="tiny"}') == len(home.data)
        assert error_of(post(server, "tiny", {"Prefer": "wait=1"}))["job"] == error["job"]
        held.set()
        until(lambda: httpx.get(server.url + error["job"]).json()["processed"], "an end of the job")
        assert answer(post(server, "tiny")) == ANSWER
    assert len(home.downloads()) == 1


def test_planning_is_not_waited_for_longer_either(home: Home) -> None:
    held = home.hub.hold(BIG, 100)  # of the header
    with home.serve() as server:
        reply = post(server, "tiny", {"Prefer": "wait=1"})
        error = error_of(reply)
        assert reply.status_code == 503 and reply.headers["Retry-After"] == "2"
        assert "still being planned" in error["message"]
        assert httpx.get(server.url + error["job"]).json()["phase"] == "planning"
        held.set()
        assert answer(post(server, "tiny")) == ANSWER


def test_a_killed_server_goes_on_where_it_was_and_requests_join(home: Home) -> None:
    held = home.hub.hold(BIG, 2 * LARGE, least=LARGE)
    with home.serve() as server, ThreadPoolExecutor(1) as pool:
        lost = pool.submit(post, server, "tiny")
        home.wait_for_part(LARGE)
        jobs = httpx.get(f"{server.url}/models/jobs").json()
        server.kill()
        with pytest.raises(httpx.TransportError):
            lost.result()
    held.set()
    assert not list(home.models.glob("*.yaml"))
    before = len(home.hub.requests)
    again = home.hub.hold(BIG, 100, least=100_000)
    with home.serve() as server, ThreadPoolExecutor(2) as pool:
        job = until(lambda: httpx.get(f"{server.url}/models/jobs").json(), "the job")
        assert list(job) == list(jobs)  # nobody has asked for it yet
        asked = [pool.submit(post, server, name) for name in ("tiny", "tiny")]
        until(lambda: gauge(server, OPEN) == 2, "both requests")
        again.set()
        assert [answer(reply.result()) for reply in asked] == [ANSWER] * 2
        assert len(httpx.get(f"{server.url}/models/jobs").json()) == len(jobs)
    fetched = [seen for seen in home.hub.requests[before:] if seen.host == "storage"]
    assert fetched and all(int(seen.headers["Range"].removeprefix("bytes=").rstrip("-")) >= LARGE for seen in fetched)


def test_other_spellings_join_and_leavers_stop_nothing(home: Home) -> None:
    held = home.hub.hold(BIG, LARGE, least=LARGE)
    body = {"model": "tiny", "messages": QUESTION, "stream": True}
    with home.serve("--stream-hold", "0.05") as server, ThreadPoolExecutor(2) as pool, server.http() as client:
        with client.stream("POST", "/v1/chat/completions", json=body) as reply:
            assert any(line.startswith(": downloading") for line in reply.iter_lines())  # it has begun, and its client leaves
        asked = [pool.submit(post, server, name) for name in ("small", "mine@tiny")]
        until(lambda: gauge(server, OPEN) == 2, "both requests")
        held.set()
        assert [answer(reply.result()) for reply in asked] == [ANSWER] * 2
    assert len(home.downloads()) == 1
    assert [file.name for file in home.models.glob("*.yaml*")] == ["tiny.yaml"]


def test_a_server_that_stops_tells_who_waits(home: Home) -> None:
    held = home.hub.hold(BIG, LARGE, least=LARGE)
    with home.serve("--drain", "0") as server, ThreadPoolExecutor(1) as pool:
        told = pool.submit(post, server, "tiny")
        until(lambda: gauge(server, OPEN) == 1, "the request")
        home.wait_for_part(LARGE // 2)
        assert server.stop() == 0
        assert told.result().status_code == 503
        assert "goes on when it starts again" in error_of(told.result())["message"]
        assert "Traceback" not in server.output
    held.set()


def test_wrong_bytes_are_named_and_fetched_again(home: Home) -> None:
    home.hub.corrupt(BIG, least=LARGE)
    with home.serve() as server:
        assert answer(post(server, "tiny")) == ANSWER
        named = f"the bytes of {REPO}/{BIG}@{home.commit} have another checksum than {home.sha256[BIG]}: fetched again"
        assert named in server.output
    assert len(home.downloads()) == 2


def test_bytes_that_stay_wrong_are_refused_and_leave_no_model(home: Home) -> None:
    home.hub.corrupt(BIG, times=9, least=LARGE)
    with home.serve() as server:
        reply = post(server, "tiny")
        assert reply.status_code == 502 and error_of(reply)["code"] == "hub_corrupt"
        assert BIG in error_of(reply)["message"]
    assert not list(home.models.glob("*.yaml"))


# --- at the start ------------------------------------------------------------------------------------------------------------


def test_preloads_are_installed_at_the_start_and_nobody_waits_for_them(home: Home, tmp_path: Path) -> None:
    held = home.hub.hold(BIG, LARGE, least=LARGE)
    file = tmp_path / "preload.yaml"
    file.write_text(f"- {{id: '{REPO}:Q8_0', name: named}}\n- id: nothing-of-this-name\n")
    listed = '[{"id": "mine@tiny", "overrides": {"context_size": 512}, "name": "short"}]'
    preload = {"PRELOAD_MODELS": listed, "PRELOAD_MODELS_CONFIG": str(file)}
    with home.serve("--preload", "tiny", "--auto-install", "off", **preload) as server:
        assert httpx.get(f"{server.url}/readyz").status_code == 200  # the first download stands still
        held.set()
        until(lambda: len(list(home.models.glob("*.yaml"))) == 3, "three models")
        until(lambda: "nothing-of-this-name" in server.output, "a word of what failed")
        assert answer(post(server, "named")) == answer(post(server, "short")) == answer(post(server, "tiny")) == ANSWER
    assert "context_size: 512" in (home.models / "short.yaml").read_text()
    before = len(home.hub.requests)
    with home.serve("--preload", "tiny", "--auto-install", "off", **preload) as server:
        until(lambda: "nothing-of-this-name" in server.output, "a word of what failed")
        assert answer(post(server, "tiny")) == ANSWER
    assert len(home.hub.requests) == before


def test_a_preload_that_is_none_stops_the_start_with_its_place(home: Home) -> None:
    serving = home.serve(PRELOAD_MODELS='[{"id": "tiny"}, {"name": "x"}]')
    with pytest.raises(AssertionError, match=r"PRELOAD_MODELS\[1\]: neither id nor url"), serving:
        pass
