"""Endpoints that mean no good, or are badly broken: no secret is told, nothing grows without a limit, nobody waits."""

from __future__ import annotations

import gzip
import json
import time
from collections.abc import AsyncIterator, Iterator
from typing import Any

import pytest
from loopback_endpoint import END, Asked, Client, LoopbackEndpoint, Reply, answered, chunk, event, far_model, head, piece, whole

from llmgallery.backends.openai import sse
from llmgallery.backends.openai.endpoint import endpoint
from llmgallery.backends.openai.events import MOST_CALLS, AnswerReader
from llmgallery.backends.openai.failures import LEVELS, OBJECTS, message_of, portable
from llmgallery.backends.openai.unpacking import PIECE, Unpacker
from llmgallery.backends.openai.vectors import embeddings
from llmgallery.config.model import ModelConfig
from llmgallery.core.errors import ConfigError, GalleryError, UpstreamError, UpstreamUnavailable
from llmgallery.core.requests import EmbedRequest
from llmgallery.wire.channel import encode
from llmgallery.wire.frames import Events, Rejected

KEY = "sk-secret/with=odd-0123456789"
MIB = 1 << 20


@pytest.fixture(scope="module")
def shared() -> Iterator[Client]:
    with far_model() as client:
        yield client


@pytest.fixture
def far(shared: Client, monkeypatch: pytest.MonkeyPatch) -> Client:
    for name in ("HTTP_PROXY", "http_proxy", "ALL_PROXY", "all_proxy"):
        monkeypatch.delenv(name, raising=False)
    shared.server.asked.clear()
    return shared


def pieces(*parts: bytes) -> Reply:
    async def reply(asked: Asked) -> AsyncIterator[bytes]:
        yield head(kind="text/event-stream")
        for part in parts:
            yield piece(part)
        yield END

    return reply


def nested(key: bytes, levels: int) -> bytes:
    return (b'{"' + key + b'":') * levels + b"1" + b"}" * levels


def refused(far: Client, reply: Reply, *, streamed: bool = False, **options: Any) -> GalleryError:
    far.server.reply = reply
    id = far.ask(config=far.config(api_key=KEY, connect_retries=0, **options), streamed=streamed)
    error = far.heard.refusals[id]
    assert type(error) is not GalleryError, f"nobody foresaw it: {error}"
    encode(Rejected(id, error.info()))
    return error


# --- size ---------------------------------------------------------------------------------------------------------------------


def test_packed_answers_are_read(far: Client) -> None:
    far.server.reply = whole(gzip.compress(json.dumps(answered("Hi")).encode()), content_encoding="gzip")
    assert far.heard.text(far.ask(streamed=False)) == "Hi"
    far.server.reply = whole(gzip.compress(json.dumps({"error": {"message": "no"}}).encode()), 400, content_encoding="gzip")
    assert far.heard.refusals[far.ask()].message.endswith("answered 400: no")


def test_what_is_packed_is_unpacked_piece_by_piece() -> None:
    bomb = gzip.compress(bytes(64 * MIB))
    unpacked = Unpacker("gzip").feed(bomb)
    assert [len(next(unpacked)) for _ in range(3)] == [PIECE] * 3
    assert sum(map(len, unpacked)) == 64 * MIB - 3 * PIECE
    with pytest.raises(UpstreamUnavailable, match="no gzip"):
        list(Unpacker("gzip").feed(b"hello"))


def test_no_answer_is_larger_than_can_be_read(far: Client) -> None:
    bomb = gzip.compress(bytes(64 * MIB), 1)
    assert "more than 50331648 bytes" in refused(far, whole(bomb, content_encoding="gzip")).message
    twice = refused(far, whole(gzip.compress(bomb), content_encoding="gzip, gzip"))
    assert "'gzip, gzip', which was not asked for" in twice.message
    assert isinstance(refused(far, whole(bomb, 500, content_encoding="br")), UpstreamError), "the status says enough"


def test_a_stream_keeps_no_more_beside_its_text_than_its_end_can_tell(far: Client) -> None:
    far.server.reply = pieces(*(b'data: {"choices":[],"x%d":"' % number + b"a" * MIB + b'"}\n\n' for number in range(20)))
    done = far.heard.done(far.ask(config=far.config(api_key=KEY)))
    assert done is not None and done.error is not None and "beside its answer" in done.error.message


def test_what_a_stream_repeats_is_kept_once() -> None:
    reader = AnswerReader("chat")
    for _ in range(100):
        reader.chunk({"choices": [], "system_fingerprint": "f" * 400_000})
    assert reader.done().extra["body"] == {"system_fingerprint": "f" * 400_000}


@pytest.mark.parametrize("line", [b"data:\n", b"data: a\n", b"a"])
def test_an_event_without_an_end_is_given_up(line: bytes, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sse, "MOST", 10_000)
    reader = sse.EventReader()
    with pytest.raises(UpstreamUnavailable, match="an event of more than"):
        for _ in range(20):
            list(reader.feed(line * 1000))


def test_many_small_things_are_not_made_large() -> None:
    with pytest.raises(ValueError, match="objects"):
        portable(b"[" + b"{}," * OBJECTS + b"{}]")
    with pytest.raises(UpstreamUnavailable, match="calls at once"):
        AnswerReader("chat").chunk({"choices": [{"delta": {"tool_calls": [{}] * (MOST_CALLS + 1)}}]})


def test_no_answer_is_more_than_a_frame(far: Client) -> None:
    """Each of the tokens takes more bytes in a frame than on its way."""
    tokens = b'{"choices":[{"message":{"content":"a"},"logprobs":{"content":[' + b"{}," * (OBJECTS - 10) + b"{}]}}]}"
    far.server.reply = whole(tokens)
    id = far.ask(streamed=False)
    if id not in far.heard.refusals:
        encode(Events(tuple((id, said) for said in far.heard.said(id))))


# --- depth, shape, time -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("key", [b"error", b"message", b"detail", b"x"])
@pytest.mark.parametrize("levels", [LEVELS - 10, 900, 100_000])
def test_deep_answers_are_refused_or_read(far: Client, key: bytes, levels: int) -> None:
    for status in (200, 500):
        refused(far, whole(nested(key, levels), status))
    refused(far, whole(b'{"error":' + b"[" * levels + b"]" * levels + b"}", 500))


def test_no_part_of_an_answer_is_deep() -> None:
    with pytest.raises(ValueError, match="levels deep"):
        portable(nested(b"a", LEVELS + 1))
    assert portable(b"[" + b"{}," * LEVELS + b"{}]"), "wide is not deep"


@pytest.mark.parametrize("text", ["<script" * 400_000, "<" * 4_000_000, "<a" * 1_000_000])
def test_pages_without_end_are_read_in_no_time(text: str) -> None:
    began = time.monotonic()
    message_of({"error": {"message": text}})
    assert time.monotonic() - began < 2


@pytest.mark.parametrize(
    "item",
    [{"index": []}, {"index": {}}, {"index": 5}, {"index": -1}, {"index": True}, {"embedding": "ä"}, {"embedding": "a"}, {}],
)
def test_odd_vectors_are_no_bug(far: Client, item: dict[str, Any]) -> None:
    item = {"embedding": [0.5], **item}
    try:
        assert len(embeddings({"data": [item]}, 1)[0]) == 1
    except UpstreamUnavailable as error:
        assert "the endpoint answered" in error.message
    far.server.reply = whole({"data": [item]})
    id = far.next_id()
    far.backend.embed(id, EmbedRequest(("a",)), far.config(api_key=KEY))
    far.heard.wait_for_end(id)
    assert type(far.heard.vectors[id].error) in (type(None), UpstreamUnavailable)


def test_who_says_much_does_not_keep_others_waiting(far: Client) -> None:
    """One endpoint streams without an end, while another is asked many things."""
    flood = b"".join(event(chunk("a")).encode() for _ in range(500))

    async def endless(asked: Asked) -> AsyncIterator[bytes]:
        yield head(kind="text/event-stream")
        while not asked.left.is_set():
            yield piece(flood)

    other = LoopbackEndpoint()
    try:
        far.server.reply = endless
        other.reply = whole(answered("Hi"))
        loud = far.begin()
        far.server.wait_for_request()
        config = ModelConfig(name="other", options={"base_url": other.url})
        for _ in range(5):
            assert far.heard.text(far.ask(config=config, streamed=False)) == "Hi"
        far.backend.cancel(loud)
        far.heard.wait_for_end(loud)
    finally:
        other.close()


# --- secrets ------------------------------------------------------------------------------------------------------------------


def escaped(text: str) -> bytes:
    return json.dumps({"error": {"message": f"no such key: {text}", text: [text]}}).replace("/", "\\/").encode()


@pytest.mark.parametrize("status", [200, 401, 500])
def test_keys_that_come_back_go_no_further_however_they_are_written(far: Client, status: int) -> None:
    for body in (escaped(KEY), escaped(KEY).replace(b"s", b"\\u0073"), json.dumps(KEY).encode(), f"<p>{KEY}</p>".encode()):
        error = refused(far, whole(body, status))
        assert KEY not in repr((error.message, error.upstream)) and KEY[:12] not in error.message


def test_what_stands_in_an_address_s_path_is_not_shown(far: Client, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MY_TOKEN", "tk-0123456789")
    reply = whole({"error": {"message": "bad tk-0123456789"}}, 404)
    error = refused(far, reply, base_url=f"{far.server.url}/${{MY_TOKEN}}")
    assert far.server.asked[0].path == "/v1/tk-0123456789/chat/completions"
    assert "tk-01234" not in repr((error.message, error.upstream))


def test_headers_that_are_secret_by_their_name_are_hidden() -> None:
    options = {"base_url": "http://a/v1", "headers": {"X-Api-Key": "plain-secret-1", "authorization": "Bearer plain-secret-2"}}
    found = endpoint(ModelConfig(name="x", options=options), {})
    assert found.without_secrets("plain-secret-1, plain-secret-2") == "[secret], [secret]"


@pytest.mark.parametrize(
    "name", ["x\r\nhost: evil", "x y", "x:", "", "ä", "transfer-encoding", "Content-Length", "connection", "x\x00"]
)
def test_no_header_makes_another_request_of_it(name: str) -> None:
    with pytest.raises(ConfigError, match=r"options\.headers"):
        endpoint(ModelConfig(name="x", options={"base_url": "http://a/v1", "headers": {name: "1"}}), {})


def test_no_cookie_is_kept(far: Client) -> None:
    """Models with other keys, and other ports of the host, would be sent it."""
    far.server.reply = whole(answered("Hi"), set_cookie="session=of-somebody; Path=/")
    far.ask(streamed=False)
    far.ask(streamed=False, config=far.config(api_key=KEY))
    assert len(far.server.asked) == 2 and not any("cookie" in asked.headers for asked in far.server.asked)
