"""The openai backend and a server that somebody else wrote, llama-cpp-python's own, with the bundled model's weights. It needs no
torch, but a library that only this folder's environment has."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest
from loopback_endpoint import RemoteListener

from llmgallery import paths
from llmgallery.backends.base import Conversation, Files
from llmgallery.backends.openai.backend import OpenAIBackend
from llmgallery.config.model import ModelConfig
from llmgallery.core.errors import UpstreamError, UpstreamUnavailable
from llmgallery.core.events import Done, TextDelta
from llmgallery.core.messages import say
from llmgallery.core.requests import ChatRequest, CompletionRequest, EmbedRequest, Request
from llmgallery.core.sampling import Sampling

SECONDS = 60
KEY = "sk-of-the-peer"
GREEDY = Sampling(temperature=0.0, max_tokens=12)


class Peer:
    def __init__(self, url: str) -> None:
        self.config = ModelConfig(name="pocket", options={"base_url": f"{url}/v1", "api_key": KEY})
        self.backend = OpenAIBackend()
        self.heard = RemoteListener()
        self.backend.load(self.config, Files(), self.heard)
        self._ids = 0

    def ask(self, request: Request | EmbedRequest, config: ModelConfig | None = None, *, streamed: bool = True) -> int:
        self._ids += 1
        if isinstance(request, EmbedRequest):
            self.backend.embed(self._ids, request, config or self.config)
        else:
            self.backend.converse(Conversation(self._ids, request, config or self.config, streamed))
        self.heard.wait_for_end(self._ids)
        return self._ids

    def text(self, request: Request, *, streamed: bool) -> tuple[str, Done, int]:
        """The answer, its end, and in how many pieces it came."""
        id = self.ask(request, streamed=streamed)
        *deltas, done = self.heard.said(id)
        assert isinstance(done, Done) and all(isinstance(delta, TextDelta) for delta in deltas)
        return "".join(delta.text for delta in deltas if isinstance(delta, TextDelta)), done, len(deltas)


@pytest.fixture(scope="module")
def peer(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Peer]:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    said: Path = tmp_path_factory.mktemp("peer") / "log"
    weights = paths.builtin("models") / "pocket-f16.gguf"
    options = {"model": weights, "model_alias": "pocket", "port": port, "host": "127.0.0.1", "n_ctx": 256, "embedding": True}
    flags = [word for name, value in {**options, "n_threads": 1, "api_key": KEY}.items() for word in (f"--{name}", str(value))]
    with said.open("wb") as log:
        process = subprocess.Popen([sys.executable, "-m", "llama_cpp.server", *flags], stdout=log, stderr=log, env={**os.environ})
    try:
        _wait_for(f"http://127.0.0.1:{port}/v1/models", process, said)
        made = Peer(f"http://127.0.0.1:{port}")
        yield made
        made.backend.close()
    finally:
        process.kill()
        process.wait()


def _wait_for(url: str, process: subprocess.Popen[bytes], said: Path) -> None:
    deadline = time.monotonic() + SECONDS
    while True:
        try:
            httpx.get(url, timeout=1)
        except httpx.TransportError:
            assert process.poll() is None and time.monotonic() < deadline, said.read_text()
        else:
            return


@pytest.mark.parametrize(
    "request_",
    [ChatRequest((say("user", "Who are you?"),), GREEDY), CompletionRequest("Once", GREEDY)],
    ids=["chat", "completion"],
)
def test_streamed_and_whole_are_the_same(peer: Peer, request_: Request) -> None:
    streamed, end, pieces = peer.text(request_, streamed=True)
    whole, done, once = peer.text(request_, streamed=False)
    assert streamed == whole and whole and pieces > once == 1
    assert end.reason == done.reason and done.usage.prompt_tokens > 0 and 0 < done.usage.completion_tokens <= 12


def test_stops_and_the_system_prompt_reach_it(peer: Peer) -> None:
    request = ChatRequest((say("user", "Who are you?"),), GREEDY)
    text, _, _ = peer.text(request, streamed=True)
    stop = text.split()[2]
    cut, done, _ = peer.text(ChatRequest(request.messages, GREEDY, (stop,)), streamed=True)
    assert cut == text[: text.index(stop)] and done.reason == "stop"
    told = ModelConfig(options=peer.config.options, name="pocket", system_prompt="Speak of nothing but of sheep and of goats.")
    plain, longer = (peer.heard.done(peer.ask(request, config, streamed=False)) for config in (peer.config, told))
    assert isinstance(plain, Done) and isinstance(longer, Done) and longer.usage.prompt_tokens > plain.usage.prompt_tokens


def test_logprobs_have_the_tokens_bytes(peer: Peer) -> None:
    for request in (ChatRequest((say("user", "Hi"),), GREEDY, logprobs=2), CompletionRequest("Once", GREEDY, logprobs=2)):
        id = peer.ask(request)
        *deltas, done = peer.heard.said(id)
        tokens = [token for delta in deltas if isinstance(delta, TextDelta) for token in delta.logprobs]
        text = "".join(delta.text for delta in deltas if isinstance(delta, TextDelta))
        assert b"".join(token.piece for token in tokens).decode(errors="ignore").startswith(text[:4])
        assert all(token.token == -1 and token.logprob is not None and token.logprob <= 0 and token.top for token in tokens)
        assert isinstance(done, Done) and done.mean_logprob is not None and done.mean_logprob < 0


def test_its_refusals_are_passed_on(peer: Peer) -> None:
    long = peer.heard.refusals[peer.ask(CompletionRequest("Once upon " * 300, GREEDY), streamed=False)]
    assert isinstance(long, UpstreamError) and long.upstream is not None and long.upstream.status == 400
    assert long.upstream.body["error"]["code"] == "context_length_exceeded" and "256 tokens" in long.message
    stranger = ModelConfig(name="pocket", options={**dict(peer.config.options), "api_key": "sk-wrong-key"})
    refused = peer.heard.refusals[peer.ask(CompletionRequest("Once"), stranger)]
    assert isinstance(refused, UpstreamError) and refused.upstream is not None and refused.upstream.status == 401
    assert "sk-wrong-key" not in refused.message


def test_embeddings_that_it_does_not_pool(peer: Peer) -> None:
    found = peer.heard.vectors[peer.ask(EmbedRequest(("two words",)))]
    assert isinstance(found.error, UpstreamUnavailable) and "one for each token" in found.error.message
