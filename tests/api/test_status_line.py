"""When the status line is written, and what happens when the client, the worker or the patience is gone."""

from __future__ import annotations

import itertools
import math
import os
import signal
import socket
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx
import openai
import pytest
from live_server import LiveServer, error_of, fits, sse, user
from openai import OpenAI

from llmgallery.config.units import Seconds

CHAT = "/v1/chat/completions"


@pytest.fixture(scope="module")
def hasty(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LiveServer]:
    """A server that holds headers for 50 ms only."""
    with LiveServer(tmp_path_factory.mktemp("hasty"), stream_hold=0.05) as server:
        yield server


def say(model: str, **more: object) -> dict[str, object]:
    return {"model": model, "messages": user("hello"), **more}


def test_a_stream_begins_while_the_model_still_loads(hasty: LiveServer, tmp_path: Path) -> None:
    gate = tmp_path / "gate"
    hasty.add("slow", options={"load_gate": str(gate), "load_steps": 4})
    with hasty.http() as http, http.stream("POST", CHAT, json=say("slow", stream=True)) as reply:
        assert reply.status_code == 200
        lines = reply.iter_lines()
        assert next(lines).startswith(": loading")
        gate.touch()
        text = "\n".join(lines)
    events = sse(text[text.index("data:") :])
    assert events[-1] == "[DONE]"
    assert events[0]["choices"][0]["delta"]["role"] == "assistant"
    assert "".join(event["choices"][0]["delta"].get("content", "") for event in events[:-1]) == "hello"


def test_a_failure_after_the_status_line_is_in_the_stream_and_ends_it(hasty: LiveServer, tmp_path: Path) -> None:
    gate = tmp_path / "gate"
    hasty.add("doomed", options={"load_gate": str(gate), "fail_load": "stale weights"})
    with hasty.http() as http, http.stream("POST", CHAT, json=say("doomed", stream=True)) as reply:
        assert reply.status_code == 200
        lines = reply.iter_lines()
        assert next(lines).startswith(": loading")
        gate.touch()
        text = "\n".join(lines)
    [last] = sse(text[text.index("data:") :])
    assert fits("error", last)["error"]["code"] == "load_error"
    assert "stale weights" in last["error"]["message"]


def test_the_official_client_sees_a_failure_in_the_stream(hasty: LiveServer, tmp_path: Path) -> None:
    gate = tmp_path / "gate"
    hasty.add("doomed-too", options={"load_gate": str(gate), "fail_load": "stale weights"})
    with hasty.client as client:
        chunks = client.chat.completions.create(model="doomed-too", messages=user("hello"), stream=True)
        gate.touch()
        with pytest.raises(openai.APIError, match="stale weights"):
            list(chunks)


def test_a_whole_answer_waits_as_long_as_the_client_prefers(live: LiveServer, http: httpx.Client, tmp_path: Path) -> None:
    gate = tmp_path / "gate"
    live.add("patient", options={"load_gate": str(gate)})
    reply = http.post(CHAT, json=say("patient"), headers={"prefer": "respond-async, wait=0"})
    assert (reply.status_code, error_of(reply)["code"]) == (503, "overloaded")
    assert int(reply.headers["retry-after"]) >= 1
    assert "still" in error_of(reply)["message"]
    gate.touch()
    reply = http.post(CHAT, json=say("patient"), headers={"prefer": "wait=20"})
    assert reply.status_code == 200
    assert reply.headers["preference-applied"] == "wait=20"
    assert http.post(CHAT, json=say("patient"), headers={"prefer": "wait=0"}).status_code == 200  # it is ready


def test_waiting_for_ever_is_possible(tmp_path: Path) -> None:
    with LiveServer(tmp_path, load_wait=Seconds(math.inf), stream_hold=Seconds(math.inf)) as server, server.http() as http:
        server.add("echo")
        for more in ({}, {"stream": True}):
            assert http.post(CHAT, json=say("echo", **more)).status_code == 200


def test_an_idle_stream_gets_keep_alives(live: LiveServer, http: httpx.Client, tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setattr("llmgallery.api.respond.IDLE_SECONDS", 0.05)
    gate = tmp_path / "gate"
    live.add("pausing", options={"gate": str(gate), "gate_after": 2})
    with http.stream("POST", CHAT, json=say("pausing", stream=True)) as reply:
        lines = reply.iter_lines()
        before = list(itertools.takewhile(lambda line: line != ": keep-alive", lines))
        gate.touch()
        events = sse("\n".join([*before, *itertools.dropwhile(lambda line: not line, lines)]))
    assert events.pop() == "[DONE]"
    assert "".join(event["choices"][0]["delta"].get("content", "") for event in events) == "hello"


@pytest.mark.parametrize("stream", [True, False])
def test_a_client_that_leaves_frees_its_slot_at_once(live: LiveServer, http: httpx.Client, tmp_path: Path, stream) -> None:
    gate = tmp_path / "gate"
    name = live.add(f"single-{stream}", parallel=1, options={"gate": str(gate), "gate_after": 2})
    with live.http() as leaver:
        request = leaver.build_request("POST", CHAT, json=say(name, stream=stream))
        body = request.read()
    raw = socket.create_connection(("127.0.0.1", request.url.port))
    head = f"POST {CHAT} HTTP/1.1\r\nhost: localhost\r\ncontent-length: {len(body)}\r\n\r\n"
    raw.sendall(head.encode() + body)
    live.until(lambda: (state := live.state(name)) and state.busy == 1 and state.stats and state.stats.step)
    raw.close()
    live.until(lambda: (state := live.state(name)) and state.busy == 0)
    # The gate is still closed: only a free slot gives the next client the two tokens that pass it.
    with http.stream("POST", CHAT, json=say(name, stream=True)) as reply:
        lines = (line for line in reply.iter_lines() if '"content":"he"' in line or '"content":"h"' in line)
        assert next(lines)
        gate.touch()


def test_a_client_that_leaves_during_the_load_does_not_cancel_it(live: LiveServer, http: httpx.Client, tmp_path: Path) -> None:
    gate = tmp_path / "gate"
    live.add("wanted", options={"load_gate": str(gate)})
    with live.http() as leaver, pytest.raises(httpx.ReadTimeout):
        leaver.post(CHAT, json=say("wanted"), timeout=0.2)
    with ThreadPoolExecutor(1) as pool:
        staying = pool.submit(http.post, CHAT, json=say("wanted"))
        live.until(lambda: (state := live.state("wanted")) and state.state == "loading")
        gate.touch()
        assert staying.result().json()["choices"][0]["message"]["content"] == "hello"


def test_a_body_that_never_comes_leaves_nothing_behind(live: LiveServer, http: httpx.Client) -> None:
    raw = socket.create_connection(("127.0.0.1", http.base_url.port))
    raw.sendall(f"POST {CHAT} HTTP/1.1\r\nhost: localhost\r\ncontent-length: 100\r\n\r\n{{".encode())
    raw.close()
    route = 'llmgallery_http_requests_total{method="POST",route="/v1/chat/completions",status="499"}'
    live.until(lambda: route in http.get("/metrics").text)


def test_a_dead_worker_is_a_clear_error_and_the_next_request_works(live: LiveServer, http: httpx.Client) -> None:
    live.add("fragile", options={"crash_on": "die", "crash_after": 1})
    reply = http.post(CHAT, json={"model": "fragile", "messages": user("die now")})
    error = error_of(reply)
    assert (reply.status_code, error["code"]) == (502, "worker_died")
    assert "SIGSEGV" in error["message"]
    assert http.post(CHAT, json=say("fragile")).json()["choices"][0]["message"]["content"] == "hello"


def test_a_worker_killed_in_the_middle_of_a_stream_ends_it_with_an_error(live, http, tmp_path) -> None:
    name = live.add("victim", options={"gate": str(tmp_path / "gate"), "gate_after": 2})
    with http.stream("POST", CHAT, json=say(name, stream=True)) as reply:
        lines = reply.iter_lines()
        for line in lines:
            if '"content":"h' in line:
                break
        os.kill(live.state(name).pid, signal.SIGKILL)
        text = "\n".join(lines)
    *_, last = sse(text[text.index("data:") :])
    assert fits("error", last)["error"]["code"] == "worker_died"
    assert "SIGKILL" in last["error"]["message"]


def test_who_only_waited_when_the_worker_died_is_answered_by_the_next(live, http, tmp_path) -> None:
    """One slot: the second request is accepted, queued, and never decoded."""
    gate = tmp_path / "gate"
    name = live.add("queueing", parallel=1, options={"gate": str(gate), "gate_after": 1})
    with ThreadPoolExecutor(1) as pool:
        first = pool.submit(http.post, CHAT, json=say(name))
        live.until(lambda: (state := live.state(name)) and state.stats and state.stats.step >= 1)
        with live.http() as other, other.stream("POST", CHAT, json=say(name, stream=True)) as second:
            pid = live.state(name).pid
            os.kill(pid, signal.SIGKILL)  # the second was accepted: its headers are here
            assert first.result().status_code == 502
            gate.touch()
            events = sse(second.read().decode())
    assert events.pop() == "[DONE]"
    assert "".join(event["choices"][0]["delta"].get("content", "") for event in events) == "hello"
    assert live.state(name).pid != pid


def test_slow_readers_hold_only_their_own_answer(live: LiveServer, client: OpenAI) -> None:
    """A client that does not read its long stream, beside one that is answered meanwhile."""
    live.add("wordy", context_size=200_000, parallel=2)
    big = "x" * 60_000
    request = httpx.Request("POST", f"{live.url}{CHAT}", json={"model": "wordy", "messages": user(big), "stream": True})
    raw = socket.create_connection(("127.0.0.1", request.url.port))
    raw.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
    head = f"POST {CHAT} HTTP/1.1\r\nhost: localhost\r\ncontent-length: {len(request.content)}\r\n\r\n"
    raw.sendall(head.encode() + request.content)
    live.until(lambda: (state := live.state("wordy")) and state.stats and state.stats.step > 10)
    reply = client.chat.completions.create(model="wordy", messages=user("hello"))
    assert reply.choices[0].message.content == "hello"
    raw.close()
    live.until(lambda: (state := live.state("wordy")) and state.busy == 0)


def test_the_model_s_progress_is_seen_by_all_who_wait(hasty: LiveServer, tmp_path: Path) -> None:
    gate = tmp_path / "gate"
    hasty.add("awaited", options={"load_gate": str(gate)})
    seen = threading.Barrier(4)

    def listen(_: int) -> str:
        with hasty.http() as http, http.stream("POST", CHAT, json=say("awaited", stream=True)) as reply:
            lines = reply.iter_lines()
            first = next(line for line in lines if line.startswith(": loading"))  # on a busy machine, `queued` comes before
            seen.wait(20)
            return first + "\n".join(lines)

    with ThreadPoolExecutor(3) as pool:
        listeners = [pool.submit(listen, number) for number in range(3)]
        seen.wait(20)
        gate.touch()
        for listener in listeners:
            assert listener.result().startswith(": loading")
            assert "[DONE]" in listener.result()
