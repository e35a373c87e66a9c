"""Where requests go, with which key and headers; vectors and scores."""

from __future__ import annotations

import base64
import json
import struct
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest
from loopback_endpoint import Asked, Client, answered, far_model, whole

from llmgallery.backends.openai.endpoint import endpoint
from llmgallery.config.model import ModelConfig
from llmgallery.core.errors import Cancelled, ConfigError, UpstreamError, UpstreamUnavailable
from llmgallery.core.requests import EmbedRequest, RerankRequest

SECRET = "sk-very-secret-0123456789"


@pytest.fixture(scope="module")
def shared() -> Iterator[Client]:
    with far_model() as client:
        yield client


@pytest.fixture
def far(shared: Client, monkeypatch: pytest.MonkeyPatch) -> Client:
    for name in ("OPENAI_API_KEY", "OPENAI_BASE_URL", "HTTP_PROXY", "http_proxy", "ALL_PROXY", "all_proxy"):
        monkeypatch.delenv(name, raising=False)
    shared.server.asked.clear()
    return shared


# --- where it goes, and with which key -----------------------------------------------------------------------------------------


def test_the_least_that_a_file_may_say(far: Client, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OPENAI_BASE_URL", far.server.url + "/")
    monkeypatch.setenv("OPENAI_API_KEY", SECRET)
    far.server.reply = whole(answered("Hello"))
    assert far.heard.text(far.ask(config=ModelConfig(name="gpt-3.5-turbo", backend="openai"))) == "Hello"
    asked = far.server.asked[0]
    assert asked.body["model"] == "gpt-3.5-turbo" and asked.headers["authorization"] == f"Bearer {SECRET}"


def test_openai_itself() -> None:
    found = endpoint(ModelConfig(name="gpt-x", options={"project": "p"}), {"OPENAI_API_KEY": SECRET})
    assert (found.address("chat/completions"), found.is_openai) == ("https://api.openai.com/v1/chat/completions", True)
    assert found.headers["authorization"] == f"Bearer {SECRET}" and found.headers["openai-project"] == "p"
    assert not endpoint(ModelConfig(name="x", options={"base_url": "https://api.openai.com.x/v1"}), {}).is_openai


def test_addresses_are_shown_without_secrets() -> None:
    found = endpoint(ModelConfig(name="x", options={"base_url": "http://${WHO}:password@host:1/v1?code=1"}), {"WHO": "someone"})
    assert found.address("embeddings") == "http://someone:password@host:1/v1/embeddings?code=1"
    assert set(found.secrets) == {"password", base64.b64encode(b"someone:password").decode()}
    assert found.shown("embeddings") == "http://host:1/v1/embeddings" and found.shown() == "http://host:1/v1"


def test_openais_key_is_for_no_other_endpoint(far: Client, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", SECRET)
    far.server.reply = whole(answered("Hello"))
    far.ask()
    assert "authorization" not in far.server.asked[0].headers


def test_keys_that_are_not_there(far: Client, tmp_path: Path) -> None:
    absent = tmp_path / "key"
    for config, said in (
        (ModelConfig(name="gpt-4o", backend="openai"), "OPENAI_API_KEY is not set"),
        (far.config(api_key_env="NO_SUCH_KEY"), "NO_SUCH_KEY is not set"),
        (far.config(api_key_file=str(absent)), f"{absent} cannot be read"),
        (far.config(headers={"x": "${NO_SUCH_KEY}"}), "options.headers.x: the environment variable NO_SUCH_KEY is not set"),
        (far.config(base_url="localhost:80/v1"), "begins with http:// or https://"),
        (far.config(ca_bundle=str(absent)), "options.ca_bundle"),
        (far.config(base_url="http://under_sc\u00f6re..x/v1"), "is no address"),
        (ModelConfig(options={"base_url": far.server.url}), "upstream_model"),
    ):
        error = far.refused(config)
        assert isinstance(error, ConfigError) and said in error.message
    assert not far.server.asked


def test_an_environment_that_is_no_use(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ALL_PROXY", "gopher://x")
    with far_model() as own:
        error = own.refused()
        assert isinstance(error, ConfigError) and "proxies" in error.message


def test_a_key_in_a_file_is_read_each_time(far: Client, tmp_path: Path) -> None:
    file = tmp_path / "key"
    far.server.reply = whole(answered("Hello"))
    for key in ("one-key", "another"):
        file.write_text(key + "\n")
        far.ask(config=far.config(api_key_file=str(file), organization="org", project="proj"))
        assert far.server.asked[-1].headers["authorization"] == f"Bearer {key}"
    assert far.server.asked[0].headers["openai-organization"] == "org"
    file.write_text("two\nlines")
    error = far.refused(far.config(api_key_file=str(file)))
    assert isinstance(error, ConfigError) and "lines" not in error.message.partition("one line")[0]


def test_an_address_with_a_query(far: Client) -> None:
    far.server.reply = whole(answered("Hello"))
    far.ask(config=far.config(base_url=far.server.url + "/?api-version=1", headers={"api-key": "k"}))
    assert far.server.asked[0].path == "/v1/chat/completions?api-version=1" and far.server.asked[0].headers["api-key"] == "k"


# --- vectors -----------------------------------------------------------------------------------------------------------------


def embedded(*vectors: object, tokens: int = 4) -> dict[str, object]:
    data = [{"object": "embedding", "index": index, "embedding": vector} for index, vector in enumerate(vectors)]
    return {"object": "list", "data": data[::-1], "usage": {"prompt_tokens": tokens, "total_tokens": tokens}}


def test_embeddings(far: Client) -> None:
    one, two = struct.pack("<2f", 0.25, -1.5), struct.pack("<2f", 1, 2)
    for reply in (embedded([0.25, -1.5], [1, 2]), embedded(base64.b64encode(one).decode(), base64.b64encode(two).decode())):
        far.server.reply = whole(reply)
        id = far.next_id()
        far.backend.embed(id, EmbedRequest(("a", (1, 2)), dimensions=2), far.config())
        far.heard.wait_for_end(id)
        found = far.heard.vectors[id]
        assert (found.vectors, found.prompt_tokens, found.error) == ((one, two), 4, None)
    asked = far.server.asked[0]
    assert (asked.path, asked.body["input"], asked.body["dimensions"]) == ("/v1/embeddings", ["a", [1, 2]], 2)


@pytest.mark.parametrize(
    "reply",
    [
        embedded([1.0]),
        embedded([1.0], "x"),
        embedded([1.0], []),
        embedded([1.0], ["a"]),
        embedded([1.0], [1e300]),
        {"data": 3},
        [],
    ],
)
def test_embeddings_that_are_none(far: Client, reply: object) -> None:
    far.server.reply = whole(reply)
    id = far.next_id()
    far.backend.embed(id, EmbedRequest(("a", "b")), far.config())
    far.heard.wait_for_end(id)
    assert isinstance(far.heard.vectors[id].error, UpstreamUnavailable)


def test_embeddings_are_refused_and_withdrawn(far: Client) -> None:
    far.server.reply = whole({"error": {"message": "no such model"}}, 404)
    id = far.next_id()
    far.backend.embed(id, EmbedRequest(("a",)), far.config())
    far.heard.wait_for_end(id)
    assert isinstance(far.heard.vectors[id].error, UpstreamError)

    async def silent(asked: Asked) -> AsyncIterator[bytes]:
        await asked.go.wait()
        yield b""

    far.server.reply = silent
    id = far.next_id()
    far.backend.embed(id, EmbedRequest(("a",)), far.config())
    asked = far.server.wait_for_request(2)
    far.backend.cancel(id)
    far.heard.wait_for_end(id)
    assert isinstance(far.heard.vectors[id].error, Cancelled) and asked.left.wait(5)


def test_rerank(far: Client) -> None:
    results = [{"index": 1, "relevance_score": 0.5}, {"index": 0, "relevance_score": 0.25}]
    far.server.reply = whole({"results": results, "usage": {"total_tokens": 9}}, x_ratelimit_remaining_tokens="8")
    id = far.next_id()
    far.backend.rerank(id, RerankRequest("q", ("a", "b")), far.config())
    far.heard.wait_for_end(id)
    found = far.heard.vectors[id]
    assert (found.vectors, found.prompt_tokens) == ((struct.pack("<f", 0.25), struct.pack("<f", 0.5)), 9)
    assert far.heard.heads[id] == {"x-ratelimit-remaining-tokens": "8"}
    assert json.dumps(far.server.asked[0].body["documents"]) == '["a", "b"]' and far.server.asked[0].path == "/v1/rerank"
