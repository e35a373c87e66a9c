"""A real worker of remote models: frames in, requests out to an endpoint on loopback, frames back."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, ClassVar

import pytest

from llmgallery.backends import loader
from llmgallery.config.model import ModelConfig
from llmgallery.core.events import Done, TextDelta
from llmgallery.core.messages import say
from llmgallery.core.requests import ChatRequest, EmbedRequest, RerankRequest
from llmgallery.wire.channel import LENGTH, decode_report, encode
from llmgallery.wire.frames import (
    Accepted,
    Cancel,
    Command,
    Configure,
    Detokenize,
    Embed,
    Events,
    Hello,
    Load,
    Ready,
    Rejected,
    Render,
    Report,
    Rerank,
    Result,
    Stop,
    Submit,
    Tokenize,
    Vectors,
)

SECONDS = 20
KEY = "sk-of-the-environment"


class Parent:
    """The server's end of a worker's socket."""

    def __init__(self, sock: socket.socket, process: subprocess.Popen[bytes]) -> None:
        self.sock = sock
        self.process = process
        self._file = sock.makefile("rb")

    def send(self, *commands: Command) -> None:
        for command in commands:
            self.sock.sendall(encode(command))

    def next(self) -> Report:
        (length,) = LENGTH.unpack(self._file.read(LENGTH.size))
        return decode_report(self._file.read(length))

    def events(self, id: int) -> list[Any]:
        """Up to Done."""
        found: list[Any] = []
        while not any(isinstance(event, Done) for event in found):
            report = self.next()
            assert isinstance(report, Events)
            found += [event for owner, event in report.items if owner == id]
        return found


class Endpoint(BaseHTTPRequestHandler):
    """Streams the last message's words; `hold` in it: only the first."""

    protocol_version = "HTTP/1.1"
    keys: ClassVar[list[str | None]] = []
    left: ClassVar[threading.Event] = threading.Event()
    address: ClassVar[str] = ""

    def log_message(self, format: str, *args: Any) -> None: ...

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["content-length"])))
        self.keys.append(self.headers["authorization"])
        if self.path == "/v1/embeddings":
            self._whole({"data": [{"index": 0, "embedding": [1.0]}], "usage": {"prompt_tokens": 1}})
        elif self.path == "/v1/rerank":
            self._whole({"results": [{"index": 0, "relevance_score": 0.5}]})
        elif body["model"] == "nothing":
            self._whole({"error": {"message": "no such model"}}, 404)
        else:
            self._stream(body["messages"][-1]["content"])

    def _whole(self, body: Any, status: int = 200) -> None:
        data = json.dumps(body).encode()
        self.send_response(status)
        self.send_header("x-request-id", "req_7")
        self.send_header("content-length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def _stream(self, text: str) -> None:
        self.send_response(200)
        self.send_header("content-type", "text/event-stream")
        self.send_header("x-ratelimit-remaining-requests", "41")
        self.send_header("connection", "close")
        self.end_headers()
        self.close_connection = True
        for word in text.split():
            self.wfile.write(b"data: " + json.dumps({"choices": [{"index": 0, "delta": {"content": word}}]}).encode() + b"\n\n")
            if text.startswith("hold"):
                self.connection.settimeout(SECONDS)
                assert self.rfile.read(1) == b""
                self.left.set()
                return
        self.wfile.write(b'data: {"choices": [{"index": 0, "delta": {}, "finish_reason": "stop"}]}\n\ndata: [DONE]\n\n')


@pytest.fixture(scope="module")
def address() -> Iterator[str]:
    server = ThreadingHTTPServer(("127.0.0.1", 0), Endpoint)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    Endpoint.address = f"http://127.0.0.1:{server.server_port}/v1"
    yield Endpoint.address
    server.shutdown()
    thread.join()
    server.server_close()


@contextmanager
def running() -> Iterator[Parent]:
    ours, theirs = socket.socketpair()
    ours.settimeout(SECONDS)
    environment = {**os.environ, "OPENAI_API_KEY": KEY}
    command = [sys.executable, "-P", "-m", "llmgallery.worker", str(theirs.fileno())]
    process = subprocess.Popen(command, pass_fds=[theirs.fileno()], env=environment, stderr=subprocess.PIPE)
    theirs.close()
    parent = Parent(ours, process)
    try:
        assert isinstance(parent.next(), Hello)
        yield parent
        parent.send(Stop())
        assert process.wait(SECONDS) == 0, process.stderr
    finally:
        process.kill()
        process.communicate()
        parent._file.close()
        ours.close()


@pytest.fixture(scope="module")
def worker(address: str) -> Iterator[Parent]:
    config = ModelConfig(name="far", options={"base_url": address, "api_key_env": "OPENAI_API_KEY"})
    with running() as parent:
        parent.send(Load(config, "openai", spec=loader.places()["openai"]))
        ready = parent.next()
        assert isinstance(ready, Ready) and {"generate", "embed", "rerank", "probabilities"} <= set(ready.capabilities)
        parent.send(Configure("far", config), Configure("none", ModelConfig(name="nothing", options={"base_url": address})))
        yield parent


def chat(text: str) -> ChatRequest:
    return ChatRequest((say("user", text),))


def test_a_conversation(worker: Parent) -> None:
    worker.send(Submit(1, "far", chat("one two")))
    assert worker.next() == Accepted(1, headers={"x-ratelimit-remaining-requests": "41"})
    events = worker.events(1)
    assert "".join(event.text for event in events if isinstance(event, TextDelta)) == "onetwo"
    assert events[-1] == Done("stop") and Endpoint.keys[-1] == f"Bearer {KEY}"


def test_the_keys_that_cut_answers(worker: Parent) -> None:
    options = {"base_url": Endpoint.address}
    worker.send(Configure("cut", ModelConfig(name="far", options=options, cutstrings=["<.*?>"], trimsuffix=["end"])))
    worker.send(Submit(20, "cut", chat("< b >one < / b >two end")), Submit(21, "far", chat("< b >one")))
    told: dict[int, str] = {20: "", 21: ""}
    ends = 0
    while ends < 2:
        report = worker.next()
        for id, event in report.items if isinstance(report, Events) else ():
            told[id] += event.text if isinstance(event, TextDelta) else ""
            ends += isinstance(event, Done)
    assert told == {20: "onetwo", 21: "<b>one"}


def test_each_request_brings_its_models_configuration(worker: Parent) -> None:
    worker.send(Submit(2, "none", chat("one")))
    rejected = worker.next()
    assert isinstance(rejected, Rejected) and rejected.error.kind == "UpstreamError" and rejected.error.upstream is not None
    assert (rejected.error.upstream.status, rejected.error.upstream.headers) == (404, {"x-request-id": "req_7"})
    assert Endpoint.keys[-1] is None
    worker.send(Submit(3, "never told", chat("one")))
    rejected = worker.next()
    assert isinstance(rejected, Rejected) and rejected.error.kind == "LoadError"


def test_cancelling(worker: Parent) -> None:
    worker.send(Submit(4, "far", chat("hold on")))
    assert isinstance(worker.next(), Accepted) and isinstance(worker.next(), Events)
    worker.send(Cancel(4))
    assert worker.events(4) == [Done("cancelled")] and Endpoint.left.wait(SECONDS)
    worker.send(Submit(5, "far", chat("hold on")), Cancel(5))
    report = worker.next()
    if isinstance(report, Accepted):
        assert worker.events(5)[-1] == Done("cancelled")
    else:
        assert isinstance(report, Rejected) and report.error.kind == "Cancelled"


def test_vectors_and_scores(worker: Parent) -> None:
    worker.send(Embed(6, EmbedRequest(("a",)), "far"))
    assert [worker.next(), worker.next()] == [Accepted(6), Accepted(6, headers={"x-request-id": "req_7"})]
    assert worker.next() == Vectors(6, (b"\x00\x00\x80?",), 1)
    worker.send(Rerank(7, RerankRequest("q", ("a",)), "far"))
    assert [worker.next(), worker.next()] == [Accepted(7), Accepted(7, headers={"x-request-id": "req_7"})]
    assert worker.next() == Vectors(7, (b"\x00\x00\x00?",))
    worker.send(Embed(8, EmbedRequest(("a",)), "never told"))
    refused = worker.next()
    assert isinstance(refused, Vectors) and refused.error is not None and refused.error.kind == "LoadError"


def test_there_are_no_tokens_and_no_prompts(worker: Parent) -> None:
    for command in (Tokenize(9, "a"), Detokenize(9, (1,)), Render(9, "far", chat("a"))):
        worker.send(command)
        report = worker.next()
        assert isinstance(report, Result) and report.error is not None and report.error.kind == "UnsupportedField"
        assert "this model is elsewhere" in report.error.message
